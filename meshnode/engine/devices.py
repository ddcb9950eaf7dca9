"""What the machine has, measured when it is asked for: never cached, since free memory is a condition and not a property."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from meshnode.engine.executor import StageSpec
from meshnode.errors import OutOfMemory
from meshnode.types.manifest import ShardKind, TensorDescriptor

__all__ = ["available_bytes", "cache_budget", "physical_cores", "weight_bytes"]

_FOUR_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"})
_PLAIN = frozenset({"F32", "F16", "BF16"})
_FOUR_BIT_SCRATCH = 8 * 4096
"""Bytes per column while a 4-bit matrix is packed: 4096 rows at a time, twice as int32 (`engine.layers`)."""
_EIGHT_BIT_SCRATCH = 12
"""Bytes per value while an 8-bit matrix is packed, which is done whole (measured: 340 MB for a head of 49152 x 576)."""
_UNLIMITED = 1 << 60  # version 1 of control groups writes "no limit" as a number near 2**63


def physical_cores(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> int:
    """Return the cores this process may use; hyper-threads do not help a memory-bound loop.

    `allowed` are the logical CPUs it may run on, unless told those of its affinity. A quota of its control groups counts in
    whole cores: the threads of a kernel wait for each other, so one that is throttled holds up all.
    """
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cpus = frozenset(allowed)
    siblings = [_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    known = len(set(siblings)) if all(siblings) else psutil.cpu_count(logical=False) or len(cpus)
    return max(1, int(min([known, len(cpus), *_quotas(root)])))


def available_bytes(root: Path = Path("/")) -> int:
    """Return the memory that can be had without swapping, in this machine and in this process's control groups."""
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups(root)]))


def weight_bytes(spec: StageSpec) -> int:
    """Return the most memory that loading the stage's weights takes; the embedding stays in its file.

    Quantised weights are repacked to 4 or 8 bits with a scale and a minimum per 32 columns, so a file of 2-bit weights grows.
    """
    if not spec.config.causal:  # an encoder's are plain float32, and its embedding is in memory too
        return 4 * sum(math.prod(tensor.shape) for shard in spec.shards for tensor in shard.tensors)
    tensors = [tensor for shard in spec.shards if shard.kind is not ShardKind.EMBEDDING for tensor in shard.tensors]
    packed = spec.device == "cpu"
    held = sum(_in_memory(tensor, packed=packed) for tensor in tensors)
    return held + max((_scratch(tensor) for tensor in tensors if packed), default=0)


def cache_budget(weights: int, free: int, requested: int) -> int:
    """Return the bytes for KV caches beside `weights` bytes in `free` ones; `requested` 0 means to choose.

    Raises OutOfMemory naming the numbers when the weights alone do not fit, or the caches that were asked for.
    """
    left = free - weights
    if left <= 0:
        raise OutOfMemory(
            f"the weights need about {weights >> 20} MiB and {free >> 20} MiB are free; "
            "serve fewer blocks (--blocks) or a smaller model"
        )
    if requested > left:
        raise OutOfMemory(
            f"engine.cache_bytes asks for {requested >> 20} MiB and {left >> 20} MiB are free beside the weights"
        )
    return requested or left // 2


def _in_memory(tensor: TensorDescriptor, *, packed: bool) -> int:
    if len(tensor.shape) == 1:
        return 16 * tensor.shape[0]  # a norm mirrors its weights and adds a shift as wide
    rows, columns = tensor.shape[-2:]
    values = math.prod(tensor.shape)
    if not packed or tensor.ggml_type in _PLAIN or columns % 32 or rows % 16:
        return 2 * values
    return values * 5 // 8 if tensor.ggml_type in _FOUR_BITS else values * 5 // 4


def _scratch(tensor: TensorDescriptor) -> int:
    if len(tensor.shape) == 1 or tensor.ggml_type in _PLAIN:
        return 0
    if tensor.ggml_type in _FOUR_BITS:
        return _FOUR_BIT_SCRATCH * tensor.shape[-1]
    return _EIGHT_BIT_SCRATCH * math.prod(tensor.shape)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what each control group around this process leaves of its limit: a container or service may have less."""
    for folder, is_unified in _groups(root, "memory"):
        if is_unified:
            limit_name, used_name, cache_name = "memory.max", "memory.current", "inactive_file"
        else:
            limit_name, used_name, cache_name = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        limit, used = _read(folder / limit_name), _read(folder / used_name)
        if limit.isdecimal() and used.isdecimal() and int(limit) < _UNLIMITED:
            yield int(limit) - int(used) + _statistic(folder / "memory.stat", cache_name)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU time per time that each control group around this process allows, where it sets a limit."""
    for folder, is_unified in _groups(root, "cpu"):
        if is_unified:
            quota, _, period = _read(folder / "cpu.max").partition(" ")  # "max 100000" without a limit
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # -1 without
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups around this process, innermost first, and whether they are of version 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container, the outer ones may not be there to be read
            yield folder, not controllers
            if folder == top:
                break


def _statistic(path: Path, name: str) -> int:
    """Return one line of memory.stat: file pages that go when memory is needed count as used, and are not."""
    lines = dict(line.split(" ", 1) for line in _read(path).splitlines() if " " in line)
    return int(lines.get(name, "0"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
