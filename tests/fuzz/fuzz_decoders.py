"""Feeds the decoders of frames and messages with what atheris makes of the golden frames: `nox -s fuzz`.

A stream of bytes from a peer is messages or a WireError. Anything else that is raised is found here, with the bytes for it.
"""

import contextlib
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["meshnode"]):
    import msgspec

    from meshnode.errors import WireError
    from meshnode.types.peers import Offer
    from meshnode.wire.envelopes import EnvelopeCodec
    from meshnode.wire.protocols import BULK_MESSAGES, CONTROL_MESSAGES, STAGE_MESSAGES
    from meshnode.wire.ring_messages import RING_MESSAGES
    from meshnode.wire.tagged import UNDECODABLE


def one_input(data: bytes) -> None:
    for messages in (BULK_MESSAGES, CONTROL_MESSAGES, RING_MESSAGES, STAGE_MESSAGES):
        codec = EnvelopeCodec(messages, messages)
        half = len(data) // 2
        try:
            for piece in (data[:half], data[half:]):
                for envelope in codec.feed(piece):
                    messages.to_frame(envelope.message, envelope.body, envelope.exchange)
        except WireError:
            pass
    with contextlib.suppress(UNDECODABLE):
        msgspec.msgpack.decode(data, type=Offer)


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    frames = json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text())
    for name, frame in frames.items():
        (corpus / name.replace("/", "-")).write_bytes(bytes.fromhex(frame))
    atheris.Setup([sys.argv[0], str(corpus), "-max_len=4096", *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
