"""What is particular about GGUF files of BERT encoders."""

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.model_limits import check_config
from meshnode.files.typed_fields import TypedFields
from meshnode.files.wordpiece_vocabulary import UNCASED, from_gguf_spelling
from meshnode.types.manifest import ModelConfig, RopeStyle
from meshnode.types.tokenizer import TokenizerData

__all__ = ["bert_metadata", "bert_tokenizer"]

_POOLINGS = {0: "mean", 1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers; 0 says nothing
_CONTROL, _NORMAL = 3, 1


def bert_metadata(metadata: TypedFields, vocabulary_size: int) -> ModelConfig:
    """Read the hyper-parameters. Raises UnsupportedModel and InvalidModelFile."""
    hidden = metadata.need("bert.embedding_length", int)
    heads = metadata.need("bert.attention.head_count", int)
    if heads < 1 or hidden % heads:
        raise InvalidModelFile(f"{hidden} hidden dimensions cannot be shared by {heads} heads")
    pooling = metadata.get("bert.pooling_type", int, 0)
    if pooling not in _POOLINGS:
        raise UnsupportedModel(f"bert.pooling_type {pooling} cannot be computed here; known: {sorted(_POOLINGS)}")
    config = ModelConfig(
        architecture="bert",
        block_count=metadata.need("bert.block_count", int),
        hidden_size=hidden,
        feed_forward_size=metadata.need("bert.feed_forward_length", int),
        head_count=heads,
        kv_head_count=heads,
        head_size=hidden // heads,
        vocabulary_size=vocabulary_size,
        context_length=metadata.need("bert.context_length", int),
        norm_epsilon=metadata.need("bert.attention.layer_norm_epsilon", float),
        rope_base=1.0,  # positions are learned, nothing is rotated
        rope_size=hidden // heads,
        rope_style=RopeStyle.HALVES,
        causal=False,
        pooling=_POOLINGS[pooling],
    )
    check_config(config)
    return config


def bert_tokenizer(metadata: TypedFields, tokens: tuple[str, ...], types: tuple[int, ...]) -> TokenizerData:
    """Read the vocabulary; texts are lower-cased, as llama.cpp does with every one of this kind. Raises InvalidModelFile."""
    spelled = from_gguf_spelling(tokens)

    def token(text: str, *keys: str) -> int:
        for key in keys:
            found = metadata.optional(f"tokenizer.ggml.{key}_token_id", int)
            if found is not None:
                return found
        if text not in spelled:
            raise InvalidModelFile(f"the vocabulary has no token {text}")
        return spelled.index(text)

    bracketed = [text.startswith("[") and text.endswith("]") for text in spelled]
    return TokenizerData(
        model="bert",
        pre=UNCASED,
        tokens=spelled,
        token_types=types or tuple(_CONTROL if special else _NORMAL for special in bracketed),
        bos_token=token("[CLS]", "cls", "bos"),
        eos_token=token("[SEP]", "seperator", "sep", "eos"),  # GGUF's own spelling, and the right one
        unknown_token=token("[UNK]", "unknown"),
        padding_token=token("[PAD]", "padding"),
        add_bos=True,
        add_eos=True,
        add_space_prefix=False,
    )
