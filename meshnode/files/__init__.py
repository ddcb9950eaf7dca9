"""Model files: reading sources, cutting them into shards, keeping the shards verified on disk.

Knows nothing of torch, text or peers. The catalog of what is held is owned by the AcquisitionManager.
"""

__all__ = [
    "acquisition",
    "canonical",
    "catalog",
    "gguf_header",
    "importing",
    "local_gguf",
    "shard_file",
    "sources",
    "tokenizer_shard",
]
