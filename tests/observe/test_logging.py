"""Logs are one JSON object per line for machines, readable for people, and never carry a key."""

import io
import json
import logging

import attrs
import pytest
import structlog

from meshnode.observe.logging import REDACTED, configure_logging, redact


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level, configured = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)


def _lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_stream_that_is_no_terminal_gets_json_lines():
    stream = io.StringIO()
    configure_logging("info", json=None, stream=stream)
    structlog.get_logger("meshnode.test").info("shard acquired", shard="ab12", size=3)
    (record,) = _lines(stream)
    assert record["event"] == "shard acquired"
    assert record["shard"] == "ab12"
    assert record["level"] == "info"
    assert record["logger"] == "meshnode.test"
    assert record["timestamp"].endswith("Z")


def test_a_terminal_gets_text_for_people():
    stream = _Terminal()
    configure_logging("info", json=None, stream=stream)
    structlog.get_logger("meshnode.test").info("ready", port=8800)
    assert "ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_the_format_can_be_forced():
    stream = _Terminal()
    configure_logging("info", json=True, stream=stream)
    structlog.get_logger("t").info("ready")
    assert _lines(stream)[0]["event"] == "ready"


def test_records_of_libraries_look_like_ours():
    stream = io.StringIO()
    configure_logging("info", json=True, stream=stream)
    logging.getLogger("some.library").warning("took %d tries", 3)
    (record,) = _lines(stream)
    assert record["event"] == "took 3 tries"
    assert record["level"] == "warning"


def test_records_below_the_level_are_dropped():
    stream = io.StringIO()
    configure_logging("warning", json=True, stream=stream)
    structlog.get_logger("t").info("no")
    logging.getLogger("t").info("no")
    structlog.get_logger("t").warning("yes")
    assert [record["event"] for record in _lines(stream)] == ["yes"]


def test_configuring_again_replaces_the_stream():
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", json=True, stream=first)
    configure_logging("info", json=True, stream=second)
    structlog.get_logger("t").info("once")
    assert first.getvalue() == ""
    assert len(_lines(second)) == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bearer_key_never_reaches_the_log(as_json):
    stream = io.StringIO()
    configure_logging("info", json=as_json, stream=stream)
    logger = structlog.get_logger("t")
    key = "sk-abc_DEF-123.456"
    logger.info(f"sent Authorization: Bearer {key}")
    logger.info("request", headers=[(b"authorization", f"Bearer {key}".encode())])
    logger.info("request", headers={"X-Api-Key": key, "deep": {"api_key": key}})
    logger.info("request", authorization=key)
    logging.getLogger("library").info("x-api-key: %s", key)
    try:
        raise ValueError(f"refused 'Bearer {key}'")
    except ValueError:
        logger.exception("failed")
        logging.getLogger("library").exception("failed")
    assert key not in stream.getvalue()
    assert REDACTED in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_redaction_leaves_ordinary_words_alone():
    event = {"event": "the bearer of this ring", "shards": ["a", "b"], "n": 3, "raw": b"bytes", "key": "block.0"}
    assert redact(None, "info", dict(event)) == event | {"raw": "bytes"}


def test_a_key_in_bytes_or_in_a_header_pair_is_redacted():
    event = {"event": "e", "raw": b"authorization: Bearer abcdefgh", "pair": ("Authorization", "abcdefgh")}
    clean = redact(None, "info", event)
    assert clean["raw"] == f"authorization: Bearer {REDACTED}"
    assert clean["pair"] == ["Authorization", REDACTED]


def test_a_value_nested_without_end_is_cut_off():
    value: dict[str, object] = {}
    value["self"] = value
    assert "…" in str(redact(None, "info", {"event": "e", "value": value}))


@attrs.frozen
class _Request:
    header: str


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        ValueError("refused 'Bearer sk-abc_DEF-123'"),
        {"Bearer sk-abc_DEF-123"},
        _Request("Bearer sk-abc_DEF-123"),
        {b"x-api-key": b"sk-abc_DEF-123"},
        {"api-key": "sk-abc_DEF-123"},
        {"Proxy-Authorization": "sk-abc_DEF-123"},
        {"Bearer sk-abc_DEF-123": 1},
        "[(b'x-api-key', b'sk-abc_DEF-123')]",
        "api_key=sk-abc_DEF-123",
    ],
)
def test_a_key_hides_in_no_kind_of_value(as_json, value, capsys):
    stream = io.StringIO()
    configure_logging("info", json=as_json, stream=stream)
    structlog.get_logger("t").info("request", value=value)
    assert "sk-abc" not in stream.getvalue()
    assert REDACTED in stream.getvalue()
    assert capsys.readouterr().err == ""  # a record that cannot be rendered is printed there, unredacted


def test_plain_values_keep_their_types():
    event = {"event": "e", "n": 1, "share": 0.5, "ok": True, "nothing": None}
    assert redact(None, "info", dict(event)) == event
