"""What must hold in a mesh whatever goes wrong, and how it is seen."""

from contextlib import contextmanager

import attrs
import trio

from meshnode.inference.hosted_stage import HostedStage
from meshnode.inference.router import InferenceRouter

__all__ = ["GONE", "Broken", "Undead", "WatchedRouter", "held", "owners_watched", "strangers"]

GONE = 32.0  # seconds after which a node that fell silent is known to be gone by all: heartbeats, then vain dials


class Broken(AssertionError):
    """An invariant does not hold."""


class WatchedRouter(InferenceRouter):
    """A router that shows what it holds."""

    def _assemble(self, loader, nursery):
        runner, self.inbox = super()._assemble(loader, nursery)
        return runner, self.inbox

    def held(self):
        """Count what belongs to requests and sessions, by what it is."""
        inbox, models = self.inbox, self._resources.models.loaded.value.values()
        return {
            "calls": self._in_hand,
            "turns": self._queue.active + self._queue.waiting,
            "pipelines": len(inbox.coordinator.pipelines),
            "hosted stages": len(inbox.stages),
            "delegations": len(inbox.delegations._waiting),
            "requests of others": len(inbox.delegates._served),
            "sessions of workers": sum(model.sessions for model in models),
        }


def held(nodes):
    """Yield what nodes hold of requests and sessions: nothing, once all have ended."""
    for node in nodes:
        counts = node.router.held() | {"caches": len(node.executor.sessions) if node.executor else 0}
        yield from (f"{node.peer[-6:]}: {count} {what}" for what, count in counts.items() if count)


def strangers(nodes):
    """Yield who does not know, or is not linked with, or knows old things of whom; nobody in a mesh that is well."""
    by_peer = {node.peer: node for node in nodes}
    for node in nodes:
        known = {info.peer: info for info in node.table.peers()}
        alive = {peer for peer, info in known.items() if info.liveness.value != "dead" and info.offer is not None}
        for peer in sorted(alive - set(by_peer)):
            yield f"{node.peer[-6:]} takes {peer[-6:]} for alive"
        for peer, other in by_peer.items():
            if other is node:
                continue
            newest = other.book.offer(peer)
            if peer not in alive or not known[peer].connected:
                yield f"{node.peer[-6:]} is not linked with {peer[-6:]}"
            elif newest is not None and known[peer].offer.sequence != newest.sequence:
                yield f"{node.peer[-6:]} has an old offer of {peer[-6:]}"


@contextmanager
def owners_watched():
    """Raise Broken where a step of a block is computed for the second time in one attempt of a session."""
    owners = {}
    original = HostedStage._executor_step

    def executor_step(stage, opened, step):
        result = original(stage, opened, step)
        own = stage.links.loopback.peer
        for block in opened.blocks or ():
            key = (opened.session, opened.attempt, step.message.step, block)
            if key in owners:
                raise Broken(f"step {key[2]} of block {block} is computed by {owners[key][-6:]} and by {own[-6:]}")
            owners[key] = own
        return result

    HostedStage._executor_step = executor_step
    try:
        yield
    finally:
        HostedStage._executor_step = original


@attrs.define(eq=False)
class Undead:
    """Looks every second whether somebody takes for alive who is gone: for long, or again after having known better."""

    nodes: list
    _gone: dict = attrs.field(factory=dict, init=False)  # peer -> since when
    _heard: dict = attrs.field(factory=dict, init=False)  # (process, peer that is gone) -> sequence of its last offer
    _buried: dict = attrs.field(factory=dict, init=False)  # the same, of those that are known to be gone

    async def run(self):
        while True:
            self.look()
            await trio.sleep(1)

    def look(self):
        """Raise Broken for one who came back from the dead in somebody's eyes, with nothing new to say."""
        now = trio.current_time()
        self._gone = {node.peer: self._gone.get(node.peer, now) for node in self.nodes if not node.is_up}
        if not self._gone:
            self._heard, self._buried = {}, {}
        for node in self.nodes if self._gone else ():
            if not node.is_up or node.table is None:
                continue
            for peer, since in self._gone.items():
                if (info := node.table.peer(peer)) is not None:
                    self._judge(node, info, now - since)

    def _judge(self, node, info, gone):
        key = (node.scope, info.peer)
        if info.liveness.value == "dead" or info.offer is None:
            if key in self._heard:
                self._buried[key] = self._heard.pop(key)
            return
        if gone > GONE and trio.current_time() - node.since > GONE:
            raise Broken(f"{node.peer[-6:]} takes {info.peer[-6:]} for alive, which went {gone:.0f} s ago")
        if info.offer.sequence <= self._buried.get(key, -1):
            raise Broken(f"{node.peer[-6:]} knew that {info.peer[-6:]} is gone, and believes again what it said before")
        self._heard[key] = info.offer.sequence
