"""What a grammar adds to a decoded token."""

import json
import statistics
import time

from results import Report, Row
from setting import Setting

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker_messages import BatchLimits, Envelope, Generate, Progress
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId

TOKENS = 96
GOAL = 10.0  # percent
PROMPT = 12  # tokens
STREAMS = (1, 8)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
        },
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 100},
    },
    "required": ["name", "age", "address", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}
GRAMMAR = '%llguidance {"no_forcing": true}\nstart: value\nvalue: %json ' + json.dumps(PERSON)
HOW = (
    f"time per step of the worker's batch loop, in this process, {TOKENS} tokens with a JSON schema of an object against as many "
    "without, paired by round; temperature 0.8 and the 40 best tokens, as most requests have it"
)


def measure(setting: Setting) -> Report:
    """Alternate between answers with a grammar and without, alone and eight at once."""
    stage, rows = setting.stage(), []
    for streams in STREAMS:
        rounds = [(_step(stage, streams, None), _step(stage, streams, GRAMMAR)) for _ in range(setting.rounds + 1)][1:]
        more = statistics.median(100 * (held / free - 1) for free, held in rounds)
        free, held = (statistics.median(each[side] for each in rounds) for side in (0, 1))
        title = f"a grammar adds to a step of {streams} stream{'s' * (streams > 1)}"
        rows.append(Row(title, more, "%", at_most=GOAL, beside={"ms without": free, "with": held}))
    return Report("grammar", HOW, tuple(rows))


def _step(stage: StageModel, streams: int, grammar: str | None) -> float:
    """Return milliseconds per step in which all streams decode."""
    times, tokens = [], 0

    def emit(envelope: Envelope) -> None:
        nonlocal tokens
        if isinstance(envelope.message, Progress):
            times.append(time.perf_counter())
            tokens += len(envelope.message.sampled)

    batch = Batch(stage, BatchLimits(), emit)
    for number in range(streams):
        prompt = tuple(1000 + 50 * number + i for i in range(PROMPT))
        sampling = SamplingParameters(temperature=0.8, top_k=40, seed=number, grammar=grammar)
        generation = Generation(SessionId("bench"), prompt, PROMPT, TOKENS, sampling)
        batch.accept(Envelope(number, Generate(generation, TOKENS)))
    while not batch.is_idle:
        batch.step()
    if tokens != streams * TOKENS:
        raise SystemExit(f"{tokens} tokens came, and {streams * TOKENS} were wanted")
    return 1000 * (times[-streams] - times[streams - 1]) / (len(times) - 2 * streams + 1)
