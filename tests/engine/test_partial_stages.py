"""Sessions over partial stages give, bit for bit, what the whole model gives: whatever the borders, chunks and losses."""

import itertools
import random

import attrs
import pytest
import torch
from support.stages import ends_of, stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation, StageReservation
from meshnode.engine.stage_model import Part, Rows, StageModel
from meshnode.engine.worker_messages import (
    BatchLimits,
    Envelope,
    Generate,
    Progress,
    Release,
    Released,
    Reserve,
    Reserved,
    Step,
    StepDone,
)
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed

BLOCKS = 4
PROMPT, ANSWER = 262, 14  # tokens: the page border at 256 lies within the prompt
SAMPLINGS = [
    SamplingParameters(temperature=0),
    SamplingParameters(seed=7, temperature=1.1, top_p=0.9, presence_penalty=0.7, frequency_penalty=0.3, top_logprobs=2),
    SamplingParameters(seed=11, temperature=1.5, grammar="start: /([a-f]{1,3}[0-9])+/"),
]


class Node:
    """A loaded stage as its worker runs it, and the answers so far."""

    def __init__(self, stage, limits=None):
        self.stage, self.answers = stage, {}
        self.batch = Batch(stage, limits or BatchLimits(96, 32), self._hear)
        self._numbers = itertools.count(1)

    def _hear(self, envelope):
        self.answers.setdefault(envelope.exchange, []).append(envelope)

    def ask(self, message, body=b""):
        exchange = next(self._numbers)
        self.batch.accept(Envelope(exchange, message, body))
        return exchange

    def run(self):
        while not self.batch.is_idle:
            self.batch.step()

    def answer(self, exchange, kind):
        (envelope,) = self.answers.pop(exchange)
        assert isinstance(envelope.message, kind), envelope.message
        return envelope

    def now(self, message, body=b"", kind=StepDone):
        exchange = self.ask(message, body)
        self.run()
        return self.answer(exchange, kind)


@attrs.frozen
class Place:
    """A stage of a route: which part of the model, on which node."""

    node: Node
    blocks: BlockRange | None
    embedding: bool
    head: bool

    @property
    def border(self):
        """Blocks that are done behind it."""
        return self.blocks.end if self.blocks is not None else 0 if self.embedding else BLOCKS


class Ring:
    """Drives one session as a coordinator does, and holds every handed-on row against the whole model's."""

    def __init__(self, places, name, sampling, known=None):
        self.places, self.name, self.known, self.sampling = places, name, known, sampling
        self._reserve_all(())

    def _reserve_all(self, history):
        self.lengths = [self._reserve(index, place, history) for index, place in enumerate(self.places)]

    def _session(self, index):
        return SessionId(f"{self.name}.{index}")  # a node may hold two stages of a route

    def _reserve(self, index, place, history):
        reservation = StageReservation(
            place.blocks,
            place.embedding,
            place.head,
            PROMPT + ANSWER,
            PROMPT if place.head else 0,
            tuple(history) if place.head else (),
            self.sampling if place.head else None,
        )
        return place.node.now(Reserve(self._session(index), reservation), kind=Reserved).message.length

    def replace(self, index, place, history):
        """Lose one stage; the others stay and are told what the answer is so far."""
        self.places[index].node.ask(Release(self._session(index)))
        self.places[index] = place
        self._reserve_all(history)

    def send(self, tokens, begin, end, *, sample=False, starts=None):
        """Send rows [begin, end) round the ring; stage i hands on only what stage i + 1 wants, from starts[i + 1]."""
        starts = starts or [0] * len(self.places)
        first, rows, done = begin, b"", None
        for index, place in enumerate(self.places):
            skip = starts[index + 1] if index + 1 < len(self.places) else 0
            text = tuple(tokens[first:end]) if index == 0 else ()
            step = Step(self._session(index), first, text, sample and place.head, skip)
            reply = place.node.now(step, rows)
            done, rows = reply.message, reply.body
            if not place.head:
                first = max(first, skip)
                if first >= end:
                    return None
                assert done.position == first
                if self.known is not None:
                    expected = self.known[place.border][first:end]
                    assert rows == expected.contiguous().view(torch.uint8).numpy().tobytes(), (place.border, first)
        return done.token

    def replay(self, tokens, sizes):
        """Give every stage what it or one behind it lacks, the last row always; return the token after it."""
        lacking = [min(self.lengths[index:]) for index in range(len(self.places))]
        starts = [min(each, len(tokens) - 1) for each in lacking]
        begin, token = starts[0], None
        while begin < len(tokens):
            end = min(begin + next(sizes), len(tokens))
            token = self.send(tokens, begin, end, sample=end == len(tokens), starts=starts)
            begin = end
        return token

    def release(self):
        for index, place in enumerate(self.places):
            place.node.ask(Release(self._session(index)))


