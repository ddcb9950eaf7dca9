"""Chat with a node through Ollama's client.

OLLAMA_API_KEY=$(meshnode token) python examples/ollama_client.py [PROMPT]
"""

import os
import sys

import ollama


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "What is the capital of France?"
    client = ollama.Client(host=os.environ.get("OLLAMA_HOST", "http://127.0.0.1:8800"))
    print("models:", ", ".join(model.model for model in client.list().models))
    messages, options = [{"role": "user", "content": prompt}], {"temperature": 0, "num_predict": 100}
    for chunk in client.chat("auto", messages, stream=True, options=options):
        print(chunk.message.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
