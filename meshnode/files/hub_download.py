"""Fetches blocks of a hub's files into their mirrors: several runs at a time, each tried again where it broke off."""

from collections.abc import Callable, Collection, Iterator, Sequence

import attrs
import httpx
import trio

from meshnode.errors import FileError
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_client import Hub, HubRepository, HubTrouble, patiently
from meshnode.files.hub_mirror import BLOCK_BYTES, Mirror
from meshnode.flow.lanes import Lanes

__all__ = ["HubDownload"]

_AT_ONCE = 4
_MAX_RUN = 256  # blocks that one request asks for


@attrs.frozen(eq=False)
class HubDownload:
    """One download from one repository."""

    hub: Hub
    connections: httpx.AsyncClient
    repository: HubRepository
    lanes: Lanes
    pause: float  # seconds after a first failure, twice as long after each further one
    told: Callable[[], None]  # called after every block

    async def fetch(self, wanted: Sequence[tuple[HubFile, Mirror, Collection[int]]]) -> None:
        """Have these blocks of these files in their mirrors.

        Raises SourceUnavailable when the hub does not give them, FileError when the disk is full. What has come stays, then and
        on cancellation, which closes the connections.
        """
        runs = iter([(file, mirror, run) for file, mirror, blocks in wanted for run in _runs(blocks, mirror.held)])
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(_AT_ONCE):
                    nursery.start_soon(self._work, runs)
        except* FileError as group:
            raise group.exceptions[0] from None

    async def _work(self, runs: Iterator[tuple[HubFile, Mirror, range]]) -> None:
        for file, mirror, run in runs:
            await self._fetch_run(file, mirror, run)

    async def _fetch_run(self, file: HubFile, mirror: Mirror, run: range) -> None:
        def left() -> range:
            return range(next((block for block in run if block not in mirror.held), run.stop), run.stop)

        async def attempt() -> None:
            await self._stream(file, mirror, left())

        await patiently(attempt, f"{file.path} of {self.repository.name}", self.pause, lambda: len(left()))

    async def _stream(self, file: HubFile, mirror: Mirror, run: range) -> None:
        """Take all of a run, or what comes of it, in order. Raises HubTrouble when less comes."""
        block, end = run.start, min(run.stop * BLOCK_BYTES, file.nbytes)
        data = bytearray()
        async with self.hub.open_range(self.connections, self.repository, file, block * BLOCK_BYTES, end) as pieces:
            async for piece in pieces:  # to its end, which is when httpx gives the connection back
                if block == run.stop:
                    break  # more than was asked for
                data += piece
                while block < run.stop and len(data) >= (size := mirror.size_of(block)):
                    await self.lanes.run("disk", mirror.write, block, bytes(data[:size]))
                    del data[:size]
                    self.told()
                    block += 1
        if block < run.stop:
            raise HubTrouble(f"the answer ended {len(data)} bytes into block {block}")


def _runs(blocks: Collection[int], held: Collection[int]) -> Iterator[range]:
    """Cut the blocks that are not there into runs of neighbours."""
    missing = sorted(set(blocks) - set(held))
    longest = min(_MAX_RUN, -(-len(missing) // _AT_ONCE))
    first = 0
    for index, block in enumerate(missing, start=1):
        if index == len(missing) or missing[index] != block + 1 or index - first == longest:
            yield range(missing[first], block + 1)
            first = index
