"""One question and one answer on a stream of their own: two bytes of length, then msgpack."""

from typing import TypeVar

import msgspec
import trio

from meshnode.errors import PeerMisbehaved, PeerUnreachable
from meshnode.network.ports import PeerStream
from meshnode.types.ids import short

__all__ = ["ask", "receive_message", "send_message"]

_LENGTH = 2  # bytes: no message has more than 65,535

M = TypeVar("M")


async def send_message(stream: PeerStream, message: object) -> None:
    """Send a message. Raises PeerUnreachable."""
    body = msgspec.msgpack.encode(message)
    try:
        await stream.send_all(len(body).to_bytes(_LENGTH, "big") + body)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise PeerUnreachable(f"{short(stream.peer)} has gone: {error}") from error


async def receive_message(stream: PeerStream, kind: type[M]) -> M:
    """Return the next message. Raises PeerUnreachable, and PeerMisbehaved when it is not of that kind."""
    body = await _exactly(stream, int.from_bytes(await _exactly(stream, _LENGTH), "big"))
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise PeerMisbehaved(f"{short(stream.peer)} sent what cannot be read: {error}") from error


async def ask(stream: PeerStream, question: object, kind: type[M], timeout: float) -> M:
    """Send a question and return its answer. Raises PeerUnreachable, also without one in `timeout` seconds; PeerMisbehaved."""
    try:
        with trio.fail_after(timeout):
            await send_message(stream, question)
            return await receive_message(stream, kind)
    except trio.TooSlowError:
        raise PeerUnreachable(f"{short(stream.peer)} did not answer within {timeout:g} s") from None


async def _exactly(stream: PeerStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            more = await stream.receive_some(size - len(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerUnreachable(f"{short(stream.peer)} has gone: {error}") from error
        if not more:
            raise PeerUnreachable(f"{short(stream.peer)} closed the stream before it said all")
        data += more
    return bytes(data)
