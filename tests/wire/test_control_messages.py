"""Every message between nodes, byte for byte, and what decoders make of bytes that are none."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import EXAMPLES, SETS

from meshnode.errors import FrameTooLarge, WireError
from meshnode.types.ids import PeerId, SessionId, new_session_id
from meshnode.wire.envelopes import Envelope, EnvelopeCodec
from meshnode.wire.failures import Failed
from meshnode.wire.frames import Frame
from meshnode.wire.ring_messages import Attach

GOLDEN = {
    name: bytes.fromhex(data)
    for name, data in json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text()).items()
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_has_the_bytes_it_has_always_had(name):
    messages, message, body = EXAMPLES[name]
    assert messages.to_frame(message, body, 41) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_of_old_mean_what_they_have_always_meant(name):
    messages, message, body = EXAMPLES[name.partition("@")[0]]
    assert list(EnvelopeCodec(messages, messages).feed(GOLDEN[name])) == [Envelope(41, message, body)]


@pytest.mark.parametrize(
    "name",
    [name for name, (_, message, _) in EXAMPLES.items() if name.startswith("stage/") and hasattr(message, "session")],
)
def test_a_session_with_a_name_that_nobody_gives_one_is_refused_before_anybody_remembers_it(name):
    messages, message, body = EXAMPLES[name]
    longest = new_session_id(PeerId("12D3KooW" + 44 * "a"))
    for session, is_good in ((longest, True), (SessionId(2 * longest), False)):
        named = msgspec.structs.replace(message, session=session)
        with contextlib.nullcontext() if is_good else pytest.raises(WireError, match="malformed"):
            assert list(EnvelopeCodec(messages, messages).feed(messages.to_frame(named, body))) == [
                Envelope(0, named, body)
            ]


@pytest.mark.parametrize("name", SETS)
def test_there_is_an_example_of_every_message(name):
    assert set(SETS[name].kinds) == {
        type(message) for messages, message, _ in EXAMPLES.values() if messages is SETS[name]
    }


def decode(messages, header, kind=1, body=b""):
    """Decode or raise WireError (UnknownMessage is one); anything else is a bug."""
    try:
        return messages.from_frame(Frame(kind, 1, header, body))
    except WireError:
        return None


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=12), children, max_size=5),
    max_leaves=30,
)
sets = st.sampled_from(list(SETS.values()))
names = st.sampled_from(sorted(EXAMPLES))


@given(messages=sets, header=st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_wire_error(messages, header):
    decode(messages, header)


@given(name=names, changes=st.dictionaries(st.integers(0, 24), anything, max_size=4), extra=anything)
def test_any_values_in_the_fields_of_a_message_are_one_or_a_wire_error(name, changes, extra):
    messages, message, _ = EXAMPLES[name]
    fields = msgspec.to_builtins(message)
    for index, value in changes.items():
        fields[list(fields)[index % len(fields)]] = value
    fields["field of a newer version"] = extra
    try:
        header = msgspec.msgpack.encode(fields)
    except (UnicodeEncodeError, OverflowError):
        return
    for kind in messages.limits.by_type:
        decode(messages, header, kind)


@given(name=names, cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_frame_with_flipped_bytes_is_messages_or_a_wire_error(name, cuts):
    data = bytearray(GOLDEN[name])
    for at, value in cuts:
        data[at % len(data)] = value
    codec = EnvelopeCodec(EXAMPLES[name][0], EXAMPLES[name][0])
    with contextlib.suppress(WireError):
        list(codec.feed(data))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "header",
    [
        b"\x91" * 100_000,
        b"\x82\xa4type\xa4ping\xa1x" + b"\x91" * 100_000 + b"\x01",
        b"\x81\xa4type\xa4\xff\xfe\xfd\xfc",
        b"\x81\xa4type\xdf\xff\xff\xff\xff",
    ],
    ids=["deep", "deep in a field nobody reads", "not text", "four billion entries"],
)
def test_bytes_that_decoders_stumble_over_are_wire_errors(name, header):
    with pytest.raises(WireError):
        SETS[name].from_frame(Frame(1, 0, header))


def test_a_small_message_cannot_claim_the_room_of_a_large_one():
    messages, message, _ = EXAMPLES["stage/ping"]
    ping = msgspec.msgpack.encode(message)
    with pytest.raises(WireError, match="frame that is not for it"):
        messages.from_frame(Frame(5, 0, ping))
    with pytest.raises(WireError, match="frame that is not for it"):
        messages.from_frame(Frame(1, 0, ping, b"x"))


@pytest.mark.parametrize("name", SETS)
def test_what_the_other_side_would_refuse_is_not_sent(name):
    messages = SETS[name]
    message = Attach(1, bytes(20_000)) if name == "ring" else Failed("internal", "x" * 20_000)
    with pytest.raises(FrameTooLarge):
        messages.to_frame(message)
