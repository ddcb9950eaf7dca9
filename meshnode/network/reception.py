"""Where connections of others arrive: strangers show a ticket, peers that come over the host are known already."""

from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, PeerRefused, PeerUnreachable
from meshnode.network.certificates import Credentials, make_credentials
from meshnode.network.direct import Anteroom, Tls, origin_of
from meshnode.network.greetings import Greeter
from meshnode.network.links import Link, LinkSettings
from meshnode.network.ports import PeerStream
from meshnode.network.tickets import Purpose, TicketBook
from meshnode.types.ids import PeerId
from meshnode.wire.protocols import STAGE_MESSAGES
from meshnode.wire.stage_messages import StageMessage

__all__ = ["Reception"]

_log = structlog.get_logger(__name__)
_TOKEN_BYTES = 32


@attrs.define(eq=False)
class Reception:
    """Turns streams into greeted links; what goes wrong is reported and the stream closed."""

    greeter: Greeter
    anteroom: Anteroom
    link_settings: LinkSettings
    report: Callable[[PeerId | None, MeshnodeError], None]
    credentials: Credentials = attrs.field(factory=make_credentials, init=False)
    tickets: TicketBook = attrs.field(factory=TicketBook, init=False)

    async def receive(self, stream: trio.SocketStream) -> Link[StageMessage] | None:
        """Return the link of a stranger with a ticket, None for any other. Cancellation closes the stream."""
        link: Link[StageMessage] | None = None
        error: MeshnodeError = PeerUnreachable("a stranger showed no ticket in time, or too many came at once")
        try:
            with self.anteroom.admit(origin_of(stream)):
                link = await self._identify(stream)
        except MeshnodeError as caught:
            error = caught
        except trio.BrokenResourceError as caught:
            error = PeerUnreachable(f"a stranger broke off: {caught.__cause__ or 'connection lost'}")
        except Exception as crash:  # noqa: BLE001  # the stranger's rim
            _log.error("handshake crashed", exc_info=crash)
        finally:
            if link is None:
                await trio.aclose_forcefully(stream)
        if link is None:
            self.report(None, error)
        return link

    async def welcome(self, stream: PeerStream) -> Link[StageMessage] | None:
        """Return the link over a stream of the host, None when there is nothing to say. Cancellation closes the stream."""
        link = Link(stream.peer, stream, STAGE_MESSAGES, False, self.link_settings, is_relayed=stream.is_relayed)
        try:
            await self.greeter.greet(link, timeout=self.anteroom.patience)
        except MeshnodeError as error:
            self.report(stream.peer, error)
            return None
        return link

    async def _identify(self, stream: trio.SocketStream) -> Link[StageMessage]:
        tls = trio.SSLStream(stream, self.credentials.context, server_side=True)
        await tls.do_handshake()
        admission = self.tickets.redeem(await _receive_token(tls))
        if admission.purpose is not Purpose.ACTIVATIONS:
            raise PeerRefused(f"a ticket for {admission.purpose.value} at the door for activations")
        link = Link(admission.peer, tls, STAGE_MESSAGES, False, self.link_settings)
        await self.greeter.greet(link, timeout=self.anteroom.patience)
        return link


async def _receive_token(stream: Tls) -> bytes:
    token = b""
    while len(token) < _TOKEN_BYTES:
        data = await stream.receive_some(_TOKEN_BYTES - len(token))
        if not data:
            raise PeerUnreachable("a stranger hung up before it showed a ticket")
        token += data
    return token
