"""LangChain with a node: a stream, and an answer as an object.

OPENAI_API_KEY=$(meshnode token) python examples/langchain_chat.py [PROMPT]
"""

import os
import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Opinion(BaseModel):
    """What a text feels like."""

    mood: Literal["good", "bad"]
    is_certain: bool


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "Write one sentence about the sea."
    model = ChatOpenAI(
        model="auto",
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8800/v1"),
        temperature=0,
        max_tokens=100,
    )
    text = ""
    for chunk in model.stream(prompt):
        text += chunk.text
        print(chunk.text, end="", flush=True)
    print()
    print(model.with_structured_output(Opinion).invoke(f"How does this feel? {text}"))


if __name__ == "__main__":
    main()
