"""How long a node's event loop is held by one look at all shards, measured with the real membership and the real uploader.

`Segments.upload_all` looks at every shard that the node should hold, and asks membership about the replicas before it. The node
of this measurement has not fetched its shards yet, so nothing else is done; the other members are made up, told over a
push/pull, and nothing listens at their addresses.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from dakera_cluster.cluster.gate import Gate
from dakera_cluster.cluster.gossip import GossipNode
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.runtime import Runtime, RuntimeSettings
from dakera_cluster.cluster.segments import Segments, SegmentSettings
from dakera_cluster.model.hlc import HybridClock
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address, NodeState, Update
from dakera_cluster.protocols.packets import ClusterState, Sync, encode_sync
from dakera_cluster.protocols.rebalance import birth
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.rows import RowStore
from ops.scaling.placing import cluster

CLUSTER = "scaling"
ME = NodeId("dakera-0000")
NOWHERE = Address("127.0.0.1", 9)
CALM = SwimConfig(probe_interval_ms=60_000.0, probe_timeout_ms=1_000.0)


def scan_s(nodes: int, shards: int, rf: int) -> float:
    """Processor seconds of one look."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_scan_s(Path(directory), nodes, shards, rf))


async def _scan_s(directory: Path, nodes: int, shards: int, rf: int) -> float:
    live = cluster(nodes)
    members = tuple(
        Update(node, BootId(1), 1, NodeState.ALIVE, node, NOWHERE, {"disk": 1}) for node in live if node != ME
    )

    async def push_pull(_: Address, __: bytes) -> bytes:
        return encode_sync(CLUSTER, Sync(members[0].node, BootId(1), ClusterState(), members))

    async def no_stream(_: Address, __: NodeId) -> bool:
        return True

    store = RowStore.open(directory / "rows", keys.FAMILIES)
    try:
        host = Host(store, lambda _: ViewSettings(), HostSettings(), _now_ms)
        maps, holdings = Maps(store, ME, shards), Holdings(store, ME)
        await maps.adopt(birth(CLUSTER, 1, live, shards, rf))
        objects = MemoryObjectStore()
        gate = Gate(ME, host, maps, holdings, HybridClock(1), _now_ms)
        settings = RuntimeSettings(bind=Address("127.0.0.1", 0), advertise=None, api_url="http://127.0.0.1:1")
        runtime = Runtime(settings, CLUSTER, ME, BootId(1), 1, maps, gate, objects, lambda: None)
        runtime.gossip = gossip = GossipNode(
            CALM, cluster_id=CLUSTER, node=ME, boot=BootId(1), bind=Address("127.0.0.1", 0), advertise=None, meta={},
            seeds=[NOWHERE], push_pull=push_pull, stream_probe=no_stream,
        )  # fmt: skip
        heard: list[object] = []
        complete = asyncio.Event()

        def listen(event: object) -> None:
            heard.append(event)
            if len(heard) >= len(members):
                complete.set()

        gossip.subscribe(listen)
        await gossip.start()
        async with asyncio.timeout(30.0):
            await complete.wait()
        segments = Segments(objects, host, maps, holdings, ME, 1, runtime.is_alive, SegmentSettings())
        began = time.process_time()
        await segments.upload_all()
        spent = time.process_time() - began
        await gossip.close()
        await host.close()
        return spent
    finally:
        store.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
