"""How bulk gives way to activations on one link, in virtual time."""

import attrs
import pytest
import trio

from meshnode.network.right_of_way import Courtesy, RightOfWay

TOKEN = 0.03  # seconds between two activations
ROW = 4096  # bytes of one
AWAY = 0.01  # seconds to the other side and back


@attrs.define
class Wire:
    """First come, first sent."""

    rate: float  # bytes per second
    free_at: float = 0.0

    async def carry(self, nbytes):
        """Return how long it waited before it went, once it has been acknowledged."""
        now = trio.current_time()
        began = max(now, self.free_at)
        self.free_at = began + nbytes / self.rate
        await trio.sleep_until(self.free_at + AWAY)
        return began - now


@attrs.define
class Sender:
    """A connection that has shards to give without end."""

    courtesy: Courtesy
    sent: int = 0

    async def run(self, wire):
        while True:
            while pause := self.courtesy.claim():  # noqa: ASYNC110  # as a thread does
                await trio.sleep(pause)
            began, piece = trio.current_time(), self.courtesy.piece
            await wire.carry(piece)
            self.courtesy.arrived(trio.current_time() - began)
            self.sent += piece


@pytest.mark.parametrize("senders", [1, 4])
@pytest.mark.parametrize("megabits", [5, 50, 1000])
async def test_an_activation_waits_for_one_piece_at_most_and_bulk_goes_on(autojump_clock, megabits, senders):
    wire, way, waits = Wire(megabits * 1e6 / 8), RightOfWay(trio.current_time), []
    bulk = [Sender(Courtesy(way)) for _ in range(senders)]
    async with trio.open_nursery() as nursery:
        for sender in bulk:
            nursery.start_soon(sender.run, wire)
        with trio.move_on_after(10):
            while True:
                nursery.start_soon(note, waits, wire)
                await trio.sleep(TOKEN)
        nursery.cancel_scope.cancel()
    smallest = (16384 + 4096 + 2 * ROW) / wire.rate  # a piece, by how much the next grows, and what was before it
    assert max(waits) <= smallest + 0.005
    assert sum(waits) / len(waits) <= max(0.002, smallest / 3)
    rates = [sender.sent / 10 for sender in bulk]
    assert min(0.05 * wire.rate, 1e6) < sum(rates) < 0.3 * wire.rate
    assert min(rates) > max(rates) / 5


async def note(waits, wire):
    waits.append(await wire.carry(ROW))


async def test_a_piece_that_gets_stuck_holds_up_nobody_for_long(autojump_clock):
    way = RightOfWay(trio.current_time)
    stuck, other = Courtesy(way), Courtesy(way)
    assert stuck.claim() == 0
    pause = other.claim()
    assert 0 < pause < 1
    await trio.sleep(pause)
    assert other.claim() == 0


async def test_the_way_is_free_again_when_no_activations_have_passed_for_a_while(autojump_clock):
    way = RightOfWay(trio.current_time)
    assert not way.is_taken
    way.activations_pass()
    await trio.sleep(1.9)
    assert way.is_taken
    way.activations_pass()
    await trio.sleep(1.9)
    assert way.is_taken
    await trio.sleep(0.2)
    assert not way.is_taken
