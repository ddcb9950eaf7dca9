"""Model files: reading sources, cutting shards, keeping them verified on disk.

Knows nothing of torch, text or peers. The catalog of what is held is owned by the AcquisitionManager.
"""

__all__ = ["catalog", "gguf_header", "importing", "layout", "shard_file", "tokenizer_shard"]
