"""Killed at any moment while models come from a hub and from a peer, and are pruned and removed: in the end every shard is there, verified, and nothing else."""

import random

import attrs
import pytest
import trio
from support.hub_server import run_hub
from support.tiny_gguf import write_tiny_llama

from meshnode.files.acquisitions import AcquireModel
from meshnode.files.importing import import_gguf
from meshnode.files.shelf import CatalogShelf
from meshnode.flow.lanes import Lanes
from meshnode.network.bulk_reception import BulkReception
from meshnode.network.certificates import make_credentials
from meshnode.network.right_of_way import RightOfWay
from meshnode.network.tickets import Purpose, TicketBook
from meshnode.network.upload_limits import UploadLimits
from meshnode.store.memory import MemoryStore
from meshnode.store.opening import open_store

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]
KILLS = 30
REFERENCE = "hf:someone/m-GGUF"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two of some 7 MB with different bytes."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_tiny_llama(
            folder / f"{seed}-Q8_0.gguf", name=f"M{seed}", quantization="Q8_0", blocks=4, feed_forward=2048, seed=seed
        )
        for seed in (1, 2)
    ]


async def test_thirty_kills_cost_no_shard_and_leave_nothing_behind(data, models, tmp_path, killable):
    seed = random.randrange(1 << 32)
    moments, root = random.Random(seed), data.root
    expected = [import_gguf(model, tmp_path / "expected") for model in models]
    elsewhere = attrs.evolve(data, root=tmp_path / "giver", store=MemoryStore())
    with run_hub() as hub:
        hub.repositories["someone/m-GGUF"] = {models[0].name: models[0].read_bytes()}
        async with elsewhere.running() as giver, trio.open_nursery() as nursery:
            given = await giver.mailbox.ask(AcquireModel(str(models[1])))
            reports, tickets, shelf = [], TicketBook(), CatalogShelf(giver.catalog)
            limits = UploadLimits(total=30e6)
            giving = BulkReception(
                make_credentials(), tickets, shelf, limits, lambda *each: reports.append(each), RightOfWay()
            )
            await nursery.start(giving.run, ("127.0.0.1",))
            order = {
                "work": "fetch",
                "root": str(root),
                "endpoint": hub.endpoint,
                "reference": REFERENCE,
                "model": given.id,
                "port": giving.port,
                "certificate": giving.credentials.fingerprint.hex(),
            }

            async def incarnation(seconds, **options):
                tokens = [tickets.issue("taker", Purpose.BULK).hex() for _ in range(8)]
                return await trio.to_thread.run_sync(killable, order | {"tokens": tokens, **options}, seconds)

            for _ in range(KILLS):
                said = await incarnation(moments.uniform(0, 0.4), once=moments.random() < 0.5)
                assert not any(line.startswith("accused") for line in said), (seed, said)
                assert said[-1] in ("ended -9", "ended 0"), (seed, said)
            assert (await incarnation(None, once=True))[-1] == "ended 0"
            nursery.cancel_scope.cancel()
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        assert {manifest.id for manifest in node.catalog.manifests()} == {manifest.id for manifest in expected}, seed
        for manifest in node.catalog.manifests():
            await node.settled(manifest)
    shards = {shard.id for manifest in expected for shard in manifest.shards}
    assert {path.stem for path in data.files("shards")} == shards, seed
    assert data.files("partial") == data.files("transfers") == data.files("quarantine") == [], seed
