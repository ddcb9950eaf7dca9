"""Ollama's own client against a real node."""

import json

import ollama
import pytest

pytestmark = [
    pytest.mark.processes,
    pytest.mark.starter,
]

HI = [{"role": "user", "content": "What is the capital of France?"}]
SHORT = {"temperature": 0, "num_predict": 4}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


@pytest.fixture
def client(node, key):
    with ollama.Client(host=node.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        yield client


def test_whole_and_streamed_are_the_same(client):
    whole = client.chat("starter", HI, options=SHORT)
    assert whole.message.content
    assert whole.eval_count <= 4
    assert whole.total_duration > whole.eval_duration > 0
    chunks = list(client.chat("starter:latest", HI, options=SHORT, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content
    assert chunks[-1].done_reason == whole.done_reason
    assert chunks[-1].eval_count == whole.eval_count


async def test_the_client_for_async_code_streams_too(node, key):
    async with ollama.AsyncClient(host=node.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        chunks = [chunk async for chunk in await client.generate("starter", "Say yes.", stream=True, options=SHORT)]
    assert "".join(chunk.response for chunk in chunks)
    assert chunks[-1].done


def test_a_raw_prompt_brings_its_own_control_tokens(client):
    prompt = f"<|im_start|>user\n{HI[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    raw = client.generate("starter", prompt, raw=True, options=SHORT)
    whole = client.generate(
        "starter",
        HI[0]["content"],
        system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        options=SHORT,
    )
    assert raw.prompt_eval_count < whole.prompt_eval_count
    assert raw.prompt_eval_count < 20
    assert raw.response


def test_an_answer_has_the_form_that_is_asked_for(client):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    whole = client.chat("starter", HI, format=schema, options={"temperature": 0, "num_predict": 40})
    assert json.loads(whole.message.content)["city"] in ("Paris", "Rome")


def test_a_function_is_a_tool_and_its_result_is_read(client):
    call = ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="add", arguments={"a": 2, "b": 3}))
    history = [  # the call is made up, since its interface cannot insist on one and so small a model calls as it likes
        {"role": "user", "content": "What is 2 + 3?"},
        ollama.Message(role="assistant", tool_calls=[call]),
        {"role": "tool", "content": "5", "tool_name": "add"},
    ]
    assert client.chat("starter", history, tools=[add], options={"temperature": 0, "num_predict": 2}).done


def test_models_are_found_and_shown(client):
    (model,) = client.list().models
    assert model.model.endswith(":latest")
    assert model.size > 50 << 20
    assert model.details.parameter_size.startswith("134.5")
    shown = client.show(model.model)
    assert "tools" in shown.capabilities
    assert shown.modelinfo["general.architecture"] == "llama"
    (running,) = client.ps().models
    assert running.name == model.model
    assert running.size > 50 << 20
    assert running.size_vram in (0, running.size), "on a CPU or on a GPU, never on both"


def test_loading_is_a_request_without_words(client):
    assert client.generate("starter").done_reason == "load"


def test_errors_are_the_clients_own(client):
    with pytest.raises(ollama.ResponseError, match="there is no model 'nobody'") as refusal:
        client.chat("nobody", HI)
    assert refusal.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="repeat_penalty"):
        list(client.chat("starter", HI, stream=True, options={"repeat_penalty": 1.3}))
    with pytest.raises(ollama.ResponseError, match="context"):
        client.generate("starter", "word " * 20_000)


def test_what_asks_whether_anybody_is_there(node):
    assert node.http.head("/").status_code == 200


def test_vectors_of_texts(client):
    made = client.embed(model="starter", input=["one", "two words"])
    assert sum(number * number for number in made.embeddings[1]) == pytest.approx(1.0, abs=1e-5)
    assert list(client.embeddings(model="starter", prompt="one").embedding) == pytest.approx(list(made.embeddings[0]))
