"""SWIM with Lifeguard, sans-IO: who is alive, told by gossip.

Theory of operation. Every period this node pings one member, in round-robin order. No ack in time: up to k others are
asked to ping it too (they answer with an ack, or with a nack that proves our own network), and TCP is tried. Still
nothing at the end of the period: the member is *suspect*, and unless it refutes within the suspicion time it is *dead*.
All of this travels as claims piggybacked on every packet, plus short bursts while there is news. Full state is
exchanged over a stream on joining, on meeting strangers, when re-dialling the lost, and every half minute with anybody.

The core owns no clock, socket or randomness: ``handle(event, now_ms)`` returns what to do, ``next_deadline_ms()`` says
when it wants a ``Tick``. It decides nothing about data: who is leader and where shards live is settled in the bucket,
of which only the version travels here (``ClusterState``, the greatest wins).

Invariants: never believes its own death; packets fit ``PACKET_MAX_BYTES``; same events, same generator: same effects.
Called by the UDP driver (``cluster/gossip.py``) and the simulator (``chaos/sim/swim_world.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.beliefs import Beliefs, check_meta
from dakera_cluster.protocols.healing import Redialler
from dakera_cluster.protocols.health import LocalHealth
from dakera_cluster.protocols.members import (
    ALIVE,
    DEAD,
    HOST_MAX_BYTES,
    LEFT,
    NODE_ID_MAX_BYTES,
    Address,
    Member,
    Meta,
    Update,
)
from dakera_cluster.protocols.outbox import Outbox
from dakera_cluster.protocols.packets import (
    Ack,
    ClusterState,
    Gossip,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Sync,
)
from dakera_cluster.protocols.probing import Probe, ProbeOrder, Relay, Relays
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import (
    Effect,
    Event,
    Leave,
    LeaveComplete,
    LoopLag,
    PacketReceived,
    PublishState,
    PushPull,
    PushPullResult,
    StateAdvanced,
    StreamProbe,
    StreamProbeResult,
    SyncReceived,
    Tick,
    UpdateMeta,
)
from dakera_cluster.protocols.swim_stats import SwimStats

if TYPE_CHECKING:
    from random import Random

_NACK_SHARE = 0.8
"""A relay nacks after this share of the asker's remaining period, to arrive before the verdict (Lifeguard 4.1)."""
_SEQ_MASK = 0xFFFFFFFF


