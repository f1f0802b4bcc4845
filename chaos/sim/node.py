"""One simulated node: the real protocol cores, driven by virtual time, a simulated disk and simulated wires.

What is decided is decided by the cores of ``dakera_cluster.protocols``; here stand only the duties they lay on their callers:
persist before acting, answer every effect once, check shard versions and epochs on every request. Parts: `replica` serves
rows, `coordinator` runs clients' operations, `janitor` repairs, moves and collects, `leader` leads. Driven by ``world``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from chaos.sim.coordinator import Coordinator
from chaos.sim.janitor import Janitor
from chaos.sim.leader import Leader
from chaos.sim.messages import Announce, GetMap, Reply, Status, TellReady
from chaos.sim.process import Process
from chaos.sim.replica import Replica
from dakera_cluster.model.hlc import HybridClock
from dakera_cluster.model.ids import BootId, NodeId, node_tag
from dakera_cluster.model.shardmap import Admission, ShardMap, ShardState, admit
from dakera_cluster.protocols.fence import Admit, Fence, Persist, Refuse
from dakera_cluster.protocols.members import Address, NodeState
from dakera_cluster.protocols.packets import ClusterState
from dakera_cluster.protocols.swim import Swim
from dakera_cluster.protocols.swim_events import (
    Effect,
    Event,
    PacketReceived,
    PublishState,
    PushPull,
    PushPullResult,
    SendPacket,
    StateAdvanced,
    StreamProbe,
    StreamProbeResult,
    SyncReceived,
    Tick,
)

if TYPE_CHECKING:
    from chaos.sim.world import World

META = "meta"
BOOT_MS = 200.0
STREAM_TIMEOUT_MS = 1_000.0
Answer = Callable[[Reply], None]


class Node(Process):
    """A node over all its lives: its disk and clocks outlive its processes."""

    def __init__(self, world: World, name: str, zone: str = "") -> None:
        super().__init__(world, name)
        self.zone = zone
        self.id = NodeId(name)

    # -- life

    def start(self) -> None:
        self.begin_life()
        boot = (self.disk.get(META, "boot") or 0) + 1
        self.trace(f"boot {boot} disk {self.disk.identity}")
        self.disk.commit([(META, "boot", boot)], self.guard(lambda: self.after(BOOT_MS, self._started, boot)))

    def _started(self, boot: int) -> None:
        self.boot = boot
        self.map: ShardMap | None = self.disk.get(META, "map")
        self.world.checkers.booted(self)
        self.fence = Fence(self.disk.get(META, "epoch") or 0)
        self._tickets: dict[int, Callable[[bool], None]] = {}
        self._ticket = 0
        self._incoming: ShardMap | None = None
        self._adopting = False
        self._adopted: list[Callable[[], None]] = []
        self._fetching = False
        # A tag per life, so that a clock set back over a restart cannot make one stamp twice.
        self.tag = node_tag(f"{self.name}/{self.disk.identity}/{boot}")
        self.hlc = HybridClock(self.tag)
        self.believed_leader: tuple[int, str] = (0, "")
        self.swim = Swim(
            self.world.settings.swim,
            node=self.id,
            boot=BootId(boot),
            addr=Address(self.name, 1),
            meta={"disk": self.disk.identity, "zone": self.zone},
            seeds=[Address(name, 1) for name in self.world.seeds if name != self.name],
            rng=Random(self.rng.getrandbits(64)),
            now_ms=self.now_ms,
        )
        self._wake_ms = float("inf")
        self.replica = Replica(self)
        self.coordinator = Coordinator(self)
        self.janitor = Janitor(self)
        self.leader = Leader(self)
        self.is_ready = True
        if self.map is not None:
            self._feed(PublishState(ClusterState(self.map.epoch, self.map.version)))
            self.janitor.map_changed()
        self._feed(Tick())

    is_ready = False

    @property
    def is_serving(self) -> bool:
        """What a balancer sees: up, and with a map to work by."""
        return self.is_ready and not self.is_paused and self.map is not None

    def crash(self) -> None:
        self.is_ready = False
        self.end_life()
        lost = self.disk.crash()
        self.trace(f"crash, {lost} unsynced batches lost")

    # -- membership

    def live(self) -> dict[NodeId, tuple[int, str]]:
        """Nodes believed alive: (disk, zone) of each."""
        found = {}
        for member in self.swim.members():
            if member.state in (NodeState.ALIVE, NodeState.SUSPECT) and "disk" in member.meta:
                found[member.node] = (int(member.meta["disk"]), str(member.meta["zone"]))
        return found

    def is_live(self, node: NodeId) -> bool:
        member = self.swim.member(node)
        return member is not None and member.state is NodeState.ALIVE

    def hear(self, source: str, packet: Any) -> None:
        if self.is_ready:
            self._feed(PacketReceived(Address(source, 1), packet))

    def publish(self) -> None:
        assert self.map is not None
        self._feed(PublishState(ClusterState(self.map.epoch, self.map.version)))

    def _feed(self, event: Event) -> None:
        before = set(self.live()) if self.is_ready else set()
        for effect in self.swim.handle(event, self.now_ms):
            self._membership_effect(effect)
        self._schedule_swim()
        if self.is_ready and not isinstance(event, Tick):
            after = set(self.live())
            if after != before:
                self.trace(f"sees {','.join(sorted(after))}")
                self.coordinator.peers_changed()

    def _membership_effect(self, effect: Effect) -> None:
        match effect:
            case SendPacket(addr, packet):
                self.world.net.send(self.name, addr.host, packet)
            case PushPull(addr):
                self._push_pull(addr)
            case StreamProbe(seq, addr, node):
                peer = self.world.peer(self.name, addr.host)
                answered = peer is not None and peer.id == node
                self.after(10.0 if answered else STREAM_TIMEOUT_MS, self._feed, StreamProbeResult(seq, answered))
            case StateAdvanced(state, source):
                if self.map is None or state.version > self.map.version:
                    self.fetch_map(source)

    def _push_pull(self, addr: Address) -> None:
        peer = self.world.peer(self.name, addr.host)
        if peer is None or not peer.is_ready:
            self.after(STREAM_TIMEOUT_MS, self._feed, PushPullResult(addr, None))
            return
        peer.after(5.0, peer._feed, SyncReceived(self.swim.sync()))
        self.after(10.0, self._feed, PushPullResult(addr, peer.swim.sync()))

    def _schedule_swim(self) -> None:
        due_ms = self.swim.next_deadline_ms()
        if due_ms < self._wake_ms:
            self._wake_ms = due_ms
            self.after(self.clock.true_ms(due_ms) - self.world.timeline.now_ms, self._swim_due, due_ms)

    def _swim_due(self, due_ms: float) -> None:
        if due_ms == self._wake_ms:
            self._wake_ms = float("inf")
            self._feed(Tick())

    # -- the map, and the fence

    def shard(self, shard: int) -> ShardState | None:
        return None if self.map is None else self.map.shards[shard]

    def fetch_map(self, source: str) -> None:
        """Get the newest map from a peer that claims to have one."""
        if self._fetching or source == self.name:
            return
        self._fetching = True

        def done(reply: Reply | None) -> None:
            self._fetching = False
            if reply is not None and reply.map is not None:
                self.adopt(reply.map)

        self.call(source, GetMap(0 if self.map is None else self.map.version), done)

    def adopt(self, newer: ShardMap, then: Callable[[], None] | None = None) -> None:
        """Persist and obey ``newer``; ``then`` runs when this map or one still newer is in force (or not at all)."""
        if self.map is not None and newer.version <= self.map.version:
            if then is not None:
                then()
            return
        if then is not None:
            self._adopted.append(then)
        if self._incoming is None or newer.version > self._incoming.version:
            self._incoming = newer
        if not self._adopting:
            self._adopt_next()

    def _adopt_next(self) -> None:
        newer, self._incoming = self._incoming, None
        if newer is None or (self.map is not None and newer.version <= self.map.version):
            return
        self._adopting = True

        def judged(admitted: bool) -> None:
            if not admitted:
                self._adopting = False
                self._adopt_next()
                return
            self.disk.commit([(META, "map", newer)], self.guard(persisted))

        def persisted() -> None:
            self._adopting = False
            self.world.checkers.map_adopted(self, self.map, newer)
            self.map = newer
            self.leader.epoch_seen(newer.epoch)
            self._feed(PublishState(ClusterState(newer.epoch, newer.version)))
            self.janitor.map_changed()
            waiting, self._adopted = self._adopted, []
            for then in waiting:
                then()
            self._adopt_next()

        self.under_epoch(newer.epoch, judged)

    def under_epoch(self, epoch: int, judged: Callable[[bool], None]) -> None:
        """Have the fence judge a command or a map of ``epoch``."""
        self._ticket += 1
        self._tickets[self._ticket] = judged
        self._fence_effects(self.fence.offer(epoch, self._ticket))

    def _fence_effects(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case Persist(epoch):
                    done = self.guard(lambda epoch=epoch: self._fence_effects(self.fence.persisted(epoch)))
                    self.disk.commit([(META, "epoch", epoch)], done)
                case Admit(ticket):
                    self._tickets.pop(ticket)(True)
                case Refuse(ticket, _):
                    self._tickets.pop(ticket)(False)

    # -- serving

    def serve(self, source: str, body: Any, reply: Answer) -> None:
        if not self.is_ready:
            return
        match body:
            case GetMap(above):
                newer = self.map if self.map is not None and self.map.version > above else None
                reply(Reply(Status.OK, map=newer))
            case Announce(epoch, version, leader):
                self.under_epoch(epoch, lambda admitted: self._announced(admitted, epoch, version, leader, source))
                reply(Reply(Status.OK))
            case TellReady():
                self.leader.note_ready(body)
                reply(Reply(Status.OK))
            case _:
                self.admit(source, body, reply)

    def _announced(self, admitted: bool, epoch: int, version: int, leader: str, source: str) -> None:
        if not admitted:
            return
        self.world.checkers.command_obeyed(self, epoch)
        self.believed_leader = (epoch, leader)
        self.leader.epoch_seen(epoch)
        if self.map is None or version > self.map.version:
            self.fetch_map(source)

    def admit(self, source: str, body: Any, reply: Answer, *, again: bool = True) -> None:
        """Serve a request about a shard under exactly the version we know; learn or teach the newer one otherwise."""
        state = self.shard(body.shard)
        verdict = Admission.BEHIND if state is None else admit(state, self.id, body.version)
        match verdict:
            case Admission.SERVE:
                self.world.checkers.served(self, body.shard, body.version)
                self.replica.serve(source, body, reply)
            case Admission.OUTDATED:
                reply(Reply(Status.OUTDATED, map=self.map))
            case Admission.NOT_HELD:
                reply(Reply(Status.NOT_HELD))
            case Admission.BEHIND:
                if not again or source == self.name:
                    reply(Reply(Status.REFUSED))
                    return

                def fetched(answer: Reply | None) -> None:
                    if answer is None or answer.map is None:
                        reply(Reply(Status.REFUSED))
                    else:
                        self.adopt(answer.map, lambda: self.admit(source, body, reply, again=False))

                self.call(source, GetMap(0 if self.map is None else self.map.version), fetched)
