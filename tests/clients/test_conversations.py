"""What a client sends again with every turn is computed once, and the reply says so."""

import openai
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]

STORY = (
    "Once there was a lighthouse keeper who counted the ships that went by, and wrote each of them into a book. " * 16
)


@pytest.fixture
def client(node, key):
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_each_turn_begins_where_the_one_before_ended(client):
    messages = [{"role": "user", "content": f"{STORY} How many ships?"}]
    usages, answers = [], []
    for turn in range(3):
        options = {"model": "starter", "messages": messages, "temperature": 0, "max_tokens": 24}
        reply = client.chat.completions.create(**options)
        streamed = [*client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})]
        answers.append((reply, "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)))
        usages.append((reply.usage, streamed[-1].usage))
        messages = [
            *messages,
            {"role": "assistant", "content": reply.choices[0].message.content},
            {"role": "user", "content": f"And {turn + 2} days later?"},
        ]
    for (reply, streamed), (first, again) in zip(answers, usages, strict=True):
        assert streamed == reply.choices[0].message.content
        assert first.prompt_tokens == again.prompt_tokens > 300
        full = (first.prompt_tokens - 1) // 256 * 256
        assert again.prompt_tokens_details.cached_tokens == full > 0
    assert [first.prompt_tokens_details.cached_tokens > 0 for first, _ in usages] == [False, True, True]


def test_responses_say_it_too(client):
    text = f"Repeat: {STORY}"
    counts = [
        client.responses.create(
            model="starter", input=text, max_output_tokens=8
        ).usage.input_tokens_details.cached_tokens
        for _ in range(2)
    ]
    assert counts[0] == 0 < counts[1]
