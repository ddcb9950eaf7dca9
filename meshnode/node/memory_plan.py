"""Shares the memory of this machine between models: what one may fill later, another must not count as free now."""

from pathlib import Path

import attrs

from meshnode.engine.devices import available_bytes, weight_bytes
from meshnode.engine.executor import StageSpec
from meshnode.errors import OutOfMemory

__all__ = ["MemoryPlan"]

_NVIDIA = Path("/dev/nvidiactl")  # with a GPU, only the worker can see what is free on it


@attrs.define
class _Promise:
    weights: int  # bytes still to be loaded
    budget: int  # bytes of caches
    used: int = 0  # bytes of them that are held, and so no longer free

    @property
    def outstanding(self) -> int:
        return self.weights + max(0, self.budget - self.used)


@attrs.define(eq=False)
class MemoryPlan:
    """What has been promised to each owner and not been taken yet."""

    _promises: dict[object, _Promise] = attrs.field(factory=dict, init=False)

    def settle(self, owner: object, spec: StageSpec) -> StageSpec:
        """Return the spec with a budget for its caches: half of what neither its weights nor other models have been promised.

        Left as it is where the settings say how much, or where the memory may be a GPU's. Raises OutOfMemory.
        """
        if spec.device.startswith("cuda") or (spec.device == "auto" and _NVIDIA.exists()):
            return spec
        weights, budget = weight_bytes(attrs.evolve(spec, device="cpu")), spec.cache_bytes
        if not budget:
            others = sum(promise.outstanding for promise in self._promises.values())
            free = available_bytes()
            budget = (free - others - weights) // 2
            if budget <= 0 < others:
                raise OutOfMemory(
                    f"the weights need about {weights >> 20} MiB; {free >> 20} MiB are free, and {others >> 20} MiB of them "
                    "are promised to the models that are loaded; give each less with engine.cache_bytes, or load fewer"
                )
        if budget > 0:
            self._promises[owner] = _Promise(weights, budget)
            return attrs.evolve(spec, cache_bytes=budget)
        return spec  # the worker says what is missing

    def loaded(self, owner: object) -> None:
        """Note that the weights are in memory now."""
        if owner in self._promises:
            self._promises[owner].weights = 0

    def took(self, owner: object, used: int) -> None:
        """Note how many bytes the owner's caches hold."""
        if owner in self._promises:
            self._promises[owner].used = used

    def release(self, owner: object) -> None:
        """Forget an owner, whose memory is free again."""
        self._promises.pop(owner, None)
