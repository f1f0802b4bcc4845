"""One simulated node's housekeeping: transfers of shards, anti-entropy, tombstone rounds.

Duties carried out here: a transfer per shard under the map in force, its records persisted in order; repair sessions with
random peers, stamped with their start; collection rounds from the first live replica. Called by ``node`` and its own timers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chaos.sim.disks import Write
from chaos.sim.messages import (
    AskBucketsOf,
    AskRootOf,
    AskRowsOf,
    CollectTombstones,
    ExchangeRows,
    FetchRows,
    HoldTombstones,
    Reply,
    Status,
    TellReady,
)
from chaos.sim.replica import KIND
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.protocols import digest, reconcile, tombstones, transfer
from dakera_cluster.protocols.reconcile import AskBuckets, AskRoot, AskRows, Exchange, Finished, Reconcile
from dakera_cluster.protocols.tombstones import AskHold, CollectAt, Collector
from dakera_cluster.protocols.transfer import Duty, Holding, Mode, Stage, Transfer

if TYPE_CHECKING:
    from chaos.sim.node import Node

COLLECT_EVERY_MS = 3_000.0
TRANSFER_TICK_MS = 400.0


class Janitor:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._settings = node.world.settings
        self._transfers: dict[int, Transfer] = {}
        self._collectors: dict[int, Collector] = {}
        node.after(node.rng.uniform(0, node.world.repair_every_ms), self._repair_loop)
        node.after(node.rng.uniform(0, COLLECT_EVERY_MS), self._collect_loop)
        node.after(TRANSFER_TICK_MS, self._transfer_loop)

    # -- shards come and go

    def map_changed(self) -> None:
        """A newer map is in force: do what it asks of this node."""
        node = self._node
        assert node.map is not None
        member = node.map.member(node.id)
        same_disk = member is not None and member.disk == node.disk.identity
        for index, state in enumerate(node.map.shards):
            collector = self._collectors.get(index)
            if collector is not None:
                collector.map_changed(state)
            running = self._transfers.get(index)
            if running is not None:
                if running.version == state.version:
                    continue
                running.handle(transfer.MapChanged(state), node.now_ms)
                del self._transfers[index]
            holding = node.replica.holding(index)
            match transfer.duty(holding, state, node.id, same_disk=same_disk):
                case Duty.NOTHING | Duty.SERVE:
                    pass
                case Duty.DROP:
                    node.replica.wipe(index, (("hold", index, None), ("rounds", index, None)), lambda: None)
                case Duty.BIRTH:
                    born = Holding(ShardId(index), state.version, Mode.JOIN, Stage.READY)
                    node.disk.commit([("hold", index, born)])
                case Duty.JOIN:
                    self._start(index, Mode.JOIN, holding)
                case Duty.REHYDRATE:
                    self._start(index, Mode.REHYDRATE, holding)
                case Duty.CONFIRM:
                    self._start(index, Mode.CONFIRM, None)

    def rehydrate(self, shard: int) -> None:
        """The rows here may be too old to be trusted."""
        if shard not in self._transfers and self._node.replica.is_complete(shard):
            self._node.trace(f"shard {shard} was collected without us: fetched anew")
            self._node.world.checkers.wiped_for_age()
            self._start(shard, Mode.REHYDRATE, None)

    def _start(self, shard: int, mode: Mode, holding: Holding | None) -> None:
        node = self._node
        state = node.shard(shard)
        assert state is not None
        config = self._settings.transfer
        moving = Transfer(ShardId(shard), state, node.id, mode, config=config, holding=holding)
        self._transfers[shard] = moving
        node.trace(f"shard {shard} {mode.name.lower()} v{state.version} from {moving.stage.name.lower()}")
        self._run(shard, moving, moving.start(node.now_ms))

    def _run(self, shard: int, moving: Transfer, effects: list[transfer.Effect]) -> None:
        """Carry out in order: what follows a Persist waits for the disk."""
        node = self._node
        for index, effect in enumerate(effects):
            match effect:
                case transfer.Persist(holding):
                    rest = effects[index + 1 :]
                    if rest and isinstance(rest[0], transfer.Wipe):
                        # One atomic batch: the record and the wipe it speaks of.
                        node.replica.wipe(
                            shard, (("hold", shard, holding),), lambda: self._event(shard, moving, transfer.Wiped())
                        )
                        return
                    node.disk.commit(
                        [("hold", shard, holding)], node.guard(lambda rest=rest: self._run(shard, moving, rest))
                    )
                    return
                case transfer.Wipe():
                    node.replica.wipe(shard, (), lambda: self._event(shard, moving, transfer.Wiped()))
                case transfer.FetchSnapshot(_, source, cursor):
                    self._fetch(shard, moving, source, cursor)
                case transfer.Repair(_, source, _):
                    self._repair_from(shard, moving, source)
                case transfer.ReportReady(_, version):
                    _, leader = node.believed_leader
                    if leader:
                        node.call(leader, TellReady(shard, version, node.name), lambda reply: None)

    def _event(self, shard: int, moving: Transfer, event: transfer.Event) -> None:
        if self._transfers.get(shard) is moving:
            self._run(shard, moving, moving.handle(event, self._node.now_ms))
            if moving.stage is Stage.READY and moving.mode is Mode.REHYDRATE:
                del self._transfers[shard]

    def _fetch(self, shard: int, moving: Transfer, source: NodeId, cursor: bytes) -> None:
        node = self._node
        started_wall_ms = node.wall_ms + int(node.world.transfer_delay_ms)

        def told(reply: Reply | None) -> None:
            if reply is not None and reply.map is not None:
                node.adopt(reply.map)
            fresh = tombstones.repair_is_fresh(started_wall_ms, node.wall_ms, self._settings.tombstones)
            if reply is None or reply.status is not Status.OK or not fresh or self._transfers.get(shard) is not moving:
                self._event(shard, moving, transfer.SourceFailed(source))
                return
            rows = reply.value
            last = rows[-1][0] if rows else None
            node.replica.apply(shard, rows, lambda: self._event(shard, moving, transfer.SnapshotChunk(source, last)))

        delay_ms = node.world.transfer_delay_ms
        ask = FetchRows(shard, moving.version, cursor)
        node.after(delay_ms, lambda: node.call(source, ask, told))

    def _repair_from(self, shard: int, moving: Transfer, source: NodeId) -> None:
        def ended(version: int | None) -> None:
            event = transfer.SourceFailed(source) if version is None else transfer.RepairDone(source, version)
            self._event(shard, moving, event)

        Session(self._node, shard, moving.version, source, ended).start()

    def _transfer_loop(self) -> None:
        for shard, moving in list(self._transfers.items()):
            self._event(shard, moving, transfer.Tick())
        self._node.after(TRANSFER_TICK_MS, self._transfer_loop)

    # -- anti-entropy

    def _repair_loop(self) -> None:
        node = self._node
        node.after(node.world.repair_every_ms * node.rng.uniform(0.7, 1.3), self._repair_loop)
        if node.map is None:
            return
        mine = [index for index in range(len(node.map.shards)) if node.replica.is_complete(index)]
        if not mine:
            return
        shard = node.rng.choice(mine)
        state = node.map.shards[shard]
        peers = [peer for peer in state.write_set if peer != node.id and node.is_live(peer)]
        if peers:
            peer = node.rng.choice(peers)
            marked = (peer, shard) in node.coordinator.hints.marks

            def ended(version: int | None) -> None:
                if version is not None and marked:
                    node.coordinator.repaired(peer, shard)

            Session(node, shard, state.version, peer, ended).start()

    # -- tombstones

    def _collect_loop(self) -> None:
        node = self._node
        node.after(COLLECT_EVERY_MS, self._collect_loop)
        if node.map is None or node.world.is_winding_up:
            return
        for shard, state in enumerate(node.map.shards):
            first = next((replica for replica in state.write_set if node.is_live(replica)), None)
            if first != node.id or not node.replica.is_complete(shard):
                continue
            collector = self._collectors.get(shard)
            if collector is None:
                confirmed, _ = node.replica.rounds(shard)
                collector = self._collectors[shard] = Collector(self._settings.tombstones, confirmed)
            effects = collector.tick(node.now_ms)
            if effects:
                # Scanning now would find the very rows that are about to go, and bring them back everywhere.
                self._gc(shard, collector, effects)
                continue
            ripe = {
                key: digest.term(key, body)
                for key, body in sorted(node.replica.rows(shard).items())
                if tombstones.is_ripe(KIND, body, node.wall_ms, self._settings.tombstones)
            }
            self._gc(shard, collector, collector.begin(state, ripe, node.now_ms))

    def _gc(self, shard: int, collector: Collector, effects: list[tombstones.Effect]) -> None:
        node = self._node
        rows = node.replica.rows(shard)
        for effect in effects:
            match effect:
                case AskHold(target, version, number, keys):
                    body = HoldTombstones(shard, version, number, tuple((key, rows[key]) for key in keys))

                    def told(reply: Reply | None, target: NodeId = target, number: int = number) -> None:
                        if reply is not None and reply.status is Status.OK:
                            collector.confirmed(target, number, reply.value, node.now_ms)
                        else:
                            known = reply.value if reply is not None and reply.status is Status.REFUSED else None
                            collector.failed(target, number, known_round=known or 0)

                    node.call(target, body, told)
                case CollectAt(target, version, number, terms):
                    order = CollectTombstones(shard, version, number, tuple(sorted(terms.items())))
                    node.call(target, order, lambda reply: None)


class Session:
    """The initiator of one repair session, over calls. ``ended`` gets the peer's shard version, or None when it failed."""

    def __init__(self, node: Node, shard: int, version: int, peer: NodeId, ended: Callable[[int | None], None]) -> None:
        self._node = node
        self._shard = shard
        self._version = version
        self._peer = peer
        self._ended = ended
        self._core = Reconcile(reconcile.ReconcileConfig(buckets_per_step=64, keys_per_exchange=32))
        self._started_wall_ms = node.wall_ms
        self._peer_version = 0

    def start(self) -> None:
        self._next(self._core.start(digest.root(self._node.replica.digests(self._shard))))

    def _next(self, effect: reconcile.Effect) -> None:
        shard, version = self._shard, self._version
        match effect:
            case AskRoot():
                _, collected = self._node.replica.rounds(shard)
                complete = self._node.replica.is_complete(shard)
                # A node that fetches its rows has wiped them and owes no confirmation to anybody.
                told = collected if complete else 0
                self._ask(AskRootOf(shard, version, told, complete), self._root)
            case AskBuckets():
                self._ask(AskBucketsOf(shard, version), self._buckets)
            case AskRows(buckets):
                self._ask(AskRowsOf(shard, version, buckets), lambda reply: self._rows(buckets, reply))
            case Exchange(ship, want):
                mine = self._node.replica.rows(shard)
                rows = tuple((key, mine[key]) for key in ship if key in mine)
                body = ExchangeRows(shard, version, rows, want, self._started_wall_ms)
                self._ask(body, self._exchanged)
            case Finished():
                self._node.disk.barrier(self._node.guard(lambda: self._ended(self._peer_version)))

    def _ask(self, body: object, then: Callable[[Reply], None]) -> None:
        def told(reply: Reply | None) -> None:
            if reply is not None and reply.map is not None:
                self._node.adopt(reply.map)
            if reply is None or reply.status is not Status.OK:
                self._core.failed()
                self._ended(None)
            else:
                then(reply)

        self._node.call(self._peer, body, told)

    def _root(self, reply: Reply) -> None:
        node, shard = self._node, self._shard
        root, collected = reply.value
        self._peer_version = reply.version
        confirmed, my_collected = node.replica.rounds(shard)
        if tombstones.must_wipe(confirmed, collected):
            if node.replica.is_complete(shard):
                node.janitor.rehydrate(shard)
                self._ended(None)
                return
            mark: Write = ("rounds", shard, (max(confirmed, collected), max(my_collected, collected)))
            node.disk.commit([mark])
        self._next(self._core.root_is(digest.root(node.replica.digests(shard)), root))

    def _buckets(self, reply: Reply) -> None:
        self._next(self._core.buckets_are(self._node.replica.digests(self._shard), reply.value))

    def _rows(self, buckets: tuple[int, ...], reply: Reply) -> None:
        self._next(self._core.rows_are(self._node.replica.terms(self._shard, buckets), reply.value))

    def _exchanged(self, reply: Reply) -> None:
        node = self._node
        if not tombstones.repair_is_fresh(self._started_wall_ms, node.wall_ms, self._node.world.settings.tombstones):
            self._core.failed()
            self._ended(None)
            return
        node.replica.apply(self._shard, reply.value, lambda: self._next(self._core.exchanged()))
