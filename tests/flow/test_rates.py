"""Counts that fade."""

import pytest
import trio

from meshnode.flow.rates import FadingRates


async def test_a_steady_rate_is_told_and_silence_halves_it(autojump_clock):
    rates = FadingRates(half_life=3600.0)
    for _ in range(12 * 60):
        rates.note("model")
        await trio.sleep(60)
    assert rates.per_hour() == {"model": pytest.approx(60, rel=0.03)}
    await trio.sleep(3600)
    assert rates.per_hour() == {"model": pytest.approx(30, rel=0.03)}


async def test_what_has_not_happened_for_long_is_forgotten(autojump_clock):
    rates = FadingRates()
    rates.note("model")
    await trio.sleep(24 * 3600)
    assert rates.per_hour() == {}


async def test_there_are_never_more_keys_than_the_bound(autojump_clock, monkeypatch):
    monkeypatch.setattr("meshnode.flow.rates._MAX_KEYS", 3)
    rates = FadingRates()
    for key in "aabbcd":
        rates.note(key)
    assert len(rates.per_hour()) == 3
    assert {"a", "b"} <= rates.per_hour().keys()