def load_all(path, folder):
    """Return nodes that hold the model and several parts of it."""
    manifest = tiny_manifest(path, folder)
    spans = [(0, 4), (0, 3), (1, 4), (1, 3), (2, 4)]
    specs = [stage_of(manifest, folder, *span) for span in spans]
    specs += [ends_of(manifest, folder), ends_of(manifest, folder, embedding=False)]
    return [Node(StageModel.load(spec)) for spec in specs]


@attrs.frozen
class Truth:
    """What the whole model says, one row at a time."""

    prompt: list
    events: list
    rows: dict  # by border


@pytest.fixture(scope="module", params=["Q4_1", "Q8_0", "F32"])
def nodes(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = write_tiny_llama(folder / "m.gguf", quantization=request.param, blocks=BLOCKS)
    return load_all(path, folder / "shards")


@pytest.fixture(scope="module")
def truths(nodes):
    found = []
    for seed, sampling in enumerate(SAMPLINGS):
        prompt = random.Random(seed).choices(range(3, 259), k=PROMPT)
        events = answer_of_whole(nodes[0], prompt, sampling)
        rows = rows_of_whole(nodes[0].stage, prompt + [event.token for event in events])
        found.append((sampling, Truth(prompt, events, rows)))
    return found


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def can_run(node, blocks, embedding, head):
    spec = node.stage.spec
    inside = blocks is None or (
        spec.blocks is not None and spec.blocks.start <= blocks.start and blocks.end <= spec.blocks.end
    )
    return inside and spec.embedding >= embedding and spec.head >= head


def random_place(choose, nodes, blocks, embedding, head):
    return Place(choose.choice([n for n in nodes if can_run(n, blocks, embedding, head)]), blocks, embedding, head)


def random_route(choose, nodes, count):
    """Cut embedding, blocks and head into `count` stages: a border is before the first block at the earliest."""
    while True:
        borders = sorted(choose.sample(range(BLOCKS + 1), count - 1))
        edges = [0, *borders, BLOCKS]
        pairs = list(itertools.pairwise(edges))
        parts = []
        for index, (start, end) in enumerate(pairs):
            blocks = BlockRange(start, end) if end > start else None
            parts.append((blocks, index == 0, index == count - 1))
        try:
            return [random_place(choose, nodes, *part) for part in parts]
        except IndexError:
            continue  # nobody holds that much


def answer_of_whole(node, prompt, sampling):
    exchange = node.ask(Generate(Generation(SessionId("whole"), tuple(prompt), len(prompt), ANSWER, sampling), 1000))
    node.run()
    node.answers.pop(exchange)
    progress = [e.message for e in node.answers.pop(0) if isinstance(e.message, Progress)]
    return [sampled.event() for message in progress for sampled in message.sampled]


def rows_of_whole(stage, tokens):
    """Return the activations of every position before the first block and after each."""
    found = {0: torch.cat([_one(stage, token, Part(range(0), embedding=True, head=False)) for token in tokens])}
    for block in range(BLOCKS):
        cache, part = stage.open_cache(len(tokens)), Part(range(block, block + 1), embedding=False, head=False)
        rows = [stage.forward([Rows(cache, row[None])], part)[0] for row in found[block]]
        found[block + 1] = torch.cat(rows)
        cache.close()
    return found


def _one(stage, token, part):
    return stage.forward([Rows(None, torch.tensor([token]))], part)[0]


def chunk_sizes(choose):
    while True:
        yield choose.choice([1, 2, 7, 31, 32, 33, 64, 95, 96, 97, 200])


def test_every_split_and_every_loss_gives_the_bits_of_the_whole_model(nodes, truths, threads):
    choose = random.Random(threads)
    sizes = chunk_sizes(choose)
    for (sampling, truth), count in itertools.product(truths, (2, 3)):
        answer = [event.token for event in truth.events]
        ring = Ring(random_route(choose, nodes, count), f"{count}", sampling, truth.rows)
        events = []
        while len(events) < ANSWER:
            tokens = truth.prompt + answer[: len(events)]
            if events and choose.random() < 0.7:
                events.append(ring.send(tokens, len(tokens) - 1, len(tokens), sample=True))
                continue
            if events:  # a stage is lost, another takes its place
                lost = choose.randrange(len(ring.places))
                there = ring.places[lost]
                place = random_place(choose, nodes, there.blocks, there.embedding, there.head)
                ring.replace(lost, place, answer[: len(events)])
            events.append(ring.replay(tokens, sizes))
        assert events == truth.events
        ring.release()
    assert [node.batch.sessions for node in nodes] == [0] * len(nodes)


def test_sessions_that_share_forwards_get_what_they_get_alone(nodes, threads):
    whole = nodes[0]
    first, last = Node(whole.stage), Node(whole.stage)
    prompts = [random.Random(seed).choices(range(3, 259), k=3 + 40 * seed) for seed in range(5)]
    expected = [[event.token for event in answer_of_whole(whole, prompt, SAMPLINGS[0])] for prompt in prompts]
    texts = [list(prompt) for prompt in prompts]
    for number, prompt in enumerate(prompts):
        name = SessionId(f"s{number}")
        first.now(Reserve(name, StageReservation(BlockRange(0, 2), True, False, 600)), kind=Reserved)
        behind = StageReservation(BlockRange(2, 4), False, True, 600, len(prompt), (), SAMPLINGS[0])
        last.now(Reserve(name, behind), kind=Reserved)
    sent = [0] * len(texts)
    for _ in range(ANSWER):
        asked = [first.ask(Step(SessionId(f"s{n}"), sent[n], tuple(text[sent[n] :]))) for n, text in enumerate(texts)]
        first.run()
        bodies = [first.answer(exchange, StepDone).body for exchange in asked]
        asked = [last.ask(Step(SessionId(f"s{n}"), sent[n], (), True), body) for n, body in enumerate(bodies)]
        last.run()
        for n, exchange in enumerate(asked):
            sent[n] = len(texts[n])
            texts[n].append(last.answer(exchange, StepDone).message.token.token)
    for number in range(len(prompts)):
        first.now(Release(SessionId(f"s{number}")), kind=Released)
        last.now(Release(SessionId(f"s{number}")), kind=Released)
    assert whole.stage.pool.used_bytes == 0
    assert [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)] == expected


