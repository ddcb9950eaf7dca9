"""OpenAI's SDK and LangChain against a real node."""

import json
import typing

import langchain_openai
import openai
import pydantic
import pytest

pytestmark = [
    pytest.mark.processes,
    pytest.mark.starter,
    # The SDK leaves its own async generators to the garbage collector, which Trio points out.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HI = [{"role": "user", "content": "What is the capital of France?"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
SHORT = {"temperature": 0, "max_tokens": 4}
ROOM = {"temperature": 0, "max_tokens": 64}  # for what ends by itself


class City(pydantic.BaseModel):
    """An answer."""

    name: typing.Literal["Paris", "Rome"]


@pytest.fixture(scope="module")
def client(node, key):
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_whole_and_streamed_by_the_helper_are_the_same(client):
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=HI, **ROOM)
    with client.chat.completions.stream(
        model="starter", messages=HI, stream_options={"include_usage": True}, **ROOM
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert whole.choices[0].message.content
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


async def test_the_client_for_async_code_streams_too(node, key):
    async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="auto", messages=HI, stream=True, **SHORT)
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_loop_of_tools(client):
    first = client.chat.completions.create(
        model="starter", messages=HI, tools=[ADD], tool_choice="required", parallel_tool_calls=False, **ROOM
    )
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    results = []
    for call in choice.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert (arguments["a"] in (1, 2), arguments["b"] in (3, 4)) == (True, True)
        results.append({"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])})
    last = client.chat.completions.create(
        model="starter", messages=[*HI, choice.message, *results], tools=[ADD], tool_choice="none", **SHORT
    )
    assert last.choices[0].message.content is not None
    assert last.choices[0].message.tool_calls is None


def test_an_answer_is_parsed_into_a_model(client):
    parsed = client.chat.completions.parse(model="starter", messages=HI, response_format=City, **ROOM)
    assert isinstance(parsed.choices[0].message.parsed, City)
    said = client.responses.parse(model="starter", input=HI, text_format=City, temperature=0, max_output_tokens=64)
    assert said.output_parsed == parsed.choices[0].message.parsed


def test_a_conversation_of_responses(client):
    first = client.responses.create(model="starter", input="My name is Ada.", temperature=0, max_output_tokens=4)
    assert first.output_text
    with client.responses.stream(
        model="starter", input="Who am I?", previous_response_id=first.id, temperature=0, max_output_tokens=4
    ) as stream:
        events = list(stream)
    second = events[-1].response
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert second.output_text
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    for made in (first, second):
        client.responses.delete(made.id)


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5'") as refusal:
        client.chat.completions.create(model="gpt-5", messages=HI)
    assert refusal.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="starter", messages=[{"role": "user", "content": "word " * 20_000}])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-key").models.list()


def test_langchain(node, key):
    model = langchain_openai.ChatOpenAI(model="starter", base_url=f"{node.url}/v1", api_key=key, max_retries=0, **ROOM)
    brief = model.bind(max_tokens=4)
    answer = brief.invoke("What is the capital of France?")
    assert answer.text
    assert answer.usage_metadata["output_tokens"] <= 4
    assert "".join(chunk.text for chunk in brief.stream("What is the capital of France?")) == answer.text
    (call, *_) = model.bind_tools([ADD], tool_choice="add", parallel_tool_calls=False).invoke("Add 1 and 3.").tool_calls
    assert (call["name"], set(call["args"])) == ("add", {"a", "b"})
    assert isinstance(model.with_structured_output(City).invoke("A city?"), City)


def test_vectors_of_texts_tell_which_are_alike(client):
    texts = ["A cat sat on the mat.", "A kitten was sitting on a rug.", "The central bank raised interest rates again."]
    made = client.embeddings.create(model="starter", input=texts)
    cat, kitten, bank = (item.embedding for item in made.data)

    def likeness(one, other):
        return sum(left * right for left, right in zip(one, other, strict=True))

    assert likeness(cat, cat) == pytest.approx(1.0, abs=1e-5)
    assert likeness(cat, kitten) > likeness(cat, bank)
    again = client.embeddings.create(model="starter", input=texts[0], dimensions=8)
    assert len(again.data[0].embedding) == 8
    assert again.usage.prompt_tokens < made.usage.prompt_tokens


def test_an_echoed_prompt_tells_how_likely_it_was(client):
    asked = client.completions.create(
        model="starter", prompt="The capital of France is", temperature=0, max_tokens=2, logprobs=1
    )
    text = f"The capital of France is{asked.choices[0].text}"  # read again, it is cut into the same tokens
    told = client.completions.create(model="starter", prompt=text, echo=True, logprobs=1, max_tokens=0, temperature=0)
    (choice,) = told.choices
    assert choice.text == text
    assert "".join(choice.logprobs.tokens) == text
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[-2:] == asked.choices[0].logprobs.token_logprobs
    assert choice.logprobs.text_offset[-1] == len(text) - len(choice.logprobs.tokens[-1])
    assert told.usage.completion_tokens == 0
    more = client.completions.create(model="starter", prompt=text, echo=True, logprobs=0, max_tokens=2, temperature=0)
    assert len(more.choices[0].logprobs.tokens) == len(choice.logprobs.tokens) + 2
