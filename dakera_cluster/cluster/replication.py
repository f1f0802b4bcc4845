"""Everything that keeps replicas equal, made and started together: hints, repair, moves, tombstones, segments, rescue.

Called by the composition root, once, for a node that is one of many.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dakera_cluster.cluster.collector import Collection, CollectorSettings
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.hintlog import Hints
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.intake import Intake
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.mover import Mover, MoverSettings
from dakera_cluster.cluster.repair import Repair, RepairSettings
from dakera_cluster.cluster.rescue import Rescue
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.cluster.runtime import Runtime
from dakera_cluster.cluster.segments import Segments, SegmentSettings
from dakera_cluster.cluster.snapshot_service import SnapshotService
from dakera_cluster.model.hlc import HybridClock
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.hints import HintsConfig
from dakera_cluster.protocols.swim_events import Change, Conflict, MemberEvent, StateAdvanced
from dakera_cluster.protocols.transfer import Stage
from dakera_cluster.shard.host import Host
from dakera_cluster.storage.objects import ObjectStore
from dakera_cluster.storage.rows import RowStore

_UP = (Change.JOINED, Change.ALIVE, Change.UPDATED)
_DOWN = (Change.DEAD, Change.LEFT)


class ReplicationSettings(msgspec.Struct, frozen=True, kw_only=True):
    hints: HintsConfig = HintsConfig()
    repair: RepairSettings = RepairSettings()
    mover: MoverSettings = MoverSettings()
    collector: CollectorSettings = CollectorSettings()
    segments: SegmentSettings = SegmentSettings()


class Replication:
    """The drivers of one node's replicas."""

    def __init__(
        self,
        settings: ReplicationSettings,
        node: NodeId,
        disk: int,
        store: RowStore,
        objects: ObjectStore,
        host: Host,
        maps: Maps,
        holdings: Holdings,
        runtime: Runtime,
        clock: HybridClock,
        now_ms: Callable[[], int],
    ) -> None:
        rounds, door = Rounds(store), Door(node, maps, holdings)
        intake = Intake(host, door, clock, now_ms, settings.collector.tombstones)
        alive = runtime.is_alive
        self.hints = Hints(node, store, maps, door, intake, runtime, settings.hints, now_ms)
        self.repair = Repair(node, maps, holdings, host, rounds, door, intake, runtime, alive, settings.repair, now_ms)
        self.mover = Mover(
            node,
            disk,
            maps,
            holdings,
            host,
            rounds,
            self.repair,
            intake,
            runtime,
            runtime.report,
            settings.mover,
            now_ms,
        )
        self.collection = Collection(
            node, maps, holdings, host, rounds, door, intake, runtime, alive, settings.collector, now_ms
        )
        self.segments = Segments(objects, host, maps, holdings, node, disk, alive, settings.segments)
        self.rescue = Rescue(node, disk, maps, holdings, self.mover, self.repair, self.segments, runtime, alive)
        self._parts = (self.hints, self.repair, self.mover, self.collection, self.segments, self.rescue)
        SnapshotService(door, host, rounds).register(runtime.server)
        for service in (self.hints, self.repair, self.collection, self.rescue):
            service.register(runtime.server)

    def start(self) -> None:
        for part in self._parts:
            part.start()

    async def close(self) -> None:
        for part in reversed(self._parts):
            await part.close()

    def heard(self, event: MemberEvent | StateAdvanced | Conflict) -> None:
        """A listener of membership: hints are delivered to who is back."""
        if isinstance(event, MemberEvent):
            if event.change in _UP:
                self.hints.peer_up(event.member.node)
            elif event.change in _DOWN:
                self.hints.peer_down(event.member.node)

    def progress(self) -> dict[int, str]:
        """shard -> what this node is doing about it, for the portrait."""
        return {
            move.shard: f"{move.mode.name.lower()}:{move.stage.name.lower()}"
            for move in self.mover.moves()
            if move.stage is not Stage.CANCELLED
        }
