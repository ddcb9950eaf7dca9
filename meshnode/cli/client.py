"""The HTTP client of a running node: carries the key, and turns failures into sentences."""

import http.client
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from meshnode.cli.address import Address, ApiKey
from meshnode.cli.failures import CommandFailed, NodeDown

__all__ = ["Client"]

_CONNECT_TIMEOUT = 5.0  # seconds
_ANSWER_TIMEOUT = 30.0  # seconds a node may take for an ordinary answer


class Client:
    """Asks one node, each time on a connection of its own.

    On the standard library's: httpx takes longer to load than a command that asks one thing may take.
    """

    def __init__(self, address: Address, key: ApiKey) -> None:
        self.address = address
        self._key = key

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON at `path`. Raises NodeDown, CommandFailed."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, object], *, patient: bool = False) -> Any:  # noqa: ANN401 - JSON
        """Send `body` and return the JSON answer; `patient` waits for it without limit."""
        return self._call("POST", path, body, patient=patient)

    def delete(self, path: str, name: str, *, force: bool = False) -> Any:  # noqa: ANN401 - JSON
        """Delete `name` under `path`; by `force` also what the node would rather keep."""
        return self._call("DELETE", f"{path}/{quote(name, safe='')}{'?force=true' if force else ''}")

    def stream(
        self,
        path: str,
        body: Mapping[str, object],
        *,
        silence: float,
        head: Callable[[Mapping[str, str]], None] | None = None,
        comment: Callable[[str], None] | None = None,
    ) -> Generator[dict[str, Any], None, None]:
        """Send `body` and yield the events of the answer as they come; closing the iterator cancels the request.

        `silence` is the longest time without a byte, in seconds. `head` is given the headers, `comment` what is said beside
        the events. Raises CommandFailed if the stream ends without its `[DONE]`, or carries an error.
        """
        with self._answered("POST", path, body, silence) as response:
            if head is not None:
                head({name.lower(): value for name, value in response.getheaders()})
            while raw := response.readline():
                line = raw.decode(errors="replace").rstrip("\r\n")
                if comment is not None and line.startswith(":"):
                    comment(line.removeprefix(":").strip())
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = _object(data)
                if "error" in event:
                    raise CommandFailed(_message(event) or "the node gave up without saying why")
                yield event
        raise CommandFailed("the stream ended before the answer was complete; see the node's log")

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None, *, patient: bool = False) -> Any:  # noqa: ANN401
        with self._answered(method, path, body, None if patient else _ANSWER_TIMEOUT) as response:
            text = _text(response)
        return _object(text)

    @contextmanager
    def _answered(
        self, method: str, path: str, body: Mapping[str, object] | None, silence: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask, and give the answer while it is read. Raises NodeDown and CommandFailed, for a refusal too."""
        url = self.address.url
        headers = {"Authorization": f"Bearer {self._key.text}", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with closing(self._connected()) as connection:
            connection.sock.settimeout(silence)
            try:
                connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
                response = connection.getresponse()
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise self._refusal(response.status, _text(response))
                yield response
            except TimeoutError as error:
                raise CommandFailed(
                    f"the node at {url} did not answer in time; `meshnode status` may say why"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise CommandFailed(f"the connection to {url} broke before the answer was complete: {error}") from error

    def _connected(self) -> http.client.HTTPConnection:
        """Connect, past every proxy: none must see the key."""
        url = self.address.url
        try:
            connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=_CONNECT_TIMEOUT)
            connection.connect()
        except OSError as error:
            raise NodeDown(f"no node answers at {url}; start one with `meshnode run`") from error
        except (http.client.InvalidURL, UnicodeError) as error:
            raise CommandFailed(f"{url} is no address: {error}; check api.host with `meshnode config show`") from error
        return connection

    def _refusal(self, status: int, text: str) -> CommandFailed:
        if status == HTTPStatus.UNAUTHORIZED:
            return CommandFailed(
                f"the node at {self.address.url} does not accept the key {self._key.origin}; is --data-dir "
                "the folder of that node? A key from elsewhere is given with MESHNODE_API_KEY or --api-key"
            )
        try:
            message = _message(_object(text))
        except CommandFailed:
            message = None
        return CommandFailed(message or f"the node at {self.address.url} answered {status}")


def _text(response: http.client.HTTPResponse) -> str:
    return response.read().decode(errors="replace")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandFailed("what answers there does not speak JSON; is it a meshnode?") from error
    if not isinstance(value, dict):
        raise CommandFailed("what answers there does not answer as a meshnode does")
    return value


def _message(body: Mapping[str, Any]) -> str | None:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
