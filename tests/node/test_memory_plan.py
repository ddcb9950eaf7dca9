"""Models that are loaded one after the other never count on the same memory."""

import attrs
import pytest

from meshnode.errors import OutOfMemory
from meshnode.node import memory_plan
from meshnode.node.memory_plan import MemoryLimits, MemoryPlan


@attrs.frozen
class Spec:
    weights: int = 100
    device: str = "cpu"
    cache_bytes: int = 0
    ram_limit: int | None = None
    gpu_limit: int | None = None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 1100 bytes free and no GPU; with one, 3000 are free there."""

    class Machine:
        free = 1100
        gpu_free = 3000

    monkeypatch.setattr(memory_plan, "available_bytes", lambda: Machine.free)
    monkeypatch.setattr(memory_plan, "gpu_free_bytes", lambda: Machine.gpu_free)
    monkeypatch.setattr(memory_plan, "weight_bytes", lambda spec: spec.weights)
    monkeypatch.setattr(memory_plan, "_NVIDIA", tmp_path / "none")
    return Machine


def test_one_model_takes_half_of_what_its_weights_leave(machine):
    assert MemoryPlan().settle("a", Spec()).cache_bytes == 500
    assert MemoryPlan().settle("a", Spec(device="auto")).cache_bytes == 500


def test_each_further_model_takes_half_of_what_is_not_promised(machine):
    plan = MemoryPlan()
    budgets = [plan.settle(name, Spec()).cache_bytes for name in "abc"]  # all at once: nothing is loaded yet
    assert budgets == [500, 200, 50]
    assert sum(budgets) + 300 <= machine.free


@pytest.mark.parametrize("used", [0, 300, 500])
def test_what_has_been_taken_is_not_counted_twice(machine, used):
    plan = MemoryPlan()
    plan.settle("a", Spec())
    plan.loaded("a", "cpu", 100, 500)
    plan.took("a", used)
    machine.free = 1000 - used
    assert plan.settle("b", Spec()).cache_bytes == 200


def test_what_is_released_can_be_had_again_and_a_new_start_replaces_the_old(machine):
    plan = MemoryPlan()
    plan.settle("a", Spec())
    plan.release("a")
    plan.release("nobody")
    assert plan.settle("b", Spec()).cache_bytes == 500


def test_a_budget_from_the_settings_is_kept_and_counted(machine):
    plan = MemoryPlan()
    assert plan.settle("a", Spec(cache_bytes=800)).cache_bytes == 800
    assert plan.settle("b", Spec()).cache_bytes == 50


def test_when_everything_is_promised_the_next_model_is_told_the_numbers(machine):
    machine.free = 1100 << 20
    plan = MemoryPlan()
    plan.settle("a", Spec(cache_bytes=1000 << 20))
    with pytest.raises(OutOfMemory, match="200 MiB; 1100 MiB are free, and 1000 MiB"):
        plan.settle("b", Spec(weights=200 << 20))
    assert plan._promises.keys() == {"a"}


def test_a_model_that_does_not_fit_alone_is_left_to_the_worker_to_refuse(machine):
    assert MemoryPlan().settle("a", Spec(weights=2000)) == Spec(weights=2000)


@pytest.fixture
def gpu(machine, monkeypatch, tmp_path):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(memory_plan, "_NVIDIA", tmp_path / "nvidiactl")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "auto"])
def test_the_memory_of_a_gpu_is_left_to_the_worker(gpu, device):
    plan = MemoryPlan()
    assert plan.settle("a", Spec(device=device)) == Spec(device=device)
    plan.loaded("a", "cuda:0", 100, 50)
    plan.took("a", 5, gpu_free=700)
    assert plan.settle("b", Spec()).cache_bytes == 500  # the system's memory is not less for it


def test_a_limit_is_for_all_models_together_their_weights_and_their_caches(machine):
    plan = MemoryPlan(MemoryLimits(ram=600))
    assert plan.settle("a", Spec()).cache_bytes == 250
    assert plan.settle("b", Spec()).cache_bytes == 75
    plan.loaded("a", "cpu", 100, 250)
    machine.free = 10_000
    assert plan.settle("b", Spec()).cache_bytes == 75
    assert plan.free_bytes() == 75


def test_what_a_limit_does_not_leave_is_refused_with_its_name_and_the_numbers(machine):
    machine.free = 5000 << 20
    plan = MemoryPlan(MemoryLimits(ram=300 << 20))
    plan.settle("a", Spec(weights=100 << 20, cache_bytes=50 << 20))
    with pytest.raises(
        OutOfMemory, match=r"200 MiB, and of the 300 MiB of resources\.memory_bytes other models leave 150 MiB"
    ):
        plan.settle("b", Spec(weights=200 << 20))
    with pytest.raises(OutOfMemory, match="100 MiB and the caches 60 MiB"):
        plan.settle("b", Spec(weights=100 << 20, cache_bytes=60 << 20))
    assert plan.promised_bytes(on_gpu=False) == 150 << 20


def test_a_limit_of_a_gpu_is_kept_there_and_told_to_the_worker(gpu):
    plan = MemoryPlan(MemoryLimits(ram=900, gpu=500))
    first = plan.settle("a", Spec(device="auto"))
    assert (first.gpu_limit, first.ram_limit) == (500, 900)  # the worker knows which of them it is
    plan.loaded("a", "cuda:0", 100, 200)
    second = plan.settle("b", Spec(device="auto"))
    assert (second.gpu_limit, second.ram_limit) == (200, 900)
    with pytest.raises(OutOfMemory, match=r"resources\.gpu_bytes"):
        plan.settle("c", Spec(device="cuda", weights=150))


def test_what_is_free_is_measured_each_time_and_on_a_gpu_by_who_is_there(gpu, machine):
    plan = MemoryPlan()
    assert plan.free_bytes() == 3000
    machine.gpu_free = 2500
    assert plan.free_bytes() == 2500
    assert MemoryPlan(device="cpu").free_bytes() == 1100
    plan.loaded("a", "cuda:0", 100, 200)
    plan.took("a", 50, gpu_free=5000)
    assert plan.on_gpu
    assert plan.free_bytes() == 5000 - 150  # what may still be used of the caches is promised
    plan.took("a", 200, gpu_free=4000)
    assert plan.free_bytes() == 4000
    plan.release("a")
    assert plan.free_bytes() == 2500, "what a worker saw that is gone says nothing"


def test_what_is_offered_of_a_gpu_is_within_its_limit(gpu, machine):
    assert MemoryPlan(MemoryLimits(ram=200, gpu=700)).free_bytes() == 700
    plan = MemoryPlan(MemoryLimits(gpu=700))
    plan.settle("a", Spec(device="cuda", weights=100, cache_bytes=50))
    assert plan.free_bytes() == 550, "and without what is being loaded there"


def test_an_nvidia_device_without_torch_for_it_is_a_cpu_once_a_worker_says_so(gpu, machine):
    plan = MemoryPlan()
    plan.settle("a", Spec(device="auto"))
    assert plan.on_gpu
    plan.loaded("a", "cpu", 100, 300)
    assert not plan.on_gpu
    assert plan.free_bytes() == 1100 - 300
