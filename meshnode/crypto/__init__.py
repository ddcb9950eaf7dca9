"""Who a node is and what it has signed: Ed25519 keys, peer ids and signatures.

Knows nothing of the network; a peer id is computed here exactly as libp2p computes it.
"""

__all__: list[str] = []
