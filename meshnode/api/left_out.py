"""What of a request could not be taken as it was meant: a header of the answer says so, on every surface alike."""

from collections.abc import Iterable, Sequence

__all__ = ["tools_left_out", "warning_headers"]

_HEADER = "x-meshnode-warning"
_MAX_NAMES, _MAX_NAME = 16, 64


def tools_left_out(names: Iterable[object]) -> tuple[str, ...]:
    """Return the warning that the tools of these names, or types, were not shown to the model; none if there are none."""
    found = list(dict.fromkeys(_plain(str(name)) for name in names))
    if not found:
        return ()
    more = f" and {len(found) - _MAX_NAMES} more" if len(found) > _MAX_NAMES else ""
    return (f"tools that this node cannot run were left out: {', '.join(found[:_MAX_NAMES])}{more}",)


def warning_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return the header that says them; none if there are none."""
    return {_HEADER: "; ".join(warnings)} if warnings else {}


def _plain(name: str) -> str:
    """Return what a head can hold of a name that anybody may have made up."""
    return "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in name[:_MAX_NAME])
