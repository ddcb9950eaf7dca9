"""Text to tokens and back: vocabularies, chat templates, incremental decoding, stop sequences.

Knows nothing of models, files or peers. Owns no state beyond one generation's.
"""

__all__ = ["detokenizer", "pretokenizers", "spm", "stop_sequences", "templates", "vocabulary"]
