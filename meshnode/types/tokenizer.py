"""A model's text side as data, independent of the library that will run it."""

import attrs

from meshnode.types.generation import SamplingAdvice

__all__ = ["TokenizerData"]


@attrs.frozen
class TokenizerData:
    """What a GGUF file says in its `tokenizer.*` keys (or what a `tokenizer.json` says, in the same terms).

    `tokens[i]` is the text of token i in the vocabulary's own spelling (byte-level BPE: GPT-2's printable bytes;
    SPM: U+2581 for a space, `<0xNN>` for bytes; WordPiece: ## before what goes on with a word). `token_types` uses GGML's
    numbers: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    """

    model: str  # "gpt2" (byte-level BPE), "llama" (SPM), "t5" (unigram), "bert" (WordPiece)
    pre: str  # name of the pre-tokenizer, "default" when the file names none; of WordPiece "cased" or "uncased"
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...] = ()  # "left right", in order of rank; BPE only
    scores: tuple[float, ...] = ()  # log-probabilities; SPM and unigram only
    bos_token: int | None = None
    eos_token: int | None = None
    eot_token: int | None = None
    unknown_token: int | None = None
    padding_token: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False  # unigram only
    charsmap: bytes = b""  # SentencePiece's table of what each character is replaced by; unigram only
    chat_template: str | None = None
    sampling: SamplingAdvice | None = None  # what the file advises
