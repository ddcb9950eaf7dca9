"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import attrs
import msgspec
from quart import Response

from meshnode import __version__
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.ports import ApiDependencies, Events
from meshnode.api.streams import DONE, event_lines, event_stream, sse
from meshnode.types.generation import Finished, GenerationEvent, GenerationRequest, Started, TextDelta, TokenLogprob

__all__ = ["complete_chat"]


async def complete_chat(body: ChatRequest, dependencies: ApiDependencies, *, client: str) -> Response:
    """Answer a chat request, whole or as a stream.

    Raises RequestError and InferenceError leafs before anything is sent. Cancellation (the client left) ends every generation.
    """
    requests = body.generations(client)
    # The stack outlives this function when the reply streams: its body closes it. Nothing in it holds a cancel scope.
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(dependencies.generate(requests))
        index, first = await anext(aiter(events))
        assert isinstance(first, Started)
        reply = _Reply.begin(body, requests, first)
        headers = {"x-meshnode-route": first.route}
        if not body.stream:
            return await _whole(reply, events, headers)
        return event_stream(_streamed(reply, index, first, events, stack.pop_all()), headers)


async def _whole(reply: "_Reply", events: Events, headers: dict[str, str]) -> Response:
    async for index, event in events:
        reply.take(index, event)
    headers["Server-Timing"] = reply.timing()
    return Response(msgspec.json.encode(reply.completion()), content_type="application/json", headers=headers)


async def _streamed(
    reply: "_Reply", index: int, first: Started, events: Events, stack: AsyncExitStack
) -> AsyncIterator[bytes]:
    async with stack:
        yield reply.chunk_of(index, first)
        async with aclosing(event_lines(events, reply.chunk_of, reply.end)) as lines:
            async for line in lines:
                yield line


@attrs.define(eq=False)
class _Choice:
    text: list[str] = attrs.field(factory=list)
    logprobs: list[dict[str, object]] = attrs.field(factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0


@attrs.define(eq=False)
class _Reply:
    """One reply in the making: what was said so far, and the parts every chunk repeats, encoded once."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    wants_logprobs: bool
    include_usage: bool
    choices: list[_Choice]
    began: float
    first_token: float | None = None
    _head: bytes = b""

    @classmethod
    def begin(cls, body: ChatRequest, requests: list[GenerationRequest], first: Started) -> "_Reply":
        reply = cls(
            id=f"chatcmpl-{requests[0].id}",
            created=int(time.time()),
            model=first.model,
            prompt_tokens=first.prompt_tokens,
            wants_logprobs=bool(body.logprobs),
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            choices=[_Choice() for _ in requests],
            began=time.perf_counter(),
        )
        common = reply._common("chat.completion.chunk")
        reply._head = b"data: " + msgspec.json.encode(common)[:-1]
        return reply

    def _common(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"meshnode-{__version__}",
        }

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        choice = self.choices[index]
        if isinstance(event, TextDelta):
            self.first_token = self.first_token or time.perf_counter()
            choice.text.append(event.text)
            choice.logprobs += [_logprob(entry) for entry in event.logprobs]
        elif isinstance(event, Finished):
            choice.finish_reason = event.reason.value
            choice.completion_tokens = event.usage.completion_tokens

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Encode an event as a chunk."""
        if isinstance(event, Started):
            return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)
        if isinstance(event, TextDelta):
            logprobs: dict[str, object] | None = None
            if self.wants_logprobs:
                logprobs = {"content": [_logprob(entry) for entry in event.logprobs], "refusal": None}
            return self._chunk(index, {"content": event.text}, logprobs, None)
        self.choices[index].completion_tokens = event.usage.completion_tokens
        return self._chunk(index, {}, None, event.reason.value)

    def _chunk(
        self, index: int, delta: dict[str, object], logprobs: dict[str, object] | None, finish_reason: str | None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = b',"usage":null' if self.include_usage else b""
        return self._head + b',"choices":[' + msgspec.json.encode(choice) + b"]" + usage + b"}\n\n"

    def end(self) -> bytes:
        """Encode what follows the last choice."""
        if not self.include_usage:
            return DONE
        return sse(self._common("chat.completion.chunk") | {"choices": [], "usage": self.usage()}) + DONE

    def usage(self) -> dict[str, object]:
        """Return the token counts; the prompt counts once, however many choices."""
        completion = sum(choice.completion_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
                "logprobs": {"content": choice.logprobs, "refusal": None} if self.wants_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self._common("chat.completion") | {"choices": choices, "usage": self.usage()}

    def timing(self) -> str:
        """Return the Server-Timing header: milliseconds to the first token and in all."""
        now = time.perf_counter()
        first = (self.first_token or now) - self.began
        return f"first-token;dur={first * 1e3:.1f}, total;dur={(now - self.began) * 1e3:.1f}"


def _logprob(entry: TokenLogprob) -> dict[str, object]:
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "bytes": list(entry.raw),
        "top_logprobs": [{"token": top.token, "logprob": top.logprob, "bytes": list(top.raw)} for top in entry.top],
    }
