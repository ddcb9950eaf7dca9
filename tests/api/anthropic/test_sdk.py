"""What users of Anthropic's SDK try next: models of answers, the beta namespace, runners of tools, every reason to stop."""

import anthropic
import pydantic
import pytest
import trio
from support.api import KEY, FakeRouter

from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, Usage

# The SDK leaves its own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": "hi"}]
ASK = {"model": "tiny", "max_tokens": 100, "messages": MESSAGES}
CALL = Delta(calls=(CallPiece(0, "call_1", "add", '{"a": 1, "b": 2}'),))


class Person(pydantic.BaseModel):
    name: str
    age: int


ADA = FakeRouter(words=['{"name": "Ada", ', '"age": 36}']).words


def sdk(node, kind=anthropic.AsyncAnthropic):
    return kind(base_url=node.url, api_key=KEY, max_retries=0)


async def test_an_answer_is_parsed_into_a_model_and_goes_back_into_the_conversation(serve):
    async with serve(FakeRouter(words=ADA)) as node, sdk(node) as client:
        parsed = await client.messages.parse(**ASK, output_format=Person)
        assert parsed.parsed_output == Person(name="Ada", age=36)
        (asked,) = node.router.requests[-1]
        assert asked.output.kind == "json_schema"
        assert '"age"' in asked.output.schema
        turns = [*MESSAGES, {"role": "assistant", "content": parsed.content}, *MESSAGES]
        again = await client.beta.messages.parse(**ASK | {"messages": turns}, output_format=Person)
        assert again.parsed_output == Person(name="Ada", age=36)
        (asked,) = node.router.requests[-1]
        assert asked.messages[1] == ChatMessage("assistant", '{"name": "Ada", "age": 36}')
        async with client.messages.stream(**ASK, output_format=Person) as stream:
            final = await stream.get_final_message()
        assert final.parsed_output == Person(name="Ada", age=36)


async def test_the_beta_namespace_says_the_same(serve):
    betas = ["context-management-2025-06-27", "unheard-of-2099-01-01"]
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    async with serve() as node, sdk(node) as client:
        whole = await client.beta.messages.create(**ASK, betas=betas, context_management=edits)
        assert whole.content[0].text == "Hello, world"
        assert whole.context_management.applied_edits == []
        async with client.beta.messages.stream(**ASK, betas=betas, context_management=edits) as stream:
            final = await stream.get_final_message()
        assert final.content[0].text == "Hello, world"
        assert final.context_management.applied_edits == []
        counted = await client.beta.messages.count_tokens(
            model="tiny", messages=MESSAGES, betas=betas, context_management=edits
        )
        assert (counted.input_tokens, counted.context_management.original_input_tokens) == (7, 7)
        plain = await client.messages.create(**ASK)
        assert "context_management" not in plain.model_dump()


async def test_a_runner_of_tools_calls_and_answers(serve):
    class Script(FakeRouter):
        def generate(self, requests):
            self.words = [CALL] if len(requests[0].messages) == 1 else ["It is 3."]
            return super().generate(requests)

    def ask(url):
        @anthropic.beta_tool
        def add(a: int, b: int) -> str:
            """Add two numbers.

            Args:
                a: one
                b: the other
            """
            return str(a + b)

        with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
            return client.beta.messages.tool_runner(**ASK, tools=[add]).until_done()

    async with serve(Script()) as node:
        said = await trio.to_thread.run_sync(ask, node.url)
        assert said.content[0].text == "It is 3."
        (asked,) = node.router.requests[-1]
        assert asked.messages[-1] == ChatMessage("tool", "3", "add", call_id="call_1")


USAGE = Usage(7, 3, cached_tokens=4, reasoning_tokens=2)
ENDINGS = {
    "end_turn": (Finished(FinishReason.STOP, USAGE), 100),
    "max_tokens": (Finished(FinishReason.LENGTH, USAGE), 3),
    "stop_sequence": (Finished(FinishReason.STOP, USAGE, "END"), 100),
    "tool_use": (Finished(FinishReason.TOOL_CALLS, USAGE), 100),
    "model_context_window_exceeded": (Finished(FinishReason.LENGTH, USAGE), 200_000),
}


