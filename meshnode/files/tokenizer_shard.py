"""The tokenizer shard: the canonical bytes of a `TokenizerData`, see `meshnode.files.canonical`."""

from collections.abc import Sequence

import msgspec

from meshnode.errors import InvalidModelFile
from meshnode.files.canonical import canonical_bytes
from meshnode.types.tokenizer import TokenizerData

__all__ = ["check_tokenizer", "decode_tokenizer", "encode_tokenizer"]

_KNOWN_TYPES = range(7)


def check_tokenizer(data: TokenizerData) -> None:
    """Raise InvalidModelFile where the parts of a vocabulary contradict each other."""
    count = len(data.tokens)
    if count == 0:
        raise InvalidModelFile("the vocabulary is empty")
    lists: tuple[tuple[str, Sequence[object]], ...] = (("token types", data.token_types), ("scores", data.scores))
    for what, values in lists:
        if values and len(values) != count:
            raise InvalidModelFile(f"the vocabulary has {count} tokens, but {len(values)} {what}")
    if len(data.token_types) != count or any(kind not in _KNOWN_TYPES for kind in data.token_types):
        raise InvalidModelFile("the vocabulary has tokens of unknown type")
    for what in ("bos", "eos", "eot", "unknown", "padding"):
        token: int | None = getattr(data, f"{what}_token")
        if token is not None and not 0 <= token < count:
            raise InvalidModelFile(f"the {what} token is {token}, but the vocabulary has {count} tokens")


def encode_tokenizer(data: TokenizerData) -> bytes:
    """Return the shard's bytes; the same vocabulary gives the same bytes on every node."""
    return canonical_bytes(data)


def decode_tokenizer(raw: bytes) -> TokenizerData:
    """Read a shard's bytes. Raises InvalidModelFile."""
    try:
        data = msgspec.msgpack.decode(raw, type=TokenizerData)
    except msgspec.MsgspecError as error:
        raise InvalidModelFile(f"the tokenizer shard cannot be read: {error}") from error
    check_tokenizer(data)
    return data
