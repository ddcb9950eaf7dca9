"""Every error both vendors document is reachable, and their SDKs raise the class they have for it."""

from contextlib import asynccontextmanager

import anthropic
import attrs
import openai
import pytest
from support.api import KEY, FakeRouter

from meshnode import errors

# The SDKs leave their own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "x" * 3000}]


@attrs.frozen
class Case:
    """What goes wrong, and what each SDK makes of it."""

    openai: type[Exception]
    anthropic: type[Exception]
    status: tuple[int, int]  # of OpenAI's error and of Anthropic's
    types: tuple[str, str]
    error: errors.MeshnodeError | None = None  # the router's
    key: str = KEY
    headers: dict = attrs.field(factory=dict)
    messages: list = MESSAGES
    limits: dict = attrs.field(factory=dict)
    retry: bool = False  # whether it is told when to try again


def case(openai_kind, anthropic_kind, status, types, **fields):
    both = status if isinstance(status, tuple) else (status, status)
    return Case(openai_kind, anthropic_kind, both, types, **fields)


BAD, SERVER = ("invalid_request_error", "invalid_request_error"), ("server_error", "api_error")
CASES = {
    "400: a field that is wrong": case(
        openai.BadRequestError, anthropic.BadRequestError, 400, BAD, messages=[{"role": "user", "content": 5}]
    ),
    "400: what the router refuses": case(
        openai.BadRequestError, anthropic.BadRequestError, 400, BAD, error=errors.RequestError("no")
    ),
    "400: a prompt that is too long": case(
        openai.BadRequestError, anthropic.BadRequestError, 400, BAD, error=errors.ContextOverflow("no")
    ),
    "400: a form that cannot be enforced": case(
        openai.BadRequestError, anthropic.BadRequestError, 400, BAD, error=errors.GrammarRefused("no")
    ),
    "401: a wrong key": case(
        openai.AuthenticationError,
        anthropic.AuthenticationError,
        401,
        ("authentication_error", "authentication_error"),
        key="wrong",
    ),
    "403: a page from elsewhere": case(
        openai.PermissionDeniedError,
        anthropic.PermissionDeniedError,
        403,
        ("permission_error", "permission_error"),
        headers={"Origin": "http://elsewhere.example"},
    ),
    "403: another pool's": case(
        openai.PermissionDeniedError,
        anthropic.PermissionDeniedError,
        403,
        ("invalid_request_error", "permission_error"),
        error=errors.PoolError("no"),
    ),
    "404: no such model": case(
        openai.NotFoundError,
        anthropic.NotFoundError,
        404,
        ("invalid_request_error", "not_found_error"),
        error=errors.UnknownModel("no"),
    ),
    "409: what cannot be done as things are": case(
        openai.ConflictError, anthropic.ConflictError, 409, BAD, error=errors.UpdateBlocked("no")
    ),
    "413: a body that is too large": case(
        openai.APIStatusError,
        anthropic.ContentTooLargeError,
        413,
        ("invalid_request_error", "request_too_large"),
        messages=LONG,
        limits={"body_limit_bytes": 2000},
    ),
    "415: no JSON": case(
        openai.APIStatusError, anthropic.APIStatusError, 415, BAD, headers={"Content-Type": "text/plain"}
    ),
    "422: a model that nothing here runs": case(
        openai.UnprocessableEntityError,
        anthropic.UnprocessableEntityError,
        422,
        BAD,
        error=errors.UnsupportedModel("no"),
    ),
    "429: too many requests": case(
        openai.RateLimitError,
        anthropic.RateLimitError,
        429,
        ("rate_limit_error", "rate_limit_error"),
        limits={"requests_per_minute": 1},
        retry=True,
    ),
    "429 and 529: a full queue": case(
        openai.RateLimitError,
        anthropic.OverloadedError,
        (429, 529),
        ("rate_limit_error", "overloaded_error"),
        error=errors.Overloaded("no", retry_after=3.0),
        retry=True,
    ),
    "500: a failure of ours": case(
        openai.InternalServerError, anthropic.InternalServerError, 500, SERVER, error=errors.EngineError("no")
    ),
    "502: a failure of a peer's": case(
        openai.InternalServerError, anthropic.InternalServerError, 502, SERVER, error=errors.PeerMisbehaved("no")
    ),
    "503: down for a moment": case(
        openai.InternalServerError,
        anthropic.ServiceUnavailableError,
        503,
        SERVER,
        error=errors.Unavailable("no"),
        retry=True,
    ),
    "503: no way to the model": case(
        openai.InternalServerError, anthropic.ServiceUnavailableError, 503, SERVER, error=errors.NoRoute("no")
    ),
    "504: too late": case(
        openai.InternalServerError,
        anthropic.GatewayTimeoutError,
        504,
        ("server_error", "timeout_error"),
        error=errors.DeadlineExceeded("no"),
    ),
}


@asynccontextmanager
async def clients(serve, wrong):
    ours = {"api_key": wrong.key, "max_retries": 0, "default_headers": wrong.headers}
    async with (
        serve(FakeRouter(error=wrong.error), **wrong.limits) as node,
        openai.AsyncOpenAI(base_url=f"{node.url}/v1", **ours) as one,
        anthropic.AsyncAnthropic(base_url=node.url, **ours) as other,
    ):
        yield one, other


async def ask_openai(client, wrong, **fields):
    await client.chat.completions.create(model="tiny", messages=wrong.messages, **fields)


async def ask_anthropic(client, wrong, **fields):
    await client.messages.create(model="tiny", max_tokens=9, messages=wrong.messages, **fields)


async def failing(ask, client, wrong, **fields):
    """Ask until it fails, which it does at once unless it takes too many requests."""
    for _ in range(5):
        try:
            await ask(client, wrong, **fields)
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CASES)
async def test_an_error_is_the_sdks_own(serve, name, stream):
    wrong = CASES[name]
    async with clients(serve, wrong) as (one, other):
        first = await failing(ask_openai, one, wrong, stream=stream)
        second = await failing(ask_anthropic, other, wrong, stream=stream)
    assert type(first) is wrong.openai
    assert type(second) is wrong.anthropic
    assert (first.status_code, second.status_code) == wrong.status
    assert (first.type, second.type) == wrong.types
    assert second.body["error"]["message"] == second.api_message
    assert first.body["message"]
    assert first.request_id
    assert second.request_id == second.body["request_id"]
    for error in (first, second):
        assert ("retry-after" in error.response.headers) == wrong.retry
        if wrong.retry:
            assert int(error.response.headers["retry-after"]) >= 1


def test_the_table_has_every_status_that_errors_are_mapped_to():
    from meshnode.api.failures import STATUSES

    tried = {status for wrong in CASES.values() for status in wrong.status}
    assert {status for status, _ in STATUSES.values()} <= tried
