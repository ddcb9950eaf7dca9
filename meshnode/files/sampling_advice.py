"""Reads what a model's makers advise on sampling: GGUF's `general.sampling.*`, or a `generation_config.json`."""

from meshnode.files.typed_fields import TypedFields
from meshnode.types.generation import SamplingAdvice

__all__ = ["sampling_advice"]


def sampling_advice(
    fields: TypedFields, prefix: str = "", *, temperature: str = "temperature"
) -> SamplingAdvice | None:
    """Return the advice, or None when there is none. What it does not mention is off; what makes no sense is not advice.

    Raises InvalidModelFile for a value that is no number.
    """
    heat = fields.optional(f"{prefix}{temperature}", float)
    top_p = fields.optional(f"{prefix}top_p", float)
    top_k = fields.optional(f"{prefix}top_k", int)
    min_p = fields.optional(f"{prefix}min_p", float)
    if (heat, top_p, top_k, min_p) == (None, None, None, None):
        return None
    advice = SamplingAdvice(
        temperature=1.0 if heat is None else heat,
        top_p=1.0 if top_p is None else top_p,
        top_k=0 if top_k is None else top_k,
        min_p=0.0 if min_p is None else min_p,
    )
    sensible = (
        0 <= advice.temperature <= 2 and 0 < advice.top_p <= 1 and 0 <= advice.top_k < 1 << 31 and 0 <= advice.min_p < 1
    )
    return advice if sensible else None
