"""One real node with the starter model, for all clients."""

import pytest
from support.real_node import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory, starter_wheel):
    """A process that serves the starter, also as gpt-4o-mini, on a port of its own."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "config.toml").write_text('[models.aliases]\n"gpt-4o-mini" = "starter"\n')
    # One thread: two wait for each other at every layer, which costs a busy machine several times as much.
    settings = {"MESHNODE_STARTER_WHEEL": str(starter_wheel), "MESHNODE_API_REQUESTS_PER_MINUTE": "100000"}
    with Node(folder, "--offline", "--model", "starter", "--threads", "1", **settings) as node:
        yield node


@pytest.fixture(scope="session")
def key(node):
    """What clients must send."""
    return node.http.headers["Authorization"].removeprefix("Bearer ")
