"""The starter's vocabulary, read by the reference package."""

import gguf
import pytest

from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.tokenizer import TokenizerData


@pytest.fixture(scope="session")
def vocabulary(starter_gguf) -> TokenizerData:
    fields = gguf.GGUFReader(starter_gguf).fields

    def value(key):
        return fields[f"tokenizer.ggml.{key}"].contents()

    return TokenizerData(
        model=value("model"),
        pre=value("pre"),
        tokens=tuple(value("tokens")),
        token_types=tuple(value("token_type")),
        merges=tuple(value("merges")),
        bos_token=value("bos_token_id"),
        eos_token=value("eos_token_id"),
        add_bos=value("add_bos_token"),
        add_space_prefix=value("add_space_prefix"),
        chat_template=fields["tokenizer.chat_template"].contents(),
    )


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return build_tokenizer(vocabulary)
