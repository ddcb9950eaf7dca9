"""Models that are loaded one after the other never count on the same memory."""

import attrs
import pytest

from meshnode.errors import OutOfMemory
from meshnode.node import memory_plan
from meshnode.node.memory_plan import MemoryPlan


@attrs.frozen
class Spec:
    weights: int = 100
    device: str = "cpu"
    cache_bytes: int = 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 1100 bytes free and no GPU."""

    class Machine:
        free = 1100

    monkeypatch.setattr(memory_plan, "available_bytes", lambda: Machine.free)
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
    plan.loaded("a")
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


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "auto"])
def test_the_memory_of_a_gpu_is_left_to_the_worker(machine, monkeypatch, tmp_path, device):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(memory_plan, "_NVIDIA", tmp_path / "nvidiactl")
    plan = MemoryPlan()
    assert plan.settle("a", Spec(device=device)) == Spec(device=device)
    plan.loaded("a")
    plan.took("a", 5)
    assert plan.settle("b", Spec()).cache_bytes == 500
