"""Two ends of a link in memory: both real, or one of them held by the test, which may send whatever it likes."""

from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing

from meshnode.network.links import Link
from meshnode.types.ids import PeerId
from meshnode.wire.envelopes import EnvelopeCodec
from meshnode.wire.protocols import STAGE_MESSAGES
from meshnode.wire.stage_messages import Probe, ProbeReply
from meshnode.wire.versions import OURS, Terms

__all__ = ["Delayed", "RawEnd", "answer_probes", "linked", "make_link", "one_link"]

TERMS = Terms(1, OURS, False, "0.1.0", 0.0)


async def answer_probes(inbound):
    if isinstance(inbound.message, Probe):
        await inbound.link.send(ProbeReply(), exchange=inbound.exchange)


def make_link(stream, *, opened=True, terms=TERMS, **options):
    link = Link(PeerId("there" if opened else "here"), stream, STAGE_MESSAGES, opened, **options)
    link.terms = terms
    return link


@attrs.define(eq=False)
class RawEnd:
    """The other end, as bytes."""

    stream: object
    messages: list = attrs.field(factory=list)
    codec: EnvelopeCodec = attrs.field(factory=lambda: EnvelopeCodec(STAGE_MESSAGES, STAGE_MESSAGES))

    async def send(self, message, body=b"", exchange=0):
        await self.stream.send_all(STAGE_MESSAGES.to_frame(message, body, exchange))

    async def read(self):
        """Take what has come and note its messages; say whether there is more to come."""
        data = await self.stream.receive_some()
        self.messages += self.codec.feed(data)
        return bool(data)

    async def read_to_the_end(self):
        try:
            while await self.read():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return self.messages


@asynccontextmanager
async def one_link(deliver=answer_probes, *, streams=trio.testing.memory_stream_pair, **options):
    """A running link and the raw end of its stream."""
    stream, other = streams()
    link = make_link(stream, **options)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run, deliver)
            yield link, RawEnd(other)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked(
    deliver_here=answer_probes, deliver_there=answer_probes, *, streams=trio.testing.memory_stream_pair, **options
):
    """Two running links to each other."""
    stream, other = streams()
    here, there = make_link(stream, **options), make_link(other, opened=False, **options)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(here.run, deliver_here)
            await nursery.start(there.run, deliver_there)
            yield here, there
            nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Delayed:
    """A stream whose bytes arrive later."""

    stream: object
    delay: float

    async def send_all(self, data):
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes=None):
        data = await self.stream.receive_some(max_bytes)
        await trio.sleep(self.delay)
        return data

    async def aclose(self):
        await self.stream.aclose()
