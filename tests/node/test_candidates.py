"""What of the hub is on the wishlist, and what the mesh knows of it."""

import attrs
import pytest
from support.hub_server import run_hub
from support.real_mesh import eventually
from support.real_node import Node

from meshnode.files.hub_trending import Trending
from meshnode.files.hub_trust import MeshFacts, Standing, Trust, TrustRules
from meshnode.node.candidates import candidates, facts_of
from meshnode.types.blocks import BlockRange
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, Room

NOW = 1_800_000_000.0
RULES = TrustRules(frozenset({"bartowski"}))
SOURCE = "bartowski/x-GGUF@0123456789ab/x-Q4_K_M.gguf"


def from_hub(entry, source=SOURCE):
    return attrs.evolve(entry, manifest=attrs.evolve(entry.manifest, source=source))


def peer(name, model, liveness=Liveness.ALIVE, **room):
    holding = Holding(model, "x", 2, (BlockRange(0, 2),), nbytes=1)
    offer = Offer(name, 1, 0.0, "1", (), holdings=(holding,), room=Room(**room))
    return PeerInfo(name, liveness, connected=True, offer=offer)


@pytest.mark.parametrize(
    ("source", "repository"),
    [(SOURCE, "bartowski/x-GGUF"), (None, ""), ("/home/me/a@b/model.gguf", ""), ("x.gguf", "")],
)
def test_a_model_of_a_hub_knows_its_repository(make_entry, source, repository):
    assert from_hub(make_entry("tiny"), source).manifest.repository == repository


async def test_the_mesh_bears_out_what_it_asks_for_and_holds(catalog, make_entry):
    entry = from_hub(make_entry("tiny"))
    await catalog.put(entry)
    model = entry.manifest.id
    assert facts_of(catalog, (), None) == {"bartowski/x-GGUF": MeshFacts()}
    catalog.mark_held(entry.manifest.shards)
    peers = (
        peer("a", model, demand=((model, 1.5),)),
        peer("b", model, pinned=(model,)),
        peer("gone", model, Liveness.DEAD, demand=((model, 50.0),)),
    )
    facts = facts_of(catalog, peers, Room(demand=((model, 2.0),)))
    assert facts == {"bartowski/x-GGUF": MeshFacts(is_asked_for=True, requests=3.5, holders=3)}


async def test_what_only_others_have_is_borne_out_too(catalog):
    held = Holding("m", "x", 2, (BlockRange(0, 2),), nbytes=1, repository="bartowski/x-GGUF")
    peers = [peer(name, "m", pinned=("m",)) for name in "abc"]
    told = [attrs.evolve(each, offer=attrs.evolve(each.offer, holdings=(held,))) for each in peers]
    facts = facts_of(catalog, (*told[:2], peers[2]), None)
    assert facts == {"bartowski/x-GGUF": MeshFacts(is_asked_for=True, requests=0, holders=3)}
    assert facts_of(catalog, peers, None) == {}
    with pytest.raises(ValueError, match="201 characters"):
        attrs.evolve(held, repository="x" * 201)


async def test_what_is_here_is_no_candidate(catalog, make_entry):
    standing = Standing(Trending("bartowski/x-GGUF", 20_000, 7, NOW - 1e6), Trust.VERIFIED, NOW)
    (wish,) = candidates([standing], (), RULES, NOW)
    assert (wish.status, wish.name, wish.reference) == ("candidate", "bartowski/x-GGUF", "hf:bartowski/x-GGUF")
    assert (wish.trust, wish.downloads, wish.likes) == ("verified", 20_000, 7)
    (blocked,) = candidates([attrs.evolve(standing, trust=Trust.SEEN)], (), TrustRules(frozenset()), NOW)
    assert blocked.status == "blocked"
    assert "20000 downloads" in blocked.reasons[0]
    (cleared,) = candidates(
        [attrs.evolve(standing, trust=Trust.SEEN)], (), RULES, NOW
    )  # old enough since the last look
    assert cleared.reasons == ("nothing speaks against it any more; the next look at the hub counts",)
    assert candidates([standing], [from_hub(make_entry("tiny")).manifest], RULES, NOW) == ()


@pytest.mark.processes
def test_a_node_shows_what_is_popular(tmp_path):
    with run_hub() as hub:
        hub.trending[:] = [
            {"id": "unsloth/a-GGUF", "createdAt": "2024-05-01T10:00:00.000Z", "downloads": 20_000, "likes": 2},
            {"id": "someone/b-GGUF", "createdAt": "2024-05-01T10:00:00.000Z", "downloads": 20_000, "likes": 2},
        ]
        settings = {"MESHNODE_HUB_WATCH": "true", "MESHNODE_HUB_INTERVAL": "1", "HF_ENDPOINT": hub.endpoint}
        with Node(tmp_path, "--p2p-port", "0", **settings) as node:
            rows = eventually(lambda: node.http.get("/api/admin/wishlist").json()["models"], "candidates are shown")
            assert [(row["name"], row["status"], row["trust"]) for row in rows] == [
                ("unsloth/a-GGUF", "candidate", "verified"),
                ("someone/b-GGUF", "blocked", "seen"),
            ]
            assert 0 <= node.http.get("/api/admin/wishlist").json()["age_seconds"] < 300
            states = {row["name"]: row["state"] for row in node.http.get("/api/admin/status").json()["subsystems"]}
            assert states["HfWatcher"] == "running"
