"""Where the workers of a node can be found by those of other nodes."""

import attrs

__all__ = ["RingPlace"]


@attrs.frozen
class RingPlace:
    """One node's, as long as its network runs."""

    listen: tuple[str, ...]  # IP addresses to listen on; those after the first may be missing
    hosts: tuple[str, ...]  # IP addresses at which peers may find this machine, best first
    certificate: bytes  # SHA-256 of the certificate that its doors present
    pem: bytes = attrs.field(repr=False)  # it, and its key
