"""The real OpenAI SDK against the application."""

import openai
import pytest
import trio
from support.api import KEY, FakeRouter

from meshnode import errors

# The SDK leaves its own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": "hi"}]


def sdk(node, kind=openai.AsyncOpenAI, key=KEY):
    return kind(base_url=f"{node.url}/v1", api_key=key, max_retries=0)


async def test_whole_and_streamed(serve):
    async with serve() as node, sdk(node) as client:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello, world"
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        text, usage = "", None
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        assert text == "Hello, world"
        assert usage.total_tokens == 10
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_from_a_thread(serve):
    async with serve() as node:

        def ask():
            with sdk(node, openai.OpenAI) as client:
                return client.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message.content

        assert await trio.to_thread.run_sync(ask) == "Hello, world"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.RequestError("bad"), openai.BadRequestError),
        (errors.UnknownModel("none"), openai.NotFoundError),
        (errors.Overloaded("busy"), openai.RateLimitError),
        (errors.UnsupportedModel("odd"), openai.UnprocessableEntityError),
        (errors.Unavailable("down"), openai.InternalServerError),
    ],
)
async def test_errors_become_the_sdks_own(serve, error, kind):
    async with serve(FakeRouter(error=error)) as node, sdk(node) as client:
        with pytest.raises(kind, match=str(error)):
            await client.chat.completions.create(model="tiny", messages=MESSAGES)


async def test_a_wrong_key_is_an_authentication_error(serve):
    async with serve() as node, sdk(node, key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_an_error_in_mid_stream_is_raised(serve):
    router = FakeRouter(error=errors.SessionLost("the worker is gone"), fail_after=1)
    async with serve(router) as node, sdk(node) as client:
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the worker is gone"):
            async for _ in stream:
                pass
