"""Who asks a mesh for answers, and what each is to get."""

import attrs
import trio
from support.toy_executor import toy_answer

from meshnode.errors import MeshnodeError
from meshnode.files.shard_file import shard_path
from meshnode.inference.answer import Answer
from meshnode.inference.calls import open_generations
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import Delta, GenerationRequest, SamplingParameters, TokenEvent
from meshnode.types.ids import new_request_id
from meshnode.types.manifest import ShardKind
from simulation.faults import Faults
from simulation.watch import Broken
from simulation.world import load_assets

__all__ = ["Users"]

PATIENCE = 330.0  # seconds in which a request ends, one way or the other: what the router allows, and some


@attrs.define(eq=False)
class Users:
    """Ask nodes, and hold them to it."""

    faults: Faults
    requests: int = 0
    answered: int = 0
    refused: int = 0

    async def ask_until(self, until, rate):
        """Ask all the time, whoever is up; some leave before the answer is complete."""
        random, world = self.faults.random, self.faults.world
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                up = [node for node in world.nodes if node.is_up]
                if up:
                    stays = PATIENCE if random.random() < 0.85 else random.uniform(0.05, 2)
                    nursery.start_soon(self.ask, random.choice(up), stays)
                await trio.sleep(random.expovariate(rate))

    async def ask(self, node, stays=PATIENCE, *, must=False):
        """Ask one node one thing. It ends, what is answered is right, and it is answered if that was possible throughout."""
        random, faults = self.faults.random, self.faults
        asked = _request(random, faults.world.manifest.name)
        number = self.requests = self.requests + 1
        process, began = node.scope, trio.current_time()
        faults.note(f"request {number} to {node.peer[-6:]} for {asked.max_tokens} tokens")
        error, texts = None, []
        with trio.move_on_after(stays) as patience:
            try:
                async with open_generations(node.channels.generations, [asked]) as events:
                    async for _, event in events:
                        if isinstance(event, Delta):
                            texts.append(event.text)
            except MeshnodeError as caught:
                error = caught
        right = await _text_of(asked, faults.world)
        if not right.startswith("".join(texts)):
            raise Broken(f"request {number} got a wrong answer: {''.join(texts)!r} instead of {right!r}")
        if node.scope is not process:
            faults.note(f"request {number}: its node is gone")
        elif error is not None:
            self.refused += 1
            faults.note(f"request {number} refused: {error.code}: {error}")
            if must or faults.had_a_route(node, began):
                raise Broken(f"request {number} was refused though it could be answered: {error}") from error
        elif patience.cancelled_caught and stays < PATIENCE:
            faults.note(f"request {number}: its client left")
        elif patience.cancelled_caught:
            raise Broken(f"request {number} has not ended after {PATIENCE:.0f} s")
        else:
            self.answered += 1
            faults.note(f"request {number} answered")
            if right != "".join(texts):
                raise Broken(f"request {number} got half an answer: {''.join(texts)!r} of {right!r}")


def _request(random, name):
    """Return a request that has one right answer."""
    tokens = random.randint(1, 12) if random.random() < 0.8 else random.randint(13, 40)
    return GenerationRequest(
        id=new_request_id(),
        model=name,
        messages=(ChatMessage("user", f"Say {random.randrange(1000)}!"),),
        sampling=SamplingParameters(temperature=0.8, seed=random.randrange(1 << 32)),
        max_tokens=tokens,
    )


async def _text_of(asked, world):
    """Return the answer of one node that has everything."""
    manifest = world.manifest
    tokenizer = next(shard for shard in manifest.shards if shard.kind is ShardKind.TOKENIZER)
    assets = load_assets(shard_path(world.folder, tokenizer.id))
    prompt = assets.prompt(asked, manifest.config.context_length)
    answer = Answer(assets.tokenizer, len(prompt.tokens), prompt.form)
    tokens = await toy_answer(manifest.config.block_count, prompt.tokens, prompt.sampling, asked.max_tokens)
    deltas = [answer.push(TokenEvent(token)) for token in tokens if not answer.is_done]
    deltas.append(answer.ending()[0])
    return "".join(delta.text for delta in deltas if delta is not None)
