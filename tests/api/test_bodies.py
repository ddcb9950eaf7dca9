"""Decoding: what is wrong with a body, and where."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.api.bodies import decode_json
from meshnode.api.openai.schemas import ChatRequest
from meshnode.errors import RequestError


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: list[Inner] = []
    anything: Any = None


def read(raw, kind):
    decoded = decode_json(raw, kind)
    return decoded.generations("me", "id") if kind is ChatRequest else decoded


def refusal(raw, kind=Outer):
    with pytest.raises(RequestError) as caught:
        read(raw, kind)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "line 1, column 1"), (b"{", "line 1, column 2"), (b'{"name": NaN}', "line 1, column 10"), (b'{"name": -Infinity}', "line 1, column 11"),
        (b'{"name":\n  "a",\n  ]}', "line 3, column 3"), (b'{"name": "a"', "line 1, column 13"), (b'{"name": "a', "line 1, column 10"),
        (b'{"name": "\xff"}', "line 1, column 11"), (b"\xef\xbb\xbf{}", "line 1, column 1"),
    ],
)  # fmt: skip
def test_malformed_json_is_refused_with_its_place(raw, where):
    error = refusal(raw)
    assert str(error).startswith("the body is not valid JSON: ")
    assert str(error).endswith(where)
    assert error.param is None


def test_half_a_character_is_refused():
    assert "half a character" in str(refusal(b'{"name": "\\ud800"}'))


@pytest.mark.parametrize(
    "raw",
    [b'{"name":"a","anything":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"name":"a","anything":' + b"[" * 50_000],
)
def test_deep_nesting_is_refused_and_harms_nobody(raw):
    assert "nested too deeply" in str(refusal(raw))


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"name": 5}', "name"), (b'{"name": "a", "inner": [{"number": "x"}]}', "inner[0].number"), (b"{}", "name"),
        (b'{"name": "a", "odd": 1}', "odd"), (b'{"name": "a", "inner": [{}, {"odd": 1}]}', "inner[1].odd"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_path(raw, param):
    error = refusal(raw)
    assert error.param == param
    assert param in str(error)


@pytest.mark.parametrize("raw", [b"[]", b"5", b"null", b'"text"'])
def test_what_is_not_an_object_is_refused(raw):
    assert "object" in str(refusal(raw))


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused_or_fine(raw):
    try:
        read(raw, ChatRequest)
    except RequestError as error:
        return bool(str(error))
    return True


@patient
@given(st.binary(max_size=200))
def test_no_bytes_can_do_more_than_be_refused(raw):
    assert refused_or_fine(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
fields = st.dictionaries(st.sampled_from([*ChatRequest.__struct_fields__, "odd"]), json_values, max_size=6)


@patient
@given(fields)
def test_no_values_can_do_more_than_be_refused(values):
    request = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | values
    assert refused_or_fine(json.dumps(request).encode())


@pytest.mark.parametrize("field", ["seed", "n", "top_k", "max_tokens", "top_logprobs", "temperature", "min_p"])
@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_no_number_is_too_long_to_be_refused(field, digits):
    for sign in ("", "-"):
        raw = '{"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": true, "%s": %s%s}'
        error = refusal((raw % (field, sign, "9" * digits)).encode(), ChatRequest)
        assert field in str(error)
        assert len(str(error)) < 300
