"""A conversation that the node remembers, through OpenAI's Responses: python examples/openai_responses.py KEY."""

import sys

from openai import OpenAI


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/openai_responses.py KEY   (the key: meshnode token)")
    client = OpenAI(base_url="http://127.0.0.1:8800/v1", api_key=sys.argv[1])
    previous = None
    for said in ("My name is Ada and I live in London.", "Where do I live?"):
        print(">", said)
        stream = client.responses.create(
            model="auto", input=said, previous_response_id=previous, stream=True, temperature=0, max_output_tokens=100
        )
        for event in stream:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "response.created":
                previous = event.response.id
        print()


if __name__ == "__main__":
    main()
