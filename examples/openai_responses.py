"""A conversation that the node remembers, through OpenAI's Responses.

OPENAI_API_KEY=$(meshnode token) python examples/openai_responses.py
"""

import os

from openai import OpenAI


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8800/v1"))
    previous = None
    for said in ("My name is Ada and I live in London.", "Where do I live?"):
        print(">", said)
        stream = client.responses.create(
            model="auto", input=said, previous_response_id=previous, stream=True, temperature=0, max_output_tokens=24
        )
        for event in stream:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "response.created":
                previous = event.response.id
        print()


if __name__ == "__main__":
    main()
