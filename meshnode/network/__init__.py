"""How nodes meet: control links, stage links, who is there, and what they say about themselves.

Nothing outside `host` and `patches` sees a libp2p object.
"""

__all__: list[str] = []
