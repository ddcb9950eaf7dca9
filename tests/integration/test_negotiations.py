"""What a token does not cost: nodes count the streams and links that they open, and while they decode they open none."""

from pathlib import Path

import pytest
from support.real_mesh import Mesh, ask, eventually

pytestmark = [pytest.mark.processes, pytest.mark.starter]

TRACED = (str(Path(__file__).parents[1] / "bench" / "traced_node.py"),)
BODY = {"model": "starter", "messages": [{"role": "user", "content": "Count."}], "temperature": 0, "max_tokens": 24}


def opened(folder):
    """Return how many streams and links the nodes have opened so far, those apart by which they announce their shards."""
    lines = [line for file in folder.iterdir() for line in file.read_text().splitlines()]
    return sum(line.startswith("opened") and "/dht/" not in line for line in lines)


def test_tokens_travel_on_links_that_are_there(tmp_path, starter_wheel):
    traces = tmp_path / "traces"
    traces.mkdir()
    with Mesh(tmp_path, starter_wheel) as mesh:
        options = {"program": TRACED, "BENCH_TRACES": str(traces)}
        mesh.start("a", blocks="0:15", **options)
        mesh.begin("b", blocks="15:30", bootstrap="a", **options)
        mesh.nodes["b"].__enter__()
        eventually(lambda: mesh.links("a") >= {"b"}, "they are linked")
        first = eventually(lambda: (found := ask(mesh.nodes["a"], BODY)).is_done and found, "they answer")
        assert len(first.route.split(" > ")) == 2
        before = opened(traces)
        assert before >= 2  # what counts them works: a control stream, and a link for activations
        counts = []
        second = ask(mesh.nodes["a"], BODY, meanwhile=lambda _: counts.append(opened(traces)))
    assert second.text == first.text
    assert set(counts) == {before}
