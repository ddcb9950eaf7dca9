"""OpenAI's Responses: answers that are kept, go on from each other, and may be made in the background."""

__all__: list[str] = []
