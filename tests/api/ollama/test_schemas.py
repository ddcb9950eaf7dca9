"""What is made of requests of Ollama's clients, and what of them is refused by name."""

import msgspec
import ollama
import pytest

from meshnode.api.bodies import decode_json
from meshnode.api.ollama.schemas import ChatRequest, GenerateRequest
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, OutputFormat, Tool
from meshnode.types.ids import RequestId

HI = [{"role": "user", "content": "hi"}]


def chat(**fields):
    body = decode_json(msgspec.json.encode({"model": "tiny", "messages": HI, **fields}), ChatRequest)
    return body.generation("me", RequestId("r"))


def generate(**fields):
    body = decode_json(msgspec.json.encode({"model": "tiny", "prompt": "Once", **fields}), GenerateRequest)
    return body.generation("me", RequestId("r"))


def test_options_say_how_to_sample():
    options = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.7, "min_p": 0.1, "seed": 3, "num_predict": 9, "stop": ["a", "b"],
        "presence_penalty": 0.5, "frequency_penalty": -0.5,
    }  # fmt: skip
    made = chat(options=options)
    sampling = made.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.7, 0.1)
    assert (sampling.seed, sampling.presence_penalty, sampling.frequency_penalty) == (3, 0.5, -0.5)
    assert (made.max_tokens, made.stop, made.as_advised) == (9, ("a", "b"), False)


def test_what_is_not_said_is_as_the_model_likes_it_or_else_as_ollama_has_it():
    assert chat().as_advised
    assert chat(options={"seed": 1, "num_predict": -1}).as_advised
    one = chat(options={"temperature": 0})
    assert (one.as_advised, one.sampling.top_k, one.sampling.top_p, one.sampling.min_p) == (False, 40, 0.9, 0.0)


@pytest.mark.parametrize(("given", "made"), [(None, None), (-1, None), (-2, None), (0, None), (5, 5)])
def test_the_length_of_an_answer(given, made):
    assert chat(options={"num_predict": given}).max_tokens == made


def test_a_seed_below_zero_is_any():
    assert chat(options={"seed": -1}).sampling.seed >= 0
    assert chat(options={"seed": -1}).sampling.seed != chat(options={"seed": -1}).sampling.seed


