from pathlib import Path

import pytest

from meshnode.config.values import as_type


@pytest.mark.parametrize(
    ("wanted", "written", "value"),
    [
        (bool, True, True),
        (bool, "Yes", True),
        (bool, "off", False),
        (int, 7, 7),
        (int, " -7 ", -7),
        (float, 7, 7.0),
        (float, "0.5", 0.5),
        (str, "x", "x"),
        (str | None, "x", "x"),
        (str | None, None, None),
        (float | None, "1", 1.0),
        (int | None, "1", 1),
        (tuple[str, ...], "a, b,", ("a", "b")),
        (tuple[str, ...], ["a,b"], ("a,b",)),
        (dict[str, str], "x=y, z = w", {"x": "y", "z": "w"}),
        (dict[str, str], {"x": "y"}, {"x": "y"}),
        (Path, "/a", Path("/a")),
    ],
)
def test_what_people_write_becomes_the_type(wanted, written, value):
    result = as_type(wanted, written)
    assert result == value
    assert type(result) is type(value)


def test_a_path_is_absolute_and_knows_home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert as_type(Path, "data") == tmp_path / "data"
    assert as_type(Path, "~/data") == Path("/home/me/data")


@pytest.mark.parametrize(
    ("wanted", "written", "expected"),
    [
        (bool, 1, "true or false"),
        (bool, "maybe", "true or false"),
        (int, True, "a whole number"),
        (int, 1.5, "a whole number"),
        (int, "", "a whole number"),
        (float, True, "a number"),
        (float, "wide", "a number"),
        (str, 3, "UTF-8 text"),
        (str, "\udcff", "UTF-8 text"),
        (int | None, "x", "a whole number"),
        (tuple[str, ...], [1], "a list of strings"),
        (tuple[str, ...], 1, "a list of strings"),
        (dict[str, str], "x", "a table of strings"),
        (dict[str, str], {"x": 1}, "a table of strings"),
        (Path, "", "a path"),
        (Path, "a\0b", "a path"),
        (Path, "~no-such-user-here/x", "a path"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(wanted, written, expected):
    with pytest.raises(ValueError, match=f"must be {expected}"):
        as_type(wanted, written)
