"""Getting a release: a short document, then one artifact, each with a limit, over HTTPS or from this machine.

Nothing is kept of an artifact that is not exactly the one that was signed.
"""

import errno
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin

import attrs
import httpx
import structlog
import trio
from blake3 import blake3

from meshnode.config.urls import is_safe_url
from meshnode.errors import ReleaseRefused, UpdateError, UpdateUnavailable
from meshnode.flow.lanes import Lanes
from meshnode.update.release import MAX_DOCUMENT_BYTES, Artifact

__all__ = ["Limits", "connect", "fetch_artifact", "fetch_document", "no_space"]

_REDIRECTS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = structlog.get_logger(__name__)


@attrs.frozen
class Limits:
    """How patient we are. Times in seconds."""

    stall: float = 30.0  # without a byte
    document: float = 60.0  # for the whole of it
    artifact: float = 1800.0  # for the whole of it, all tries together
    tries: int = 3
    pause: float = 2.0  # before another try


@asynccontextmanager
async def connect(limits: Limits, lanes: Lanes) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client for one look. Proxies of the environment are used, as for any download."""
    timeout = httpx.Timeout(limits.stall, pool=None)
    trust = await lanes.run("disk", httpx.create_ssl_context)  # reads all certificates: 50 ms, not on the loop
    async with httpx.AsyncClient(headers={"user-agent": "meshnode"}, timeout=timeout, verify=trust) as client:
        yield client


async def fetch_document(client: httpx.AsyncClient, url: str, limits: Limits) -> bytes:
    """Return what lies at `url`, at most MAX_DOCUMENT_BYTES. Raises UpdateUnavailable, ReleaseRefused when it is longer."""
    data = bytearray()

    async def take(piece: bytes) -> None:
        data.extend(piece)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ReleaseRefused(f"what lies at {url} is longer than {MAX_DOCUMENT_BYTES} bytes, so it is no release")

    with _explained(url), trio.fail_after(limits.document):
        async with _get(client, url, {}) as reply:
            await _read(reply, take)
    return bytes(data)


async def fetch_artifact(
    client: httpx.AsyncClient, base: str, artifact: Artifact, target: Path, lanes: Lanes, limits: Limits
) -> None:
    """Write the artifact to `target`, whole, checked and on the disk; `base` is the document's address.

    What is interrupted goes on where it was, if the server can. Raises UpdateUnavailable (no answer, cut short, stalled),
    ReleaseRefused (other bytes than were signed) and UpdateError (disk full); then, and when cancelled, nothing is left.
    """
    url, part = urljoin(base, artifact.url), target.with_name(f"{target.name}.part")
    try:
        with _explained(url), no_space(part.parent):
            with trio.fail_after(limits.artifact):
                await _fetch(client, url, artifact, part, lanes, limits)
            await lanes.run("disk", _settle, part, target)
    finally:
        with trio.CancelScope(shield=True):
            await lanes.run("disk", _remove, part)


async def _fetch(
    client: httpx.AsyncClient, url: str, artifact: Artifact, part: Path, lanes: Lanes, limits: Limits
) -> None:
    file = await lanes.run("disk", _open, part)
    try:
        await _try_and_try(client, url, artifact, file, lanes, limits)
        await lanes.run("disk", file.flush)
        digest = await lanes.run("hashing", _digest, part)
        if digest != artifact.blake3:
            raise ReleaseRefused(f"{url} is not what was signed: its BLAKE3 is {digest}, not {artifact.blake3}")
    finally:
        with trio.CancelScope(shield=True), suppress(OSError):  # on a full disk the close says it once more
            await lanes.run("disk", file.close)


async def _try_and_try(
    client: httpx.AsyncClient, url: str, artifact: Artifact, file: BinaryIO, lanes: Lanes, limits: Limits
) -> None:
    for _ in range(limits.tries - 1):
        try:
            with _explained(url):
                await _receive(client, url, artifact, file, lanes)
        except UpdateUnavailable as error:
            _log.info("update.tried_again", url=url, why=str(error))
            await trio.sleep(limits.pause)
        else:
            return
    await _receive(client, url, artifact, file, lanes)


async def _receive(client: httpx.AsyncClient, url: str, artifact: Artifact, file: BinaryIO, lanes: Lanes) -> None:
    """Append what is missing. A server that begins anew is let."""
    here = file.tell()
    headers = {"range": f"bytes={here}-"} if here else {}
    async with _get(client, url, headers) as reply:
        if here and not _continues(reply, here):
            await lanes.run("disk", _restart, file)
            here = 0

        async def take(piece: bytes) -> None:
            nonlocal here
            here += len(piece)
            if here > artifact.bytes:
                raise ReleaseRefused(f"{url} is longer than the {artifact.bytes} bytes that were signed")
            await lanes.run("disk", _write, file, piece)

        await _read(reply, take)
    if here < artifact.bytes:
        raise UpdateUnavailable(f"{url} ended after {here} of {artifact.bytes} bytes; try again later")


async def _read(reply: httpx.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand the body on, piece by piece; what `take` raises ends it.

    httpx's stream is a nest of generators, and one that is left half read is closed by the garbage collector, sometime. So it is
    always ended from inside: by its last byte, an error of its own, or a cancellation.
    """
    trouble: Exception | None = None
    with trio.CancelScope() as scope:
        async for piece in reply.aiter_raw():
            if trouble is not None:
                continue
            try:
                with trio.CancelScope(shield=True):
                    await take(piece)
            except Exception as error:  # noqa: BLE001  # raised below
                trouble = error
                scope.cancel()
    if trouble is not None:
        raise trouble


@asynccontextmanager
async def _get(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """Follow redirects, none of which may lead off HTTPS."""
    asked = {"accept-encoding": "identity", **headers}
    for _ in range(_REDIRECTS + 1):
        if not is_safe_url(url):
            raise UpdateUnavailable(f"{url} is not fetched: releases come over https, or http from this machine itself")
        async with client.stream("GET", url, headers=asked) as reply:
            if reply.is_redirect:
                url = urljoin(url, reply.headers.get("location", ""))
                continue
            if reply.status_code not in (200, 206):
                raise UpdateUnavailable(f"{url} answers {reply.status_code}; look at updates.url")
            yield reply
            return
    raise UpdateUnavailable(f"{url} is redirected more than {_REDIRECTS} times")


def _continues(reply: httpx.Response, start: int) -> bool:
    found = _RANGE.fullmatch(reply.headers.get("content-range", ""))
    return reply.status_code == 206 and found is not None and int(found[1]) == start


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except trio.TooSlowError as error:
        raise UpdateUnavailable(f"{url} takes too long; try again later") from error
    except httpx.TimeoutException as error:
        raise UpdateUnavailable(f"{url} sends nothing any more; try again later") from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise UpdateUnavailable(f"{url} cannot be read: {str(error) or type(error).__name__}") from error
    except httpx.InvalidURL as error:
        raise UpdateUnavailable(f"{url[:200]} is no address: {error}") from error


@contextmanager
def no_space(folder: Path) -> Iterator[None]:
    """Turn what the system says about a folder into an UpdateError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UpdateError(f"the disk of {folder} is full; free some space, and the next look goes on") from error
        raise UpdateError(f"{folder} cannot be used: {error.strerror or error}") from error


def _open(part: Path) -> BinaryIO:
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return part.open("wb")


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _write(file: BinaryIO, piece: bytes) -> None:
    file.write(piece)


def _digest(part: Path) -> str:
    hasher = blake3()
    hasher.update_mmap(part)
    return hasher.hexdigest()


def _settle(part: Path, target: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
