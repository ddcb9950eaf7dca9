"""Which tokens are a model's own marks, so that no user's text ever becomes one.

A vocabulary should say so itself by typing them control tokens. Many type the marks of turns as user defined, which texts
are searched for; so what begins or ends a text, what looks like a mark and what the chat template writes is guarded too.
"""

import re

from meshnode.text.reasoning import CLOSING, OPENING
from meshnode.types.token_bytes import end_tokens
from meshnode.types.tokenizer import TokenizerData

__all__ = ["delimiters"]

_CONTROL, _USER_DEFINED = 3, 4
_MARK = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)  # llama.cpp's converter takes these for control tokens too
_LETTER, _SIGN = re.compile(r"[^\W\d_]"), re.compile(r"[^\w\s\u2581]")


def delimiters(data: TokenizerData) -> frozenset[int]:
    """Return the tokens that are recognised in a template's text, and never in a user's."""
    template = data.chat_template or ""
    kinds = enumerate(zip(data.tokens, data.token_types, strict=True))
    begins = () if data.bos_token is None else (data.bos_token,)
    return end_tokens(data).union(begins) | {
        token
        for token, (text, kind) in kinds
        if kind == _CONTROL or (kind == _USER_DEFINED and _is_mark(text, template))
    }


def _is_mark(text: str, template: str) -> bool:
    """Say whether a user-defined token is one: runs of spaces and plain words are not, nor what encloses reasoning.

    Templates look for the latter in what the model said before, to leave it out; it begins nobody's turn.
    """
    if _MARK.fullmatch(text):
        return True
    is_word = not _LETTER.search(text) or not _SIGN.search(text)
    return not is_word and text not in (OPENING, CLOSING) and text in template
