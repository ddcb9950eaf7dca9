"""Many light nodes in one process, each with a key, a host and a control link of its own: `hundred_peers.py COUNT NETWORK ADDRESS`.

They hold nothing and know only the node at ADDRESS, which they keep linked to. "linked N" is printed when N of them are.
"""

import sys

import trio

from meshnode.config.schema import NetworkConfig, NodeConfig
from meshnode.crypto.identity import Identity
from meshnode.network.address_book import open_address_book
from meshnode.node.channels import Channels
from meshnode.node.network import Mesh
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse

_APART = 0.1  # seconds between two starts


async def _run_peer(config: NodeConfig) -> None:
    addresses = await open_address_book(MemoryStore(), "bench")
    mesh = Mesh(Identity.generate(), config, Channels(), addresses, HealthBoard(), Metrics())
    builders = mesh.builders()
    _peers.append(mesh)
    async with trio.open_nursery() as nursery:
        for build in (builders.manager, builders.dispatcher, builders.monitor):
            await nursery.start(build(Pulse()).run)


_peers: list[Mesh] = []


async def main(count: int, network: str, address: str) -> None:
    config = NodeConfig(
        network=NetworkConfig(host="127.0.0.1", port=0, network_id=network, bootstrap=(address,), max_peers=1)
    )
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_run_peer, config)
            await trio.sleep(_APART)
        while (linked := sum(any(peer.connected for peer in mesh.table.peers()) for mesh in _peers)) < count:
            print(f"linked {linked}", flush=True)
            await trio.sleep(0.5)
        print(f"linked {linked}", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], sys.argv[3])
