"""Anthropic's SDK against a node, streamed, with a tool.

ANTHROPIC_API_KEY=$(meshnode token) python examples/anthropic_sdk.py [PROMPT]
"""

import os
import sys

from anthropic import Anthropic

TOOL = {
    "name": "weather",
    "description": "Say what the weather is like.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def main() -> None:
    client = Anthropic(base_url=os.environ.get("ANTHROPIC_BASE_URL", "http://127.0.0.1:8800"))
    asked = " ".join(sys.argv[1:]) or "Why is the sky blue?"
    with client.messages.stream(model="auto", max_tokens=100, messages=[{"role": "user", "content": asked}]) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()
    # Whatever the model, a call that is asked for fits its schema.
    called = client.messages.create(
        model="auto",
        max_tokens=100,
        messages=[{"role": "user", "content": "What is the weather like in Rome?"}],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    for block in called.content:
        if block.type == "tool_use":
            print(f"{block.name}({block.input})")


if __name__ == "__main__":
    main()
