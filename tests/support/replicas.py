"""Several whole replicas in one process: real row stores, hosts, gates and drivers, joined by a wire that can be cut.

Time is real for waiting and a parameter for judging: every node reads its wall clock through ``World.now_ms``, which a test
may move. ``World.lead`` does what a leader does with the same plan; there is no lease here, because moves must be right
whoever leads.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from dakera_cluster.cluster.catalog import Catalog
from dakera_cluster.cluster.collector import Collection, CollectorSettings
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.gate import Gate
from dakera_cluster.cluster.hintlog import Hints
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.intake import Intake
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.mover import Mover, MoverSettings
from dakera_cluster.cluster.repair import Repair, RepairSettings
from dakera_cluster.cluster.replicator import Replicator, ReplicatorSettings
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.cluster.router import Router
from dakera_cluster.cluster.snapshot_service import SnapshotService
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.hlc import HybridClock, Stamp
from dakera_cluster.model.ids import NodeId, ShardId, agent_namespace, node_tag
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, decode_document, delete_document, put_document
from dakera_cluster.model.shardmap import ShardMap, ShardState
from dakera_cluster.protocols.hints import HintsConfig
from dakera_cluster.protocols.rebalance import LiveNode, ReadyReport, RebalanceConfig, Situation, birth, plan
from dakera_cluster.protocols.tombstones import TombstoneConfig
from dakera_cluster.protocols.transfer import TransferConfig
from dakera_cluster.shard import keys, ops
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.rows import RowStore

REQUEST = "shard.request"
WAIT_S = 15.0
NAMESPACE = agent_namespace("ada")
TOMBSTONES = TombstoneConfig()

Interceptor = Callable[[NodeId, NodeId, str, bytes], Awaitable[None] | None]


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Wait until the condition holds; fails the test when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class Wire:
    """Direct calls between nodes. ``cut`` holds pairs that do not hear each other; ``before`` and ``after`` see every call,
    and may wait or raise: in ``after`` that is a lost answer."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, Replicant] = {}
        self.cut: set[frozenset[NodeId]] = set()
        self.before: Interceptor | None = None
        self.after: Interceptor | None = None
        self.calls: list[tuple[NodeId, NodeId, str]] = []

    def reachable(self, one: NodeId, other: NodeId) -> bool:
        return other in self.nodes and one in self.nodes and frozenset((one, other)) not in self.cut

    async def call(self, source: NodeId, target: NodeId, method: str, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        self.calls.append((source, target, method))
        if not self.reachable(source, target):
            raise ServiceUnavailableError(f"node {target} cannot be reached")
        if self.before is not None and (waiting := self.before(source, target, method, payload)) is not None:
            await waiting
        answer = await self.nodes[target].handlers[method](payload, None)
        if self.after is not None and (waiting := self.after(source, target, method, payload)) is not None:
            await waiting
        if not self.reachable(source, target):
            raise ServiceUnavailableError(f"node {target} cannot be reached")
        return answer


class Line:
    """One node's end of the wire: a caller and a transport."""

    def __init__(self, wire: Wire, node: NodeId) -> None:
        self._wire = wire
        self._node = node

    async def call(self, node: NodeId, method: str, payload: bytes, timeout_ms: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_ms / 1000.0):
                return await self._wire.call(self._node, node, method, payload)
        except TimeoutError:
            raise ServiceUnavailableError(f"node {node} did not answer in time") from None


class Requests:
    """Requests of `shard.ops` over a line."""

    def __init__(self, line: Line, replicant: Replicant) -> None:
        self._line = line
        self._replicant = replicant

    async def call(self, node: NodeId, request: ops.Request) -> ops.Answer:
        if node == self._replicant.node:
            return await self._replicant.gate.handle(request)
        return ops.decode_answer(await self._line.call(node, REQUEST, ops.encode(request), 2_000.0))


class Replicant:
    """One node, from its disk upwards."""

    def __init__(self, world: World, node: NodeId, disk: int) -> None:
        self.world = world
        self.node = node
        self.disk = disk
        self.path = world.path / node
        self.handlers: dict[str, Callable[[bytes, Any], Awaitable[bytes]]] = {}
        self.store = RowStore.open(self.path / "rows", keys.FAMILIES)
        self.host = Host(self.store, lambda name: ViewSettings(), HostSettings(self.path / "views"), world.now_ms)
        self.maps = Maps(self.store, node, world.shards)
        self.maps.fetch = world.fetch
        self.holdings = Holdings(self.store, node)
        self.clock = HybridClock(node_tag(node))
        self.gate = Gate(node, self.host, self.maps, self.holdings, self.clock, world.now_ms)
        self.rounds = Rounds(self.store)
        self.door = Door(node, self.maps, self.holdings)
        self.intake = Intake(self.host, self.door, self.clock, world.now_ms, world.tombstones)
        line = Line(world.wire, node)
        self.hints = Hints(node, self.store, self.maps, self.door, self.intake, line, world.hints_config, world.now_ms)
        self.repair = Repair(
            node, self.maps, self.holdings, self.host, self.rounds, self.door, self.intake, line,
            self.alive, world.repair_settings, world.now_ms,
        )  # fmt: skip
        self.mover = Mover(
            node, disk, self.maps, self.holdings, self.host, self.rounds, self.repair, self.intake, line,
            world.report, world.mover_settings, world.now_ms,
        )  # fmt: skip
        self.collection = Collection(
            node, self.maps, self.holdings, self.host, self.rounds, self.door, self.intake, line,
            self.alive, CollectorSettings(tombstones=world.tombstones, retry_ms=10.0), world.now_ms,
            clock_ms=lambda: float(world.now_ms()),
        )  # fmt: skip
        transport = Requests(line, self)
        router = Router(self.maps, transport, world.catalog)
        self.replicator = Replicator(
            self.maps, router, transport, self.clock, world.now_ms, ReplicatorSettings(timeout_ms=2_000), self.hints.add
        )
        self.router = router
        self.shard_for = router.shard_for
        self.register(REQUEST, self._request)
        for service in (self.hints, self.repair, self.collection, SnapshotService(self.door, self.host, self.rounds)):
            service.register(self)

    def register(self, method: str, handler: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
        assert method not in self.handlers
        self.handlers[method] = handler

    def alive(self, node: NodeId) -> bool:
        return self.world.wire.reachable(self.node, node)

    async def _request(self, payload: bytes, context: Any) -> bytes:
        return ops.encode(await self.gate.handle(ops.decode_request(payload)))

    async def write(self, build: Callable[[Stamp], list[Row]]) -> None:
        await self.replicator.write(build)

    async def put(self, row_id: str, namespace: str = NAMESPACE, **fields: Any) -> None:
        values = {Field.TEXT: f"text of {row_id}", **fields}
        await self.write(lambda stamp: [Row(namespace, Kind.DOCUMENT, row_id, put_document(stamp, values))])

    async def delete(self, row_id: str, namespace: str = NAMESPACE) -> None:
        await self.write(lambda stamp: [Row(namespace, Kind.DOCUMENT, row_id, delete_document(stamp))])

    def rows(self, shard: int) -> dict[bytes, bytes]:
        """Everything this node has of a shard."""
        return dict(self.host.replica(shard).page(b"", most_rows=1_000_000, most_bytes=1 << 40))

    def alive_ids(self, shard: int, namespace: str = NAMESPACE) -> set[str]:
        """Ids of the live documents of a namespace; others on the shard may have the same."""
        found = ((keys.split_local(local), body) for local, body in self.rows(shard).items())
        return {
            row_id
            for (owner, kind, row_id), body in found
            if owner == namespace and kind == Kind.DOCUMENT and decode_document(body).alive
        }

    def residue(self, shard: int) -> list[tuple[str, bytes]]:
        """Every key that belongs to a shard, but its place in the change log."""
        found = []
        for family, start, end in keys.shard_ranges(shard):
            if family != keys.CHANGES:
                found += [(family, key) for key, _ in self.store.scan(family, start=start, end=end)]
        return found

    async def stop(self) -> None:
        """As a crash leaves it: nothing is flushed but what was durable."""
        self.world.wire.nodes.pop(self.node, None)
        for part in (self.mover, self.collection, self.repair, self.hints):
            await part.close()
        await self.host.close()
        await asyncio.to_thread(self.store.close)


class World:
    """Nodes, a wire, a map and whoever leads."""

    def __init__(
        self,
        path: Path,
        *,
        shards: int = 4,
        replication_factor: int = 3,
        hints: HintsConfig | None = None,
        tombstones: TombstoneConfig = TOMBSTONES,
        mover: MoverSettings | None = None,
        repair: RepairSettings | None = None,
    ) -> None:
        self.path = path
        self.shards = shards
        self.replication_factor = replication_factor
        self.hints_config = hints or HintsConfig(retry_ms=20.0, retry_max_ms=50.0)
        self.tombstones = tombstones
        fast = TransferConfig(retry_ms=20.0, report_ms=50.0)
        self.mover_settings = mover or MoverSettings(transfer=fast)
        self.repair_settings = repair or RepairSettings()
        self.wire = Wire()
        self.shift_ms = 0
        self.catalog = Catalog(MemoryObjectStore(), lambda: self.now_ms() // 1000)
        self.map: ShardMap | None = None
        self.ready: set[ReadyReport] = set()
        self.disks: dict[NodeId, int] = {}

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.shift_ms

    def __getitem__(self, name: str) -> Replicant:
        return self.wire.nodes[NodeId(name)]

    @property
    def nodes(self) -> list[Replicant]:
        return list(self.wire.nodes.values())

    async def fetch(self) -> ShardMap | None:
        return self.map

    async def report(self, report: ReadyReport) -> None:
        self.ready.add(report)

    async def born(self, *names: str) -> World:
        """Start a newborn cluster of these nodes."""
        for name in names:
            self.disks[NodeId(name)] = len(self.disks) + 1
        live = {node: LiveNode(disk) for node, disk in self.disks.items()}
        self.map = birth("test", 1, live, self.shards, self.replication_factor)
        for name in names:
            await self.start(name)
        await self.settled()
        return self

    async def start(self, name: str, *, new_disk: bool = False) -> Replicant:
        """Start a node on the disk it has, or on a new one."""
        node = NodeId(name)
        if new_disk or node not in self.disks:
            shutil.rmtree(self.path / node, ignore_errors=True)
            self.disks[node] = max(self.disks.values(), default=0) + 1
        replicant = Replicant(self, node, self.disks[node])
        self.wire.nodes[node] = replicant
        if self.map is not None:
            await replicant.maps.adopt(self.map)
        replicant.hints.start()
        replicant.mover.start()
        for other in self.nodes:
            if other is not replicant:
                other.hints.peer_up(node)
                replicant.hints.peer_up(other.node)
        return replicant

    async def stop(self, name: str) -> None:
        await self[name].stop()
        for other in self.nodes:
            other.hints.peer_down(NodeId(name))

    async def restart(self, name: str, *, new_disk: bool = False) -> Replicant:
        await self.stop(name)
        return await self.start(name, new_disk=new_disk)

    def isolate(self, name: str) -> None:
        """Nobody hears the node, and it hears nobody."""
        for other in self.nodes:
            if other.node != name:
                self.wire.cut.add(frozenset((NodeId(name), other.node)))
                other.hints.peer_down(NodeId(name))
                self[name].hints.peer_down(other.node)

    def heal(self) -> None:
        self.wire.cut.clear()
        for one in self.nodes:
            for other in self.nodes:
                if one is not other:
                    one.hints.peer_up(other.node)

    async def publish(self, new: ShardMap) -> None:
        """The leader's map, known everywhere it can be."""
        self.map = new
        for replicant in self.nodes:
            await replicant.maps.adopt(new)

    async def change(self, shards: Mapping[int, ShardState]) -> None:
        """A map with other states of these shards."""
        assert self.map is not None
        await self.publish(
            self.map.replace(epoch=self.map.epoch, shards={ShardId(shard): state for shard, state in shards.items()})
        )

    async def lead(self) -> bool:
        """One step of a leader; True when the map changed."""
        assert self.map is not None
        live = {replicant.node: LiveNode(replicant.disk) for replicant in self.nodes}
        step = plan(self.map, self.map.epoch, Situation(live, {}, frozenset(self.ready)), RebalanceConfig(delay_ms=1e9))
        if step.next_map is None:
            return False
        await self.publish(step.next_map)
        return True

    async def lead_until(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.lead()
                await asyncio.sleep(0.01)

    @property
    def stable(self) -> bool:
        return self.map is not None and not self.map.joint_shards()

    async def settled(self) -> None:
        """Every node has nothing left to do under the map."""
        await until(lambda: all(replicant.mover.idle for replicant in self.nodes))

    def agree(self, shard: int, *names: str) -> bool:
        """Do the nodes (default: the shard's replicas) hold the same bytes and digests?"""
        assert self.map is not None
        wanted = [NodeId(name) for name in names] or list(self.map.shards[shard].replicas)
        pictures = [(self.wire.nodes[node].rows(shard), _books(self.wire.nodes[node], shard)) for node in wanted]
        return all(picture == pictures[0] for picture in pictures)

    async def close(self) -> None:
        for replicant in self.nodes:
            await replicant.stop()


def _books(replicant: Replicant, shard: int) -> Any:
    replica = replicant.host.replica(shard)
    digests = {bucket: value for bucket, value in replica.digests().items() if value}
    return digests, replica.root(), {bucket: replica.terms(bucket) for bucket in digests}
