"""Writes tiny random llama models as GGUF files, through the reference package."""

from pathlib import Path

import gguf
import numpy as np

__all__ = ["TEMPLATE", "write_tiny_llama"]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _byte_letters() -> list[str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def write_tiny_llama(
    path: Path,
    *,
    quantization: str = "Q4_0",
    blocks: int = 2,
    hidden: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 256,
    context: int = 1024,
    tied: bool = True,
    rope_freqs: bool = False,
    seed: int = 0,
    name: str = "Tiny Llama",
    template: str = TEMPLATE,
    drop: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    split: int = 0,
) -> Path:
    """Write a model whose vocabulary is the 256 bytes and three control tokens; matrices have `quantization`.

    `drop` leaves one tensor out, `extra` adds or replaces tensors, and `split` writes files of that many tensors, of
    which the first is returned.
    """
    letters = _byte_letters()
    tokens = _CONTROL + letters + [f"<|pad{i}|>" for i in range(61)]
    kinds = [3] * 3 + [1] * 256 + [3] * 61
    head_size = hidden // heads
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_name(name)
    writer.add_block_count(blocks)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    source = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (len(tokens), hidden)
    for block in range(blocks):
        prefix = f"blk.{block}."
        shapes |= {
            prefix + "attn_norm.weight": (hidden,),
            prefix + "attn_q.weight": (hidden, hidden),
            prefix + "attn_k.weight": (kv_heads * head_size, hidden),
            prefix + "attn_v.weight": (kv_heads * head_size, hidden),
            prefix + "attn_output.weight": (hidden, hidden),
            prefix + "ffn_norm.weight": (hidden,),
            prefix + "ffn_gate.weight": (feed_forward, hidden),
            prefix + "ffn_up.weight": (feed_forward, hidden),
            prefix + "ffn_down.weight": (hidden, feed_forward),
        }
    kind = gguf.GGMLQuantizationType[quantization]
    tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType | None]] = {}
    for tensor, shape in shapes.items():
        if len(shape) == 1:
            tensors[tensor] = (1 + 0.1 * source.standard_normal(shape).astype(np.float32), None)
        else:
            tensors[tensor] = (_matrix(source, shape, kind), kind)
    if rope_freqs:
        tensors["rope_freqs.weight"] = (np.linspace(1, 4, head_size // 2, dtype=np.float32), None)
    for tensor, values in (extra or {}).items():
        tensors[tensor] = (values, None)
    for tensor, (values, tensor_kind) in tensors.items():
        if tensor != drop:
            writer.add_tensor(tensor, values, raw_dtype=tensor_kind if values.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _matrix(source: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    values = source.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return values.astype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        return _random_blocks(source, shape, kind)


def _random_blocks(source: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Make valid blocks of a type the package cannot quantise to: random codes, small scales."""
    count, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = source.integers(0, 256, (shape[0], shape[1] // count, size), dtype=np.uint8)
    spread = {"Q6_K": 1024, "Q3_K": 128}.get(kind.name, 64)  # about what a code times its own scale comes to
    scale = np.array([1 / np.sqrt(shape[-1]) / spread], dtype=np.float16).view(np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
    for place in places:
        blocks[..., place : place + 2] = scale
    return blocks.reshape(shape[0], -1)
