"""What the driver is asked, and what becomes of its answers; without a driver too."""

from types import SimpleNamespace

import pynvml
import pytest

from meshnode.engine.gpu_memory import gpu_free_bytes


@pytest.mark.parametrize(
    ("free", "least"),
    [
        ([70 << 30], 70 << 30),
        ([70 << 30, 3 << 30], 3 << 30),
        ([], 0),
        ([pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)], 0),
    ],
)
def test_the_fullest_gpu_decides_and_what_cannot_be_asked_has_nothing_free(monkeypatch, free, least):
    def memory(handle):
        if isinstance(free[handle], Exception):
            raise free[handle]
        return SimpleNamespace(free=free[handle])

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(free))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)
    assert gpu_free_bytes() == least


def test_without_a_driver_nothing_is_free(monkeypatch):
    def absent(_name):
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    assert gpu_free_bytes() == 0
