"""Sessions of rings over loaded stages: driven as a coordinator does, or with neighbours that say what they like."""

from contextlib import contextmanager

import attrs
import torch
from support.ring_workers import Neighbour, RingWorker, StageWorker, empty, place_of, retire, turn
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.executor import StageReservation
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker_messages import Lapped, LetTurn, Release, Released, Reserve, Reserved, Step, StepDone
from meshnode.network.certificates import make_credentials
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import SessionId
from meshnode.wire.ring_messages import Attach, Attached, Lap

__all__ = ["ANSWER", "PROMPT", "Between", "Route", "good_row", "now", "stage_workers"]

BLOCKS = 4
PROMPT, ANSWER = 9, 14  # tokens


@contextmanager
def stage_workers(folder):
    """One with the whole model, and others with its blocks up to the middle, around it, and from it."""
    manifest = tiny_manifest(write_tiny_llama(folder / "m.gguf", blocks=BLOCKS), folder / "shards")
    spans = {"whole": (0, 4), "begin": (0, 2), "middle": (1, 3), "end": (2, 4)}
    place = place_of(make_credentials())
    found = {
        name: StageWorker(place, StageModel.load(stage_of(manifest, folder / "shards", *span)))
        for name, span in spans.items()
    }
    yield found
    assert [worker.batch.sessions for worker in found.values()] == [0] * len(found)
    retire(*found.values())


def now(worker, message, body=b"", kind=StepDone):
    exchange = worker.ask(message, body)
    turn([worker], lambda: worker.said(exchange))
    (answer,) = worker.said(exchange)
    assert isinstance(answer, kind), answer
    return answer, worker.bodies.get(exchange, b"")


@attrs.frozen
class Place:
    """A stage of a route, and its session."""

    worker: StageWorker
    name: str
    blocks: BlockRange
    embedding: bool = False
    head: bool = False

    def reserve(self, sampling):
        prompt, sampling = (PROMPT, sampling) if self.head else (0, None)
        wanted = StageReservation(self.blocks, self.embedding, self.head, PROMPT + ANSWER, prompt, (), sampling)
        return now(self.worker, Reserve(SessionId(self.name), wanted), kind=Reserved)[0].length

    def release(self):
        now(self.worker, Release(SessionId(self.name)), kind=Released)


class Route:
    """Drives one session over its stages as their daemons and the coordinator do."""

    def __init__(self, name, sampling, *stages, teller=-1):
        count = len(stages)
        self.places = [
            Place(worker, f"{name}.{index}", BlockRange(*blocks), index == 0, index == count - 1)
            for index, (worker, *blocks) in enumerate(stages)
        ]
        self.sampling, self.events, self.steps = sampling, [], 0
        self.workers = list({id(place.worker): place.worker for place in self.places}.values())
        self.first, self.teller = self.places[0], self.places[teller]
        for place in self.places:
            place.reserve(sampling)

    def join(self):
        doors = [place.worker.door(place.name) for place in self.places]
        self.exchanges = [
            place.worker.enter(place.name, door, tells=place is self.teller)
            for place, door in zip(self.places, doors[1:] + doors[:1], strict=True)
        ]
        pairs = list(zip(self.places, self.exchanges, strict=True))
        turn(self.workers, lambda: all(place.worker.has_entered(exchange) for place, exchange in pairs))

    def prefill(self, tokens, position=0):
        """Send rows by way of the daemons, and note the token after them."""
        rows = b""
        for place in self.places:
            text = tuple(tokens) if place.embedding else ()
            done, rows = now(place.worker, Step(SessionId(place.name), position, text, sample=place.head), rows)
        self.events.append(done.token)

    def begin(self, until):
        """Have the row of the newest token go round, and those after it up to a position."""
        step = Step(SessionId(self.first.name), self.end, (self.events[-1].token,), number=self.steps + 1, until=until)
        self.first.worker.ask(step)

    @property
    def end(self):
        """The position of the row of the newest token."""
        return PROMPT + len(self.events) - 1

    def turn_to(self, position, *others):
        """Note the tokens of the laps before a position, and hold each against the one that is next."""
        workers = {id(worker): worker for worker in (*self.workers, *others)}.values()
        turn(workers, lambda: self.heard(position))

    def heard(self, position):
        worker, exchange = self.teller.worker, self.exchanges[self.places.index(self.teller)]
        for place, each in zip(self.places, self.exchanges, strict=True):
            assert not place.worker.failures(each)
        laps = [message for message in worker.said(exchange) if isinstance(message, Lapped)]
        for lap in laps[self.steps :]:
            assert (lap.step, lap.position) == (self.steps + 1, self.end)
            self.steps += 1
            self.events.append(lap.token)
        assert self.end <= position
        return self.end == position

    def let_turn(self, until):
        self.first.worker.ask(LetTurn(SessionId(self.first.name), until))

    def release(self):
        for place in self.places:
            place.release()


class Between:
    """A stage whose neighbours the test is: two of its sessions hang on one link from before and one to behind."""

    def __init__(self, worker, blocks, *, embedding=False, head=False, tells=False):
        self.worker, self.behind = worker, RingWorker(worker.place)
        self.places = [Place(worker, name, BlockRange(*blocks), embedding, head) for name in ("x", "y")]
        for place in self.places:
            place.reserve(SamplingParameters(temperature=0))
        doors = [worker.door(place.name) for place in self.places]
        self.exchanges = [worker.enter(place.name, self.behind.door(place.name), tells=tells) for place in self.places]
        self.before = Neighbour.dialled(doors[0])
        self.before.link.send(Attach(1, doors[1].token))
        self.turn(lambda: all(map(worker.has_entered, self.exchanges)))
        self.turn(lambda: self.before.look() and self.before.heard == [Attached(0), Attached(1)])

    def turn(self, until):
        turn([self.worker, self.behind], until)

    def lap(self, number, position, body=b"", step=1, token=None):
        event = None if token is None else TokenEvent(token)
        self.before.link.send(Lap(number, step, position, event), body)

    def has_passed(self, name, position):
        return any((session, lap.position) == (name, position) for session, lap, _ in self.behind.laps)

    def close(self):
        for place in self.places:
            place.release()
        self.before.close()
        empty(self.worker)
        retire(self.behind)


def good_row(worker):
    """Return a row of activations that a stage computes with."""
    return torch.ones(worker.stage.spec.config.hidden_size, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
