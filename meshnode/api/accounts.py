"""What came of each HTTP request, over all generations that were run for it: kept while it is in hand, and told in one line."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Self

import attrs
import structlog
import trio

from meshnode.api.failures import Failure, failure_of
from meshnode.api.ports import Events, Generate
from meshnode.errors import MeshnodeError
from meshnode.types.generation import Delta, Finished, GenerationEvent, GenerationRequest, Started
from meshnode.types.ids import RequestId

__all__ = ["Account", "accounted", "opened", "own_account"]

_LONGEST_NAME = 100  # characters of a model's name, which its caller chose

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class _Generation:
    """One generation, as far as its events have told."""

    model: str  # as it was asked for, until it starts
    route: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    recoveries: int = 0
    finish_reason: str = ""

    def follow(self, event: GenerationEvent) -> None:
        match event:
            case Started():
                self.model, self.route, self.prompt_tokens = event.model, event.route, event.prompt_tokens
            case Delta():
                self.completion_tokens += len(event.tokens)
            case Finished():
                self.finish_reason, self.recoveries = event.reason.value, event.recoveries
                self.completion_tokens, self.cached_tokens = event.usage.completion_tokens, event.usage.cached_tokens
                self.route = event.route or self.route


@attrs.define(eq=False)
class Account:
    """One request. Times are trio.current_time()."""

    id: RequestId
    endpoint: str = "unknown"  # the rule that its path fits, for the metrics
    failure: Failure | None = None
    _began: float = attrs.field(factory=trio.current_time, init=False)
    _first_at: float | None = attrs.field(default=None, init=False)
    _generations: list[_Generation] = attrs.field(factory=list, init=False)

    def open(self, requests: Sequence[GenerationRequest]) -> list[_Generation]:
        """Add generations, whose events are to be followed."""
        added = [_Generation(request.model[:_LONGEST_NAME]) for request in requests]
        self._generations += added
        return added

    def follow(self, generation: _Generation, event: GenerationEvent) -> None:
        """Note an event of a generation of this request."""
        if self._first_at is None and isinstance(event, Delta):
            self._first_at = trio.current_time()
        generation.follow(event)

    def fail(self, failure: Failure) -> None:
        """Note why the request was refused, or its answer broken off."""
        self.failure = failure

    def tell(self, event: str, *, whole: bool, quiet: bool = False, status: int | None = None, **where: str) -> None:
        """Write the line: `whole` if all of the answer was delivered, at debug if `quiet`."""
        failed = self.failure is not None or (status or 0) >= 400
        outcome = "cut off" if not whole else "error" if failed else "ok"
        times = {"total_ms": self._since(trio.current_time())}
        log = _log.debug if quiet else _log.info
        log(event, id=self.id, **where, status=status, outcome=outcome, **self._error(), **self._generated(), **times)

    def _error(self) -> dict[str, object]:
        """Say what kind of error it was; in full only if it is not the caller's, for those quote what was sent."""
        if self.failure is None:
            return {}
        reason = {"reason": self.failure.message[:500]} if self.failure.status >= 500 else {}
        return {"error": self.failure.code, **reason}

    def _generated(self) -> dict[str, object]:
        """Sum up the generations; nothing for a request that had none."""
        every = self._generations
        if not every:
            return {}
        return {
            "model": _listed(each.model for each in every),
            "route": _listed(each.route for each in every),
            "generations": len(every),
            "prompt_tokens": sum(each.prompt_tokens for each in every),
            "cached_tokens": sum(each.cached_tokens for each in every),
            "completion_tokens": sum(each.completion_tokens for each in every),
            "finish_reason": _listed(each.finish_reason for each in every),
            "recoveries": sum(each.recoveries for each in every),
            "first_token_ms": None if self._first_at is None else self._since(self._first_at),
        }

    def _since(self, time: float) -> float:
        return round((time - self._began) * 1e3, 1)


def _listed(values: Iterable[str]) -> str:
    """Return the different values in the order they came."""
    return ", ".join(dict.fromkeys(value for value in values if value))


_current: ContextVar[Account | None] = ContextVar("account", default=None)


def opened(request: RequestId) -> Account:
    """Open the account of the request that this task and its children work on from now on."""
    account = Account(request)
    _current.set(account)
    return account


def own_account() -> Account:
    """Return the account of the request that this task works on."""
    account = _current.get()
    assert account is not None, "RequestLog is in front of everything"
    return account


def accounted(generate: Generate) -> Generate:
    """Return what generates as the given function does, and notes it in the account of the request it is for.

    What is generated for no request in hand, an answer in the background, has an account and a line of its own.
    """

    @asynccontextmanager
    async def generations(requests: Sequence[GenerationRequest]) -> AsyncIterator[Events]:
        current = _current.get()
        account = Account(requests[0].id) if current is None else current
        own = account.open(requests)
        try:
            async with generate(requests) as events:
                yield _Noted(account, own, events)
        except MeshnodeError as error:
            account.fail(failure_of(error))
            raise
        finally:
            if current is None:
                account.tell("background answer", whole=all(each.finish_reason for each in own))

    return generations


@attrs.frozen(eq=False)
class _Noted:
    account: Account
    generations: Sequence[_Generation]
    events: Events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, GenerationEvent]:
        try:
            index, event = await anext(self.events)
        except MeshnodeError as error:  # one in the middle of a stream is told its client, and goes no further
            self.account.fail(failure_of(error))
            raise
        self.account.follow(self.generations[index], event)
        return index, event

    def waiting(self) -> list[tuple[int, GenerationEvent]]:
        found = self.events.waiting()
        for index, event in found:
            self.account.follow(self.generations[index], event)
        return found
