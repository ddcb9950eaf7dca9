"""How long a hub that is busy is left alone, on virtual time."""

import email.utils
import time

import httpx
import pytest
import trio

from meshnode.errors import SourceUnavailable
from meshnode.files import hub_client
from meshnode.files.hub_client import HubTrouble, patiently

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (email.utils.formatdate(NOW + 30, usegmt=True), 30),
        (email.utils.formatdate(NOW - 30, usegmt=True), 0),
        ("86400", 120),
        (email.utils.formatdate(NOW + 86400, usegmt=True), 120),
        ("soon", 0),
        ("", 0),
    ],
)
async def test_a_hub_is_left_alone_for_as_long_as_it_asks_within_reason(autojump_clock, monkeypatch, text, seconds):
    monkeypatch.setattr(time, "time", lambda: NOW)
    tries = []

    async def attempt():
        await trio.lowlevel.checkpoint()
        tries.append(trio.current_time())
        if len(tries) == 1:
            raise HubTrouble("busy", hub_client._retry_after(httpx.Response(429, headers={"retry-after": text})))
        return "there"

    assert await patiently(attempt, "a file", pause=0.001) == "there"
    assert tries[1] - tries[0] == pytest.approx(seconds, abs=0.01)


async def test_attempts_that_bring_nothing_end_and_those_that_bring_something_do_not(autojump_clock):
    left = [20]

    async def attempt():
        await trio.lowlevel.checkpoint()
        left[0] = max(0, left[0] - 1)
        raise HubTrouble("the line broke")

    with pytest.raises(SourceUnavailable, match=r"a file: the line broke; tried 6 times"):
        await patiently(attempt, "a file", 1.0, lambda: left[0])
    assert left == [0]
