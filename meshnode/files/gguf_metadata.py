"""Turns GGUF metadata into a model's configuration and vocabulary."""

import math

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.bert_gguf import bert_metadata, bert_tokenizer
from meshnode.files.model_limits import check_config, context_within_window
from meshnode.files.sampling_advice import sampling_advice
from meshnode.files.tensor_shapes import ARCHITECTURES
from meshnode.files.typed_fields import TypedFields
from meshnode.types.manifest import ModelConfig, RopeStyle
from meshnode.types.tokenizer import TokenizerData

__all__ = ["model_config", "tokenizer_data"]

_CHANGES_RESULTS = (  # keys that other families use; a llama model that has one computes something else
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
)

_PRE_WITH_BOS = frozenset({"llama-bpe", "llama-v3", "llama3", "falcon3", "pixtral", "tekken"})
"""Pre-tokenizers of families whose texts begin with the BOS token unless the file says otherwise (llama-vocab.cpp)."""


def model_config(metadata: TypedFields, *, vocabulary_size: int, tied: bool) -> ModelConfig:
    """Read the hyper-parameters.

    Raises UnsupportedModel naming the feature that cannot be run, InvalidModelFile for missing or contradictory values.
    """
    arch = metadata.need("general.architecture", str)
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {arch[:80]!r} cannot be run; known: {', '.join(sorted(ARCHITECTURES))}")
    for key in _CHANGES_RESULTS:
        if metadata.values.get(f"{arch}.{key}"):
            raise UnsupportedModel(f"the model sets {arch}.{key}, which cannot be computed here")
    if arch == "bert":
        return bert_metadata(metadata, vocabulary_size)
    if not metadata.get(f"{arch}.attention.causal", bool, default=True):
        raise UnsupportedModel("a model whose attention is not causal, an embedding model perhaps, generates no text")
    hidden = metadata.need(f"{arch}.embedding_length", int)
    heads = metadata.need(f"{arch}.attention.head_count", int)
    head_size = metadata.optional(f"{arch}.attention.key_length", int)
    if head_size is None:
        if heads < 1 or hidden % heads:
            raise InvalidModelFile(f"{hidden} hidden dimensions cannot be shared by {heads} heads")
        head_size = hidden // heads
    if metadata.get(f"{arch}.attention.value_length", int, head_size) != head_size:
        raise UnsupportedModel("keys and values of different sizes cannot be computed here")
    context = metadata.need(f"{arch}.context_length", int)
    window = metadata.get(f"{arch}.attention.sliding_window", int, 0)
    config = ModelConfig(
        architecture=arch,
        block_count=metadata.need(f"{arch}.block_count", int),
        hidden_size=hidden,
        feed_forward_size=metadata.need(f"{arch}.feed_forward_length", int),
        head_count=heads,
        kv_head_count=metadata.get(f"{arch}.attention.head_count_kv", int, heads),
        head_size=head_size,
        vocabulary_size=vocabulary_size,
        context_length=context_within_window(context, window),
        norm_epsilon=metadata.need(f"{arch}.attention.layer_norm_rms_epsilon", float),
        rope_base=metadata.get(f"{arch}.rope.freq_base", float, 10_000.0),
        rope_size=metadata.get(f"{arch}.rope.dimension_count", int, head_size),
        rope_style=RopeStyle.INTERLEAVED,
        rope_scale=_rope_scale(metadata, arch),
        tied_embedding=tied,
    )
    check_config(config)
    return config


def _rope_scale(metadata: TypedFields, arch: str) -> float:
    kind = metadata.get(f"{arch}.rope.scaling.type", str, "")
    if kind in ("", "none", "linear"):
        old = metadata.get(f"{arch}.rope.scale_linear", float, 1.0)  # before August 2023
        factor = metadata.get(f"{arch}.rope.scaling.factor", float, old)
        scale = 1.0 if kind == "none" else factor
        return scale or 1.0  # llama.cpp reads 0 as «not scaled»
    raise UnsupportedModel(
        f"rope scaling of type {kind[:80]!r} cannot be computed here; known: none, linear, and Llama 3's rope_freqs"
    )


def tokenizer_data(metadata: TypedFields) -> TokenizerData:
    """Read the vocabulary, with llama.cpp's defaults for keys that are not there.

    Raises InvalidModelFile for what is missing or of the wrong type.
    """
    model = metadata.need("tokenizer.ggml.model", str)
    pre = metadata.get("tokenizer.ggml.pre", str, "default")
    tokens = _strings(metadata.need("tokenizer.ggml.tokens", list), "tokens")
    types = metadata.get("tokenizer.ggml.token_type", list, [])
    is_spm = model == "llama"
    if model == "bert":
        return bert_tokenizer(metadata, tokens, _integers(types, "token_type"))

    def token(name: str, in_spm: int | None = None) -> int | None:
        found = metadata.optional(f"tokenizer.ggml.{name}_token_id", int)
        return in_spm if found is None and is_spm else found

    return TokenizerData(
        model=model,
        pre=pre,
        tokens=tokens,
        token_types=_integers(types, "token_type") or (1,) * len(tokens),
        merges=_strings(metadata.get("tokenizer.ggml.merges", list, []), "merges"),
        scores=_floats(metadata.get("tokenizer.ggml.scores", list, []), "scores"),
        bos_token=token("bos", 1),
        eos_token=token("eos", 2),
        eot_token=token("eot"),
        unknown_token=token("unknown", 0),
        padding_token=token("padding"),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", bool, is_spm or pre in _PRE_WITH_BOS),
        add_eos=metadata.get("tokenizer.ggml.add_eos_token", bool, default=False),
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", bool, is_spm),
        remove_extra_whitespaces=metadata.get("tokenizer.ggml.remove_extra_whitespaces", bool, default=False),
        charsmap=_charsmap(metadata) if model == "t5" else b"",
        chat_template=metadata.optional("tokenizer.chat_template", str),
        sampling=sampling_advice(metadata, "general.sampling.", temperature="temp"),
    )


def _strings(values: list[object], what: str) -> tuple[str, ...]:
    strings = tuple(value for value in values if isinstance(value, str))
    if len(strings) != len(values):
        raise InvalidModelFile(f"metadata 'tokenizer.ggml.{what}' holds something that is not a string")
    return strings


def _integers(values: list[object], what: str) -> tuple[int, ...]:
    integers = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
    if len(integers) != len(values):
        raise InvalidModelFile(f"metadata 'tokenizer.ggml.{what}' holds something that is not an integer")
    return integers


def _charsmap(metadata: TypedFields) -> bytes:
    key = "tokenizer.ggml.precompiled_charsmap"
    values = _integers(metadata.get(key, list, []), "precompiled_charsmap")
    try:
        return bytes(value & 0xFF if -128 <= value < 0 else value for value in values)  # some files hold signed bytes
    except ValueError:
        raise InvalidModelFile(f"metadata {key!r} holds something that is not a byte") from None


def _floats(values: list[object], what: str) -> tuple[float, ...]:
    floats = tuple(value for value in values if isinstance(value, float) and math.isfinite(value))
    if len(floats) != len(values):
        raise InvalidModelFile(f"metadata 'tokenizer.ggml.{what}' holds something that is not a finite number")
    return floats
