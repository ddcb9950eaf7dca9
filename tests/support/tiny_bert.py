"""Writes small BERT encoders with random weights, as Hugging Face checkpoints and as GGUF files with the same weights."""

import json
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

__all__ = ["write_tiny_bert", "write_tiny_bert_gguf"]

HIDDEN, INNER, HEADS, BLOCKS, CONTEXT = 32, 64, 4, 3, 48
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "a", "b", "##c", ",", "!"]
_BLOCK = {
    "attention.self.query": ("attn_q", (HIDDEN, HIDDEN)),
    "attention.self.key": ("attn_k", (HIDDEN, HIDDEN)),
    "attention.self.value": ("attn_v", (HIDDEN, HIDDEN)),
    "attention.output.dense": ("attn_output", (HIDDEN, HIDDEN)),
    "attention.output.LayerNorm": ("attn_output_norm", (HIDDEN,)),
    "intermediate.dense": ("ffn_up", (INNER, HIDDEN)),
    "output.dense": ("ffn_down", (HIDDEN, INNER)),
    "output.LayerNorm": ("layer_output_norm", (HIDDEN,)),
}
CONFIG = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": CONTEXT,
    "num_attention_heads": HEADS,
    "num_hidden_layers": BLOCKS,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}


def _weights() -> dict[str, tuple[str, np.ndarray]]:
    """Return weights by Hugging Face's name, each with GGUF's."""
    random = np.random.default_rng(5)

    def made(*shape: int) -> np.ndarray:
        return random.normal(0.0, 0.3, shape).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": ("token_embd.weight", made(len(WORDS), HIDDEN)),
        "embeddings.position_embeddings.weight": ("position_embd.weight", made(CONTEXT, HIDDEN)),
        "embeddings.token_type_embeddings.weight": ("token_types.weight", made(2, HIDDEN)),
        "embeddings.LayerNorm.weight": ("token_embd_norm.weight", made(HIDDEN) + 1),
        "embeddings.LayerNorm.bias": ("token_embd_norm.bias", made(HIDDEN)),
    }
    for block in range(BLOCKS):
        for name, (short, shape) in _BLOCK.items():
            weight = made(*shape) + (len(shape) == 1)
            found[f"encoder.layer.{block}.{name}.weight"] = (f"blk.{block}.{short}.weight", weight)
            found[f"encoder.layer.{block}.{name}.bias"] = (f"blk.{block}.{short}.bias", made(shape[0]))
    return found


def write_tiny_bert(folder: Path, pooling: str | None = "pooling_mode_cls_token", **config: object) -> Path:
    """Write a checkpoint; `pooling` None leaves out what sentence-transformers adds."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight for name, (_, weight) in _weights().items()}
    tensors["embeddings.position_ids"] = np.arange(CONTEXT)[None]
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    special = [{"id": token, "content": WORDS[token], "special": True} for token in range(4)]
    pieces = [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}]
    tokenizer = {
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": pieces},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {word: i for i, word in enumerate(WORDS)}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    if pooling is not None:
        kinds = ["Transformer", "Pooling", "Normalize"]
        modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({pooling: True, "word_embedding_dimension": HIDDEN})
        )
    return folder


def write_tiny_bert_gguf(path: Path) -> Path:
    """Write the same model as `write_tiny_bert` as llama.cpp's converter would, with the reference writer."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_in_gguf(word) for word in WORDS])
    writer.add_token_types([3] * 4 + [1] * (len(WORDS) - 4))
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_unk_token_id(1)
    for name, weight in _weights().values():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _in_gguf(word: str) -> str:
    if word.startswith("["):
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"
