"""An independent float32 llama, written plainly: the oracle of the engine's tests."""

import functools

import gguf
import torch

__all__ = ["load", "reference"]

F = torch.nn.functional


@functools.lru_cache(maxsize=1)
def load(path):
    """Return the weights of a GGUF file, float32, by name, and its metadata."""
    reader = gguf.GGUFReader(path)
    weights = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        for tensor in reader.tensors
    }
    return weights, {
        name: value.contents() for name, value in reader.fields.items() if not name.startswith("tokenizer.")
    }


def reference(path, tokens, *, last=False):
    """Return the logits of every position, float32 [n, vocabulary], or of the last one alone."""
    weights, field = load(path)
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    size = field["llama.rope.dimension_count"]
    frequencies = field["llama.rope.freq_base"] ** (-torch.arange(0, size, 2).float() / size)
    if "rope_freqs.weight" in weights:
        frequencies = frequencies / weights["rope_freqs.weight"]
    angles = torch.outer(torch.arange(len(tokens)).float(), frequencies)

    def turn(rows):
        even, odd = rows[..., 0::2], rows[..., 1::2]
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)

    def norm(rows, name):
        return F.rms_norm(rows, rows.shape[-1:], weights[name], 1e-5)

    rows = weights["token_embd.weight"][tokens]
    for block in range(field["llama.block_count"]):
        own = {name.removeprefix(f"blk.{block}."): value for name, value in weights.items() if f"blk.{block}." in name}
        normed = norm(rows, f"blk.{block}.attn_norm.weight")
        queries, keys, values = (
            (normed @ own[f"attn_{part}.weight"].t()).view(len(tokens), -1, size) for part in "qkv"
        )
        attended = F.scaled_dot_product_attention(
            turn(queries).transpose(0, 1),
            turn(keys).transpose(0, 1).repeat_interleave(heads // kv_heads, 0),
            values.transpose(0, 1).repeat_interleave(heads // kv_heads, 0),
            is_causal=True,
        )
        rows = rows + attended.transpose(0, 1).flatten(1) @ own["attn_output.weight"].t()
        normed = norm(rows, f"blk.{block}.ffn_norm.weight")
        gated = F.silu(normed @ own["ffn_gate.weight"].t()) * (normed @ own["ffn_up.weight"].t())
        rows = rows + gated @ own["ffn_down.weight"].t()
    rows = rows[-1:] if last else rows
    head = weights.get("output.weight", weights["token_embd.weight"])
    return norm(rows, "output_norm.weight") @ head.t()
