"""Shows a person the node's page: decides whether a browser can be expected, and opens it once the API answers."""

import webbrowser
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

import structlog
import trio

__all__ = ["open_page", "page_address", "should_open"]

_log = structlog.get_logger(__name__)


def should_open(asked: bool, *, has_terminal: bool, env: Mapping[str, str], platform: str) -> bool:
    """Whether to open a browser: it is asked for, a person is there, and the screen they sit at is this machine's.

    `platform` is sys.platform. A text browser would fight the log for the terminal, so without a graphical session there is none.
    """
    if not asked or not has_terminal or env.get("SSH_CONNECTION"):
        return False
    return platform in ("darwin", "win32") or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def page_address(url: str, ticket: str) -> str:
    """Return where a browser on this machine finds the page, with a ticket that lets it in."""
    parts = urlsplit(url)
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")  # noqa: S104  # compared, not bound
    place = url if reachable is None else f"{parts.scheme}://{reachable}:{parts.port}"
    return f"{place}/#ticket={quote(ticket, safe='')}"


async def open_page(
    started: trio.Event,
    address: Callable[[], str],
    *,
    open_browser: Callable[[str], bool] = webbrowser.open,  # blocks while a desktop makes up its mind
) -> None:
    """Open the page once `started` is set. Cancellation leaves a browser that is opening alone."""
    await started.wait()
    try:
        opened = await trio.to_thread.run_sync(open_browser, address(), abandon_on_cancel=True)
    except (webbrowser.Error, OSError) as error:
        opened = False
        _log.debug("the browser did not start", error=type(error).__name__)  # its text may quote the address
    if not opened:
        _log.info("no browser could be opened; open the node's address in one")
