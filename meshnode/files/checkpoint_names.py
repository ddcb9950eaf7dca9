"""GGUF's names for the tensors of Hugging Face checkpoints of the llama family."""

import re

from meshnode.errors import UnsupportedModel

__all__ = ["llama_tensor_name"]

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_BLOCK = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,4})\.(.+)")
_DERIVED = "self_attn.rotary_emb.inv_freq"  # old checkpoints store what the configuration determines


def llama_tensor_name(name: str) -> str | None:
    """Return GGUF's name of a tensor, None for one that holds nothing new. Raises UnsupportedModel for any other."""
    if name in _NAMES:
        return _NAMES[name]
    match = _BLOCK.fullmatch(name)
    if match is not None and match[2] == _DERIVED:
        return None
    if match is None or match[2] not in _BLOCK_NAMES:
        raise UnsupportedModel(f"tensor {name[:200]!r} has no place in the llama architecture as it can be run here")
    return f"blk.{match[1]}.{_BLOCK_NAMES[match[2]]}"
