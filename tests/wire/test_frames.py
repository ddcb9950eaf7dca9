import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import FrameTooLarge, WireError
from meshnode.wire.frames import Frame, FrameDecoder, FrameLimits, encode_frame

LIMITS = FrameLimits({1: 1000, 2: 100_000}, other=50)

frames = st.builds(
    Frame,
    type=st.sampled_from([1, 2]),
    exchange=st.integers(0, 2**64 - 1),
    header=st.binary(max_size=200),
    body=st.binary(max_size=600),
)


def test_the_layout_on_the_wire_is_fixed():
    data = encode_frame(Frame(1, 7, b"head", b"bodies"), LIMITS)
    assert data == struct.pack("<IBQI", 13 + 10, 1, 7, 4) + b"head" + b"bodies"


@given(sent=st.lists(frames, max_size=8), cuts=st.lists(st.integers(0, 7000), max_size=12))
def test_frames_survive_any_cutting_of_the_stream(sent, cuts):
    data = b"".join(encode_frame(frame, LIMITS) for frame in sent)
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    decoder = FrameDecoder(LIMITS)
    received = [frame for start, end in itertools.pairwise(borders) for frame in decoder.feed(data[start:end])]
    assert received == sent
    decoder.finish()


def test_a_frame_over_its_limit_is_refused_from_its_prefix_alone():
    decoder = FrameDecoder(LIMITS)
    with pytest.raises(FrameTooLarge, match=r"1001.*1000"):
        list(decoder.feed(struct.pack("<IBQI", 13 + 1001, 1, 0, 10)))


def test_a_frame_of_an_unknown_type_is_delivered_within_the_common_limit_and_refused_above():
    wide = FrameLimits({9: 1000})
    narrow = FrameDecoder(LIMITS)
    assert [frame.type for frame in narrow.feed(encode_frame(Frame(9, 0, b"x" * 50), wide))] == [9]
    with pytest.raises(FrameTooLarge):
        list(narrow.feed(encode_frame(Frame(9, 0, b"x" * 51), wide)))


def test_nothing_too_large_is_sent():
    with pytest.raises(FrameTooLarge):
        encode_frame(Frame(1, 0, b"x" * 500, b"y" * 501), LIMITS)


@pytest.mark.parametrize(("length", "header"), [(13, 1), (12, 0), (0, 0), (20, 8)])
def test_a_header_longer_than_its_frame_breaks_the_stream(length, header):
    with pytest.raises(WireError):
        list(FrameDecoder(LIMITS).feed(struct.pack("<IBQI", length, 1, 0, header) + b"z" * 30))


def test_frames_before_a_bad_one_are_still_delivered():
    decoder = FrameDecoder(LIMITS)
    received = decoder.feed(encode_frame(Frame(1, 3, b"ok"), LIMITS) + struct.pack("<IBQI", 2000, 1, 0, 0))
    assert next(received).exchange == 3
    with pytest.raises(FrameTooLarge):
        next(received)


def test_a_stream_that_ends_inside_a_frame_is_reported():
    decoder = FrameDecoder(LIMITS)
    assert list(decoder.feed(encode_frame(Frame(1, 0, b"abc"), LIMITS)[:-1])) == []
    with pytest.raises(WireError, match="inside a frame"):
        decoder.finish()
