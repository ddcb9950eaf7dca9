"""A hub's HTTP interface, as far as models are fetched through it: what a repository has, and ranges of its files.

Routes: https://huggingface.co/docs/hub/api (`/api/models/{repo}/revision/{rev}`) and `/{repo}/resolve/{commit}/{path}`, which
redirects to a signed address that expires. Every request starts at the hub again, so no signed address is ever used twice.
"""

import email.utils
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar
from urllib.parse import quote

import attrs
import httpx
import msgspec
import structlog
import trio

from meshnode.errors import SourceUnavailable
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_reference import HubReference

__all__ = ["Hub", "HubRepository", "HubTrouble", "patiently"]

_PUBLIC = "https://huggingface.co"
_YES = frozenset({"1", "on", "true", "yes"})
_LIST_BYTES = 32 << 20  # of a repository's list of files
_LONGEST_WAIT = 120.0  # seconds that a Retry-After is obeyed for
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRIES = 6  # attempts in a row that bring nothing
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PATH = re.compile(r"[^\0\\]+")

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class HubTrouble(Exception):
    """Something that may be gone at the next attempt; `wait` is how long the hub asked to be left alone, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Blob(msgspec.Struct):
    sha256: str


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815  # the hub's name
    lfs: _Blob | None = None


class _Info(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]


@attrs.frozen
class HubRepository:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[HubFile, ...]


@attrs.frozen
class Hub:
    """Where the hub is, and who asks."""

    endpoint: str = _PUBLIC
    token: str | None = attrs.field(default=None, repr=False)
    offline: bool = False
    stall: float = 30.0  # seconds without a byte, after which an attempt is given up

    @classmethod
    def of(cls, environment: Mapping[str, str], *, offline: bool) -> "Hub":
        """Return the hub that HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE name."""
        return cls(
            endpoint=(environment.get("HF_ENDPOINT") or _PUBLIC).rstrip("/"),
            token=environment.get("HF_TOKEN") or None,
            offline=offline or environment.get("HF_HUB_OFFLINE", "").lower() in _YES,
        )

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[httpx.AsyncClient]:
        """Open connections to the hub. Raises SourceUnavailable when this node is offline."""
        if self.offline:
            raise SourceUnavailable(
                "this node is offline, and the hub is not asked: its setting node.offline (MESHNODE_OFFLINE, `meshnode run "
                "--offline`) or the variable HF_HUB_OFFLINE says so; a stick is read all the same (`meshnode models import`)"
            )
        headers = {"user-agent": "meshnode"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"  # httpx drops it when a redirect leads to another host
        limits = httpx.Timeout(self.stall, pool=None)
        async with httpx.AsyncClient(
            headers=headers, timeout=limits, follow_redirects=True, max_redirects=5
        ) as connections:
            yield connections

    async def repository(self, connections: httpx.AsyncClient, reference: HubReference) -> HubRepository:
        """Return what a repository has. Raises SourceUnavailable, and HubTrouble for what may pass."""
        revision = quote(reference.revision or "main", safe="")
        path = f"/api/models/{reference.repository}/revision/{revision}?blobs=true"
        data = await self.read(connections, path, reference.repository, _LIST_BYTES)
        try:
            info = msgspec.json.decode(data, type=_Info)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"{self.endpoint} does not answer as a hub does: {error}") from error
        place = f"{reference.repository}@{info.sha}"
        files = tuple(_file(each, place) for each in info.siblings if each.size and _PATH.fullmatch(each.rfilename))
        return HubRepository(reference.repository, info.sha, files)

    async def read(self, connections: httpx.AsyncClient, path: str, what: str, limit: int) -> bytes:
        """Return what is at a path, at most `limit` bytes. Raises SourceUnavailable, and HubTrouble for what may pass."""
        with _troubles():
            async with connections.stream("GET", f"{self.endpoint}{path}") as reply:
                self._check(reply, what)
                data = await _read(reply, limit)
                if data is None:
                    raise SourceUnavailable(f"{self.endpoint} tells more than {limit} bytes of {what}")
                return data

    @asynccontextmanager
    async def open_range(
        self, connections: httpx.AsyncClient, repository: HubRepository, file: HubFile, start: int, end: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask for bytes `start` to `end` (exclusive) of a file; the answer is read in pieces of any size.

        Raises SourceUnavailable when the file is not there or is not the one the repository listed, and HubTrouble for what may
        pass: a busy hub, a connection that breaks or stalls, an address that has expired.
        """
        url = f"{self.endpoint}/{repository.name}/resolve/{quote(repository.commit, safe='')}/{quote(file.path)}"
        with _troubles():
            headers = {"range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
            async with connections.stream("GET", url, headers=headers) as reply:
                self._check(reply, repository.name, file)
                _check_range(reply, file, start, end)
                yield reply.aiter_raw()

    def _check(self, reply: httpx.Response, repository: str, file: HubFile | None = None) -> None:
        status, what = reply.status_code, repository if file is None else f"{file.path} of {repository}"
        if status in _BUSY:
            raise HubTrouble(f"{reply.url.host} answers {status} for {what}", _retry_after(reply))
        if status in (401, 403, 404, 410) and reply.history and reply.url.netloc != reply.history[0].url.netloc:
            raise HubTrouble(f"the address that the hub gave for {what} is no longer good ({status})")
        if status in (401, 403):
            way = "HF_TOKEN does not open it" if self.token else "set HF_TOKEN to a token of yours"
            raise SourceUnavailable(
                f"{what} is private, gated or not there ({status}): {way}, and accept its terms at "
                f"{self.endpoint}/{repository} if it has some"
            )
        if status == 404:
            raise SourceUnavailable(f"{self.endpoint} has no {what}, or not in that revision")
        if status not in (200, 206):
            raise SourceUnavailable(f"{self.endpoint} answers {status} for {what}")


@contextmanager
def _troubles() -> Iterator[None]:
    """Say that what went wrong on the way may go right the next time."""
    try:
        yield
    except (httpx.RequestError, httpx.StreamError) as error:
        raise HubTrouble(str(error) or type(error).__name__) from error
    except httpx.InvalidURL as error:
        raise SourceUnavailable(f"the hub's address cannot be used: {error}; look at HF_ENDPOINT") from error


async def patiently(
    attempt: Callable[[], Awaitable[T]], what: str, pause: float, left: Callable[[], int] = lambda: 0
) -> T:
    """Make attempts until one raises no HubTrouble, and return what it brings.

    `pause`: seconds after a first failure, twice as long after each further one. Raises SourceUnavailable after several attempts
    in a row that leave as much as was `left` before.
    """
    tries = 0
    while True:
        before = left()
        try:
            return await attempt()
        except HubTrouble as trouble:
            tries = tries + 1 if left() == before else 1
            if tries == _TRIES:
                raise SourceUnavailable(f"{what}: {trouble}; tried {tries} times. What has come is kept") from trouble
            wait = max(trouble.wait, pause * 2 ** (tries - 1) * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
            _log.info("hub.tried_again", what=what, why=str(trouble), seconds=round(wait, 1))
            await trio.sleep(wait)


def _file(sibling: _Sibling, place: str) -> HubFile:
    """Return a file; where a hub gives no hash of it, `place`, its commit, says which bytes it has."""
    sha256 = None if sibling.lfs is None else sibling.lfs.sha256
    oid = sha256 or sibling.blobId or f"{place} {sibling.rfilename}"
    return HubFile(sibling.rfilename, sibling.size or 0, oid, sha256)


async def _read(reply: httpx.Response, limit: int) -> bytes | None:
    """Return the body; None for one that is longer than `limit` bytes."""
    data = bytearray()
    async for piece in reply.aiter_bytes():
        data += piece
        if len(data) > limit:
            return None
    return bytes(data)


def _check_range(reply: httpx.Response, file: HubFile, start: int, end: int) -> None:
    """See to it that the bytes that follow are those of the listed file, from `start` on."""
    for each in (*reply.history, reply):
        tag = each.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
        if tag and file.sha256 is not None and tag != file.sha256:
            raise SourceUnavailable(f"{file.path} has been changed on the hub; try again")
    if reply.status_code == 200:
        length = reply.headers.get("content-length")
        if start > 0 or (length is not None and int(length) != file.nbytes):
            raise SourceUnavailable(f"the hub does not serve parts of {file.path}, or has another file there now")
        return
    found = _RANGE.fullmatch(reply.headers.get("content-range", ""))
    if found is None or (int(found[1]), int(found[3])) != (start, file.nbytes) or int(found[2]) >= end:
        raise SourceUnavailable(
            f"the hub was asked for bytes {start} to {end - 1} of {file.nbytes} of {file.path}, and sends "
            f"{reply.headers.get('content-range', 'something else')!r}"
        )


def _retry_after(reply: httpx.Response) -> float:
    """Return how many seconds a Retry-After asks for, in either of its forms."""
    text = reply.headers.get("retry-after", "")
    if text.isdecimal():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            seconds = 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT)
