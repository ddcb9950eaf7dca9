"""What the machine has, measured when it is asked for: never cached, since free memory is a condition and not a property."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from meshnode.engine.executor import StageSpec
from meshnode.errors import OutOfMemory
from meshnode.types.footprint import loading_bytes

__all__ = ["available_bytes", "cache_budget", "physical_cores", "weight_bytes"]

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
    """Return the most memory that loading the stage's weights takes."""
    return loading_bytes(spec.shards, causal=spec.config.causal, on_gpu=spec.device.startswith("cuda"))


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
