"""What the tokens of a vocabulary add to a text, and which of them end one."""

import re

from meshnode.types.tokenizer import TokenizerData

__all__ = ["end_tokens", "token_bytes"]

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_SPACE = "\u2581"
_END_NAMES = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<end_of_turn>", "<|eom_id|>",
        "<EOT>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endofturn|>", "_<EOT>",
    }
)  # fmt: skip


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def token_bytes(data: TokenizerData) -> tuple[bytes, ...]:
    """Return the bytes of each token; control tokens have none, nor what ends an answer."""
    ends = end_tokens(data)
    kinds = enumerate(zip(data.tokens, data.token_types, strict=True))
    return tuple(b"" if token in ends else _bytes_of(data.model, text, kind) for token, (text, kind) in kinds)


def end_tokens(data: TokenizerData) -> frozenset[int]:
    """Return the tokens that end an answer: those the vocabulary names, and those known for it that no text has."""
    named = {token for token in (data.eos_token, data.eot_token) if token is not None}
    texts = enumerate(zip(data.tokens, data.token_types, strict=True))
    marks = (_CONTROL, _USER_DEFINED)
    return frozenset(named | {token for token, (text, kind) in texts if kind in marks and text in _END_NAMES})


def _bytes_of(model: str, text: str, kind: int) -> bytes:
    if kind == _CONTROL:
        return b""
    if kind == _BYTE and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
        return bytes([int(text[3:5], 16)])
    if model == "gpt2" and kind != _USER_DEFINED and all(letter in _ALPHABET for letter in text):
        return bytes(_ALPHABET[letter] for letter in text)
    if model == "bert":
        return text[2:].encode() if text.startswith("##") else f" {text}".encode()
    return (text if model == "gpt2" else text.replace(_SPACE, " ")).encode()
