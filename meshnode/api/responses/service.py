"""Makes, keeps, finds and ends answers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import attrs
import structlog
import trio
from quart import Response

from meshnode.api.failures import describe, failure_of
from meshnode.api.left_out import warning_headers
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.responses.archive import StoredResponse
from meshnode.api.responses.items import Item, as_items, listed
from meshnode.api.responses.reply import ResponseReply
from meshnode.api.responses.schemas import ResponseRequest
from meshnode.api.streams import HEARTBEAT, event_stream
from meshnode.errors import MeshnodeError, Overloaded, RequestError, StoreError
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId

__all__ = ["Responses"]

_MAX_BACKGROUND = 64
_EXPIRE_EVERY = 3600.0  # seconds
_UNDER_WAY = ("queued", "in_progress")

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class _Turn:
    """One request on its way."""

    reply: ResponseReply
    before: Sequence[Item]  # of the turns before
    items: Sequence[Item]  # of this turn
    generation: GenerationRequest


@attrs.define(eq=False)
class Responses:
    """The surface's state: which answers are made in the background now. Kept ones are in the archive."""

    dependencies: ApiDependencies
    _jobs: dict[str, tuple[ResponseReply, trio.CancelScope]] = attrs.field(factory=dict, init=False)
    _wanted: trio.MemorySendChannel[_Turn] = attrs.field(init=False)
    _queue: trio.MemoryReceiveChannel[_Turn] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._wanted, self._queue = trio.open_memory_channel[_Turn](_MAX_BACKGROUND)

    async def run(self) -> None:
        """Make answers in the background and forget old ones, until cancelled; then what is under way ends as failed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            async for turn in self._queue:
                nursery.start_soon(self._work, turn)

    async def create(
        self, body: ResponseRequest, resources: AsyncExitStack, *, client: str, request: RequestId
    ) -> Response:
        """Answer, whole, as a stream, or later.

        Raises RequestError and InferenceError leafs before anything is sent. The generation of a streamed answer ends with
        `resources`; one in the background with `cancel`, or the server.
        """
        turn = self._turn(body, client, request)
        headers = warning_headers(body.warnings)
        if body.background:
            return json_reply(await self._enqueue(turn), headers=headers)
        async with AsyncExitStack() as own:
            events = await own.enter_async_context(self.dependencies.generate([turn.generation]))
            if not body.stream:
                async for _, event in events:
                    turn.reply.chunk_of(event)
                await self._keep(turn)
                return json_reply(turn.reply.resource(), headers=headers | turn.reply.journey.headers())
            first = None
            with trio.move_on_after(self.dependencies.heartbeat):  # a refusal should still become a status
                first = await anext(events)
            resources.push_async_exit(own.pop_all())
        resources.push_async_callback(self._leave, turn)
        opening = turn.reply.opening() + (HEARTBEAT if first is None else turn.reply.chunk_of(first[1]))
        return event_stream(self._stream(turn, events, opening), headers | turn.reply.journey.headers())

    def show(self, name: str) -> dict[str, object]:
        """Return an answer as far as it is. Raises UnknownResponse."""
        job = self._jobs.get(name)
        return job[0].resource() if job is not None else self._settled(self.dependencies.responses.get(name))

    def input_items(self, name: str, *, newest_first: bool, limit: int, after: str | None) -> dict[str, object]:
        """Return a page of the items that an answer was made from. Raises UnknownResponse and RequestError."""
        turns = self.dependencies.responses.turns(name)
        items: list[Item] = []
        for turn in turns:
            items += map(listed, turn.named_input)
            items += turn.output if turn is not turns[-1] else []
        if newest_first:
            items.reverse()
        ids = [str(item["id"]) for item in items]
        if after is not None and after not in ids:
            raise RequestError(f"there is no item {after[:80]!r}", param="after")
        begin = 0 if after is None else ids.index(after) + 1
        page = items[begin : begin + limit]
        names = ids[begin : begin + limit]
        return {
            "object": "list",
            "data": page,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
            "has_more": begin + limit < len(items),
        }

    async def delete(self, name: str) -> dict[str, object]:
        """Forget an answer; one under way ends. Raises UnknownResponse."""
        if (job := self._jobs.get(name)) is not None:
            job[1].cancel()
        await self.dependencies.responses.delete(name)
        return {"id": name, "object": "response", "deleted": True}

    def cancel(self, name: str) -> dict[str, object]:
        """End an answer that is made in the background. Raises UnknownResponse, RequestError for any other."""
        job = self._jobs.get(name)
        if job is None:
            found = self.show(name)
            if not found["background"]:
                raise RequestError("only answers made in the background can be cancelled", param="response_id")
            return found
        reply, scope = job
        reply.cancel()
        scope.cancel()
        return reply.resource()

    def _turn(self, body: ResponseRequest, client: str, request: RequestId) -> _Turn:
        items = self._found(as_items(body.input))
        before: list[Item] = []
        for row in self.dependencies.responses.turns(body.previous_response_id):
            before += row.turn
        generation = body.generation([*before, *items], client, request, kept=len(before))
        return _Turn(ResponseReply(f"resp_{request}", body), before, items, generation)

    def _found(self, items: Sequence[Item]) -> list[Item]:
        """Return the items, those that are named only in full. Raises RequestError and UnknownResponse."""
        found = []
        for index, item in enumerate(items):
            name = item.get("id")
            if item.get("type") == "item_reference" or set(item) == {"id"}:
                if set(item) > {"id", "type"} or not isinstance(name, str):
                    raise RequestError(f"'input[{index}]' names an item by its 'id' alone", param=f"input[{index}]")
                item = self.dependencies.responses.item(name, f"input[{index}].id")
            found.append(item)
        return found

    async def _enqueue(self, turn: _Turn) -> dict[str, object]:
        if len(self._jobs) >= _MAX_BACKGROUND:
            raise Overloaded(f"{len(self._jobs)} answers are being made in the background; try later", retry_after=10.0)
        turn.reply.status = "queued"
        resource = turn.reply.resource()
        await self._put(turn, resource)
        self._jobs[turn.reply.id] = (turn.reply, trio.CancelScope())
        self._wanted.send_nowait(turn)
        return resource

    async def _work(self, turn: _Turn) -> None:
        """Make one answer; nothing it raises is the server's crash."""
        reply, scope = self._jobs[turn.reply.id]
        try:
            with scope:
                reply.status = "in_progress"
                async with self.dependencies.generate([turn.generation]) as events:
                    async for _, event in events:
                        reply.chunk_of(event)
        except MeshnodeError as error:
            reply.fail(failure_of(error))
        except Exception as error:  # noqa: BLE001  # the job's rim
            _log.error("an answer in the background failed", response=reply.id, exc_info=error)
            reply.fail(describe(500, "an internal error; the node's log has the details"))
        finally:
            if reply.status in _UNDER_WAY:  # the server ends
                reply.fail(describe(503, "the node stopped before the answer was finished"))
            with trio.CancelScope(shield=True):
                if reply.id in self.dependencies.responses:
                    await self._keep(turn)
            del self._jobs[reply.id]

    async def _stream(
        self, turn: _Turn, events: AsyncIterator[tuple[int, object]], opening: bytes
    ) -> AsyncIterator[bytes]:
        """Yield the body; the answer is kept before its last event, so that the next request can go on from it."""
        yield opening
        try:
            while True:
                with trio.move_on_after(self.dependencies.heartbeat) as silence:
                    _, event = await anext(events)
                yield HEARTBEAT if silence.cancelled_caught else turn.reply.chunk_of(event)  # type: ignore[arg-type]
        except StopAsyncIteration:
            await self._keep(turn)
            yield turn.reply.journey.comment() + turn.reply.ending()
        except MeshnodeError as error:
            turn.reply.fail(failure_of(error))
            await self._keep(turn)
            yield turn.reply.ending()

    async def _leave(self, turn: _Turn) -> None:
        """Keep what there is of an answer whose client has left in the middle: it has been told the name."""
        if turn.reply.status in _UNDER_WAY:
            turn.reply.cancel()
            with trio.CancelScope(shield=True):
                await self._keep(turn)

    async def _keep(self, turn: _Turn) -> None:
        if turn.reply.request.store is not False:
            await self._put(turn, turn.reply.resource())

    async def _put(self, turn: _Turn, resource: dict[str, object]) -> None:
        row = StoredResponse(
            turn.reply.created, turn.reply.request.previous_response_id, tuple(map(dict, turn.items)), resource
        )
        try:
            await self.dependencies.responses.put(turn.reply.id, row, turn.before)
        except StoreError as error:
            _log.error("an answer could not be kept", response=turn.reply.id, error=str(error))

    def _settled(self, row: StoredResponse) -> dict[str, object]:
        """Return a kept answer; one that was under way when the node last stopped has failed."""
        if row.response["status"] in _UNDER_WAY:
            error = {"code": "server_error", "message": "the node stopped before the answer was finished"}
            return row.response | {"status": "failed", "error": error}
        return row.response

    async def _expire(self) -> None:
        while True:
            try:
                await self.dependencies.responses.expire()
            except StoreError as error:
                _log.warning("old answers could not be forgotten", error=str(error))
            await trio.sleep(_EXPIRE_EVERY)
