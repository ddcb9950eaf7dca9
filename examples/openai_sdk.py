"""Chat with a node through the OpenAI SDK.

OPENAI_API_KEY=$(meshnode token) python examples/openai_sdk.py [PROMPT]
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "What is the capital of France?"
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8800/v1"))
    stream = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": prompt}], stream=True, temperature=0, max_tokens=100
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
