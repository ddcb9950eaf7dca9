import msgspec
import pytest

from meshnode.errors import UnknownMessage, WireError
from meshnode.wire.tagged import TaggedCodec


class Apple(msgspec.Struct, tag="apple", frozen=True):
    weight: int


class Pear(msgspec.Struct, tag="pear", frozen=True):
    name: str = "conference"


class FutureFruit(msgspec.Struct, tag="durian", frozen=True):
    smell: float


CODEC = TaggedCodec(Apple, Pear)


@pytest.mark.parametrize("message", [Apple(3), Pear(), Pear("bosc")])
def test_messages_come_back_as_the_kind_they_were(message):
    assert CODEC.decode(CODEC.encode(message)) == message


def test_a_single_kind_is_a_protocol_too():
    codec = TaggedCodec(Apple)
    assert codec.decode(codec.encode(Apple(1))) == Apple(1)


def test_a_kind_of_another_version_is_told_apart_from_nonsense():
    with pytest.raises(UnknownMessage, match="durian"):
        CODEC.decode(msgspec.msgpack.encode(FutureFruit(0.9)))


@pytest.mark.parametrize(
    "header", [b"", b"\xc1", msgspec.msgpack.encode({"type": "apple", "weight": "heavy"}), b"\x05"]
)
def test_malformed_headers_break_the_protocol(header):
    with pytest.raises(WireError) as caught:
        CODEC.decode(header)
    assert not isinstance(caught.value, UnknownMessage)


def test_fields_added_by_a_newer_version_are_ignored():
    assert CODEC.decode(msgspec.msgpack.encode({"type": "apple", "weight": 2, "colour": "red"})) == Apple(2)
