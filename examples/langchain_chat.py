"""LangChain with a node: a stream, and an answer as an object: python examples/langchain_chat.py KEY [PROMPT]."""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Opinion(BaseModel):
    """What a text feels like."""

    mood: Literal["good", "bad"]
    is_certain: bool


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/langchain_chat.py KEY [PROMPT]   (the key: meshnode token)")
    prompt = " ".join(sys.argv[2:]) or "Write one sentence about the sea."
    model = ChatOpenAI(model="auto", base_url="http://127.0.0.1:8800/v1", api_key=sys.argv[1], temperature=0)
    text = ""
    for chunk in model.stream(prompt):
        text += chunk.text
        print(chunk.text, end="", flush=True)
    print()
    print(model.with_structured_output(Opinion).invoke(f"How does this feel? {text}"))


if __name__ == "__main__":
    main()
