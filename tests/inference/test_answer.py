"""The finaliser: reasoning, text and calls are told apart, whoever finishes the answer."""

import json

import attrs
import pytest

from meshnode.files.local_gguf import open_gguf
from meshnode.inference.answer import Answer
from meshnode.inference.assets import ModelAssets
from meshnode.text.templates import ChatTemplate
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.conversation import ChatMessage, OutputFormat, Tool, ToolMode, ToolUse
from meshnode.types.generation import FinishReason, GenerationRequest, TokenEvent
from meshnode.types.ids import RequestId

pytestmark = pytest.mark.starter

WEATHER = Tool("weather", "", '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}')
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def request(**options):
    return GenerationRequest(RequestId("r1"), "m", (ChatMessage("user", "Weather?"),), **options)


@pytest.fixture(scope="module")
def tokenizer(starter_gguf):
    with open_gguf(starter_gguf) as model:
        return build_tokenizer(model.tokenizer)


@pytest.fixture
def assets(tokenizer):
    return ModelAssets(tokenizer, ChatTemplate.compile(tokenizer))


@pytest.fixture
def open_answer(assets):
    def open_answer(**options):
        prompt = assets.prompt(request(**options), 4096)
        return Answer(assets.tokenizer, len(prompt.tokens), prompt.form)

    return open_answer


def read(answer, tokens):
    deltas = [delta for token in tokens if (delta := answer.push(TokenEvent(token))) is not None]
    rest, finished = answer.ending()
    return [*deltas, *([rest] if rest is not None else [])], finished


def whole(deltas):
    text = "".join(delta.text for delta in deltas)
    return text, [(piece.name, json.loads(piece.arguments)) for delta in deltas for piece in delta.calls]


def test_a_call_ends_an_answer_with_tool_calls(open_answer, tokenizer):
    tokens = [*tokenizer.encode("I look.\n" + CALL), min(tokenizer.end_tokens)]
    deltas, finished = read(open_answer(tools=ToolUse((WEATHER,))), tokens)
    assert whole(deltas) == ("I look.", [("weather", {"city": "Zürich"})])
    assert finished.reason is FinishReason.TOOL_CALLS
    assert finished.usage.completion_tokens == len(tokens) - 1


def test_a_second_call_that_is_cut_off_is_text_and_the_answer_ends_by_length(open_answer, tokenizer):
    tokens = tokenizer.encode(CALL + "\n" + CALL)[:-4]
    deltas, finished = read(open_answer(tools=ToolUse((WEATHER,))), tokens)
    text, calls = whole(deltas)
    assert calls == [("weather", {"city": "Zürich"})]
    assert text.strip().startswith("<tool_call>")
    assert finished.reason is FinishReason.LENGTH


def test_two_calls_have_two_ids_that_another_coordinator_would_give_too(open_answer, tokenizer):
    tokens = tokenizer.encode(CALL + "\n" + CALL)
    deltas, _ = read(open_answer(tools=ToolUse((WEATHER,))), tokens)
    pieces = [piece for delta in deltas for piece in delta.calls]
    assert [piece.index for piece in pieces] == [0, 1]
    assert len({piece.id for piece in pieces}) == 2
    again, _ = read(open_answer(tools=ToolUse((WEATHER,))), tokens)
    assert [piece for delta in again for piece in delta.calls] == pieces


def test_a_call_that_is_cut_off_is_text_and_the_end_is_by_length(open_answer, tokenizer):
    deltas, finished = read(open_answer(tools=ToolUse((WEATHER,))), tokenizer.encode(CALL[:-3]))
    assert whole(deltas) == (CALL[:-3], [])
    assert finished.reason is FinishReason.LENGTH


@pytest.mark.parametrize("use", [ToolUse(), ToolUse((WEATHER,), ToolMode.NONE)])
def test_without_tools_a_call_is_text(open_answer, tokenizer, use):
    deltas, finished = read(open_answer(tools=use), tokenizer.encode(CALL))
    assert whole(deltas) == (CALL, [])
    assert finished.reason is FinishReason.LENGTH


def test_a_stop_sequence_inside_a_call_stops_nothing(open_answer, tokenizer):
    deltas, finished = read(open_answer(tools=ToolUse((WEATHER,)), stop=("city",)), tokenizer.encode(CALL))
    assert whole(deltas)[1] == [("weather", {"city": "Zürich"})]
    assert finished.stop_sequence is None


def test_whoever_takes_over_gives_the_rest(open_answer, tokenizer):
    tokens = tokenizer.encode("Well, \n\n" + CALL + "\nand " + CALL + " <tool_call> is STOP no call")
    options = {"tools": ToolUse((WEATHER,)), "stop": ("STOP",)}
    undisturbed, end = read(open_answer(**options), tokens)
    for at in range(len(tokens)):
        first, second = open_answer(**options), open_answer(**options)
        delivered = [delta for token in tokens[:at] if (delta := first.push(TokenEvent(token))) is not None]
        known = [token for delta in delivered for token in delta.tokens]
        second.resume(known)
        rest, finished = read(second, tokens[len(known) :]) if not second.is_done else ([], second.ending()[1])
        assert whole([*delivered, *rest]) == whole(undisturbed), at
        assert finished == end, at


def test_a_thinking_models_reasoning_is_apart(assets, tokenizer):
    thinking = ModelAssets(tokenizer, attrs.evolve(assets.template, may_think=True))
    prompt = thinking.prompt(request(stop=("Hm",)), 4096)
    tokens = tokenizer.encode("<think>\nHm, sunny?\n</think>\n\nSunny.")
    deltas, finished = read(Answer(tokenizer, 5, prompt.form), tokens)
    assert "".join(delta.reasoning for delta in deltas) == "Hm, sunny?"
    assert whole(deltas) == ("Sunny.", [])
    assert 0 < finished.usage.reasoning_tokens < finished.usage.completion_tokens == len(tokens)


def test_a_form_that_is_asked_for_becomes_the_grammar_of_the_sampler(assets):
    assert assets.prompt(request(), 4096).sampling.grammar is None
    assert "%json" in assets.prompt(request(output=OutputFormat("json_object")), 4096).sampling.grammar
    required = ToolUse((WEATHER,), ToolMode.REQUIRED)
    assert "weather" in assets.prompt(request(tools=required), 4096).sampling.grammar
