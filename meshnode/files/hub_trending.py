"""What is popular on a hub: GGUF repositories by their trending score.

Route: `/api/models` of https://huggingface.co/docs/hub/api, sorted by `trendingScore`. What somebody publishes is not to be
trusted: an entry that is malformed is left out, and the list is no longer than it was asked for.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import attrs
import msgspec

from meshnode.errors import RequestError, SourceUnavailable
from meshnode.files.hub_client import Hub, patiently
from meshnode.files.hub_reference import HUB_PREFIX, HubReference

__all__ = ["Trending", "fetch_trending"]

_LIST_BYTES = 8 << 20


@attrs.frozen
class Trending:
    """A repository, as the hub tells of it."""

    repository: str  # OWNER/REPO
    downloads: int  # in the last month
    likes: int
    created: float  # Unix seconds

    @property
    def publisher(self) -> str:
        """Whose it is."""
        return self.repository.partition("/")[0]


class _Entry(msgspec.Struct):
    id: str
    createdAt: str  # noqa: N815  # the hub's name
    downloads: int = 0
    likes: int = 0
    private: bool = False
    disabled: bool = False


async def fetch_trending(hub: Hub, limit: int = 50, pause: float = 5.0) -> tuple[Trending, ...]:
    """Return what trends, the most popular first. `pause`: seconds after a first failure.

    Raises SourceUnavailable after several attempts, and when the answer is not that of a hub. Cancellation closes the connection.
    """
    async with hub.connect() as connections:

        async def attempt() -> bytes:
            query = f"sort=trendingScore&direction=-1&filter=gguf&full=true&limit={limit}"
            return await hub.read(connections, f"/api/models?{query}", "the list of what trends", _LIST_BYTES)

        data = await patiently(attempt, f"{hub.endpoint} was asked what trends", pause)
    try:
        entries = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SourceUnavailable(f"{hub.endpoint} does not answer as a hub does: {error}") from error
    return tuple(_readable(entries))[:limit]


def _readable(entries: list[msgspec.Raw]) -> Iterator[Trending]:
    for raw in entries:
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
            HubReference.parse(f"{HUB_PREFIX}{entry.id}")
            created = datetime.fromisoformat(entry.createdAt).replace(tzinfo=UTC).timestamp()
        except (msgspec.MsgspecError, RequestError, ValueError, OverflowError):
            continue
        if entry.downloads >= 0 and entry.likes >= 0 and ":" not in entry.id and not (entry.private or entry.disabled):
            yield Trending(entry.id, entry.downloads, entry.likes, created)
