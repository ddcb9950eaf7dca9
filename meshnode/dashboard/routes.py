"""The page's files, and the exchange of a ticket for the key. Everything else the page does is the API's."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from meshnode.dashboard.tickets import Tickets

__all__ = ["CONTENT_SECURITY_POLICY", "Dashboard"]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a model's words cannot become markup, not even by a mistake of ours
    )
)

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    "/favicon.ico": ("favicon.svg", "image/svg+xml"),  # where browsers look that have not read the page
}
_TICKET_PATH = "/dashboard/ticket"
_LONGEST_TICKET = 256  # characters
_TICKET_TIMEOUT = 10.0  # seconds for it to arrive


@attrs.frozen(eq=False)
class Dashboard:
    """Serves the page. The files say nothing about this node, so anybody may have them; what they show needs the key."""

    key: str = attrs.field(repr=False)
    tickets: Tickets = attrs.field(factory=Tickets)

    def add_to(self, app: QuartTrio) -> frozenset[str]:
        """Add the routes, and return their paths: those that need no key."""
        for path, (name, kind) in _FILES.items():
            app.add_url_rule(path, f"dashboard {path}", _file_view(name, kind), methods=["GET"])
        app.add_url_rule(_TICKET_PATH, "dashboard ticket", self._redeem, methods=["POST"])
        return frozenset((*_FILES, _TICKET_PATH))

    async def _redeem(self) -> Response:
        """Answer a good ticket, the whole body, with the key as plain text; 403 to any other."""
        given = b""
        if request.content_length is not None and request.content_length <= _LONGEST_TICKET:
            with trio.move_on_after(_TICKET_TIMEOUT):
                given = await request.get_data(as_text=False)  # type: ignore[assignment]  # bytes, when not as text
        good = self.tickets.redeem(given.decode("ascii", "replace"))
        headers = {"Cache-Control": "no-store"}
        return Response(self.key if good else "", 200 if good else 403, headers, content_type="text/plain")


def _file_view(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    body = (files("meshnode.dashboard") / "static" / name).read_bytes()
    # After an update of the node, an old script must not meet a new page.
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": CONTENT_SECURITY_POLICY}

    async def view() -> Response:
        return Response(body, headers=headers, content_type=kind)

    return view
