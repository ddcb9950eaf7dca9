"""Which sentence is closest to a question, by their vectors.

OPENAI_API_KEY=$(meshnode token) python examples/openai_embeddings.py [QUESTION]

An encoder judges better than a model that writes; docs/clients.md says how to add one.
"""

import os
import sys

from openai import OpenAI

SENTENCES = ["The cat sleeps on the sofa.", "Interest rates rose again.", "A train leaves at noon."]


def main() -> None:
    question = " ".join(sys.argv[1:]) or "Where is the pet?"
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8800/v1"))
    made = client.embeddings.create(model="auto", input=[question, *SENTENCES])
    asked, *known = (item.embedding for item in made.data)
    for sentence, vector in zip(SENTENCES, known, strict=True):
        print(f"{sum(one * other for one, other in zip(asked, vector, strict=True)):.3f}  {sentence}")


if __name__ == "__main__":
    main()
