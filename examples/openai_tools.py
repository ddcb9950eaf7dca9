"""A loop of tools through the OpenAI SDK.

OPENAI_API_KEY=$(meshnode token) python examples/openai_tools.py [PROMPT]

The first call is made by grammar, so it fits the schema however small the model is; what follows is the model's decision.
"""

import json
import os
import sys

from openai import OpenAI

CITIES = {"Paris": "18 degrees, rain", "Rome": "27 degrees, sun"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say what the weather is like.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": list(CITIES)}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8800/v1"))
    messages = [{"role": "user", "content": " ".join(sys.argv[1:]) or "What is the weather like in Rome?"}]
    choice = "required"
    for _ in range(4):
        answer = client.chat.completions.create(
            model="auto",
            messages=messages,
            tools=[TOOL],
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=60,
        )
        message, choice = answer.choices[0].message, "auto"
        messages.append(message)
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            result = CITIES[json.loads(call.function.arguments)["city"]]
            print(f"{call.function.name}({call.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


if __name__ == "__main__":
    main()
