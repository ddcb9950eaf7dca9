"""What every reply tells of how it came about: the route, the times, the losses on the way."""

import attrs
import trio

from meshnode.types.generation import Delta, Finished, GenerationEvent, Started, Usage

__all__ = ["Journey", "Spans"]


@attrs.frozen
class Spans:
    """Where the time of a finished reply went, in seconds."""

    queue: float  # until it was admitted, its model loaded if need be
    prompt: float  # from then until the first text
    answer: float  # from then until the end
    total: float


@attrs.define(eq=False)
class Journey:
    """The story of one reply with one or more choices. Times are trio.current_time()."""

    began: float = attrs.field(factory=trio.current_time)
    started: Started | None = None  # the first choice's; they share the model
    prompt_tokens: dict[int, int] = attrs.field(factory=dict)  # by choice
    finished: dict[int, Finished] = attrs.field(factory=dict)  # by choice
    _started_at: float = 0.0
    _first_at: float | None = None
    _finished_at: float | None = None

    def follow(self, index: int, event: GenerationEvent) -> None:
        """Note an event of choice `index`."""
        match event:
            case Started():
                self.prompt_tokens[index] = event.prompt_tokens
                if self.started is None:
                    self.started, self._started_at = event, trio.current_time()
            case Delta():
                if self._first_at is None:
                    self._first_at = trio.current_time()
            case Finished():
                self.finished[index] = event
                self._finished_at = trio.current_time()

    def usage(self, choices_per_prompt: int = 1) -> Usage:
        """Return the sum over all choices; a prompt counts once, however many choices it has."""
        prompt = sum(count for index, count in self.prompt_tokens.items() if index % choices_per_prompt == 0)
        usages = [end.usage for end in self.finished.values()]
        return Usage(
            prompt,
            sum(usage.completion_tokens for usage in usages),
            max((usage.cached_tokens for usage in usages), default=0),
            sum(usage.reasoning_tokens for usage in usages),
        )

    def spans(self) -> Spans:
        """Return where the time went."""
        end = self.began if self._finished_at is None else self._finished_at
        first = end if self._first_at is None else self._first_at
        return Spans(self._started_at - self.began, first - self._started_at, end - first, end - self.began)

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known: milliseconds since the request was read."""
        if self.started is None:
            return {}
        times = {"queue": self._started_at, "first-token": self._first_at, "total": self._finished_at}
        timing = [f"{name};dur={(at - self.began) * 1e3:.1f}" for name, at in times.items() if at is not None]
        headers = {"x-meshnode-route": self.started.route}
        if (lost := self._losses()) is not None:
            headers |= {
                "x-meshnode-recovered": str(lost.recoveries),
                "x-meshnode-route": lost.route or self.started.route,
            }
            timing.append(f"recovery;dur={lost.pause * 1e3:.1f}")
        return headers | {"Server-Timing": ", ".join(timing)}

    def comment(self) -> bytes:
        """Return a server-sent comment with what the head of a stream could not know yet; empty without losses."""
        lost = self._losses()
        if lost is None:
            return b""
        text = f": x-meshnode-recovered: {lost.recoveries}; pause={lost.pause * 1e3:.0f}ms; route={lost.route}"
        return " ".join(text.split()).encode() + b"\n\n"

    def _losses(self) -> Finished | None:
        """Return the end of the choice that outlived the most losses."""
        worst = max(self.finished.values(), key=lambda end: end.recoveries, default=None)
        return worst if worst is not None and worst.recoveries else None
