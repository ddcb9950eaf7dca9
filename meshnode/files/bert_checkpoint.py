"""What is particular about Hugging Face checkpoints of BERT encoders, as sentence-transformers lays them out."""

import re

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.model_limits import check_config
from meshnode.files.typed_fields import TypedFields
from meshnode.types.manifest import ModelConfig, RopeStyle

__all__ = ["bert_config", "bert_tensor_name", "checkpoint_pooling"]

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_IN_BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_BLOCK = re.compile(r"encoder\.layer\.(0|[1-9][0-9]{0,4})\.(.+)\.(weight|bias)")
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\.dense\.(weight|bias)")
"""What the configuration determines, and what was there for another way to make a vector."""

_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean",  # of the same direction, and vectors are made to have length 1
    "pooling_mode_lasttoken": "last",
}


def bert_config(fields: TypedFields, pooling: str) -> ModelConfig:
    """Read `config.json`. Raises UnsupportedModel naming the feature that cannot be run, and InvalidModelFile."""
    activation = fields.get("hidden_act", str, "gelu")
    if activation != "gelu":
        raise UnsupportedModel(f"hidden_act {activation[:40]!r} cannot be computed here; known: gelu")
    positions = fields.get("position_embedding_type", str, "absolute")
    if positions != "absolute":
        raise UnsupportedModel(f"position_embedding_type {positions[:40]!r} cannot be computed here; known: absolute")
    hidden, heads = fields.need("hidden_size", int), fields.need("num_attention_heads", int)
    if heads < 1 or hidden % heads:
        raise InvalidModelFile(f"{hidden} hidden dimensions cannot be shared by {heads} heads")
    config = ModelConfig(
        architecture="bert",
        block_count=fields.need("num_hidden_layers", int),
        hidden_size=hidden,
        feed_forward_size=fields.need("intermediate_size", int),
        head_count=heads,
        kv_head_count=heads,
        head_size=hidden // heads,
        vocabulary_size=fields.need("vocab_size", int),
        context_length=fields.need("max_position_embeddings", int),
        norm_epsilon=fields.get("layer_norm_eps", float, 1e-12),
        rope_base=1.0,  # positions are learned, nothing is rotated
        rope_size=hidden // heads,
        rope_style=RopeStyle.HALVES,
        causal=False,
        pooling=pooling,
    )
    check_config(config)
    return config


def checkpoint_pooling(modules: object, pooling: TypedFields) -> str:
    """Read sentence-transformers' `modules.json` and the pooling's `config.json`: how a text's vector is made.

    Raises UnsupportedModel for another way than `meshnode.types.generation.POOLINGS`.
    """
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "") if isinstance(module, dict) else module).rpartition(".")[2]
        if kind not in _MODULES:
            raise UnsupportedModel(
                f"the model's vectors go through a {kind[:80]!r}, which cannot be computed here; known: "
                + ", ".join(sorted(_MODULES))
            )
    wanted = [key for key, on in pooling.values.items() if key.startswith("pooling_mode_") and on is True]
    if not wanted:
        return "mean"  # what sentence-transformers does with a checkpoint that says nothing
    if len(wanted) > 1 or wanted[0] not in _POOLINGS:
        raise UnsupportedModel(f"vectors by {', '.join(wanted)[:200]} cannot be made; known: {', '.join(_POOLINGS)}")
    return _POOLINGS[wanted[0]]


def bert_tensor_name(name: str) -> str | None:
    """Return GGUF's name of a tensor, None for one that is not needed. Raises UnsupportedModel for any other."""
    name = name.removeprefix("bert.")
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    if _UNUSED.fullmatch(name):
        return None
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _IN_BLOCK:
        raise UnsupportedModel(f"tensor {name[:200]!r} has no place in the bert architecture as it can be run here")
    return f"blk.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"
