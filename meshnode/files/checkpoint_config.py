"""Reads `config.json` of a Hugging Face checkpoint as a model's configuration."""

import math
import struct

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.bert_checkpoint import bert_config
from meshnode.files.model_limits import check_config, context_within_window
from meshnode.files.typed_fields import TypedFields
from meshnode.types.manifest import ModelConfig, RopeStyle

__all__ = ["checkpoint_config"]

_LLAMA, _MISTRAL, _BERT = "LlamaForCausalLM", "MistralForCausalLM", "BertModel"
_MUST_BE_OFF = ("attention_bias", "mlp_bias", "quantization_config")
_MISTRAL_WINDOW = 4096  # the class's default when the key is absent; null means none


def checkpoint_config(fields: TypedFields, pooling: str = "") -> ModelConfig:
    """Read the hyper-parameters; `pooling` is how vectors are made, where more than `config.json` says it.

    Raises UnsupportedModel naming the feature that cannot be run, InvalidModelFile for missing or contradictory values.
    """
    model_class = _model_class(fields)
    if model_class == _BERT:
        return bert_config(fields, pooling)
    for key in _MUST_BE_OFF:
        if fields.values.get(key):
            raise UnsupportedModel(f"the checkpoint sets {key}, which cannot be computed here")
    activation = fields.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"hidden_act {activation[:40]!r} cannot be computed here; known: silu")
    hidden = fields.need("hidden_size", int)
    heads = fields.need("num_attention_heads", int)
    head_size = fields.optional("head_dim", int)
    if head_size is None:
        if heads < 1 or hidden % heads:
            raise InvalidModelFile(f"{hidden} hidden dimensions cannot be shared by {heads} heads")
        head_size = hidden // heads
    context = fields.need("max_position_embeddings", int)
    window = 0
    if model_class == _MISTRAL:
        window = fields.optional("sliding_window", int) or 0 if "sliding_window" in fields.values else _MISTRAL_WINDOW
    rope = _rope_fields(fields)
    config = ModelConfig(
        architecture="llama",
        block_count=fields.need("num_hidden_layers", int),
        hidden_size=hidden,
        feed_forward_size=fields.need("intermediate_size", int),
        head_count=heads,
        kv_head_count=fields.get("num_key_value_heads", int, heads),
        head_size=head_size,
        vocabulary_size=fields.need("vocab_size", int),
        context_length=context_within_window(context, window),
        norm_epsilon=fields.get("rms_norm_eps", float, 1e-6),
        rope_base=rope.get("rope_theta", float, fields.get("rope_theta", float, 10_000.0)),
        rope_size=_rope_size(rope, fields, head_size),
        rope_style=RopeStyle.HALVES,
        rope_scale=_rope_scale(rope),
        tied_embedding=fields.get("tie_word_embeddings", bool, default=False),
    )
    check_config(config)
    if _rope_type(rope) == "llama3":
        return attrs.evolve(config, rope_factors=_llama3_factors(rope, config))
    return config


def _model_class(fields: TypedFields) -> str:
    names = fields.get("architectures", list, [])
    if len(names) != 1 or names[0] not in (_LLAMA, _MISTRAL, _BERT):
        raise UnsupportedModel(
            f"architecture {str(names)[:120]} cannot be run from a checkpoint; known: {_LLAMA}, {_MISTRAL}, {_BERT}"
        )
    return str(names[0])


def _rope_fields(fields: TypedFields) -> TypedFields:
    """Return the rotary parameters: `rope_parameters` since transformers 5, `rope_scaling` before."""
    for key in ("rope_parameters", "rope_scaling"):
        found = fields.optional(key, dict)
        if found is not None:
            return TypedFields(found, f"{key} of {fields.where}")
    return TypedFields({}, fields.where)


def _rope_type(rope: TypedFields) -> str:
    return rope.get("rope_type", str, rope.get("type", str, "default"))


def _rope_size(rope: TypedFields, fields: TypedFields, head_size: int) -> int:
    share = rope.get("partial_rotary_factor", float, fields.get("partial_rotary_factor", float, 1.0))
    if not 0.0 < share <= 1.0:
        raise InvalidModelFile(f"partial_rotary_factor is {share}; it must be above 0 and at most 1")
    return int(head_size * share)


def _rope_scale(rope: TypedFields) -> float:
    kind = _rope_type(rope)
    if kind in ("default", "llama3"):
        return 1.0
    if kind == "linear":
        return rope.need("factor", float)
    raise UnsupportedModel(
        f"rope scaling of type {kind[:80]!r} cannot be computed here; known: default, linear, llama3"
    )


def _llama3_factors(rope: TypedFields, config: ModelConfig) -> tuple[float, ...]:
    """Return the divisors of the frequencies, as llama.cpp's converter computes them, rounded to float32 as it stores them.

    Frequencies of short wavelengths stay, those of long ones are divided by `factor`, those between are interpolated.
    """
    factor, low, high = (rope.need(key, float) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = rope.need("original_max_position_embeddings", int)
    if not (0 < low < high < math.inf and 1 <= factor < math.inf and trained > 0):
        raise InvalidModelFile(
            f"llama3 rope scaling with factor {factor}, low {low}, high {high}, context {trained}: makes no sense"
        )
    factors = []
    for pair in range(config.rope_size // 2):
        wavelength = 2 * math.pi * config.rope_base ** (2 * pair / config.rope_size)
        smooth = min(max((trained / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return struct.unpack(f"<{len(factors)}f", struct.pack(f"<{len(factors)}f", *factors))
