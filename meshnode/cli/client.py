"""The HTTP client of a running node: carries the key, and turns failures into sentences."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from meshnode.cli.address import Address, ApiKey
from meshnode.cli.failures import CommandFailed, NodeDown

__all__ = ["Client"]

_CONNECT_TIMEOUT = 5.0  # seconds
_ANSWER_TIMEOUT = 30.0  # seconds a node may take for an ordinary answer


class Client:
    """One connection pool to one node. Use it in a `with` statement."""

    def __init__(self, address: Address, key: ApiKey) -> None:
        self.address = address
        self._key = key
        try:
            self._http = httpx.Client(
                base_url=address.url,
                headers={"Authorization": f"Bearer {key.text}"},
                timeout=httpx.Timeout(_ANSWER_TIMEOUT, connect=_CONNECT_TIMEOUT),
                trust_env=False,  # a proxy must not see the key
            )
        except httpx.InvalidURL as error:
            raise CommandFailed(
                f"{address.url} is no address: {error}; check api.host with `meshnode config show`"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON at `path`. Raises NodeDown, CommandFailed."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, object], *, patient: bool = False) -> Any:  # noqa: ANN401 - JSON
        """Send `body` and return the JSON answer; `patient` waits for it without limit."""
        return self._call("POST", path, body, patient=patient)

    def delete(self, path: str, name: str) -> Any:  # noqa: ANN401 - JSON
        """Delete `name` under `path`."""
        return self._call("DELETE", f"{path}/{quote(name, safe='')}")

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
        timeout = httpx.Timeout(silence, connect=_CONNECT_TIMEOUT)
        with self._explained(), self._http.stream("POST", path, json=body, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise self._refusal(response)
            if head is not None:
                head(response.headers)
            for line in response.iter_lines():
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
        timeout = httpx.Timeout(None if patient else _ANSWER_TIMEOUT, connect=_CONNECT_TIMEOUT)
        with self._explained():
            response = self._http.request(method, path, json=body, timeout=timeout)
        if response.is_error:
            raise self._refusal(response)
        return _object(response.text)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        url = self.address.url
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NodeDown(f"no node answers at {url}; start one with `meshnode run`") from error
        except httpx.TimeoutException as error:
            raise CommandFailed(f"the node at {url} did not answer in time; `meshnode status` may say why") from error
        except httpx.RequestError as error:
            raise CommandFailed(f"the connection to {url} broke before the answer was complete: {error}") from error

    def _refusal(self, response: httpx.Response) -> CommandFailed:
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return CommandFailed(
                f"the node at {self.address.url} does not accept the key {self._key.origin}; is --data-dir "
                "the folder of that node? A key from elsewhere is given with MESHNODE_API_KEY or --api-key"
            )
        try:
            message = _message(_object(response.text))
        except CommandFailed:
            message = None
        return CommandFailed(message or f"the node at {self.address.url} answered {response.status_code}")


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
