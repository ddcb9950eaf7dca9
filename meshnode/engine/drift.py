"""The drift class: two stages of the same class give the same bits for the same rows.

What the bits depend on is this engine's arithmetic (`ENGINE`), the kind of device, and on a CPU the instructions that torch
and oneDNN choose their kernels by: sums are taken in another order with wider registers, and AMX and VNNI round differently.
Where activations are multiplied in float32, MKL does it, which has other kernels for other makers of processors.
"""

import platform
from pathlib import Path

import torch

from meshnode.engine.avx2 import are_preferred
from meshnode.engine.kv_cache import PAGE
from meshnode.engine.layers.products import Products

__all__ = ["ENGINE", "drift_class"]

ENGINE = 2
"""Counts up with every change of the arithmetic: kernels, packing, rounding."""


def drift_class(device: str) -> str:
    """Return the class of stages on `device`, for example 2.256-cpu-avx512-vnni-bf16."""
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return f"{ENGINE}.{PAGE}-cuda-sm{major}{minor}-torch{_release()}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    flags = {
        "vnni": torch.cpu._is_vnni_supported(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    kinds = [name for name, there in flags.items() if there]
    if Products.on(torch.device("cpu")).dtype is torch.float32:
        kinds += ["f32", _maker()]
    if are_preferred():
        kinds.append("own")
    return "-".join([f"{ENGINE}.{PAGE}", "cpu", capability, *kinds])


def _maker(description: Path = Path("/proc/cpuinfo")) -> str:
    """Return who made the processor, as it says itself: authenticamd, genuineintel; else the kind of machine."""
    try:
        lines = description.read_text().splitlines()
    except OSError:
        return platform.machine().lower()
    return next((line.split(":")[1].strip().lower() for line in lines if line.startswith("vendor_id")), "unknown")


def _release() -> str:
    """Return torch's major and minor version: CUDA kernels come from libraries that change with it."""
    return ".".join(torch.__version__.split(".")[:2])
