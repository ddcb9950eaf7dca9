"""Shares the memory of this machine between models: what one may fill later, another must not count as free now."""

from pathlib import Path

import attrs

from meshnode.engine.devices import available_bytes, weight_bytes
from meshnode.engine.executor import StageSpec
from meshnode.engine.gpu_memory import gpu_free_bytes
from meshnode.errors import OutOfMemory

__all__ = ["MemoryLimits", "MemoryPlan"]

_NVIDIA = Path("/dev/nvidiactl")  # whether torch can use the GPU, and which of several, only a worker knows


@attrs.frozen
class MemoryLimits:
    """What the owner of this machine lets all models together take, weights and caches; 0: what is free."""

    ram: int = 0  # bytes
    gpu: int = 0  # bytes


@attrs.define
class _Promise:
    on_gpu: bool
    weights: int  # bytes
    budget: int  # bytes of caches
    is_loaded: bool = False  # the weights are held, and so no longer free
    used: int = 0  # bytes of the caches that are held likewise

    @property
    def outstanding(self) -> int:
        return (0 if self.is_loaded else self.weights) + max(0, self.budget - self.used)

    @property
    def whole(self) -> int:
        return self.weights + self.budget


@attrs.define(eq=False)
class MemoryPlan:
    """What has been promised to each owner and not been taken yet. Free memory is measured whenever it is asked for."""

    _limits: MemoryLimits = MemoryLimits()
    _device: str = "auto"  # engine.device
    _promises: dict[object, _Promise] = attrs.field(factory=dict, init=False)
    # Bytes, when a worker that is still there last looked.
    _gpu_free: int | None = attrs.field(default=None, init=False)

    def settle(self, owner: object, spec: StageSpec) -> StageSpec:
        """Return the spec with a budget for its caches: half of what neither its weights nor other models have been promised.

        What is free on a GPU, the worker sees; it is told what the limits leave. Raises OutOfMemory.
        """
        self.release(owner)
        if _may_use_gpu(spec.device):
            return self._settle_on_gpu(owner, spec)
        weights, budget = weight_bytes(attrs.evolve(spec, device="cpu")), spec.cache_bytes
        self._heed_limit(weights, budget, on_gpu=False)
        if not budget:
            others = self._outstanding(on_gpu=False)
            free = available_bytes()
            budget = (self._left(free, on_gpu=False) - weights) // 2
            if budget <= 0 < others:
                raise OutOfMemory(
                    f"the weights need about {weights >> 20} MiB; {free >> 20} MiB are free, and {others >> 20} MiB of them "
                    "are promised to the models that are loaded; give each less with engine.cache_bytes, or load fewer"
                )
        if budget > 0:
            self._promises[owner] = _Promise(on_gpu=False, weights=weights, budget=budget)
            return attrs.evolve(spec, cache_bytes=budget)
        return spec  # the worker says what is missing

    def loaded(self, owner: object, device: str, weights: int, budget: int) -> None:
        """Note what the owner's worker holds now, and may hold of caches; bytes."""
        self._promises[owner] = _Promise(device.startswith("cuda"), weights, budget, is_loaded=True)

    def took(self, owner: object, used: int, gpu_free: int = 0) -> None:
        """Note how many bytes the owner's caches hold, and how many its worker saw free on its GPU, if it has one."""
        if owner in self._promises:
            self._promises[owner].used = used
            if self._promises[owner].on_gpu:
                self._gpu_free = gpu_free

    def release(self, owner: object) -> None:
        """Forget an owner, whose memory is free again."""
        self._promises.pop(owner, None)
        if not any(promise.on_gpu for promise in self._promises.values()):
            self._gpu_free = None

    @property
    def on_gpu(self) -> bool:
        """Whether models are loaded on a GPU, as far as one can tell without torch."""
        if any(promise.is_loaded for promise in self._promises.values()):
            return any(promise.on_gpu for promise in self._promises.values())
        return _may_use_gpu(self._device)

    def free_bytes(self) -> int:
        """Return what is free for further weights and caches, measured now, within the limits.

        On a GPU that is what a worker there saw a moment ago; until one has looked, what the driver says.
        """
        if not self.on_gpu:
            return self._left(available_bytes(), on_gpu=False)
        return self._left(gpu_free_bytes() if self._gpu_free is None else self._gpu_free, on_gpu=True)

    def promised_bytes(self, *, on_gpu: bool) -> int:
        """Return what the models that are loaded hold or may come to hold."""
        return sum(each.whole for each in self._promises.values() if each.on_gpu is on_gpu)

    def _settle_on_gpu(self, owner: object, spec: StageSpec) -> StageSpec:
        weights = weight_bytes(attrs.evolve(spec, device="cuda:0"))
        self._heed_limit(weights, spec.cache_bytes, on_gpu=True)
        self._promises[owner] = _Promise(on_gpu=True, weights=weights, budget=spec.cache_bytes)
        if not (self._limits.ram or self._limits.gpu):
            return spec
        gpu, ram = (self._allowed(on_gpu=on_gpu, besides=owner) for on_gpu in (True, False))
        return attrs.evolve(spec, gpu_limit=gpu, ram_limit=ram)  # the worker knows which of them it is

    def _heed_limit(self, weights: int, budget: int, *, on_gpu: bool) -> None:
        allowed = self._allowed(on_gpu=on_gpu)
        if allowed is None or weights + max(1, budget) <= allowed:
            return
        name, limit = ("gpu_bytes", self._limits.gpu) if on_gpu else ("memory_bytes", self._limits.ram)
        raise OutOfMemory(
            f"the weights need about {weights >> 20} MiB{f' and the caches {budget >> 20} MiB' if budget else ''}, and of the "
            f"{limit >> 20} MiB of resources.{name} other models leave {max(0, allowed) >> 20} MiB; raise it, load fewer "
            "models, or serve fewer blocks (--blocks)"
        )

    def _allowed(self, *, on_gpu: bool, besides: object = None) -> int | None:
        """Return what the limit leaves; None without one."""
        limit = self._limits.gpu if on_gpu else self._limits.ram
        others = (each for owner, each in self._promises.items() if each.on_gpu is on_gpu and owner is not besides)
        return limit - sum(each.whole for each in others) if limit else None

    def _left(self, free: int, *, on_gpu: bool) -> int:
        allowed = self._allowed(on_gpu=on_gpu)
        left = free - self._outstanding(on_gpu=on_gpu)
        return max(0, left if allowed is None else min(left, allowed))

    def _outstanding(self, *, on_gpu: bool) -> int:
        return sum(each.outstanding for each in self._promises.values() if each.on_gpu is on_gpu)


def _may_use_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and _NVIDIA.exists())
