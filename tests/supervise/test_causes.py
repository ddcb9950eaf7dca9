"""A group is reported by its leaves."""

import pytest

from meshnode.supervise.causes import describe, leaves


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("wrong"), "ValueError: wrong"),
        (ValueError(), "ValueError"),
        (ExceptionGroup("g", [OSError("disk"), ExceptionGroup("h", [KeyError()])]), "OSError: disk; KeyError"),
    ],
)
def test_every_leaf_is_named_with_its_text(error, text):
    assert describe(error) == text


def test_leaves_come_in_order_and_contain_no_group():
    first, second, third = ValueError(1), KeyboardInterrupt(), ValueError(3)
    assert list(leaves(BaseExceptionGroup("g", [first, BaseExceptionGroup("h", [second]), third]))) == [
        first,
        second,
        third,
    ]
