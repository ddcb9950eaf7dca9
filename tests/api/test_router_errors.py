"""What a real router refuses is the class that both SDKs have for it: a model without a template, a full queue, no route."""

from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import anthropic
import msgspec
import openai
import pytest
import structlog
import trio
from support.api import KEY
from support.fake_executor import FakeExecutor
from support.router_mesh import SixBlocks, open_routers
from support.tiny_gguf import write_tiny_llama

from meshnode.files.importing import import_gguf
from meshnode.inference import queue
from meshnode.inference.calls import open_generations
from meshnode.inference.coordination import Patience
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def ask(serve, tmp_path):
    """Return a function that opens a router of its own and yields what asks it in both SDKs' words, and its mailbox."""

    @asynccontextmanager
    async def opened(end, template="{% for m in messages %}{{ m.content }}{% endfor %}", **settings):
        gguf = write_tiny_llama(tmp_path / "m.gguf", name="Six", blocks=6, template=template)
        async with open_routers(SixBlocks(import_gguf(gguf, tmp_path), tmp_path)) as mesh:
            mailbox = (await mesh.add("only", 0, end, **settings)).mailbox
            async with (
                serve(SimpleNamespace(generate=partial(open_generations, mailbox)), send_buffer=4096) as api,
                openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as one,
                anthropic.AsyncAnthropic(base_url=api.url, api_key=KEY, max_retries=0) as other,
            ):

                async def both():
                    errors = []
                    for say in (one.chat.completions.create, other.messages.create):
                        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as refusal:
                            await say(model="six", max_tokens=8, messages=MESSAGES)
                        errors.append(refusal.value)
                    return errors

                yield both, mailbox, api

    return opened


async def test_a_model_that_cannot_chat_and_a_queue_that_is_full(ask):
    async with ask(6, template="{% if %}", pace=10, max_concurrent=1, queue_length=0) as (both, mailbox, _):
        first, second = await both()
        assert (type(first), type(second)) == (
            openai.UnprocessableEntityError,
            anthropic.UnprocessableEntityError,
        )
        assert "template" in str(first)
        endless = GenerationRequest(RequestId("r"), "six", prompt="hi", max_tokens=9)
        async with open_generations(mailbox, [endless]) as events:
            await anext(events)
            with trio.fail_after(5):
                first, second = await both()
        assert (type(first), first.status_code) == (openai.RateLimitError, 429)
        assert (type(second), second.status_code) == (anthropic.OverloadedError, 529)
        for error in (first, second):
            assert int(error.response.headers["retry-after"]) >= 1


async def test_a_model_of_which_half_is_nowhere(ask):
    async with ask(3, patience=Patience(first_route=0.05)) as (both, *_):
        first, second = await both()
        assert (type(first), first.status_code) == (openai.InternalServerError, 503)
        assert (type(second), second.status_code) == (anthropic.ServiceUnavailableError, 503)


async def test_clients_that_never_read_hold_no_turn_that_another_waits_for(ask, monkeypatch):
    monkeypatch.setattr(queue, "_IDLE_PATIENCE", 0.2)
    chat = {"model": "six", "messages": MESSAGES}
    body = msgspec.json.encode(chat | {"max_tokens": 900, "stream": True, "logprobs": True, "top_logprobs": 20})
    executor = lambda spec, pace: FakeExecutor(b"abc", pace=0)  # noqa: E731
    with structlog.testing.capture_logs() as logs:
        async with ask(6, executor=executor, max_concurrent=8) as (_, _, api), api.client() as client:
            for _ in range(8):
                stream = await api.raw(receive_buffer=4096)
                head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                await stream.send_all(api.head("POST", "/v1/chat/completions", head) + body)
            with trio.fail_after(15):
                answer = await client.post("/v1/chat/completions", json=chat | {"max_tokens": 9})
            assert answer.json()["usage"]["completion_tokens"] == 9
            for stream in api.streams:
                await trio.aclose_forcefully(stream)
    assert [line["waiting"] for line in logs if line["event"] == "turn ended, its reader takes nothing"] == [1]
