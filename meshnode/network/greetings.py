"""The first words on a link: both sides say who they are, and both check that they have something to say to each other."""

import time
from collections.abc import Callable
from typing import TypeVar

import attrs
import msgspec
import trio

from meshnode import __version__
from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerUnreachable, VersionMismatch, WireError
from meshnode.network.links import Link
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Hello
from meshnode.wire.versions import NEWEST, OLDEST, OURS, Feature, Terms, agree, network_proof

__all__ = ["Greeter"]

M = TypeVar("M", bound=msgspec.Struct)


@attrs.frozen
class Greeter:
    """What this node says of itself on every link."""

    own: PeerId
    network_id: str
    program: str = __version__  # for people
    clock: Callable[[], float] = time.time  # Unix seconds
    features: Feature = OURS

    def hello(self, *, for_route: bool = False) -> Hello:
        """Return our Hello as of now."""
        proof = network_proof(self.network_id, self.own)
        return Hello(OLDEST, NEWEST, int(self.features), proof, self.program, self.clock(), for_route)

    async def greet(self, link: Link[M], *, timeout: float = 5.0, for_route: bool = False) -> Terms:
        """Exchange Hellos and set the link's terms; before its `run`. When it raises, the stream is closed.

        Raises VersionMismatch, PeerRefused (another network, or the peer says no), PeerMisbehaved, PeerUnreachable
        (gone, or silent for `timeout` seconds).
        """
        try:
            with trio.fail_after(timeout):
                ours = self.hello(for_route=for_route)
                theirs = await link.exchange_hellos(ours)
            link.terms = agree(ours, theirs, link.peer, network_proof(self.network_id, link.peer))
        except trio.TooSlowError:
            error: MeshnodeError = PeerUnreachable(f"{link.peer} said nothing for {timeout:.0f} s")
        except WireError as caught:
            is_malformed = type(caught) is not VersionMismatch
            error = PeerMisbehaved(f"{link.peer} broke the protocol: {caught}") if is_malformed else caught
        except MeshnodeError as caught:
            error = caught
        except BaseException:
            link.close("this node has given up the link")
            await link.end()
            raise
        else:
            return link.terms
        link.close(error)
        await link.end()
        raise error
