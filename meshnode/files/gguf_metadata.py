"""Turns GGUF metadata into a model's configuration and vocabulary."""

from typing import TypeVar

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.gguf_header import GGUFHeader, Value
from meshnode.types.manifest import ModelConfig, RopeStyle
from meshnode.types.tokenizer import TokenizerData

__all__ = ["model_config", "tokenizer_data"]

T = TypeVar("T")


@attrs.frozen
class _Metadata:
    values: dict[str, Value]

    def get(self, key: str, kind: type[T], default: T) -> T:
        value = self.values.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidModelFile(f"metadata {key!r} is {value!r}, which is not {kind.__name__}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        if key not in self.values:
            raise InvalidModelFile(f"metadata {key!r} is missing")
        return self.get(key, kind, kind())

    def token(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        return self.need(key, int) if key in self.values else None


def model_config(header: GGUFHeader) -> ModelConfig:
    """Read the hyper-parameters of a llama-family model.

    Raises UnsupportedModel naming the feature that cannot be run, InvalidModelFile for missing or contradictory values.
    """
    metadata = _Metadata(header.metadata)
    architecture = metadata.need("general.architecture", str)
    if architecture != "llama":
        raise UnsupportedModel(f"architecture {architecture!r} cannot be run; known: llama")
    if metadata.get("llama.expert_count", int, 0) > 0:
        raise UnsupportedModel("mixture-of-experts models of the llama architecture cannot be run")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if "token_embd.weight" not in tensors:
        raise InvalidModelFile("the model has no tensor 'token_embd.weight'")
    hidden, heads = metadata.need("llama.embedding_length", int), metadata.need("llama.attention.head_count", int)
    kv_heads = metadata.get("llama.attention.head_count_kv", int, heads)
    if min(hidden, heads, kv_heads) < 1 or heads % kv_heads or hidden % heads:
        raise InvalidModelFile(f"{heads} heads, {kv_heads} KV heads and {hidden} hidden dimensions do not fit together")
    head_size = metadata.get("llama.attention.key_length", int, hidden // heads)
    if metadata.get("llama.attention.value_length", int, head_size) != head_size:
        raise UnsupportedModel("keys and values of different sizes cannot be run")
    window = metadata.get("llama.attention.sliding_window", int, 0)
    context = metadata.need("llama.context_length", int)
    if 0 < window < context:
        raise UnsupportedModel(f"sliding-window attention (window {window}, context {context}) cannot be run")
    return ModelConfig(
        architecture=architecture,
        block_count=metadata.need("llama.block_count", int),
        hidden_size=hidden,
        feed_forward_size=metadata.need("llama.feed_forward_length", int),
        head_count=heads,
        kv_head_count=kv_heads,
        head_size=head_size,
        vocabulary_size=tensors["token_embd.weight"].shape[0],
        context_length=context,
        norm_epsilon=metadata.need("llama.attention.layer_norm_rms_epsilon", float),
        rope_base=metadata.get("llama.rope.freq_base", float, 10_000.0),
        rope_size=metadata.get("llama.rope.dimension_count", int, head_size),
        rope_style=RopeStyle.INTERLEAVED,
        rope_scale=_rope_scale(metadata),
        tied_embedding="output.weight" not in tensors,
    )


def _rope_scale(metadata: _Metadata) -> float:
    kind = metadata.get("llama.rope.scaling.type", str, "none")
    if kind == "none":
        return metadata.get("llama.rope.scale_linear", float, 1.0)
    if kind == "linear":
        return metadata.need("llama.rope.scaling.factor", float)
    raise UnsupportedModel(f"rope scaling {kind!r} cannot be run; known: none, linear, and Llama 3's rope_freqs")


def tokenizer_data(header: GGUFHeader) -> TokenizerData:
    """Read the vocabulary. Raises InvalidModelFile when it is missing or its lists differ in length."""
    metadata = _Metadata(header.metadata)
    tokens = metadata.need("tokenizer.ggml.tokens", list)
    types = metadata.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    scores = metadata.get("tokenizer.ggml.scores", list, [])
    if len(types) != len(tokens) or (scores and len(scores) != len(tokens)):
        raise InvalidModelFile(f"{len(tokens)} tokens, {len(types)} token types and {len(scores)} scores do not match")
    template = header.metadata.get("tokenizer.chat_template")
    model = metadata.need("tokenizer.ggml.model", str)
    return TokenizerData(
        model=model,
        pre=metadata.get("tokenizer.ggml.pre", str, "default"),
        tokens=tuple(str(token) for token in tokens),
        token_types=tuple(int(kind) for kind in types if isinstance(kind, int)),
        merges=tuple(str(merge) for merge in metadata.get("tokenizer.ggml.merges", list, [])),
        scores=tuple(float(score) for score in scores if isinstance(score, float)),
        bos_token=metadata.token("bos"),
        eos_token=metadata.token("eos"),
        eot_token=metadata.token("eot"),
        unknown_token=metadata.token("unknown"),
        padding_token=metadata.token("padding"),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", bool, model == "llama"),
        add_eos=metadata.get("tokenizer.ggml.add_eos_token", bool, False),
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", bool, model == "llama"),
        remove_extra_whitespaces=metadata.get("tokenizer.ggml.remove_extra_whitespaces", bool, False),
        chat_template=template if isinstance(template, str) else None,
    )