def test_stages_without_blocks_take_no_memory_for_sessions(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    ends = Node(StageModel.load(ends_of(manifest, tmp_path / "shards")))
    assert ends.stage.free_tokens > 1 << 20
    ends.now(Reserve(SessionId("s"), StageReservation(None, True, False, 900)), kind=Reserved)
    assert ends.stage.pool.used_bytes == 0
    assert len(ends.now(Step(SessionId("s"), 0, (1, 2, 3))).body) == 3 * 2 * manifest.config.hidden_size


@pytest.mark.starter
def test_the_starter_over_three_stages_gives_the_bits_of_the_whole(starter_gguf, tmp_path):
    manifest = tiny_manifest(starter_gguf, tmp_path / "shards")
    whole = Node(StageModel.load(stage_of(manifest, tmp_path / "shards")))
    middle = Node(StageModel.load(stage_of(manifest, tmp_path / "shards", 7, 19)))
    prompt = random.Random(3).choices(range(1000, 40000), k=PROMPT)
    expected = answer_of_whole(whole, prompt, SAMPLINGS[1])
    places = [
        Place(whole, BlockRange(0, 9), True, False),
        Place(middle, BlockRange(9, 17), False, False),
        Place(Node(whole.stage), BlockRange(17, 30), False, True),
    ]
    ring = Ring(places, "s", SAMPLINGS[1])
    events = [ring.replay(prompt, itertools.cycle([97, 60, 33]))]
    while len(events) < ANSWER:
        tokens = prompt + [event.token for event in events]
        if len(events) == 9:
            ring.replace(1, Place(whole, BlockRange(9, 17), False, False), tokens[PROMPT:])
            events.append(ring.replay(tokens, itertools.cycle([128])))
        else:
            events.append(ring.send(tokens, len(tokens) - 1, len(tokens), sample=True))
    assert events == expected


def test_rows_beyond_the_context_are_refused_though_their_page_is_reserved(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf", blocks=BLOCKS), tmp_path / "shards")
    spec = stage_of(manifest, tmp_path / "shards", 1, 3, context=100)
    node, session = Node(StageModel.load(spec)), SessionId("x" * 24)
    node.now(Reserve(session, StageReservation(spec.blocks, embedding=False, head=False, tokens=100)), kind=Reserved)
    rows = torch.randn(101, manifest.config.hidden_size).bfloat16().view(torch.uint8)
    failed = node.now(Step(session, 0, (), False, 0), rows.numpy().tobytes(), kind=Failed)
    assert "0 to 101 do not fit the 100 reserved" in failed.message.message
    node.now(Step(session, 0, (), False, 0), rows[:100].numpy().tobytes())
