"""What is told about one generation when it is over: to the metrics, and in one line of the log."""

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, RequestError
from meshnode.observe.metrics import Metrics
from meshnode.types.generation import Finished, GenerationRequest, Started

__all__ = ["RequestRecord"]

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class RequestRecord:
    """The story of one generation. Times are trio.current_time()."""

    request: GenerationRequest
    arrived: float = attrs.field(factory=trio.current_time)
    outcome: str = "cancelled"
    error: MeshnodeError | None = None
    model: str = ""
    route: str = ""
    admitted: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    recoveries: int = 0
    finish_reason: str | None = None

    def start(self, started: Started) -> None:
        """Note who answers."""
        self.model, self.prompt_tokens, self.route = started.model, started.prompt_tokens, started.route

    def fail(self, error: MeshnodeError) -> None:
        """Note a failure."""
        self.outcome, self.error = "error", error

    def tokens_came(self, count: int) -> None:
        """Note the time of tokens."""
        self.completion_tokens += count
        self.last_token = trio.current_time()
        if self.first_token is None:
            self.first_token = self.last_token

    def finish(self, finished: Finished) -> None:
        """Note a good end."""
        self.finish_reason, self.recoveries = finished.reason.value, finished.recoveries
        self.completion_tokens = finished.usage.completion_tokens
        self.route = finished.route or self.route

    def account(self, metrics: Metrics, *, for_peer: bool) -> None:
        """Count it, and write its line: at debug if it is this node's own, for the API tells of the request it belongs to."""
        metrics.inference_requests_total.labels(outcome=self.outcome).inc()
        metrics.inference_prompt_tokens_total.inc(self.prompt_tokens)
        metrics.inference_completion_tokens_total.inc(self.completion_tokens)
        if self.admitted is not None and self.first_token is not None:
            metrics.inference_time_to_first_token_seconds.observe(self.first_token - self.admitted)
            if self.completion_tokens > 1:
                pace = (self.last_token - self.first_token) / (self.completion_tokens - 1)
                metrics.inference_time_per_output_token_seconds.observe(pace)
        log = _log.info if for_peer else _log.debug
        log("generation", **self._summary(trio.current_time()))

    def _summary(self, now: float) -> dict[str, object]:
        """Return the fields of the line; milliseconds where a name says ms."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        return {
            "id": self.request.id,
            "model": self.model or self.request.model,
            "route": self.route,
            "outcome": self.outcome,
            "finish_reason": self.finish_reason,
            "error": None if self.error is None else self.error.code,
            # A caller's errors quote what was sent.
            "reason": None if isinstance(self.error, RequestError | None) else str(self.error),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "recoveries": self.recoveries,
            "queue_ms": round((admitted - self.arrived) * 1e3, 1),
            "first_token_ms": round((first - admitted) * 1e3, 1),
            "total_ms": round((now - self.arrived) * 1e3, 1),
        }
