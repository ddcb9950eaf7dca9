"""The sampler honours every parameter and depends on nothing else."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meshnode.engine.sampling import sample, uniform
from meshnode.types.generation import SamplingParameters


def logits(*probabilities):
    return torch.tensor(probabilities).log()


def draws(values, parameters, count=4000):
    found = Counter(sample(values, parameters, position=position, history=[]).token for position in range(count))
    return {token: number / count for token, number in found.items()}


def test_the_uniform_numbers_are_uniform_and_keyed():
    numbers = [uniform(seed, position) for seed in range(20) for position in range(200)]
    assert len(set(numbers)) == len(numbers)
    assert 0.48 < sum(numbers) / len(numbers) < 0.52
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(-1, 3) == uniform(-1, 3)


def test_frequencies_follow_the_distribution():
    found = draws(logits(0.5, 0.3, 0.15, 0.05), SamplingParameters(seed=7))
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert found[token] == pytest.approx(share, abs=0.03)


def test_temperature_sharpens_and_flattens():
    values = logits(0.6, 0.3, 0.1)
    assert draws(values, SamplingParameters(temperature=0.5))[0] == pytest.approx(0.36 / 0.46, abs=0.03)
    assert draws(values, SamplingParameters(temperature=5.0))[2] > 0.2


@pytest.mark.parametrize(
    ("parameters", "allowed"),
    [
        (SamplingParameters(top_k=2), {0, 1}),
        (SamplingParameters(top_p=0.6), {0, 1}),
        (SamplingParameters(top_p=0.5), {0}),
        (SamplingParameters(min_p=0.25), {0, 1, 2}),
        (SamplingParameters(min_p=1.0), {0}),
        (SamplingParameters(top_k=3, top_p=0.8), {0, 1}),
        (SamplingParameters(temperature=0), {0}),
        (SamplingParameters(temperature=0, logit_bias=((3, 100.0),)), {3}),
        (SamplingParameters(logit_bias=((0, -100.0), (1, -100.0), (2, -100.0))), {3}),
    ],
)
def test_truncation_allows_exactly_its_tokens(parameters, allowed):
    assert set(draws(logits(0.5, 0.3, 0.15, 0.05), parameters)) == allowed


def test_penalties_count_presence_and_frequency():
    values = torch.tensor([1.0, 0.9, 0.5])

    def best(history, **penalties):
        return sample(values, SamplingParameters(temperature=0, **penalties), position=0, history=history).token

    assert best([0], presence_penalty=0.2) == 1
    assert best([0, 1, 1], presence_penalty=0.2) == 0
    assert best([0, 1, 1], frequency_penalty=0.2) == 0
    assert best([0, 0, 0, 1], frequency_penalty=0.2) == 1
    assert best([0, 0, 0, 1, 1, 1], frequency_penalty=0.2) == 2
    assert best([1, 2], presence_penalty=-1.0) == 1


def test_logprobs_are_of_the_unmodified_distribution():
    values = logits(0.5, 0.3, 0.2)
    parameters = SamplingParameters(temperature=0, logit_bias=((2, 100.0),), top_logprobs=2)
    event = sample(values, parameters, position=0, history=[])
    assert event.token == 2
    assert event.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [token for token, _ in event.top] == [0, 1]
    assert [math.exp(value) for _, value in event.top] == pytest.approx([0.5, 0.3], abs=1e-6)


def test_no_logprobs_unless_asked():
    event = sample(logits(0.5, 0.5), SamplingParameters(), position=0, history=[])
    assert event.logprob is None
    assert event.top == ()


def test_nan_is_never_chosen():
    values = torch.tensor([math.nan, 0.0, math.nan])
    assert sample(values, SamplingParameters(temperature=0), position=0, history=[]).token == 1
    assert set(draws(values, SamplingParameters(), count=50)) == {1}


@given(st.integers(0, 2**32), st.sampled_from([{}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_p": 0.999, "min_p": 1e-9}]))
def test_looking_at_few_candidates_first_changes_nothing(seed, truncation):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(3000, generator=generator) * 0.5
    parameters = SamplingParameters(seed=seed, **truncation)
    token = sample(flat, parameters, position=1, history=[]).token
    probabilities = flat.double().softmax(-1)
    order = probabilities.sort(descending=True)
    kept = torch.ones(3000, dtype=torch.bool)
    if "top_p" in truncation:
        kept &= order.values.cumsum(0) - order.values < truncation["top_p"]
    if "min_p" in truncation:
        kept &= order.values >= truncation["min_p"] * order.values[0]
    mass = (order.values * kept).cumsum(0)
    index = int(torch.searchsorted(mass, float(mass[-1]) * uniform(seed, 1), right=True))
    near = order.indices[max(0, index - 1) : index + 2].tolist()
    assert token in near
