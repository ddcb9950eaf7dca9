"""The version header, by which requests of Anthropic's clients are told from OpenAI's where both have the same path.

Of the versions there are (https://platform.claude.com/docs/en/api/versioning) the first streamed in another way. The two later
ones differ in what they refuse: 2026-10-21 has no `temperature`, `top_p` and `top_k`, which are taken here all the same.
"""

import re

from werkzeug.datastructures import Headers

from meshnode.api.anthropic.wrong import wrong_at

__all__ = ["check_version", "speaks_anthropic", "version_warnings"]

_VERSIONS = ("2023-06-01", "2026-10-21")
_HEADER = "anthropic-version"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def speaks_anthropic(headers: Headers) -> bool:
    """Whether a client of Anthropic's sends this."""
    return _HEADER in headers


def check_version(headers: Headers) -> None:
    """Raise RequestError for a version whose shapes these are not.

    Requests that name none pass, as they come from small tools; so do versions of the future, since clients that are brought up
    to date name them before a node can know them.
    """
    said = headers.get(_HEADER, _VERSIONS[0])
    if said not in _VERSIONS and not _is_later(said):
        raise wrong_at(_HEADER, f"{said[:40]!r} is not a version this node speaks; {' and '.join(_VERSIONS)} are")


def version_warnings(headers: Headers) -> tuple[str, ...]:
    """Return what a client of the future should know."""
    said = headers.get(_HEADER, "")
    return (f"anthropic-version {said} is answered as {_VERSIONS[-1]}",) if _is_later(said) else ()


def _is_later(version: str) -> bool:
    return _DATE.fullmatch(version) is not None and version.isascii() and version > _VERSIONS[-1]