@pytest.mark.parametrize("reason", ENDINGS)
async def test_every_reason_to_stop_and_every_count(serve, reason):
    ending, limit = ENDINGS[reason]
    fields = ASK | {"max_tokens": limit, "stop_sequences": ["END"]}
    async with serve(FakeRouter(ending=ending)) as node, sdk(node) as client:
        whole = await client.messages.create(**fields, timeout=20)
        async with client.messages.stream(**fields) as stream:
            final = await stream.get_final_message()
        for message in (whole, final):
            assert message.stop_reason == reason
            assert message.stop_sequence == ("END" if reason == "stop_sequence" else None)
            usage = message.usage
            assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 4, 3)
            assert usage.cache_creation_input_tokens == 0
            assert usage.output_tokens_details.thinking_tokens == 2
        assert node.router.requests[-1][0].stop == ("END",)


async def test_thoughts_may_be_left_out_and_their_blocks_stay(serve):
    words = [Delta(reasoning="Hm. "), Delta("Yes.")]
    async with serve(FakeRouter(words=words)) as node, sdk(node) as client:
        for display, said in (("summarized", "Hm. "), ("omitted", "")):
            thinking = {"type": "adaptive", "display": display}
            whole = await client.messages.create(**ASK, thinking=thinking)
            assert [block.type for block in whole.content] == ["thinking", "text"]
            assert whole.content[0].thinking == said
            turns = [*MESSAGES, {"role": "assistant", "content": whole.content}, *MESSAGES]
            await client.messages.create(**ASK | {"messages": turns}, thinking=thinking)
            assert node.router.requests[-1][0].messages[1] == ChatMessage("assistant", "Yes.", reasoning=said)


async def test_a_prompt_is_read_without_an_answer(serve):
    async with serve() as node, sdk(node) as client:
        read = await client.messages.create(**ASK | {"max_tokens": 0})
        assert (read.content, read.stop_reason, read.usage.output_tokens) == ([], "max_tokens", 0)
        assert node.router.requests[-1][0].max_tokens == 1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"stream": True}, "stream"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"tools": [{"name": "add", "input_schema": {}}], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format"),
    ],
)
async def test_what_reading_alone_cannot_give_is_refused_by_name(serve, fields, name):
    async with serve() as node, node.client() as http:
        answer = await http.post("/v1/messages", json=ASK | {"max_tokens": 0} | fields)
        assert answer.status_code == 400
        assert f"no '{name}' can be asked for" in answer.json()["error"]["message"]


async def test_a_first_look_and_other_methods_are_answered_without_a_body(serve):
    async with serve(pages=lambda _app: frozenset()) as node, node.client() as http:
        looked = await http.head("/")
        assert (looked.status_code < 500, looked.content) == (True, b"")
        assert (await http.head("/v1/models")).content == b""


BUDGETS = {
    "none": ({"type": "enabled"}, "thinking.budget_tokens: is needed"),
    "nothing": ({"type": "enabled", "budget_tokens": 0}, "thinking.budget_tokens: must be at least 1"),
    "all": ({"type": "enabled", "budget_tokens": 100}, "thinking.budget_tokens: must be less than max_tokens"),
    "elsewhere": ({"type": "adaptive", "budget_tokens": 50}, "thinking.budget_tokens: goes with the type 'enabled'"),
    "between tools": ({"type": "between_tools"}, "thinking.type: 'between_tools' is not one of its values"),
}


@pytest.mark.parametrize("wrong", BUDGETS)
async def test_thinking_that_cannot_be_is_refused_by_name(serve, wrong):
    thinking, said = BUDGETS[wrong]
    async with serve() as node, node.client() as http:
        answer = await http.post("/v1/messages", json=ASK | {"thinking": thinking})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(said)
