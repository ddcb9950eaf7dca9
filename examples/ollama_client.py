"""Chat with a node through Ollama's client: python examples/ollama_client.py KEY [PROMPT]."""

import sys

import ollama


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/ollama_client.py KEY [PROMPT]   (the key: meshnode token)")
    prompt = " ".join(sys.argv[2:]) or "What is the capital of France?"
    client = ollama.Client(host="http://127.0.0.1:8800", headers={"Authorization": f"Bearer {sys.argv[1]}"})
    print("models:", ", ".join(model.model for model in client.list().models))
    for chunk in client.chat("auto", [{"role": "user", "content": prompt}], stream=True, options={"temperature": 0}):
        print(chunk.message.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
