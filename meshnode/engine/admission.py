"""Decides what may come in. What is checked here may be from another node, and must not reach a kernel if it makes no sense."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from meshnode.engine.executor import StageReservation, StageSpec
from meshnode.engine.finite import is_finite
from meshnode.engine.prefixes import PAGE
from meshnode.engine.stage_model import Part
from meshnode.engine.worker_messages import Step
from meshnode.errors import BadRows, RequestError
from meshnode.types.generation import POOLINGS, SamplingParameters

__all__ = ["check_sampling", "check_tokens", "part_for", "rows_of"]

_LONGEST_NAME = 64  # bytes


def check_tokens(spec: StageSpec, tokens: Iterable[int]) -> None:
    """Raise RequestError for a token id that the model does not have."""
    top = spec.config.vocabulary_size
    if not all(0 <= token < top for token in tokens):
        raise RequestError(f"there are token ids outside 0 to {top - 1}")


def check_sampling(spec: StageSpec, sampling: SamplingParameters) -> None:
    """Raise RequestError for parameters that the sampler cannot compute with, naming one."""
    if sampling.pooling and sampling.pooling not in POOLINGS:
        raise RequestError(f"pooling is {sampling.pooling[:40]!r}; known: {', '.join(POOLINGS)}")
    if not (spec.config.causal or sampling.pooling):
        raise RequestError("this model makes vectors of texts and writes none itself; ask it for embeddings")
    check_tokens(spec, (token for token, _ in sampling.logit_bias))
    check_tokens(spec, sampling.scored)
    numbers = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "top_logprobs": sampling.top_logprobs or 0,
    }
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise RequestError(f"{name} is {number}, and has to be a number of at least 0")
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, *(bias for _, bias in sampling.logit_bias))
    if not all(map(math.isfinite, penalties)):
        raise RequestError("penalties and biases have to be finite numbers")


def part_for(spec: StageSpec, wanted: StageReservation) -> Part:
    """Return the part of the stage that a reservation is for. Raises RequestError when it is not loaded, or not one piece."""
    blocks = wanted.blocks
    here = blocks is None or (
        spec.blocks is not None and spec.blocks.start <= blocks.start and blocks.end <= spec.blocks.end
    )
    if not here or (wanted.embedding and not spec.embedding) or (wanted.head and not spec.head):
        raise RequestError(f"this stage holds {_in_words(spec)}; {_in_words(wanted)} is wanted of it")
    if blocks is None:
        in_one_piece = wanted.embedding != wanted.head
    else:
        in_one_piece = not (wanted.embedding and blocks.start > 0) and not (
            wanted.head and blocks.end < spec.config.block_count
        )
    if not in_one_piece:
        count = spec.config.block_count
        raise RequestError(f"what is wanted of a model of {count} blocks is not in one piece: {_in_words(wanted)}")
    if not 1 <= wanted.tokens <= spec.context_length:
        raise RequestError(f"{wanted.tokens} positions are wanted; this stage allows 1 to {spec.context_length}")
    if len(wanted.pages) > wanted.tokens // PAGE or any(len(name) > _LONGEST_NAME for name in wanted.pages):
        raise RequestError(
            f"{wanted.tokens} positions have no {len(wanted.pages)} full pages, or their names are too long"
        )
    if wanted.head:
        _check_answer(spec, wanted)
    first = 0 if spec.blocks is None else spec.blocks.start
    indices = range(0) if blocks is None else range(blocks.start - first, blocks.end - first)
    return Part(indices, wanted.embedding, wanted.head)


def rows_of(spec: StageSpec, part: Part, step: Step, body: bytes) -> torch.Tensor:
    """Return a step's rows: token ids [n] or activations [n, hidden]. Raises RequestError when they are not as they should be."""
    if part.embedding:
        if not step.tokens or body:
            raise RequestError("this stage begins with tokens, and the step has none, or activations")
        check_tokens(spec, step.tokens)
        return torch.tensor(step.tokens)
    width = spec.config.hidden_size
    if step.tokens or not body or len(body) % (2 * width):
        raise BadRows(f"{len(body)} bytes are not rows of {width} bfloat16 activations")
    if not is_finite(body):
        raise BadRows("the activations are not finite")
    bits = np.frombuffer(bytearray(body), dtype=np.uint16)
    return torch.from_numpy(bits).view(torch.bfloat16).view(-1, width)


def _check_answer(spec: StageSpec, wanted: StageReservation) -> None:
    if wanted.sampling is None:
        raise RequestError("the head needs to know how to sample")
    if not 0 <= wanted.prompt_length <= wanted.tokens:
        raise RequestError(f"a prompt of {wanted.prompt_length} tokens does not fit {wanted.tokens} positions")
    check_sampling(spec, wanted.sampling)
    check_tokens(spec, wanted.history)


def _in_words(stage: StageSpec | StageReservation) -> str:
    parts = ["the embedding"] if stage.embedding else []
    if stage.blocks is not None:
        parts.append(f"blocks {stage.blocks}")
    return ", ".join([*parts, "the head"] if stage.head else parts) or "nothing"
