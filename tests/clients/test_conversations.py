"""What a client sends again with every turn is computed once, and the reply says so."""

import openai
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]

STORY = "Once a lighthouse keeper counted the ships that went by, and wrote each of them into a book. " * 12


@pytest.fixture
def client(node, key):
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_each_turn_begins_where_the_one_before_ended(client):
    asked = [{"role": "user", "content": f"{STORY} How many ships?"}]
    options = {"model": "starter", "temperature": 0}
    first = client.chat.completions.create(**options, messages=asked, max_tokens=4)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    turns = [*asked, answer, {"role": "user", "content": "And a day later?"}]
    whole = client.chat.completions.create(**options, messages=turns, max_tokens=4)
    include = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        **options, messages=turns, max_tokens=4, stream=True, stream_options=include
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    made = client.responses.create(**options, input=turns, max_output_tokens=4)
    assert whole.choices[0].message.content == text == made.output_text
    assert whole.usage == last.usage
    full = (first.usage.prompt_tokens - 1) // 256 * 256
    assert whole.usage.prompt_tokens_details.cached_tokens == full == made.usage.input_tokens_details.cached_tokens > 0
    assert whole.usage.prompt_tokens == made.usage.input_tokens > first.usage.prompt_tokens
