"""Random walks: whatever arrives, in whatever order, the core keeps its promises."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import ALIVE, LEFT, SUSPECT, Address, Member, NodeState, Update
from dakera_cluster.protocols.packets import (
    Ack,
    ClusterState,
    Gossip,
    Nack,
    Packet,
    PacketCodec,
    PacketFault,
    Ping,
    PingRequest,
    Sync,
)
from dakera_cluster.protocols.swim import Swim
from dakera_cluster.protocols.swim_config import PACKET_MAX_BYTES, SwimConfig
from dakera_cluster.protocols.swim_events import (
    Event,
    Leave,
    LoopLag,
    PacketReceived,
    PublishState,
    PushPull,
    PushPullResult,
    SendPacket,
    StreamProbe,
    StreamProbeResult,
    SyncReceived,
    Tick,
    UpdateMeta,
)

ME = NodeId("me")
NAMES = [NodeId(f"n{index}") for index in range(5)]
ADDRESSES = [Address(f"10.0.0.{index}", 7946) for index in range(7)]

names = st.sampled_from([*NAMES, ME])
states = st.sampled_from(list(NodeState))
updates = st.builds(
    Update,
    names,
    st.integers(1, 3).map(BootId),
    st.integers(0, 3),
    states,
    st.sampled_from(NAMES),
    st.none() | st.sampled_from(ADDRESSES),
    st.none() | st.fixed_dictionaries({"zone": st.sampled_from(["a", "b"])}),
)
sequences = st.integers(0, 3)
bodies = st.one_of(
    st.builds(Ping, sequences, names),
    st.builds(PingRequest, sequences, names, st.sampled_from(ADDRESSES)),
    st.builds(Ack, sequences, names),
    st.builds(Nack, sequences),
    st.just(Gossip()),
)
cluster_states = st.builds(ClusterState, st.integers(0, 3), st.integers(0, 3))


class Walk(RuleBasedStateMachine):
    """One core among arbitrary news."""

    @initialize(seed=st.integers(0, 1000), known=st.integers(0, 4), boot=st.integers(1, 3))
    def born(self, seed: int, known: int, boot: int) -> None:
        self.now_ms = 0.0
        self.boot = BootId(boot)
        self.codec = PacketCodec("walk", (bytes(32),), bytes(16))
        self.reader = PacketCodec("walk", (bytes(32),), bytes(range(16)))
        self.owed: list[Event] = []
        self.leaving = False
        self.beliefs: dict[NodeId, tuple[int, int, int]] = {}
        self.incarnation = 0
        self.cluster = ClusterState()
        self.core = Swim(
            SwimConfig(reap_ms=60_000.0),
            node=ME,
            boot=self.boot,
            addr=ADDRESSES[6],
            meta={},
            seeds=(ADDRESSES[0],),
            rng=Random(seed),
            now_ms=0.0,
            known=[Member(name, BootId(1), 0, ALIVE, ADDRESSES[i], {}) for i, name in enumerate(NAMES[:known])],
        )

    def feed(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now_ms):
            if isinstance(effect, SendPacket):
                data = self.codec.encode(effect.packet)
                assert len(data) <= PACKET_MAX_BYTES
                assert not isinstance(self.reader.decode(data), PacketFault)
                for update in effect.packet.updates:
                    if update.node == ME and update.boot == self.boot:
                        assert update.state is (LEFT if self.leaving else ALIVE), "told of its own end"
            elif isinstance(effect, PushPull):
                self.owed.append(PushPullResult(effect.addr, None))
            elif isinstance(effect, StreamProbe):
                self.owed.append(StreamProbeResult(effect.seq, False))

    @rule(sender=names, boot=st.integers(1, 3), body=bodies, news=st.lists(updates, max_size=4), state=cluster_states)
    def packet(self, sender: NodeId, boot: int, body: object, news: list[Update], state: ClusterState) -> None:
        source = ADDRESSES[5] if sender == ME else ADDRESSES[NAMES.index(sender)]
        self.feed(PacketReceived(source, Packet(sender, BootId(boot), body, state, tuple(news))))  # type: ignore[arg-type]

    @rule(sender=st.sampled_from(NAMES), news=st.lists(updates, max_size=5), state=cluster_states, pulled=st.booleans())
    def full_state(self, sender: NodeId, news: list[Update], state: ClusterState, pulled: bool) -> None:
        sync = Sync(sender, BootId(1), state, tuple(news))
        self.feed(PushPullResult(ADDRESSES[0], sync) if pulled else SyncReceived(sync))

    @rule(elapsed=st.sampled_from([1.0, 100.0, 600.0, 3_000.0, 30_000.0]))
    def time_passes(self, elapsed: float) -> None:
        end_ms = self.now_ms + elapsed
        steps = 0
        while (deadline_ms := self.core.next_deadline_ms()) <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            self.feed(Tick())
            steps += 1
            assert steps < 100 * (elapsed / 100.0 + 10), "the core asks for ticks without end"
        self.now_ms = end_ms

    @rule(lag=st.sampled_from([60.0, 500.0, 5_000.0]))
    def stall(self, lag: float) -> None:
        self.now_ms += lag
        self.feed(LoopLag(lag))
        self.feed(Tick())

    @rule()
    def streams_fail(self) -> None:
        owed, self.owed = self.owed, []
        for event in owed:
            self.feed(event)

    @rule(zone=st.sampled_from(["a", "b"]), state=cluster_states)
    def tell(self, zone: str, state: ClusterState) -> None:
        self.feed(UpdateMeta({"zone": zone}))
        self.feed(PublishState(state))

    @rule()
    def leave(self) -> None:
        self.leaving = True
        self.feed(Leave())

    @invariant()
    def never_believes_its_own_death(self) -> None:
        assert self.core.me.state is (LEFT if self.leaving else ALIVE)
        assert self.core.me.boot == self.boot

    @invariant()
    def own_incarnation_never_falls(self) -> None:
        assert self.core.me.incarnation >= self.incarnation
        self.incarnation = self.core.me.incarnation

    @invariant()
    def beliefs_only_move_up_the_order_until_the_grave_is_forgotten(self) -> None:
        now = {
            member.node: (int(member.boot), member.incarnation, int(member.state)) for member in self.core.members()[1:]
        }
        for node, before in self.beliefs.items():
            if node in now:
                assert now[node] >= before
            else:
                assert before[2] >= 2, "only graves are forgotten"
        self.beliefs = now

    @invariant()
    def cluster_state_never_falls(self) -> None:
        assert self.core.cluster_state >= self.cluster
        self.cluster = self.core.cluster_state

    @invariant()
    def tables_agree(self) -> None:
        beliefs = self.core._beliefs
        present = {member.node for member in beliefs.members if member.state.is_present}
        suspects = {member.node for member in beliefs.members if member.state is SUSPECT}
        assert set(beliefs.order._order) == present
        assert len(beliefs.order) == len(present) == self.core.size - 1
        assert set(beliefs.suspicions._running) == suspects
        assert set(beliefs._graves) == {member.node for member in beliefs.members} - present
        assert ME not in {member.node for member in beliefs.members}


Walk.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestWalk = Walk.TestCase
