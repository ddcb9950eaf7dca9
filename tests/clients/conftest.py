"""One real node with the starter model, for all clients."""

import os
import subprocess
import sys

import pytest
from support.real_node import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory, starter_wheel):
    """A process that serves the starter, also as gpt-4o-mini, on a port of its own."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "config.toml").write_text('[models.aliases]\n"gpt-4o-mini" = "starter"\n')
    subprocess.run(
        [sys.executable, "-m", "meshnode", "models", "add", "starter", "--data-dir", str(folder)],
        env={**os.environ, "MESHNODE_STARTER_WHEEL": str(starter_wheel)},
        check=True,
        capture_output=True,
    )
    with Node(folder, "--offline", MESHNODE_API_REQUESTS_PER_MINUTE="100000") as node:
        yield node


@pytest.fixture(scope="session")
def key(node):
    """What clients must send."""
    return node.http.headers["Authorization"].removeprefix("Bearer ")
