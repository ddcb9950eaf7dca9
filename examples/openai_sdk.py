"""Chat with a node through the OpenAI SDK: python examples/openai_sdk.py KEY [PROMPT]."""

import sys

from openai import OpenAI


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/openai_sdk.py KEY [PROMPT]   (the key: meshnode token)")
    prompt = " ".join(sys.argv[2:]) or "What is the capital of France?"
    client = OpenAI(base_url="http://127.0.0.1:8800/v1", api_key=sys.argv[1])
    stream = client.chat.completions.create(
        model="starter", messages=[{"role": "user", "content": prompt}], stream=True, temperature=0
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
