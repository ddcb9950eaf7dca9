"""Real nodes that fetch a real model from a hub together, and answer together."""

import json

import pytest
from support.hub_server import run_hub
from support.real_mesh import Mesh, ask, command, eventually

pytestmark = [pytest.mark.processes, pytest.mark.starter]

NAME = "smollm2-135m-8k-lc100k-mix1-ep2"  # what the file calls itself
BODY = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "temperature": 0,
    "max_tokens": 24,
}


def test_a_model_that_nobody_has_comes_once_to_four_nodes_and_answers(tmp_path, starter_wheel, starter_gguf):
    with run_hub() as hub, Mesh(tmp_path, starter_wheel) as mesh:
        hub.repositories["someone/story-GGUF"] = {"story-Q4_1.gguf": starter_gguf.read_bytes()}
        settings = {"HF_ENDPOINT": hub.endpoint}
        asker = mesh.start("asker", **settings)
        for name in "bcd":
            mesh.begin(name, bootstrap="asker", MESHNODE_RESOURCES_DISK_BYTES="1000000000", **settings)
        for name in "bcd":
            mesh.nodes[name].__enter__()
        eventually(lambda: sum(row["room_bytes"] > 0 for row in mesh.status("asker")["peers"]) == 3, "three give room")
        folder = mesh.folder("asker")

        def spread():
            return command("models", "add", "hf:someone/story-GGUF", "--spread", "--data-dir", folder)

        assert spread().startswith(f"added {NAME}: the tokenizer, the embedding, ")
        assert hub.sent_bytes <= 1.05 * starter_gguf.stat().st_size

        def listed():
            (row,) = json.loads(command("models", "list", "--json", "--data-dir", folder))["models"]
            return row["copies"] >= 1 and row["routes"] >= 1 and row

        row = eventually(listed, "every part is on some disk, and loaded")
        assert 0 < row["shards_held"] < row["shards"]
        for name in "bcd":
            (there,) = json.loads(command("models", "list", "--json", "--data-dir", mesh.folder(name)))["models"]
            assert there["shards_held"], name
        answer = ask(asker, BODY)
        assert answer.finish_reason == "length", answer
        # placement may have made second copies by now, and a route of fewer visits is the better one
        assert {"asker"} < set(mesh.names(answer.route))
        sent = hub.sent_bytes
        assert spread().startswith(f"added {NAME}")
        assert hub.sent_bytes == sent
        # Another one that wants all of it has it from the others, and from the hub the headers alone.
        assert command("models", "add", "hf:someone/story-GGUF", "--data-dir", mesh.folder("b")) == f"added {NAME}\n"
        assert hub.sent_bytes - sent < 0.15 * starter_gguf.stat().st_size
        (there,) = json.loads(command("models", "list", "--json", "--data-dir", mesh.folder("b")))["models"]
        assert there["shards_held"] == there["shards"]
