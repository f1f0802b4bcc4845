"""One simulated node as candidate and leader: the lease core over the simulated bucket, and the loop that writes the map.

Duties carried out here: the bucket is probed and its map read before anybody campaigns; ``can_act`` is asked right before
every act; the map is stamped first; every write of it is a compare-and-swap on what was just read. Called by ``node``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.sim.bucket import Found, Outcome
from chaos.sim.messages import Announce, TellReady
from dakera_cluster.model.ids import BootId, NodeId, ShardId
from dakera_cluster.model.shardmap import MemberState, ShardMap, decode_map, encode_map
from dakera_cluster.protocols import lease_events as ev
from dakera_cluster.protocols.lease import Lease
from dakera_cluster.protocols.rebalance import (
    LiveNode,
    ReadyReport,
    Situation,
    birth,
    has_majority,
    plan,
    set_member_state,
)

if TYPE_CHECKING:
    from chaos.sim.node import Node

LEASE = "lease"
MAP = "map"
CLUSTER = "sim"
ELIGIBLE_MS = 500.0
SAFETY_TIMEOUT_MS = 2_500.0


class Leader:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._bucket = node.world.bucket
        self._settings = node.world.settings
        self.lease = Lease(
            CLUSTER,
            node.id,
            BootId(node.boot),
            config=self._settings.lease,
            rng=node.rng,
            floor_epoch=node.fence.highest,
        )
        self._probed = False
        self._eligible = False
        self._wake_ms = float("inf")
        self._map_seen = node.map is not None
        self._absent_since: dict[NodeId, float] = {}
        self._ready: set[ReadyReport] = set()
        self._busy = False
        self._probe(0)
        self._refresh_eligibility()
        self._feed(ev.Tick())
        node.after(node.world.leader_every_ms, self._loop)

    def note_ready(self, report: TellReady) -> None:
        self._ready.add(ReadyReport(ShardId(report.shard), report.version, NodeId(report.node)))
        trap, self._node.world.ready_trap = self._node.world.ready_trap, None
        if trap is not None:
            trap(report.shard, report.node)

    # -- eligibility

    def _probe(self, step: int) -> None:
        """Two creations of one new object: a bucket that honours conditions refuses the second."""
        name = f"probe/{self._node.name}/{self._node.boot}/{self._node.disk.identity}/{self._node.life}"

        def told(outcome: Outcome, _: str) -> None:
            if step == 0 and outcome is Outcome.DONE:
                self._probe(1)
            elif step == 1 and outcome is Outcome.REFUSED:
                self._probed = True
            elif outcome is Outcome.DONE:
                self._node.trace("refuses a bucket that ignores conditions")
            elif step == 0 and outcome is Outcome.REFUSED:
                self._probe(1)
            else:
                self._node.after(1_000.0, self._probe, step)

        self._bucket.put(name, b"", None, self._node.guard(told))

    def _refresh_eligibility(self) -> None:
        node = self._node
        node.after(ELIGIBLE_MS, self._refresh_eligibility)
        if not self._sees_majority(node.map) or not self._probed:
            self._set_eligible(False)
        elif not self._eligible:
            # The bucket may hold an epoch that this node has not heard of.
            self._bucket.get(MAP, node.guard(self._checked))

    def _checked(self, outcome: Outcome, found: Found) -> None:
        if outcome is not Outcome.DONE:
            return
        newest = self._node.map
        if found is not None:
            newest = decode_map(found[0])
            self._feed(ev.EpochSeen(newest.epoch))
            self._node.adopt(newest)
        self._set_eligible(self._sees_majority(newest))

    def _sees_majority(self, shardmap: ShardMap | None) -> bool:
        live = set(self._node.live())
        if shardmap is not None:
            return has_majority(shardmap, live)
        return len(live) * 2 > len(self._node.world.seeds)

    def _set_eligible(self, eligible: bool) -> None:
        if eligible != self._eligible:
            self._eligible = eligible
            self._feed(ev.EligibilityChanged(eligible))

    def epoch_seen(self, epoch: int) -> None:
        self._feed(ev.EpochSeen(epoch))

    # -- the lease

    def _feed(self, event: ev.Event) -> None:
        node = self._node
        for effect in self.lease.handle(event, node.now_ms):
            match effect:
                case ev.ReadLease(attempt):
                    self._bucket.get(LEASE, node.guard(lambda outcome, found, a=attempt: self._read(a, outcome, found)))
                case ev.PutLease(attempt, record, if_match):
                    data = ev.encode_lease(record)
                    done = node.guard(lambda outcome, etag, a=attempt: self._put(a, outcome, etag))
                    self._bucket.put(LEASE, data, if_match, done)
                case ev.BecameLeader(epoch, _):
                    node.trace(f"leads in epoch {epoch}")
                    node.world.checkers.became_leader(node, epoch)
                    self._absent_since.clear()
                case ev.LostLeadership(epoch, reason):
                    node.trace(f"leads no more in epoch {epoch}: {reason.value}")
                case _:
                    pass
        self._schedule()

    def _read(self, attempt: int, outcome: Outcome, found: Found) -> None:
        if outcome is not Outcome.DONE:
            self._feed(ev.ReadFailed(attempt))
        elif found is None:
            self._feed(ev.ReadDone(attempt, None, None))
        else:
            self._feed(ev.ReadDone(attempt, ev.decode_lease(found[0]), found[1]))

    def _put(self, attempt: int, outcome: Outcome, etag: str) -> None:
        match outcome:
            case Outcome.DONE:
                self._feed(ev.PutDone(attempt, etag))
            case Outcome.CONFLICT:
                self._feed(ev.PutConflict(attempt))
            case Outcome.REFUSED:
                self._feed(ev.PutRefused(attempt))
            case Outcome.MISSING:
                self._feed(ev.PutMissing(attempt))
            case Outcome.UNKNOWN:
                self._feed(ev.PutUnknown(attempt))

    def _schedule(self) -> None:
        due_ms = self.lease.next_deadline_ms()
        if due_ms is not None and due_ms < self._wake_ms:
            self._wake_ms = due_ms
            true_ms = self._node.clock.true_ms(due_ms)
            self._node.after(true_ms - self._node.world.timeline.now_ms, self._due, due_ms)

    def _due(self, due_ms: float) -> None:
        if due_ms == self._wake_ms:
            self._wake_ms = float("inf")
            self._feed(ev.Tick())

    # -- the map

    def _loop(self) -> None:
        self._node.after(self._node.world.leader_every_ms, self._loop)
        if not self.lease.can_act(self._node.now_ms) or self._busy:
            return
        epoch = self.lease.epoch
        assert epoch is not None
        self._announce(epoch)
        self._busy = True
        self._bucket.get(MAP, self._node.guard(lambda outcome, found: self._plan(epoch, outcome, found)))

    def _announce(self, epoch: int) -> None:
        node = self._node
        if node.map is None:
            return
        for target in sorted(node.live()):
            node.call(target, Announce(epoch, node.map.version, node.name), lambda reply: None)

    def _plan(self, epoch: int, outcome: Outcome, found: Found) -> None:
        self._busy = False
        node = self._node
        if outcome is not Outcome.DONE or self.lease.epoch != epoch:
            return
        live = {name: LiveNode(disk, zone) for name, (disk, zone) in node.live().items()}
        if found is None:
            if node.map is None:
                self._write(epoch, birth(CLUSTER, epoch, live, self._settings.shards, self._settings.rf), None)
            return
        current = decode_map(found[0])
        if current.epoch > epoch:
            self._feed(ev.EpochSeen(current.epoch))
            return
        node.adopt(current)
        ordered = self._orders(current, epoch)
        if ordered is not None:
            self._write(epoch, ordered, found[1])
            return
        known = {(shard, state.version) for shard, state in enumerate(current.shards) if state.is_joint}
        self._ready = {report for report in self._ready if (report.shard, report.version) in known}
        situation = Situation(live, self._absent(current, live), frozenset(self._ready))
        planned = plan(current, epoch, situation, self._settings.rebalance)
        if planned.next_map is not None:
            for shard, step in sorted(planned.steps.items()):
                node.trace(f"shard {shard} {step.value} v{planned.next_map.shards[shard].version}")
            self._write(epoch, planned.next_map, found[1])

    def _orders(self, current: ShardMap, epoch: int) -> ShardMap | None:
        """What the operator asked for and the map does not say yet."""
        for name, wanted in sorted(self._node.world.orders.items()):
            member = current.member(NodeId(name))
            if member is not None and member.state is not wanted:
                self._node.trace(f"{name} is {MemberState(wanted).name.lower()}")
                return set_member_state(current, epoch, NodeId(name), wanted)
        return None

    def _absent(self, current: ShardMap, live: dict[NodeId, LiveNode]) -> dict[NodeId, float]:
        now_ms = self._node.now_ms
        members = {member.node for member in current.members}
        self._absent_since = {
            node: self._absent_since.get(node, now_ms) for node in sorted(members) if node not in live
        }
        return {node: now_ms - since_ms for node, since_ms in self._absent_since.items()}

    def _write(self, epoch: int, newer: ShardMap, if_match: str | None) -> None:
        node = self._node
        if not self.lease.can_act(node.now_ms):
            return
        node.world.checkers.leader_acts(node, epoch)
        self._busy = True
        node.after(SAFETY_TIMEOUT_MS, self._unbusy)

        def told(outcome: Outcome, _: str) -> None:
            self._busy = False
            if outcome is Outcome.DONE:
                node.adopt(newer)

        self._bucket.put(MAP, encode_map(newer), if_match, node.guard(told))

    def _unbusy(self) -> None:
        self._busy = False
