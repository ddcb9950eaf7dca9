"""When whoever could not be reached is tried again; on virtual time."""

from random import Random

import pytest
import trio
import trio.testing

from meshnode.network import dialing
from meshnode.network.dialing import Dialling, peer_of


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


async def pauses(dialling, count):
    """Let a peer fail again and again; return after how long each time it was due again."""
    found = []
    for _ in range(count):
        dialling.failed("peer")
        start = trio.current_time()
        while not dialling.due(["peer"]):  # noqa: ASYNC110
            await trio.sleep(0.01)
        found.append(trio.current_time() - start)
    return found


async def test_each_failure_doubles_the_pause_up_to_a_minute(autojump_clock):
    dialling = Dialling(Random(1))
    assert dialling.due(["peer", "other"]) == ["peer", "other"]
    found = await pauses(dialling, 10)
    for number, pause in enumerate(found):
        assert 0.75 * min(60, 2**number) <= pause <= 1.25 * min(60, 2**number) + 0.1


async def test_success_forgets_the_failures_and_others_are_not_kept_waiting(autojump_clock):
    dialling = Dialling(Random(1))
    await pauses(dialling, 6)
    dialling.failed("peer")
    assert dialling.due(["peer", "other"]) == ["other"]
    dialling.reached("peer")
    assert dialling.due(["peer", "other"]) == ["peer", "other"]
    assert (await pauses(dialling, 1))[0] < 1.4


async def test_nodes_do_not_try_again_in_step(autojump_clock):
    first = {round((await pauses(Dialling(Random(seed)), 1))[0], 2) for seed in range(10)}
    assert len(first) > 5


async def test_what_is_remembered_is_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr(dialing, "_MAX_KEYS", 10)
    dialling = Dialling()
    for number in range(100):
        dialling.failed(number)
    assert len(dialling.due(range(100))) == 90


def test_the_peer_that_addresses_lead_to():
    assert peer_of(["/ip4/192.0.2.7/tcp/1/p2p/RELAY/p2p-circuit/p2p/PEER"]) == "PEER"
    assert peer_of(["nonsense", "/ip4/192.0.2.7/tcp/1/p2p/PEER"]) == "PEER"
    assert peer_of(["/ip4/192.0.2.7/tcp/1", "/ip4/192.0.2.7/tcp/1/p2p/"]) is None
