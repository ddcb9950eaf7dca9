"""Who fetches which blocks of a model: everybody within their room, nothing twice, nothing left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.files.division import divide
from meshnode.types.blocks import BlockRange
from meshnode.types.segments import segments_of


@given(
    st.integers(1, 120),
    st.integers(1, 1000),
    st.integers(0, 10**6),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 10**5), max_size=12),
)
def test_every_block_is_somebodys_and_nobody_gets_more_than_their_room(count, block_bytes, own_bytes, helpers):
    own, shares = divide(segments_of(count), block_bytes, own_bytes, helpers)
    blocks = sorted([own, *shares.values()])
    assert blocks[0] == own
    assert [block for each in blocks for block in each] == list(range(count))
    assert all(len(each) * block_bytes <= helpers[peer] for peer, each in shares.items())


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ({"a": 1 << 40, "b": 1 << 40, "c": 1 << 40}, [7, 8, 7, 8]),
        ({"a": 1 << 40}, [15, 15]),
        ({"a": 400, "b": 1 << 40}, [11, 4, 15]),
        ({"a": 100}, [30]),
        ({}, [30]),
    ],
)
def test_equal_rooms_give_equal_shares(rooms, expected):
    own, shares = divide(segments_of(30), 100, 1 << 40, rooms)
    assert [len(each) for each in sorted([own, *shares.values()])] == expected


def test_a_model_of_one_block_is_not_divided():
    assert divide(segments_of(1), 100, 0, {"a": 1 << 40}) == (BlockRange(0, 1), {})
