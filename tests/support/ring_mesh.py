"""Three toy nodes that hand rows on in rings, and what a test may ask of them."""

import trio
from support.memory_mesh import MemoryNetwork
from support.toy_executor import toy_answer
from support.toy_mesh import BLOCKS, PROMPT, Mesh
from support.toy_rings import ToyRings

from meshnode.types.generation import SamplingParameters

__all__ = ["COUNT", "THREE", "RingMesh", "expected", "open_ring_mesh"]

COUNT = 60
THREE = (("a", 0, 4), ("b", 4, 9), ("c", 9, 12))


class RingMesh(Mesh):
    async def add_all(self, *nodes):
        for name, start, end in nodes:
            await self.add(name, start, end)

    def sent(self, kind):
        return [message for _, _, message, _ in self.network.seen if isinstance(message, kind)]

    def stray(self, kind):
        return self.metrics.inference_stray_messages_total.labels(kind=kind)._value.get()

    async def assert_all_is_free(self, but=()):
        """Wait a second; `but` are those who cannot."""
        await trio.sleep(1)
        assert {name: held for name, held in self.held().items() if held and name not in but} == {}
        assert self.rings.sessions(but) == []


def open_ring_mesh(nursery):
    network = MemoryNetwork(nursery)
    return RingMesh(network, nursery, rings=ToyRings(network))


_whole = []  # the longest answer that a test wants


async def expected(count=COUNT):
    """Return what one executor with everything answers."""
    if not _whole:
        _whole.extend(await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 200))
    return _whole[:count]
