"""How a request to embed becomes tokens, and what is cut or refused."""

import attrs
import pytest

from meshnode.errors import ContextOverflow
from meshnode.inference.assets import ModelAssets
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId
from meshnode.types.tokenizer import TokenizerData

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##c")
REQUEST = GenerationRequest(RequestId("r"), "m", prompt="a bc", max_tokens=1, embeds=True)


@pytest.fixture
def assets():
    data = TokenizerData(
        "bert", "uncased", WORDS, (3, 3, 3, 3, 1, 1, 1), bos_token=2, eos_token=3, unknown_token=1, add_bos=True, add_eos=True
    )  # fmt: skip
    return ModelAssets(build_tokenizer(data), None, "no template")


def test_a_text_stands_between_its_first_and_last_token_and_may_fill_the_context(assets):
    assert assets.prompt(REQUEST, 5).tokens == (2, 4, 5, 6, 3)


def test_what_does_not_fit_is_refused_or_cut_before_its_last_token(assets):
    with pytest.raises(ContextOverflow, match="5 tokens, and the model's context has 4") as caught:
        assets.prompt(REQUEST, 4)
    assert caught.value.param == "input"  # of embeddings
    with pytest.raises(ContextOverflow) as caught:
        assets.prompt(attrs.evolve(REQUEST, embeds=False), 4)
    assert caught.value.param == "prompt"
    assert assets.prompt(attrs.evolve(REQUEST, truncates=True), 4).tokens == (2, 4, 5, 3)


def test_tokens_are_taken_as_they_are(assets):
    assert assets.prompt(attrs.evolve(REQUEST, prompt=None, prompt_tokens=(4, 5)), 5).tokens == (4, 5)


def test_a_name_of_a_control_token_in_a_text_is_text(assets):
    assert assets.prompt(attrs.evolve(REQUEST, prompt="[SEP]"), 9).tokens == (2, 1, 1, 1, 3)
