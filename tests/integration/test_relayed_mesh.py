"""Two nodes that reach only a third one: real processes in network namespaces, with a router between that drops what it could carry."""

import pytest
from support.namespaces import cable, namespaces, why_not
from support.real_mesh import Mesh, ask, eventually

pytestmark = [pytest.mark.starter, pytest.mark.processes, pytest.mark.timeout(600)]

BODY = {
    "model": "starter",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "temperature": 0,
    "max_tokens": 24,
}
ANYWHERE = {"MESHNODE_NETWORK_HOST": "0.0.0.0"}


@pytest.fixture(scope="module", autouse=True)
def _possible():
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def world(tmp_path, starter_wheel):
    """near (10.77.1.2) and far (10.77.2.2) have a cable to the middle each, and their packets to each other are dropped there."""
    with namespaces("near", "middle", "far") as (near, middle, far), Mesh(tmp_path, starter_wheel) as mesh:
        cable(near, "10.77.1.2/24", middle, "10.77.1.1/24")
        cable(far, "10.77.2.2/24", middle, "10.77.2.1/24")
        middle.forward(on=False)
        near.ip("route", "add", "default", "via", "10.77.1.1")
        far.ip("route", "add", "default", "via", "10.77.2.1")
        yield mesh, near, middle, far


def at(addresses, host):
    return next(address for address in addresses if f"/{host}/" in address and "circuit" not in address)


def row(mesh, name, other):
    peer = mesh.peer_id(other) if other in mesh._ids else None
    return next((each for each in mesh.status(name)["peers"] if each["peer"] == peer), None)


def is_linked(mesh, name, other, *, relayed):
    found = row(mesh, name, other)
    return found is not None and found["connected"] and found["relayed"] is relayed and bool(found["stages"])


def stage_links(mesh, name):
    """Return of each stage link that a node has had whether it was relayed."""
    return [entry["relayed"] for entry in mesh.nodes[name].log if entry["event"] == "stage link"]


def test_two_nodes_answer_together_through_a_third_and_directly_as_soon_as_they_can(world):
    mesh, near, middle, far = world
    middle.run(mesh.start, "middle", **ANYWHERE)
    there = middle.run(mesh.status, "middle")["listen_addresses"]
    near.run(mesh.begin, "near", "--bootstrap", at(there, "10.77.1.1"), blocks="0:15", **ANYWHERE)
    far.run(mesh.begin, "far", "--bootstrap", at(there, "10.77.2.1"), blocks="15:30", **ANYWHERE)
    near.run(mesh.nodes["near"].__enter__)
    far.run(mesh.nodes["far"].__enter__)
    near.run(mesh.peer_id, "near"), far.run(mesh.peer_id, "far"), middle.run(mesh.peer_id, "middle")

    near.run(eventually, lambda: is_linked(mesh, "near", "far", relayed=True), "a relayed link", 120)
    assert far.run(is_linked, mesh, "far", "near", relayed=True)
    assert any("/p2p-circuit/" in address for address in near.run(mesh.status, "near")["listen_addresses"])
    relayed = near.run(ask, mesh.nodes["near"], BODY)
    assert relayed.is_done
    assert relayed.text
    assert near.run(mesh.names, relayed.route) == ["near", "far"]
    assert True in stage_links(mesh, "near")
    assert False not in stage_links(mesh, "near")

    middle.forward(on=True)
    near.run(eventually, lambda: is_linked(mesh, "near", "far", relayed=False), "a direct link", 120)
    near.run(eventually, lambda: False in stage_links(mesh, "near"), "a direct stage link", 120)
    direct = near.run(ask, mesh.nodes["near"], BODY)
    assert direct.outcome == relayed.outcome
    assert near.run(mesh.names, direct.route) == ["near", "far"]
