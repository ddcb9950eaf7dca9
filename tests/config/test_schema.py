import attrs
import pytest

from meshnode.config import NodeConfig, load_config
from meshnode.config.loading import known_keys
from meshnode.config.values import as_type
from meshnode.errors import ConfigError

RANGES = [
    ("api.port", 0, 65535),
    ("api.body_limit_bytes", 1024, 1 << 30),
    ("api.requests_per_minute", 1, 1_000_000),
    ("api.body_timeout", 0.1, 3600),
    ("api.write_timeout", 0.1, 3600),
    ("api.keep_alive_timeout", 0.1, 3600),
    ("api.drain_timeout", 0, 25),
    ("api.max_connections", 1, 65535),
    ("engine.threads", 0, 1024),
    ("engine.cache_bytes", 0, 1 << 50),
    ("engine.context_length", 0, 1 << 24),
    ("engine.max_batch", 1, 1024),
    ("engine.prefill_chunk", 1, 65536),
    ("inference.queue_length", 1, 100_000),
    ("inference.max_concurrent", 1, 1024),
    ("inference.request_timeout", 1, 86400),
    ("inference.max_stages", 0, 4096),
    ("network.port", 0, 65535),
    ("network.data_port", 0, 65535),
    ("network.bulk_port", 0, 65535),
    ("network.max_peers", 1, 4096),
    ("resources.memory_bytes", 0, 1 << 50),
    ("resources.gpu_bytes", 0, 1 << 50),
    ("resources.disk_bytes", 0, 1 << 50),
    ("hub.interval", 1, 30 * 86400),
    ("hub.min_age_hours", 0, 24 * 365),
    ("transfer.upload_bytes_per_second", 0, 1e12),
    ("transfer.upload_bytes_per_second_per_peer", 0, 1e12),
    ("updates.threshold", 2, 16),
    ("updates.interval", 60, 2_592_000),
    ("updates.ready_timeout", 5, 600),
    ("chat.temperature", 0, 2),
    ("chat.max_tokens", 1, 1 << 24),
    ("chat.seed", -(1 << 63), (1 << 63) - 1),
]
NUMBERS = (int, float, int | None, float | None)


def load(key, value, tmp_path):
    return load_config(flags={key: value}, env={}, file=tmp_path / "none").config


def test_every_number_has_a_tested_range():
    assert {key for key, wanted in known_keys().items() if wanted in NUMBERS} == {key for key, _, _ in RANGES}


@pytest.mark.parametrize(("key", "low", "high"), RANGES)
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(tmp_path, key, low, high):
    for value in (low, high):
        load(key, value, tmp_path)
    for value in (low - 1, high + 1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=key):
            load(key, str(value), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api.host", ""),
        ("updates.url", "http://example.com/release.json"),
        ("updates.url", "ftp://127.0.0.1/release.json"),
        ("updates.keys", "c2hvcnQ="),
        ("updates.keys", "not base64 at all"),
        ("updates.channel", ""),
        ("engine.device", "tpu"),
        ("models.blocks", "4"),
        ("inference.privacy", "nobody"),
        ("network.network_id", ""),
        ("log.level", "loud"),
        ("log.format", "xml"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(tmp_path, key, value):
    with pytest.raises(ConfigError, match=key):
        load(key, value, tmp_path)


@pytest.mark.parametrize("key", ["", "short", "with a space", "ünïcödë-key", "line\nbreak-key"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_quoted(tmp_path, key):
    with pytest.raises(ConfigError, match=r"api\.key: must be") as refused:
        load("api.key", key, tmp_path)
    assert not key or key not in str(refused.value)


def test_a_key_does_not_show(tmp_path):
    assert "a-secret-key" not in repr(load("api.key", "a-secret-key", tmp_path))


def test_every_default_is_a_value_of_its_type():
    for section, fields in attrs.asdict(NodeConfig()).items():
        for name, value in fields.items():
            assert as_type(known_keys()[f"{section}.{name}"], value) == value
