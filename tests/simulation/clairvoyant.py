"""What somebody would have to move who knows when everybody comes and goes, and what will be asked for."""

__all__ = ["least_moved"]


def least_moved(day, needs, end):
    """Return the bytes that keep as many copies of each segment as there have to be, at all times.

    `needs`: by model, from when on how many copies. Each time there are too few, the member with room is taken that is there for
    the longest of the day; what it has fetched once stays on its disk.
    """
    rest = {peer: _up_spans(day.nodes[peer], times, end) for peer, times in day.spans.items()}
    free = {peer: node.budget for peer, node in day.nodes.items()}
    order = sorted(free, key=lambda peer: -sum(b - a for a, b in rest[peer]))
    moved = 0
    for model in sorted(needs, key=lambda name: -day.models[name].block_bytes):
        facts = day.models[model]
        for segment in facts.segments():
            nbytes = facts.segment_bytes(segment.index)
            cover = []  # spans of the members chosen
            for peer in order:
                if free[peer] < nbytes or not rest[peer]:
                    continue
                if _covered(cover, needs[model], end):
                    break
                cover.extend(rest[peer])
                free[peer] -= nbytes
                moved += nbytes
    return moved


def _up_spans(node, turns, end):
    """Return when a node was up; `turns` are its changes, `node.up` is how it ended."""
    up = node.up if len(turns) % 2 == 0 else not node.up
    spans, at = [], 0.0
    for turn in [*turns, end]:
        if up:
            spans.append((at, turn))
        up, at = not up, turn
    return spans


def _covered(spans, needs, end):
    """Whether at every moment at least as many of the spans are under way as are needed then."""
    steps = [(at, now - before) for (_, before), (at, now) in zip([(0.0, 0), *needs], needs, strict=False)]
    changes = sorted(
        [(a, 1, 0) for a, _ in spans] + [(b, -1, 0) for _, b in spans] + [(at, 0, more) for at, more in steps],
        key=lambda change: (change[0], -change[1]),
    )
    depth = needed = 0
    for index, (at, change, more) in enumerate(changes):
        depth, needed = depth + change, needed + more
        following = changes[index + 1][0] if index + 1 < len(changes) else end
        if following > at and depth < needed and at < end:
            return False
    return True
