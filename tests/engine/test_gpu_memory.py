"""What the driver's library is asked, and what becomes of its answers; with a library that is not there too."""

import pytest

from meshnode.engine import gpu_memory


class Library:
    """GPUs with these bytes free; it writes where it is told to, as C does."""

    def __init__(self, *free, code=0):
        self.free, self.code = free, code

    def nvmlInit_v2(self):
        return self.code

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.free)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number, device):
        device._obj.value = 1 + number
        return 0

    def nvmlDeviceGetMemoryInfo(self, device, memory):
        memory._obj.free = self.free[device.value - 1]
        return 0


@pytest.mark.parametrize(
    ("library", "free"),
    [
        (Library(70 << 30), 70 << 30),
        (Library(70 << 30, 3 << 30), 3 << 30),
        (Library(), 0),
        (Library(1, code=9), 0),  # NVML_ERROR_DRIVER_NOT_LOADED
        (object(), 0),
    ],
)
def test_the_fullest_gpu_decides_and_what_cannot_be_asked_has_nothing_free(monkeypatch, library, free):
    monkeypatch.setattr(gpu_memory.ctypes, "CDLL", lambda _name: library)
    assert gpu_memory.gpu_free_bytes() == free


def test_without_the_library_nothing_is_free(monkeypatch):
    monkeypatch.setattr(gpu_memory, "_LIBRARY", "libno-such-library.so.1")
    assert gpu_memory.gpu_free_bytes() == 0
