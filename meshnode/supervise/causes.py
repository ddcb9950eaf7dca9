"""What is inside an exception group: a supervisor reports causes, not the nurseries they fell through."""

from collections.abc import Iterator

__all__ = ["describe", "leaves"]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that are not groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def describe(error: BaseException) -> str:
    """Return one line for people and logs: each leaf's type and text."""
    return "; ".join(f"{type(leaf).__name__}: {leaf}".removesuffix(": ") for leaf in leaves(error))
