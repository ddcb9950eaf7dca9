"""Memory: what there is, and what a stage will take of it."""

import attrs
import psutil
import pytest
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.devices import available_bytes, cache_budget, physical_cores, weight_bytes
from meshnode.engine.stage_model import StageModel
from meshnode.errors import OutOfMemory
from meshnode.types.footprint import scratch_bytes


def scratch(spec):
    return max(
        scratch_bytes(tensor) for shard in spec.shards if shard.kind.value != "embedding" for tensor in shard.tensors
    )


@pytest.mark.parametrize(
    "quantization", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_the_estimate_is_no_less_than_what_the_loader_takes_and_little_more(tmp_path, quantization):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf", quantization=quantization), tmp_path / "shards")
    spec = stage_of(manifest, tmp_path / "shards")
    estimate, taken = weight_bytes(spec) - scratch(spec), StageModel.load(spec).weight_bytes
    assert taken <= estimate <= 1.35 * taken


def test_a_part_of_a_model_needs_less_and_another_device_bfloat16(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    whole, half = stage_of(manifest, tmp_path / "shards"), stage_of(manifest, tmp_path / "shards", 0, 1)
    assert weight_bytes(half) < weight_bytes(whole)
    assert weight_bytes(attrs.evolve(whole, device="cuda:0")) > 2 * (weight_bytes(whole) - scratch(whole))


def test_half_of_what_is_left_is_for_caches_unless_another_number_is_asked_for():
    assert cache_budget(100 << 20, 300 << 20, 0) == 100 << 20
    assert cache_budget(100 << 20, 300 << 20, 7) == 7


@pytest.mark.parametrize(
    ("weights", "requested", "words"),
    [(400 << 20, 0, "weights need about 400 MiB and 300 MiB are free"), (100 << 20, 201 << 20, "201 MiB and 200 MiB")],
)
def test_what_does_not_fit_is_refused_with_both_numbers(weights, requested, words):
    with pytest.raises(OutOfMemory, match=words):
        cache_budget(weights, 300 << 20, requested)


def group(root, folder, limit, used, cache, names):
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used, f"anon 5\n{names[3]} {cache}\n"), strict=False):
        (place / name).write_text(f"{value}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")


def machine(tmp_path, lines):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    return tmp_path


def test_a_service_has_what_its_tightest_group_leaves(tmp_path):
    root = machine(tmp_path, "0::/system.slice/meshnode.service\n")
    group(root, "sys/fs/cgroup/system.slice/meshnode.service", 9 << 20, 5 << 20, 1 << 20, V2)
    group(root, "sys/fs/cgroup/system.slice", 6 << 20, 4 << 20, 0, V2)
    group(root, "sys/fs/cgroup", "max", 0, 0, V2)
    assert available_bytes(root) == 2 << 20


def test_a_container_that_sees_only_its_own_group_is_limited_too(tmp_path):
    root = machine(tmp_path, "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    group(root, "sys/fs/cgroup/memory", 8 << 20, 5 << 20, 2 << 20, V1)
    assert available_bytes(root) == 5 << 20


def test_a_group_without_a_limit_and_a_system_without_groups_leave_the_machines_memory(tmp_path):
    root = machine(tmp_path, "4:memory:/\n")
    group(root, "sys/fs/cgroup/memory", (1 << 63) - 4096, 0, 0, V1)
    for place in (root, tmp_path / "nothing"):
        assert available_bytes(place) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def cores(root, threads):
    """Lay out a machine's cores, each with its hyper-threads as the kernel lists them."""
    for listed in threads:
        for cpu in map(int, listed.split(",")):
            place = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
            place.mkdir(parents=True)
            (place / "thread_siblings_list").write_text(listed + "\n")
    return root


def quota(root, folder, **files):
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (place / name.replace("_", ".", 1)).write_text(f"{value}\n")


def test_there_is_at_least_one_core():
    assert physical_cores() >= 1


def test_hyper_threads_are_not_counted_and_cores_that_are_not_ours_neither(tmp_path):
    root = cores(tmp_path, ["0,4", "1,5", "2,6", "3,7"])
    assert physical_cores(root, range(8)) == 4
    assert physical_cores(root, {0, 4, 1}) == 2
    assert physical_cores(root, {6}) == 1


def test_where_the_layout_is_not_known_there_are_no_more_cores_than_cpus(tmp_path):
    assert physical_cores(tmp_path, {3}) == 1


@pytest.mark.parametrize(("quota_us", "count"), [(200_000, 2), (190_000, 1), (50_000, 1), ("max", 64)])
def test_a_container_of_two_cpus_on_a_large_machine_has_two(tmp_path, quota_us, count):
    root = machine(cores(tmp_path, [f"{cpu}" for cpu in range(64)]), "0::/\n")
    quota(root, "sys/fs/cgroup", cpu_max=f"{quota_us} 100000")
    assert physical_cores(root, range(64)) == count


def test_the_tightest_group_decides(tmp_path):
    root = machine(cores(tmp_path, [f"{cpu}" for cpu in range(64)]), "0::/system.slice/meshnode.service\n")
    quota(root, "sys/fs/cgroup/system.slice/meshnode.service", cpu_max="800000 100000")
    quota(root, "sys/fs/cgroup/system.slice", cpu_max="150000 50000")
    assert physical_cores(root, range(64)) == 3
    assert physical_cores(root, range(2)) == 2


@pytest.mark.parametrize(("quota_us", "count"), [(200_000, 2), (-1, 8)])
def test_the_older_control_groups_count_too(tmp_path, quota_us, count):
    root = machine(cores(tmp_path, [f"{cpu}" for cpu in range(8)]), "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n")
    quota(root, "sys/fs/cgroup/cpu", cpu_cfs_quota_us=quota_us, cpu_cfs_period_us=100_000)
    assert physical_cores(root, range(8)) == count
