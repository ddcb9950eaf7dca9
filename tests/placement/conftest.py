import pytest

from meshnode.placement import auto_shard


@pytest.fixture(autouse=True)
def rare_pulses(monkeypatch):
    monkeypatch.setattr(auto_shard, "_PULSE_EVERY", 3600.0)  # days go by, and nobody feels them
