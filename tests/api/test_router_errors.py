"""What a real router refuses is the class that both SDKs have for it: a model without a template, a full queue, no route."""

from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import anthropic
import openai
import pytest
import trio
from support.api import KEY
from support.router_mesh import SixBlocks, open_routers
from support.tiny_gguf import write_tiny_llama

from meshnode.files.importing import import_gguf
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
                serve(SimpleNamespace(generate=partial(open_generations, mailbox))) as api,
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

                yield both, mailbox

    return opened


async def test_a_model_that_cannot_chat_and_a_queue_that_is_full(ask):
    async with ask(6, template="{% if %}", pace=10, max_concurrent=1, queue_length=0) as (both, mailbox):
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
    async with ask(3, patience=Patience(first_route=0.05)) as (both, _):
        first, second = await both()
        assert (type(first), first.status_code) == (openai.InternalServerError, 503)
        assert (type(second), second.status_code) == (anthropic.ServiceUnavailableError, 503)
