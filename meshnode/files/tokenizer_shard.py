"""The tokenizer shard: a vocabulary as msgpack, a map of the fields of `TokenizerData` in their order."""

import msgspec

from meshnode.errors import InvalidModelFile
from meshnode.types.tokenizer import TokenizerData

__all__ = ["decode_tokenizer", "encode_tokenizer"]


def encode_tokenizer(data: TokenizerData) -> bytes:
    """Return the shard's bytes; the same vocabulary gives the same bytes."""
    return msgspec.msgpack.encode(data)


def decode_tokenizer(raw: bytes) -> TokenizerData:
    """Read a shard's bytes. Raises InvalidModelFile."""
    try:
        return msgspec.msgpack.decode(raw, type=TokenizerData)
    except msgspec.MsgspecError as error:
        raise InvalidModelFile(f"the tokenizer shard cannot be read: {error}") from error
