"""Which tensors a model of each architecture has, and of what shape. Names are GGUF's."""

from collections.abc import Mapping
from typing import Protocol

import attrs

from meshnode.types.manifest import ModelConfig

__all__ = ["ARCHITECTURES", "Architecture", "BertShapes", "LlamaShapes", "Shapes"]

Shapes = dict[str, tuple[int, ...]]


class Architecture(Protocol):
    """One family of models."""

    @property
    def is_causal(self) -> bool:
        """Whether a position sees only those before it, so that the model can write."""
        ...

    def embedding(self, config: ModelConfig) -> Shapes:
        """Return what turns tokens into activations."""
        ...

    def block(self, config: ModelConfig) -> Shapes:
        """Return what every block has, by names without its `blk.N.`."""
        ...

    def head(self, config: ModelConfig) -> Shapes:
        """Return what turns activations into logits; `output.weight` is the embedding's where the two are tied."""
        ...


@attrs.frozen
class LlamaShapes:
    """The llama family, and what varies between its members."""

    attention_biases: bool = False  # attn_q.bias, attn_k.bias, attn_v.bias; all three, in every block

    @property
    def is_causal(self) -> bool:
        """It writes."""
        return True

    def embedding(self, config: ModelConfig) -> Shapes:
        """Return the table."""
        return {"token_embd.weight": (config.vocabulary_size, config.hidden_size)}

    def block(self, config: ModelConfig) -> Shapes:
        """Return grouped attention and a gated feed-forward, each after a norm."""
        queries, keys = config.head_count * config.head_size, config.kv_head_count * config.head_size
        hidden, inner = config.hidden_size, config.feed_forward_size
        shapes: Shapes = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (queries, hidden),
            "attn_k.weight": (keys, hidden),
            "attn_v.weight": (keys, hidden),
            "attn_output.weight": (hidden, queries),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (inner, hidden),
            "ffn_up.weight": (inner, hidden),
            "ffn_down.weight": (hidden, inner),
        }
        if self.attention_biases:
            shapes |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        return shapes

    def head(self, config: ModelConfig) -> Shapes:
        """Return the final norm and the output projection."""
        hidden = config.hidden_size
        return {"output.weight": (config.vocabulary_size, hidden), "output_norm.weight": (hidden,)}


@attrs.frozen
class BertShapes:
    """BERT encoders: biases everywhere, norms after, positions learned, and no head."""

    @property
    def is_causal(self) -> bool:
        """It reads."""
        return False

    def embedding(self, config: ModelConfig) -> Shapes:
        """Return words, positions, segments (two, of which the first is used) and their norm."""
        hidden = config.hidden_size
        return {
            "token_embd.weight": (config.vocabulary_size, hidden),
            "position_embd.weight": (config.context_length, hidden),
            "token_types.weight": (2, hidden),
            **_affine("token_embd_norm", (hidden,)),
        }

    def block(self, config: ModelConfig) -> Shapes:
        """Return attention and feed-forward, each with the norm after it."""
        hidden, inner = config.hidden_size, config.feed_forward_size
        shapes: Shapes = {}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= _affine(name, (hidden, hidden))
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= _affine(name, (hidden,))
        return shapes | _affine("ffn_up", (inner, hidden)) | _affine("ffn_down", (hidden, inner))

    def head(self, config: ModelConfig) -> Shapes:  # noqa: ARG002  # there is none, whatever the configuration
        """Return nothing: the last block's rows are the answer."""
        return {}


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


ARCHITECTURES: Mapping[str, Architecture] = {"llama": LlamaShapes(), "bert": BertShapes()}
"""Architectures that can be imported, by GGUF name."""
