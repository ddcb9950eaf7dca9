"""What the machine has, measured when it is asked for: never cached, since free memory is a condition and not a property."""

import os

import psutil

from meshnode.errors import OutOfMemory

__all__ = ["available_bytes", "cache_budget", "physical_cores"]

_UNPACKING = 1.5
"""Packed weights and their scratch, per byte of shards (measured: 1.0 for Q4_1, at most 1.8 for a file of Q4_0 alone)."""


def physical_cores() -> int:
    """Return the cores this process may use; hyper-threads do not help a memory-bound loop."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def available_bytes() -> int:
    """Return the memory that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def cache_budget(shard_bytes: int, requested: int) -> int:
    """Return the bytes for KV caches when `shard_bytes` of weights are loaded; `requested` 0 means to choose.

    Raises OutOfMemory naming the numbers when the weights alone do not fit.
    """
    free = available_bytes() - int(shard_bytes * _UNPACKING)
    if free <= 0:
        raise OutOfMemory(
            f"the weights need about {int(shard_bytes * _UNPACKING) >> 20} MiB and {available_bytes() >> 20} MiB are free; "
            "serve fewer blocks (--blocks) or a smaller model"
        )
    if requested > free:
        raise OutOfMemory(
            f"engine.cache_bytes asks for {requested >> 20} MiB and {free >> 20} MiB are free beside the weights"
        )
    return requested or free // 2
