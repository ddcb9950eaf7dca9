"""How much memory of a GPU is free, without torch: NVML, the driver's own library, tells it in less than a millisecond."""

__all__ = ["gpu_free_bytes"]


def gpu_free_bytes() -> int:
    """Return the free bytes of this machine's GPU, measured now; of several, of the fullest, and 0 if none can be asked.

    NVML numbers GPUs by their slots and CUDA by their speed, so with several it is not said which of them a model will get.
    """
    import pynvml  # here: most machines have no GPU to ask

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles), default=0)
    except pynvml.NVMLError:  # no driver, an old one, or no GPU
        return 0
