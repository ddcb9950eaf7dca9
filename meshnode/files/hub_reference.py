"""References to models on a hub: `hf:OWNER/REPO[:FILE or QUANT][@REVISION]`."""

import re

import attrs

from meshnode.errors import RequestError

__all__ = ["HUB_PREFIX", "HubReference"]

HUB_PREFIX = "hf:"

_FORM = re.compile(
    r"hf:(?P<owner>[A-Za-z0-9][\w.-]{0,95})/(?P<name>[A-Za-z0-9][\w.-]{0,95})"
    r"(?::(?P<pick>[\w][\w ./+-]{0,255}))?(?:@(?P<revision>[\w][\w./-]{0,127}))?",
    re.ASCII,
)


@attrs.frozen
class HubReference:
    """Which repository, which of its models, and as of when."""

    repository: str  # OWNER/REPO
    pick: str | None = None  # a file's path or name, or a quantisation such as Q4_K_M; None: what suits most
    revision: str | None = None  # a branch, a tag or a commit; None: the main branch

    @classmethod
    def parse(cls, text: str) -> "HubReference":
        """Read a reference. Raises RequestError for one that is malformed."""
        found = _FORM.fullmatch(text)
        if found is None or ".." in text:
            raise RequestError(
                f"{text[:200]!r} is not a hub reference; write hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M or "
                "hf:OWNER/REPO:FILE.gguf, and @REVISION behind it for another revision than the newest",
                param="reference",
            )
        return cls(f"{found['owner']}/{found['name']}", found["pick"], found["revision"])

    def at(self, commit: str) -> str:
        """Return the reference to the same as of a commit."""
        return str(attrs.evolve(self, revision=commit))

    def __str__(self) -> str:
        pick = "" if self.pick is None else f":{self.pick}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{HUB_PREFIX}{self.repository}{pick}{revision}"
