"""The protocol of a connection: HTTP/1.1 and nothing else, where what cannot be read as such is told so in words.

hypercorn 0.18 speaks HTTP/2 to whoever offers it, and answers a malformed request, or a wish for a WebSocket that its application
refuses, with a status and no body.
"""

import sys

import h11
from hypercorn.protocol.h11 import H11Protocol

from meshnode.api.accounts import Account
from meshnode.api.failures import describe, failure_body
from meshnode.api.heads import common_headers
from meshnode.types.ids import new_request_id

__all__ = ["Http1"]


class Http1(H11Protocol):
    """One connection's requests, every one of which reaches the application unless it is malformed."""

    async def _check_protocol(self, _event: h11.Request) -> None:
        """Take up no offer to upgrade to HTTP/2, which its senders expect."""
        return

    async def _create_stream(self, request: h11.Request) -> None:
        """Hand on a wish for a WebSocket as the request it is, for the guards to refuse: it needs `Connection: upgrade` too."""
        headers = request.headers
        if any(name == b"upgrade" for name, _ in headers):
            kept = [(name, value) for name, value in headers if name != b"connection"]
            version = request.http_version
            request = h11.Request(method=request.method, target=request.target, headers=kept, http_version=version)
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        """Say what is wrong with a request. There is no path yet, so the words are put as OpenAI's clients know them."""
        wrong = sys.exception()  # this is called where it is handled, and not told of it
        words = f"its head has more than {self.config.h11_max_incomplete_size} bytes" if status_code == 431 else wrong
        failure = describe(status_code, f"this is no request of HTTP/1.1 that can be answered: {words}")
        account = Account(new_request_id())
        body = failure_body(failure)
        ours = {
            **common_headers(account.id),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = [(name.encode(), value.encode()) for name, value in ours.items()]
        head += self.config.response_headers("h11")
        await self._send_h11_event(h11.Response(status_code=status_code, headers=head))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
        if self.stream is None:  # else the request has an account of its own
            account.fail(failure)
            client = self.client[0] if self.client is not None else "unknown"
            account.tell("request", whole=True, status=status_code, client=client)