class Swim:
    """One member's protocol state."""

    def __init__(
        self,
        config: SwimConfig,
        *,
        node: NodeId,
        boot: BootId,
        addr: Address,
        meta: Meta,
        seeds: Iterable[Address],
        rng: Random,
        now_ms: float,
        known: Iterable[Member] = (),
    ) -> None:
        """``known``: living members to start from, as a simulation of a settled cluster does; nodes start from seeds.
        Raises ValueError when the node id, host or metadata break their bounds."""
        if not 0 < len(node.encode()) <= NODE_ID_MAX_BYTES:
            raise ValueError(f"node id must have 1 to {NODE_ID_MAX_BYTES} bytes")
        if not 0 < len(addr.host.encode()) <= HOST_MAX_BYTES:
            raise ValueError(f"gossip host must have 1 to {HOST_MAX_BYTES} bytes")
        self.stats = SwimStats()
        self._config = config
        self._rng = rng
        self._health = LocalHealth(config)
        self._redialler = Redialler(config, node, seeds, rng, now_ms)
        me = Member(node, boot, 0, ALIVE, addr, check_meta(meta), now_ms)
        self._order = ProbeOrder(rng)
        self._beliefs = Beliefs(config, me, self._order, self._redialler, self._health, self.stats, known)
        self._outbox = Outbox(config, self._beliefs, self.stats, rng, now_ms)
        self._relays = Relays()
        self._probe: Probe | None = None
        self._seq = rng.getrandbits(32)
        self._next_probe_ms = now_ms + rng.random() * config.probe_interval_ms
        # Nodes that start together join through different seeds at different moments: a newcomer compares notes early and
        # often, and ever more rarely as it settles.
        self._newcomer_ms = math.inf if self._beliefs.members.present else config.newcomer_push_pull_ms
        self._next_push_pull_ms = now_ms + self._push_pull_gap_ms()
        self._next_stranger_ms = now_ms
        self._leave_ms = math.inf
        self._answers_accusers = config.has(Feature.LAST_WORD)
        self._handlers: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            Tick: self._on_tick,
            PacketReceived: self._on_packet,
            StreamProbeResult: self._on_stream_probe,
            PushPullResult: self._on_push_pull,
            SyncReceived: self._on_sync,
            LoopLag: self._on_loop_lag,
            UpdateMeta: self._on_update_meta,
            PublishState: self._on_publish_state,
            Leave: self._on_leave,
        }

    @property
    def me(self) -> Member:
        """This node as it presents itself; LEFT once it announced its leave."""
        return self._beliefs.me

    @property
    def cluster_state(self) -> ClusterState:
        """The newest version of the bucket's decisions that was heard of."""
        return self._outbox.cluster_state

    @property
    def heard_ms(self) -> Mapping[NodeId, float]:
        """When each member last spoke to us itself: the age of the evidence behind a belief."""
        return self._beliefs.heard_ms

    @property
    def health_score(self) -> int:
        """0 (healthy) .. ``health_max``."""
        return self._health.score

    @property
    def size(self) -> int:
        """Present members (alive and suspect), this node included."""
        return self._beliefs.n

    @property
    def updates_waiting(self) -> int:
        return len(self._beliefs.gossip)

    def member(self, node: NodeId) -> Member | None:
        return self._beliefs.me if node == self._beliefs.me.node else self._beliefs.members.get(node)

    def members(self) -> list[Member]:
        """This node first, then all others it remembers, graves included."""
        return [self._beliefs.me, *self._beliefs.members]

    def sync(self) -> Sync:
        """Full state for the other side of an exchange."""
        me = self._beliefs.me
        records = tuple(member.record(me.node) for member in self.members())
        return Sync(me.node, me.boot, self.cluster_state, records)

    def next_deadline_ms(self) -> float:
        """When the next ``Tick`` is wanted; may lie in the past."""
        probe = self._probe
        deadline_ms = min(
            self._next_probe_ms if probe is None else probe.deadline_ms,
            self._beliefs.deadline_ms(),
            self._relays.deadline_ms(),
            self._next_push_pull_ms,
            self._redialler.deadline_ms() if self._beliefs.me.state is ALIVE else math.inf,
            self._leave_ms,
        )
        return min(deadline_ms, self._outbox.deadline_ms())

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take in one event; return what the driver must do, in order."""
        out: list[Effect] = []
        self._handlers[type(event)](event, now_ms, out)
        self._outbox.burst_if_due(now_ms, out)
        if self._leave_ms < math.inf:
            self._finish_leave(now_ms, out)
        return out

    # -- time

    def _on_tick(self, _: Tick, now_ms: float, out: list[Effect]) -> None:
        while (relay := self._relays.pop_unanswered(now_ms)) is not None:
            self.stats.nacks_sent += 1
            self._outbox.send(relay.asker, relay.asker_node, Nack(relay.asker_seq), out)
        probe = self._probe
        if probe is not None and now_ms >= probe.direct_ms:
            self._ask_others(probe, out)
        if probe is not None and now_ms >= probe.verdict_ms:
            self._fail(probe, now_ms, out)
        for suspect in self._beliefs.expire(now_ms, out):
            self.stats.last_words_asked += 1
            self._outbox.send(suspect.addr, suspect.node, Ping(self._new_seq(), suspect.node), out)
        if self._probe is None and now_ms >= self._next_probe_ms:
            self._start_probe(now_ms, out)
        if now_ms >= self._next_push_pull_ms:
            self._start_push_pull(now_ms, out)
        if self._beliefs.me.state is ALIVE:
            for addr in self._redialler.pop_due(now_ms, self._beliefs.n):
                self.stats.redials += 1
                self._dial(addr, out)

    def _on_loop_lag(self, event: LoopLag, now_ms: float, out: list[Effect]) -> None:
        self.stats.loop_lags += 1
        if not self._config.has(Feature.STOLEN_TIME):
            return
        self.stats.loop_lag_stolen_ms += event.lag_ms
        self._health.add(int(event.lag_ms // self._config.lag_tolerated_ms))
        if self._probe is not None:
            self._probe.credit(event.lag_ms)
        self._beliefs.suspicions.credit(event.lag_ms)

    # -- probing

    def _start_probe(self, now_ms: float, out: list[Effect]) -> None:
        period_ms = self._health.stretch(self._config.probe_interval_ms)
        self._next_probe_ms = now_ms + period_ms
        target = self._order.next()
        member = None if target is None else self._beliefs.members.get(target)
        if member is None:
            return
        direct_ms = now_ms + self._health.stretch(self._config.probe_timeout_ms)
        self._probe = Probe(member.node, member.addr, self._new_seq(), direct_ms, now_ms + period_ms)
        self.stats.probes_sent += 1
        self._outbox.send(member.addr, member.node, Ping(self._probe.seq, member.node), out)

    def _ask_others(self, probe: Probe, out: list[Effect]) -> None:
        probe.ask_others()
        members = self._beliefs.members

        def can_help(node: NodeId) -> bool:
            member = members.get(node)
            return node != probe.target and member is not None and member.state is ALIVE

        for node in self._order.sample(self._config.indirect_probes, can_help):
            helper = members.get(node)
            assert helper is not None
            probe.helpers += 1
            self.stats.indirect_requests_sent += 1
            self._outbox.send(helper.addr, node, PingRequest(probe.seq, probe.target, probe.addr), out)
        if self._config.has(Feature.STREAM_PROBE):
            out.append(StreamProbe(probe.seq, probe.addr, probe.target))

    def _fail(self, probe: Probe, now_ms: float, out: list[Effect]) -> None:
        self._probe = None
        target = self._beliefs.members.get(probe.target)
        if target is None or not target.state.is_present:
            return
        self.stats.probes_failed += 1
        missed = max(0, probe.helpers - probe.nacks)
        self.stats.nacks_missed += missed
        # All helpers nacked: the network around us works, the fault is the target's. Nobody to ask: it may be ours.
        self._health.add(missed if probe.helpers else 1)
        self._beliefs.accuse(probe.target, now_ms, out)

    def _succeed(self, probe: Probe) -> None:
        self._probe = None
        self.stats.probes_acked += 1
        self._health.add(-1)

    def _on_stream_probe(self, event: StreamProbeResult, now_ms: float, out: list[Effect]) -> None:
        probe = self._probe
        if event.answered and probe is not None and probe.seq == event.seq:
            self.stats.probes_acked_by_stream += 1
            self._succeed(probe)

    # -- packets

    def _on_packet(self, event: PacketReceived, now_ms: float, out: list[Effect]) -> None:
        packet, beliefs = event.packet, self._beliefs
        self.stats.packets_received += 1
        if packet.sender == beliefs.me.node:
            self.stats.packets_from_self += 1
            if event.source == beliefs.me.addr and packet.boot == beliefs.me.boot:
                return
            claim = Update(packet.sender, packet.boot, 0, ALIVE, packet.sender, event.source)
            beliefs.conflict(claim, now_ms, out, is_self=True)
            return
        held = beliefs.members.get(packet.sender)
        if held is not None and packet.boot < held.boot:
            self.stats.packets_stale_boot += 1
            claim = held.record(beliefs.me.node)
            self._outbox.post(event.source, Gossip(), (claim,), out)
            return
        if held is None or packet.boot > held.boot:
            self._meet_stranger(event.source, now_ms, out)
        else:
            self._beliefs.heard_ms[packet.sender] = now_ms
        accused = False
        for update in packet.updates:
            accused |= beliefs.apply(update, now_ms, out)
        if accused and self._answers_accusers:
            # Gossip would bring our answer to nearly all; this one must not be among the few it misses.
            self._outbox.post(event.source, Gossip(), (beliefs.me.claim(beliefs.me.node),), out)
        if packet.cluster > self._outbox.cluster_state:
            self._advance(packet.cluster, packet.sender, out)
        self._on_body(event.source, packet, now_ms, out)

    def _on_body(self, source: Address, packet: Packet, now_ms: float, out: list[Effect]) -> None:
        body = packet.body
        if isinstance(body, Ping):
            if body.target != self._beliefs.me.node:
                self.stats.packets_misaddressed += 1
                return
            self._outbox.send(source, packet.sender, Ack(body.seq, body.target), out)
        elif isinstance(body, Ack):
            self._on_ack(packet.sender, body, out)
        elif isinstance(body, PingRequest):
            self._serve(source, packet.sender, body, now_ms, out)
        else:
            if isinstance(body, Nack) and self._probe is not None and self._probe.seq == body.seq:
                self._probe.nacks += 1
                self.stats.nacks_received += 1
            held = self._beliefs.members.get(packet.sender)
            if held is not None and held.state is DEAD and held.boot == packet.boot:
                # Only an answer it would get no other way tells a living node that we believe it dead.
                self._outbox.send(source, packet.sender, Gossip(), out)

    def _on_ack(self, sender: NodeId, body: Ack, out: list[Effect]) -> None:
        probe = self._probe
        if probe is not None and probe.seq == body.seq and probe.target == body.target:
            if sender != body.target:
                self.stats.probes_acked_indirectly += 1
            self._succeed(probe)
            return
        relay = self._relays.answered(body.seq, body.target)
        if relay is not None:
            self._outbox.send(relay.asker, relay.asker_node, Ack(relay.asker_seq, relay.target), out)
        else:
            self.stats.probes_acked_late += 1

    def _serve(self, source: Address, asker: NodeId, body: PingRequest, now_ms: float, out: list[Effect]) -> None:
        config = self._config
        self._relays.expire(now_ms)
        if len(self._relays) >= config.relays_max:
            self.stats.indirect_requests_refused += 1
            return
        self.stats.indirect_requests_served += 1
        wait_ms = config.probe_interval_ms - config.probe_timeout_ms
        nack_ms = now_ms + _NACK_SHARE * wait_ms if config.has(Feature.LOCAL_HEALTH) else math.inf
        seq = self._new_seq()
        expires_ms = now_ms + config.probe_interval_ms * (config.health_max + 1)
        self._relays.add(seq, Relay(source, asker, body.seq, body.target, nack_ms, expires_ms))
        self._outbox.send(body.addr, body.target, Ping(seq, body.target), out)

    # -- full state

    def _advance(self, state: ClusterState, source: NodeId, out: list[Effect]) -> None:
        self._outbox.publish(state)
        self.stats.states_advanced += 1
        out.append(StateAdvanced(state, source))

    def _start_push_pull(self, now_ms: float, out: list[Effect]) -> None:
        self._newcomer_ms *= 2
        self._next_push_pull_ms = now_ms + self._push_pull_gap_ms()
        for node in self._order.sample(1, lambda node: True):
            member = self._beliefs.members.get(node)
            if member is not None:
                self._dial(member.addr, out)

    def _push_pull_gap_ms(self) -> float:
        return (0.5 + self._rng.random()) * min(self._newcomer_ms, self._config.push_pull_ms(self._beliefs.n))

    def _meet_stranger(self, source: Address, now_ms: float, out: list[Effect]) -> None:
        self.stats.strangers_met += 1
        if now_ms >= self._next_stranger_ms and self._beliefs.me.state is ALIVE:
            self._next_stranger_ms = now_ms + self._config.stranger_interval_ms
            self._dial(source, out)

    def _dial(self, addr: Address, out: list[Effect]) -> None:
        self.stats.push_pulls_started += 1
        out.append(PushPull(addr))

    def _on_push_pull(self, event: PushPullResult, now_ms: float, out: list[Effect]) -> None:
        if event.sync is None:
            self.stats.push_pulls_failed += 1
            return
        self.stats.push_pulls_succeeded += 1
        self._merge(event.sync, now_ms, out)
        answered_by = event.sync.sender
        if answered_by == self._beliefs.me.node:
            settled = self._beliefs.members.present > 0
        else:
            member = self._beliefs.members.get(answered_by)
            settled = member is not None and member.state.is_present
        self._redialler.answered(event.addr, answered_by, settled)

    def _on_sync(self, event: SyncReceived, now_ms: float, out: list[Effect]) -> None:
        self.stats.push_pulls_received += 1
        self._merge(event.sync, now_ms, out)

    def _merge(self, sync: Sync, now_ms: float, out: list[Effect]) -> None:
        # Whoever was alone is the newcomer: all this is news to it only, so telling it on would be noise.
        was_alone = self._beliefs.members.present == 0
        for record in sync.members:
            self._beliefs.apply(record, now_ms, out, retell=not was_alone or record.node == sync.sender)
        if self._beliefs.members.get(sync.sender) is not None:
            self._beliefs.heard_ms[sync.sender] = now_ms
        if sync.cluster > self._outbox.cluster_state:
            self._advance(sync.cluster, sync.sender, out)

    # -- ourselves

    def _on_update_meta(self, event: UpdateMeta, now_ms: float, out: list[Effect]) -> None:
        self._beliefs.change_self(event.meta, event.addr)

    def _on_publish_state(self, event: PublishState, now_ms: float, out: list[Effect]) -> None:
        if event.state > self._outbox.cluster_state:
            self._outbox.publish(event.state)

    def _on_leave(self, _: Leave, now_ms: float, out: list[Effect]) -> None:
        if self._beliefs.me.state is LEFT:
            return
        self._beliefs.leave()
        self._probe = None
        self._next_probe_ms = self._next_push_pull_ms = math.inf
        self._outbox.hurry(now_ms)
        self._leave_ms = now_ms + self._config.leave_timeout_ms

    def _finish_leave(self, now_ms: float, out: list[Effect]) -> None:
        told = self._beliefs.members.present == 0 or not self._beliefs.gossip.is_waiting(self._beliefs.me.node)
        if told or now_ms >= self._leave_ms:
            self._leave_ms = math.inf
            out.append(LeaveComplete())

    def _new_seq(self) -> int:
        self._seq = (self._seq + 1) & _SEQ_MASK
        return self._seq
