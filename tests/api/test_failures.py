"""The one mapping from exceptions to HTTP."""

import msgspec
import pytest

from meshnode import errors
from meshnode.api.failures import STATUSES, describe, failure_body, failure_of
from meshnode.supervise.subsystem import SubsystemFailed


def classes():
    return [getattr(errors, name) for name in errors.__all__ if name != "MeshnodeError"]


@pytest.mark.parametrize("kind", classes())
def test_every_error_is_in_the_table_itself_not_by_its_base(kind):
    assert kind in STATUSES
    failure = failure_of(kind("words", exit_code=1) if kind is errors.Fatal else kind("words"))
    assert (failure.status, failure.type) == STATUSES[kind]
    assert (failure.message, failure.code) == ("words", kind.code)
    assert (failure.status < 500) == (failure.type != "server_error")


def test_codes_are_distinct_so_that_they_can_cross_a_network():
    codes = [kind.code for kind in classes()]
    assert len(set(codes)) == len(codes)


def test_an_error_from_elsewhere_is_ours_to_answer_for():
    assert failure_of(SubsystemFailed("router")).status == 500
    assert failure_of(errors.MeshnodeError("bug")).status == 500


def test_a_subclass_from_elsewhere_has_its_bases_status():
    class Local(errors.RequestError):
        code = "local"

    failure = failure_of(Local("bad", param="x"))
    assert (failure.status, failure.code, failure.param) == (400, "local", "x")


def test_only_what_may_pass_says_when_to_come_back():
    assert failure_of(errors.Overloaded("busy", retry_after=7.5)).retry_after == 7.5
    assert failure_of(errors.Unavailable("restarting")).retry_after is not None
    for lasting in (
        errors.RequestError,
        errors.UnknownModel,
        errors.NoRoute,
        errors.UnsupportedModel,
        errors.PeerRefused,
    ):
        assert failure_of(lasting("no")).retry_after is None


def test_the_body_is_openais_shape():
    body = msgspec.json.decode(failure_body(failure_of(errors.UnknownModel("none such", param="model"))))
    assert body == {
        "error": {
            "message": "none such",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 418, 429, 500, 501])
def test_a_status_without_a_class_has_a_type_that_fits_it(status):
    failure = describe(status, "words")
    assert (failure.type == "server_error") == (status >= 500)
    assert failure.code
