"""What files advise on sampling, and whose word counts for a request."""

import pytest

from meshnode.errors import InvalidModelFile
from meshnode.files.sampling_advice import sampling_advice
from meshnode.files.typed_fields import TypedFields
from meshnode.types.generation import SamplingAdvice, SamplingParameters


def _read(**values):
    return sampling_advice(TypedFields(values, "generation_config.json"))


def test_a_file_that_says_nothing_advises_nothing():
    assert _read(eos_token_id=2) is None


def test_what_advice_does_not_mention_is_off():
    assert _read(temperature=0.6) == SamplingAdvice(temperature=0.6, top_p=1.0, top_k=0, min_p=0.0)
    assert _read(top_k=20) == SamplingAdvice(temperature=1.0, top_p=1.0, top_k=20, min_p=0.0)


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -5}, {"min_p": 1.5}])
def test_advice_that_makes_no_sense_is_none(values):
    assert _read(**values) is None


def test_advice_of_the_wrong_type_is_refused():
    with pytest.raises(InvalidModelFile, match="temperature"):
        _read(temperature="warm")


def test_advice_replaces_temperature_and_filters_and_nothing_else():
    said = SamplingParameters(temperature=1.0, seed=7, presence_penalty=1.0, logit_bias=((1, 2.0),), top_logprobs=3)
    taken = SamplingAdvice(0.2, 0.9, 5, 0.1).applied(said)
    assert (taken.temperature, taken.top_p, taken.top_k, taken.min_p) == (0.2, 0.9, 5, 0.1)
    assert (taken.seed, taken.presence_penalty, taken.logit_bias, taken.top_logprobs) == (7, 1.0, ((1, 2.0),), 3)
