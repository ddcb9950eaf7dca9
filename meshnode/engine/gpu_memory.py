"""How much memory of a GPU is free, without torch: NVML, the driver's own library, tells it in less than a millisecond."""

import ctypes
from typing import Any

__all__ = ["gpu_free_bytes"]

_LIBRARY = "libnvidia-ml.so.1"  # part of the driver


class _Memory(ctypes.Structure):
    """The nvmlMemory_t of nvml.h."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_free_bytes() -> int:
    """Return the free bytes of this machine's GPU, measured now; of several, of the fullest, and 0 if none can be asked.

    NVML numbers GPUs by their slots and CUDA by their speed, so with several it is not said which of them a model will get.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
        return min(_free(library, number) for number in range(_count(library)))
    except (OSError, AttributeError, ValueError):  # no library, an old one, or no GPU
        return 0


def _count(library: Any) -> int:  # noqa: ANN401  # what a library of C has, nobody types
    count = ctypes.c_uint()
    _heed(library.nvmlInit_v2())
    _heed(library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    return count.value


def _free(library: Any, number: int) -> int:  # noqa: ANN401
    device, memory = ctypes.c_void_p(), _Memory()
    _heed(library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)))
    _heed(library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
    return int(memory.free)


def _heed(code: int) -> None:
    if code:
        raise OSError(f"NVML error {code}")