def test_what_belongs_to_the_machine_is_taken_and_changes_nothing():
    machine = {
        "num_ctx": 4096, "num_keep": 4, "num_batch": 2, "num_gpu": 1, "main_gpu": 0, "num_thread": 8, "numa": False,
        "low_vram": False, "f16_kv": True, "logits_all": False, "vocab_only": False, "use_mmap": True,
        "use_mlock": False, "embedding_only": False, "penalize_newline": True,
        "repeat_penalty": 1.0, "typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
        "repeat_last_n": 64, "seed": 1,
    }  # fmt: skip
    assert chat(options=machine, keep_alive="5m", truncate=False, shift=False) == chat(options={"seed": 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repeat_penalty", 1.1), ("typical_p", 0.7), ("tfs_z", 0.5), ("mirostat", 2), ("temperature", 3), ("top_p", 0),
        ("min_p", 2), ("presence_penalty", 3), ("frequency_penalty", -3), ("stop", [""]), ("num_predict", 1 << 40),
        ("nobody", 1),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_honoured_is_refused_by_name(option, value):
    with pytest.raises(RequestError, match=option) as refusal:
        chat(options={option: value})
    assert refusal.value.param == f"options.{option}"


def test_penalties_look_at_the_whole_answer():
    with pytest.raises(RequestError, match="repeat_last_n"):
        chat(options={"presence_penalty": 1, "repeat_last_n": 64})
    assert chat(options={"presence_penalty": 1, "repeat_last_n": -1}).sampling.presence_penalty == 1


def test_the_form_of_an_answer():
    assert chat(format="json").output == OutputFormat("json_object")
    assert chat(format={"type": "object"}).output == OutputFormat("json_schema", '{"type":"object"}')
    assert chat(format="").output == chat(format=None).output == OutputFormat()
    with pytest.raises(RequestError, match="'format' is 'json' or a JSON schema"):
        chat(format="xml")


@pytest.mark.parametrize(("given", "made"), [(None, None), (True, True), (False, False), ("low", True), ("high", True)])
def test_whether_to_think(given, made):
    assert chat(think=given).thinking is made


def test_log_probabilities():
    assert chat().sampling.top_logprobs is None
    assert chat(logprobs=True).sampling.top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.top_logprobs == 3
    with pytest.raises(RequestError, match="goes with 'logprobs'"):
        chat(top_logprobs=3)


@pytest.mark.parametrize("kind", [{}, {"type": None}, {"type": ""}, {"type": "function"}])
def test_a_tool_without_a_type_is_a_function(kind):
    (tool,) = chat(tools=[{**kind, "function": {"name": "now", "parameters": {"type": "object"}}}]).tools.tools
    assert tool == Tool("now", "", '{"type":"object"}')


def test_the_clients_own_tool_without_a_type_is_a_function():
    tool = ollama.Tool(type=None, function=ollama.Tool.Function(name="now")).model_dump(exclude_none=True)
    assert "type" not in tool
    assert [made.name for made in chat(tools=[tool]).tools.tools] == ["now"]


def test_a_loop_of_tools_in_the_history():
    calls = [{"function": {"name": "add", "arguments": {"a": n}}} for n in (1, 2)] + [
        {"id": "mine", "function": {"name": "now"}}
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        *HI,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "content": "noon", "tool_call_id": "mine"},
        {"role": "tool", "content": "1", "tool_name": "add"},
        {"role": "tool", "content": "2"},
    ]
    made = chat(messages=messages).messages
    assert [message.role for message in made] == ["system", "user", "assistant", "tool", "tool", "tool"]
    assert made[2].reasoning == "Hm."
    assert [(call.name, call.arguments) for call in made[2].calls] == [
        ("add", '{"a":1}'), ("add", '{"a":2}'), ("now", "{}")
    ]  # fmt: skip
    ids = [call.id for call in made[2].calls]
    assert len(set(ids)) == 3
    assert [(message.name, message.call_id, message.content) for message in made[3:]] == [
        ("now", ids[2], "noon"), ("add", ids[0], "1"), ("add", ids[1], "2")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "user", "content": "x", "images": ["aGk="]}, r"messages\[0\].images' is not supported"),
        ({"role": "wizard", "content": "x"}, "'wizard' is not a role"),
        ({"role": "user", "tool_calls": [{"function": {"name": "f"}}]}, "belongs to messages of role 'assistant'"),
        ({"role": "tool", "content": "x", "tool_name": "f"}, "answers no call"),
        ({"role": "tool", "content": "x"}, "answers no call"),
        ({"role": "user", "content": "x", "mood": "good"}, "'messages.* is not supported"),
    ],
)
def test_a_message_that_cannot_be_taken_is_refused_by_its_place(message, sentence):
    with pytest.raises(RequestError, match=sentence):
        chat(messages=[message])


def test_a_prompt_goes_through_the_template_unless_it_is_raw():
    assert generate(system="Be brief.").messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "Once"))
    raw = generate(raw=True)
    assert (raw.messages, raw.prompt, raw.parse_special) == ((), "Once", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("suffix", "end"), ("template", "{{ .Prompt }}"), ("context", [1, 2]), ("images", ["aGk="]), ("truncate", True),
     ("shift", True), ("nobody", 1)],
)  # fmt: skip
def test_what_generate_cannot_do_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=f"'{field}' is not supported") as refusal:
        generate(**{field: value})
    assert refusal.value.param == field


def test_what_asks_for_nothing_is_taken():
    empty = generate(suffix="", template="", system="", context=[], images=[], format="", options={}, keep_alive=-1)
    assert empty.messages == (ChatMessage("user", "Once"),)


@pytest.mark.parametrize("field", ["system", "think"])
def test_a_raw_prompt_has_no_template_for_this(field):
    with pytest.raises(RequestError, match="needs a template"):
        generate(raw=True, **{field: "high"})


@pytest.mark.parametrize(
    ("value", "asks"), [(0, True), ("0", True), ("0s", True), ("", False), (None, False), ("5m", False), (-1, False)]
)
def test_when_a_model_is_to_go(value, asks):
    body = decode_json(msgspec.json.encode({"model": "tiny", "keep_alive": value}), ChatRequest)
    assert body.asks_to_unload is asks
    assert body.only_loads
