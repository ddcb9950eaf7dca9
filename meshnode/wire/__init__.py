"""How messages become bytes and bytes become messages: frames, tagged headers, limits.

Knows nothing of what the messages mean, nor of sockets. Owns no state but a decoder's half-received frame.
"""

__all__ = ["control_messages", "envelopes", "failures", "frames", "protocols", "stage_messages", "tagged", "versions"]
