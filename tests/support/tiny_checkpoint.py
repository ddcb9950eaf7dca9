"""Writes tiny random llama models as Hugging Face checkpoints, and the same weights in GGUF's row order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
from support.tiny_gguf import TEMPLATE
from tokenizers import decoders, models, pre_tokenizers

__all__ = ["CONFIG", "as_gguf", "random_weights", "write_tiny_checkpoint"]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 320,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Return float32 weights under Hugging Face's names."""
    source = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for block in range(config["num_hidden_layers"]):
        rows = [(hidden,), (hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (hidden,)]
        rows += [(inner, hidden), (inner, hidden), (hidden, inner)]
        for name, shape in zip(_NAMES, rows, strict=True):
            shapes[f"model.layers.{block}.{name}.weight"] = shape
    return {
        name: (source.standard_normal(shape) / np.sqrt(shape[-1]) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def as_gguf(weights: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Rename weights and put query and key rows into GGUF's order, as llama.cpp's converter does."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    converted = {}
    for name, values in weights.items():
        target = names.get(name, "output.weight")
        if name.startswith("model.layers."):
            _, _, block, inner = name.split(".", 3)
            target = f"blk.{block}.{_NAMES[inner.removesuffix('.weight')]}.weight"
        rows = values
        if ".attn_q." in target or ".attn_k." in target:
            heads = config["num_attention_heads" if ".attn_q." in target else "num_key_value_heads"]
            rows = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        converted[target] = np.ascontiguousarray(rows)
    return converted


def _tokenizer() -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: token for token, letter in enumerate(letters, start=3)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_tiny_checkpoint(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    files: int = 1,
    texts: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint with CONFIG, changed by `config`, in `files` safetensors files; `texts` adds or replaces files."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = CONFIG | (config or {})
    if weights is None:
        weights = random_weights(settings)
    names = sorted(weights)
    if files == 1:
        safetensors.numpy.save_file(weights, folder / "model.safetensors")
    else:
        places = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors" for i, name in enumerate(names)}
        for place in set(places.values()):
            safetensors.numpy.save_file(
                {name: weights[name] for name in names if places[name] == place}, folder / place
            )
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    tokenizer = json.loads(_tokenizer().to_str())
    tokenizer["added_tokens"] = [
        {"id": token, "content": text, "special": True, "lstrip": False, "rstrip": False, "single_word": False}
        for token, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    ]
    contents: dict[str, Any] = {
        "config.json": settings,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE},
        **(texts or {}),
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
