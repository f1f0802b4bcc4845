"""The core, one member at a time: what it sends, what it believes, and when it doubts itself."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import TypeVar

import msgspec
import pytest

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import ALIVE, DEAD, LEFT, SUSPECT, Address, Member, NodeState, Update
from dakera_cluster.protocols.packets import (
    Ack,
    Body,
    ClusterState,
    Gossip,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Sync,
)
from dakera_cluster.protocols.swim import Swim
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import (
    Change,
    Conflict,
    Effect,
    Event,
    Leave,
    LeaveComplete,
    LoopLag,
    MemberEvent,
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
    UpdateMeta,
)

ME = NodeId("me")
MY_ADDR = Address("10.0.0.100", 7946)
E = TypeVar("E")


def addr(index: int) -> Address:
    return Address(f"10.0.0.{index}", 7946)


def name(index: int) -> NodeId:
    return NodeId(f"n{index}")


class Node:
    """One core, its clock, and everything it ever asked for."""

    def __init__(
        self, others: int = 2, *, boot: int = 3, seeds: tuple[Address, ...] = (), config: SwimConfig | None = None
    ) -> None:
        self.now_ms = 0.0
        self.out: list[Effect] = []
        known = [Member(name(i), BootId(1), 0, ALIVE, addr(i), {}) for i in range(others)]
        self.core = Swim(
            config or SwimConfig(),
            node=ME,
            boot=BootId(boot),
            addr=MY_ADDR,
            meta={},
            seeds=seeds,
            rng=Random(1),
            now_ms=0.0,
            known=known,
        )

    def feed(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now_ms)
        self.out += effects
        return effects

    def run(self, duration_ms: float) -> list[Effect]:
        """Tick at every deadline for so long; the effects of that time."""
        end_ms, first = self.now_ms + duration_ms, len(self.out)
        while (deadline_ms := self.core.next_deadline_ms()) <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            self.feed(Tick())
        self.now_ms = end_ms
        return self.out[first:]

    def run_to_ping(self) -> SendPacket:
        """Until the next probe starts."""
        probes = self.core.stats.probes_sent
        while self.core.stats.probes_sent == probes:
            self.now_ms = max(self.now_ms, self.core.next_deadline_ms())
            effects = self.feed(Tick())
        return next(e for e in effects if isinstance(e, SendPacket) and isinstance(e.packet.body, Ping))

    def hear(
        self, sender: int, body: Body, *updates: Update, boot: int = 1, cluster: ClusterState | None = None
    ) -> list[Effect]:
        packet = Packet(name(sender), BootId(boot), body, cluster or ClusterState(), updates)
        return self.feed(PacketReceived(addr(sender), packet))

    def state(self, index: int) -> NodeState | None:
        member = self.core.member(name(index))
        return None if member is None else member.state

    def changes(self, index: int) -> list[Change]:
        return [e.change for e in self.out if isinstance(e, MemberEvent) and e.member.node == name(index)]


def claim(index: int, state: NodeState, *, boot: int = 1, incarnation: int = 0, origin: int = 0) -> Update:
    where = addr(index) if state is ALIVE else None
    return Update(name(index), BootId(boot), incarnation, state, name(origin), where, None if where is None else {})


def about_me(state: NodeState, *, boot: int = 3, incarnation: int = 0) -> Update:
    return Update(ME, BootId(boot), incarnation, state, name(0))


def packets(effects: list[Effect], kind: type[E]) -> list[tuple[Address, Packet]]:
    return [(e.addr, e.packet) for e in effects if isinstance(e, SendPacket) and isinstance(e.packet.body, kind)]


def of(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


# -- probing


def test_one_member_is_pinged_per_period_and_an_ack_settles_it() -> None:
    node = Node(others=3)
    probed = []
    for _ in range(3):
        ping = node.run_to_ping()
        body = ping.packet.body
        assert isinstance(body, Ping)
        probed.append(body.target)
        node.now_ms += 10
        node.hear(int(body.target[1:]), Ack(body.seq, body.target))
        assert node.core.next_deadline_ms() >= node.now_ms + 400
    assert sorted(probed) == ["n0", "n1", "n2"]
    assert node.core.stats.probes_acked == 3
    assert node.core.stats.indirect_requests_sent == 0


def test_without_an_ack_others_and_tcp_are_asked_and_only_then_the_member_is_suspect() -> None:
    node = Node(others=5)
    ping = node.run_to_ping()
    target = ping.packet.body.target  # type: ignore[union-attr]
    asked = node.run(250.0)
    requests = packets(asked, PingRequest)
    assert len(requests) == 3
    assert ping.addr not in [to for to, _ in requests]
    assert {packet.body.target for _, packet in requests} == {target}  # type: ignore[union-attr]
    assert of(asked, StreamProbe) == [StreamProbe(ping.packet.body.seq, ping.addr, target)]  # type: ignore[union-attr]
    assert node.state(int(target[1:])) is ALIVE
    node.run(251.0)
    assert node.state(int(target[1:])) is SUSPECT


def test_an_ack_passed_on_by_a_helper_counts() -> None:
    node = Node(others=3)
    ping = node.run_to_ping()
    body = ping.packet.body
    assert isinstance(body, Ping)
    helper = next(i for i in range(3) if name(i) != body.target)
    node.run(300.0)
    node.hear(helper, Ack(body.seq, body.target))
    node.run(1.0)
    assert node.core.stats.probes_acked_indirectly == 1
    assert node.changes(int(body.target[1:])) == []


def test_an_ack_for_another_target_or_probe_does_not_count() -> None:
    node = Node(others=3)
    body = node.run_to_ping().packet.body
    assert isinstance(body, Ping)
    other = next(i for i in range(3) if name(i) != body.target)
    node.hear(other, Ack(body.seq, name(other)))
    node.hear(int(body.target[1:]), Ack(body.seq ^ 1, body.target))
    assert node.core.stats.probes_acked == 0
    assert node.core.stats.probes_acked_late == 2


def test_tcp_saves_a_member_whose_udp_is_lost() -> None:
    node = Node(others=1)
    ping = node.run_to_ping()
    probe = of(node.run(250.0), StreamProbe)[0]
    node.feed(StreamProbeResult(probe.seq, True))
    node.run(240.0)
    assert node.state(0) is ALIVE
    assert node.core.stats.probes_acked_by_stream == 1
    assert node.core.stats.probes_acked == 1
    assert ping.addr == probe.addr


def test_an_unanswered_stream_probe_changes_nothing() -> None:
    node = Node(others=1)
    node.run_to_ping()
    probe = of(node.run(250.0), StreamProbe)[0]
    node.feed(StreamProbeResult(probe.seq, False))
    node.run(260.0)
    assert node.state(0) is SUSPECT


def test_with_three_nodes_a_dead_one_is_known_after_two_and_a_half_seconds() -> None:
    node = Node(others=2)
    ping = node.run_to_ping()
    started_ms = node.now_ms
    victim = int(ping.packet.body.target[1:])  # type: ignore[union-attr]
    other = 1 - victim
    while node.state(victim) is not DEAD:
        node.now_ms = max(node.now_ms, node.core.next_deadline_ms())
        for _, packet in packets(node.feed(Tick()), Ping):
            assert isinstance(packet.body, Ping)
            if packet.body.target == name(other):
                node.hear(other, Ack(packet.body.seq, name(other)))
        for _, packet in packets(node.out[-3:], PingRequest):
            assert isinstance(packet.body, PingRequest)
            node.hear(other, Nack(packet.body.seq))
    assert node.now_ms - started_ms == pytest.approx(500.0 + 2000.0)
    assert node.changes(victim) == [Change.SUSPECT, Change.DEAD]


# -- probing for others


def test_a_request_is_served_and_answered_by_ack_or_nack() -> None:
    node = Node(others=3)
    sent = node.hear(0, PingRequest(77, name(1), addr(1)))
    (to, ping), *_ = packets(sent, Ping)
    assert to == addr(1)
    answer = node.hear(1, Ack(ping.body.seq, name(1)))  # type: ignore[union-attr]
    assert packets(answer, Ack) == [(addr(0), Packet(ME, BootId(3), Ack(77, name(1)), ClusterState()))]
    node.hear(0, PingRequest(78, name(2), addr(2)))
    assert [packet.body for _, packet in packets(node.run(201.0), Nack)] == [Nack(78)]


def test_a_node_answers_only_pings_meant_for_it() -> None:
    node = Node()
    assert [packet.body for _, packet in packets(node.hear(0, Ping(1, ME)), Ack)] == [Ack(1, ME)]
    assert packets(node.hear(0, Ping(2, NodeId("who lived here before"))), Ack) == []
    assert node.core.stats.packets_misaddressed == 1


def test_only_so_many_requests_are_served_at_once() -> None:
    node = Node(config=SwimConfig(relays_max=2))
    for seq in range(4):
        node.hear(0, PingRequest(seq, name(1), addr(1)))
    assert node.core.stats.indirect_requests_served == 2
    assert node.core.stats.indirect_requests_refused == 2


# -- local health


def fail_one_probe(node: Node, nacks: int) -> None:
    body = node.run_to_ping().packet.body
    assert isinstance(body, Ping)
    score = node.core.health_score
    requests = packets(node.run(250.0 * (score + 1)), PingRequest)
    for _, packet in requests[:nacks]:
        helper = next(int(to.host.rsplit(".", 1)[1]) for to, p in requests if p is packet)
        node.hear(helper, Nack(body.seq))
    failed = node.core.stats.probes_failed
    while node.core.stats.probes_failed == failed:
        node.now_ms = max(node.now_ms, node.core.next_deadline_ms())
        node.feed(Tick())


@pytest.mark.parametrize(("nacks", "score"), [(3, 0), (2, 1), (0, 3)])
def test_missing_nacks_make_a_node_doubt_itself(nacks: int, score: int) -> None:
    node = Node(others=8)
    fail_one_probe(node, nacks)
    assert node.core.health_score == score
    assert node.core.stats.nacks_missed == 3 - nacks


def test_with_nobody_to_ask_a_failed_probe_may_be_our_own_fault() -> None:
    node = Node(others=1)
    fail_one_probe(node, 0)
    assert node.core.health_score == 1


def test_an_unhealthy_node_probes_slower_and_recovers_with_acks() -> None:
    node = Node(others=8)
    fail_one_probe(node, 0)
    slowest = node.core.health_score
    starts: list[tuple[float, int]] = []
    while node.core.health_score > 0 or len(starts) < 3:
        score = node.core.health_score
        body = node.run_to_ping().packet.body
        assert isinstance(body, Ping)
        starts.append((node.now_ms, node.core.health_score))
        node.hear(int(body.target[1:]), Ack(body.seq, body.target))
        assert node.core.health_score <= max(0, score + 3)
    assert slowest == 3
    for (start_ms, score), (next_ms, _) in itertools.pairwise(starts):
        assert next_ms - start_ms == pytest.approx(500.0 * (score + 1))
    assert starts[0][1] > 0


def test_health_stays_within_its_bounds() -> None:
    node = Node(others=20)
    for _ in range(6):
        fail_one_probe(node, 0)
    assert node.core.health_score == 8
    plain = Node(others=20, config=SwimConfig(features=Feature.SWIM))
    fail_one_probe(plain, 0)
    assert plain.core.health_score == 0


def test_event_loop_lag_costs_health_and_is_not_counted_against_others() -> None:
    node = Node(others=2)
    body = node.run_to_ping().packet.body
    assert isinstance(body, Ping)
    node.now_ms += 5000.0
    node.feed(LoopLag(4990.0))
    node.feed(Tick())
    assert node.core.stats.probes_failed == 0
    node.hear(int(body.target[1:]), Ack(body.seq, body.target))
    assert node.core.stats.probes_acked == 1
    assert node.core.health_score > 0


def test_a_suspicion_does_not_run_out_while_our_loop_stands_still() -> None:
    node = Node(others=2)
    node.hear(0, Gossip(), claim(1, SUSPECT))
    node.now_ms += 60_000.0
    node.feed(LoopLag(60_000.0))
    node.run(1_900.0)
    assert node.state(1) is SUSPECT
    node.hear(1, Gossip(), claim(1, ALIVE, incarnation=1))
    assert node.state(1) is ALIVE


# -- claims about others


def test_a_confirmation_from_another_shortens_the_wait_and_is_told_on() -> None:
    node = Node(others=9)
    node.hear(0, Gossip(), claim(1, SUSPECT, origin=0))
    node.run(3000.0)
    assert node.state(1) is SUSPECT
    node.hear(2, Gossip(), claim(1, SUSPECT, origin=2))
    node.hear(3, Gossip(), claim(1, SUSPECT, origin=3))
    node.run(501.0)
    assert node.state(1) is DEAD
    assert node.core.stats.suspicions_confirmed >= 2


def test_a_reported_death_is_doubted_and_can_still_be_refuted() -> None:
    node = Node(others=5)
    node.hear(0, Gossip(), claim(1, DEAD))
    assert node.state(1) is SUSPECT
    assert node.core.stats.deaths_doubted == 1
    node.run(1900.0)
    assert node.state(1) is SUSPECT
    node.hear(1, Gossip(), claim(1, ALIVE, incarnation=1))
    assert node.state(1) is ALIVE
    assert node.changes(1) == [Change.SUSPECT, Change.ALIVE]


def test_a_reported_death_that_nobody_refutes_is_believed_after_the_shortest_suspicion() -> None:
    node = Node(others=5)
    node.hear(0, Gossip(), claim(1, DEAD))
    node.run(2001.0)
    assert node.state(1) is DEAD


def test_a_reported_death_is_told_on_as_the_death_it_was() -> None:
    node = Node(others=5)
    told = node.hear(0, Gossip(), claim(1, DEAD, origin=0))
    assert claim(1, DEAD, origin=0) in [update for _, packet in packets(told, Gossip) for update in packet.updates]


def test_plain_swim_believes_a_reported_death() -> None:
    node = Node(others=5, config=SwimConfig(features=Feature.LIFEGUARD))
    node.hear(0, Gossip(), claim(1, DEAD))
    assert node.state(1) is DEAD


def test_the_dead_come_back_only_with_a_higher_incarnation() -> None:
    node = Node(others=5)
    node.hear(0, Gossip(), claim(1, DEAD))
    node.run(2001.0)
    node.hear(0, Gossip(), claim(1, ALIVE))
    assert node.state(1) is DEAD
    node.hear(0, Gossip(), claim(1, ALIVE, incarnation=1))
    assert node.state(1) is ALIVE
    assert node.changes(1)[-1] is Change.ALIVE


def test_a_suspect_is_asked_for_its_last_word_and_told_of_the_accusation() -> None:
    node = Node(others=2)
    node.hear(0, Gossip(), claim(1, SUSPECT))
    before = node.now_ms
    asked = []
    while node.core.stats.last_words_asked < 2:
        node.now_ms = max(node.now_ms, node.core.next_deadline_ms())
        count = node.core.stats.last_words_asked
        effects = node.feed(Tick())
        if node.core.stats.last_words_asked > count:
            asked += [packet for to, packet in packets(effects, Ping) if to == addr(1)]
    assert node.now_ms - before == pytest.approx(1750.0)
    assert len(asked) >= 2
    assert all(packet.updates[0].node == name(1) and packet.updates[0].state is SUSPECT for packet in asked)


def test_what_we_hold_against_a_member_is_the_first_thing_it_hears() -> None:
    node = Node(others=6)
    node.hear(0, Gossip(), claim(1, SUSPECT), claim(2, SUSPECT), claim(3, SUSPECT))
    (_, answer), *_ = packets(node.hear(1, Ping(5, ME)), Ack)
    assert (answer.updates[0].node, answer.updates[0].state) == (name(1), SUSPECT)
    assert [update.node for update in answer.updates].count(name(1)) == 1


def test_a_dead_member_that_speaks_is_told_that_it_is_dead() -> None:
    node = Node(others=3)
    node.hear(0, Gossip(), claim(1, DEAD))
    node.run(2001.0)
    (to, answer), *_ = packets(node.hear(1, Gossip()), Gossip)
    assert to == addr(1)
    assert (answer.updates[0].node, answer.updates[0].state) == (name(1), DEAD)


def test_a_leave_is_believed_at_once_and_not_probed_any_more() -> None:
    node = Node(others=2)
    node.hear(1, Gossip(), claim(1, LEFT, origin=1))
    assert node.state(1) is LEFT
    assert node.changes(1) == [Change.LEFT]
    later = node.run(5000.0)
    assert {packet.body.target for _, packet in packets(later, Ping)} == {name(0)}  # type: ignore[union-attr]


def test_graves_are_forgotten_after_their_time() -> None:
    node = Node(others=3, config=SwimConfig(reap_ms=20_000.0))
    node.hear(1, Gossip(), claim(1, LEFT, origin=1))
    node.run(19_000.0)
    assert node.state(1) is LEFT
    node.run(1_100.0)
    assert node.state(1) is None
    assert node.changes(1) == [Change.LEFT, Change.REAPED]
    assert name(1) not in node.core.heard_ms


def test_a_new_life_at_a_new_address_is_the_same_member() -> None:
    node = Node(others=2)
    moved = Update(name(1), BootId(2), 0, ALIVE, name(1), Address("10.9.9.9", 1), {"zone": "b"})
    node.hear(0, Gossip(), moved)
    member = node.core.member(name(1))
    assert member is not None
    assert (member.boot, member.addr, member.meta) == (2, Address("10.9.9.9", 1), {"zone": "b"})
    assert node.changes(1) == [Change.UPDATED]
    assert node.core.size == 3


def test_metadata_over_its_bound_is_refused() -> None:
    node = Node(others=1)
    big = Update(name(7), BootId(1), 0, ALIVE, name(7), addr(7), {"k": "v" * 300})
    node.hear(0, Gossip(), big)
    assert node.state(7) is None
    assert node.core.stats.updates_refused == 1


def test_no_more_members_are_remembered_than_the_table_holds() -> None:
    node = Node(others=2, config=SwimConfig(members_max=3))
    node.hear(0, Gossip(), claim(7, ALIVE), claim(8, ALIVE))
    assert (node.state(7), node.state(8)) == (ALIVE, None)
    assert node.core.stats.updates_refused == 1
    node.feed(SyncReceived(sync(9)))
    assert node.state(9) is None
    assert name(9) not in node.core.heard_ms
    node.hear(0, Gossip(), claim(7, SUSPECT))
    assert node.state(7) is SUSPECT


# -- claims about ourselves


@pytest.mark.parametrize("state", [SUSPECT, DEAD, LEFT])
@pytest.mark.parametrize("accused", [0, 4])
def test_an_accusation_is_refuted_one_above_whatever_was_claimed(state: NodeState, accused: int) -> None:
    node = Node(others=3)
    effects = node.hear(0, Gossip(), about_me(state, incarnation=accused))
    assert node.core.me.state is ALIVE
    assert node.core.me.incarnation == accused + 1
    assert node.core.health_score == 1
    answers = [packet.updates[0] for to, packet in packets(effects, Gossip) if to == addr(0)]
    assert answers[0].node == ME and answers[0].incarnation == accused + 1


def test_the_refutation_rides_on_the_ack_to_the_accusing_ping() -> None:
    node = Node(others=3)
    (_, ack), *_ = packets(node.hear(0, Ping(9, ME), about_me(SUSPECT)), Ack)
    assert next((u.node, u.state, u.incarnation) for u in ack.updates) == (ME, ALIVE, 1)


def test_an_old_accusation_is_answered_without_a_new_incarnation() -> None:
    node = Node(others=3)
    node.hear(0, Gossip(), about_me(SUSPECT, incarnation=4))
    node.run(5000.0)
    effects = node.hear(1, Gossip(), about_me(SUSPECT, incarnation=4))
    assert node.core.me.incarnation == 5
    assert any(to == addr(1) and packet.updates[0].incarnation == 5 for to, packet in packets(effects, Gossip))
    assert node.core.stats.reassertions == 1


def test_the_announcement_of_a_later_boot_supersedes_us() -> None:
    node = Node(others=2)
    effects = node.hear(0, Gossip(), Update(ME, BootId(4), 0, ALIVE, name(0), addr(9), {}))
    assert of(effects, Conflict) == [Conflict(ME, BootId(4), addr(9), True)]
    assert node.core.me.incarnation == 0


def test_a_twin_with_our_identity_is_reported_once_in_a_while_and_not_fought() -> None:
    node = Node(others=2)
    twin = Update(ME, BootId(3), 0, ALIVE, name(0), addr(9), {})
    assert len(of(node.hear(0, Gossip(), twin), Conflict)) == 1
    assert of(node.hear(0, Gossip(), twin), Conflict) == []
    assert node.core.me.incarnation == 0
    assert node.core.stats.conflicts == 2
    node.run(10_001.0)
    assert len(of(node.hear(0, Gossip(), twin), Conflict)) == 1


def test_two_others_with_one_identity_are_reported_and_the_first_is_kept() -> None:
    node = Node(others=2)
    effects = node.hear(0, Gossip(), Update(name(1), BootId(1), 0, ALIVE, name(1), addr(9), {}))
    assert of(effects, Conflict) == [Conflict(name(1), BootId(1), addr(9), False)]
    member = node.core.member(name(1))
    assert member is not None and member.addr == addr(1)


def test_whoever_moved_into_the_address_of_a_dead_member_does_not_take_itself_for_a_twin() -> None:
    node = Node(others=2)
    node.hear(0, Gossip(), Update(name(7), BootId(1), 0, ALIVE, name(7), MY_ADDR, {}))
    assert node.state(7) is ALIVE
    effects = node.run(20_000.0)
    assert node.state(7) is DEAD
    assert MY_ADDR not in [effect.addr for effect in of(effects, SendPacket)]
    echo = Packet(ME, BootId(3), Gossip(), ClusterState())
    assert of(node.feed(PacketReceived(MY_ADDR, echo)), Conflict) == []
    assert of(node.feed(PacketReceived(addr(9), echo)), Conflict) == [Conflict(ME, BootId(3), addr(9), True)]


def test_a_packet_from_an_earlier_life_changes_nothing_and_is_told_so() -> None:
    node = Node(others=2)
    node.hear(0, Gossip(), Update(name(1), BootId(5), 0, ALIVE, name(1), addr(9), {}))
    effects = node.hear(1, Gossip(), claim(0, DEAD), boot=1)
    assert node.state(0) is ALIVE
    (to, packet), *_ = packets(effects, Gossip)
    assert to == addr(1)
    assert [(u.node, u.boot) for u in packet.updates] == [(name(1), 5)]


def test_new_metadata_raises_the_incarnation_and_is_told() -> None:
    node = Node(others=2)
    effects = node.feed(UpdateMeta({"zone": "b"}))
    assert node.core.me.incarnation == 1
    told = [update for _, packet in packets(effects, Gossip) for update in packet.updates]
    assert told and all(update.meta == {"zone": "b"} for update in told)
    with pytest.raises(ValueError, match="256"):
        node.feed(UpdateMeta({"k": "v" * 300}))


# -- cluster state


def test_the_newest_cluster_state_rides_on_every_packet() -> None:
    node = Node(others=2)
    assert len(packets(node.feed(PublishState(ClusterState(2, 5))), Gossip)) == 2
    assert node.hear(0, Ping(1, ME), cluster=ClusterState(1, 99))[0].packet.cluster == ClusterState(2, 5)  # type: ignore[union-attr]
    effects = node.hear(0, Ping(2, ME), cluster=ClusterState(3, 0))
    assert of(effects, StateAdvanced) == [StateAdvanced(ClusterState(3, 0), name(0))]
    assert node.core.cluster_state == ClusterState(3, 0)
    node.feed(PublishState(ClusterState(2, 6)))
    assert node.core.cluster_state == ClusterState(3, 0)


# -- full state


def sync(sender: int, *members: Update, cluster: ClusterState | None = None) -> Sync:
    return Sync(name(sender), BootId(1), cluster or ClusterState(), (claim(sender, ALIVE, origin=sender), *members))


def test_seeds_are_dialled_at_once_and_until_one_answers() -> None:
    node = Node(others=0, seeds=(addr(0),))
    assert of(node.feed(Tick()), PushPull) == [PushPull(addr(0))]
    node.feed(PushPullResult(addr(0), None))
    assert of(node.run(1000.0), PushPull) == [PushPull(addr(0))]
    node.feed(PushPullResult(addr(0), sync(0, claim(1, ALIVE), cluster=ClusterState(1, 1))))
    assert node.core.size == 3
    assert node.core.cluster_state == ClusterState(1, 1)
    assert node.changes(1) == [Change.JOINED]
    redials = node.core.stats.redials
    node.run(2_000.0)
    assert node.core.stats.redials == redials


def test_a_newcomer_does_not_tell_the_others_what_they_know() -> None:
    node = Node(others=0, seeds=(addr(0),))
    effects = node.feed(PushPullResult(addr(0), sync(0, claim(1, ALIVE), claim(2, ALIVE))))
    told = {update.node for _, packet in packets(effects, Gossip) for update in packet.updates}
    assert told <= {ME, name(0)}


def test_a_settled_node_tells_the_others_of_a_newcomer() -> None:
    node = Node(others=3)
    effects = node.feed(SyncReceived(sync(9)))
    told = {update.node for _, packet in packets(effects, Gossip) for update in packet.updates}
    assert told == {name(9)}


def test_the_dead_of_another_partition_are_doubted_and_the_unknown_dead_are_only_remembered() -> None:
    node = Node(others=3)
    dead = msgspec.structs.replace(claim(1, DEAD), addr=addr(1), meta={})
    unknown = msgspec.structs.replace(claim(8, DEAD), addr=addr(8), meta={})
    node.feed(SyncReceived(sync(0, dead, unknown)))
    assert node.state(1) is SUSPECT
    assert node.state(8) is DEAD
    assert node.changes(8) == []


def test_a_stranger_leads_to_an_exchange_of_state_but_not_to_a_storm() -> None:
    node = Node(others=1)
    assert of(node.hear(7, Ping(1, ME)), PushPull) == [PushPull(addr(7))]
    assert of(node.hear(7, Ping(2, ME)), PushPull) == []
    node.now_ms += 1001.0
    assert of(node.hear(7, Ping(3, ME)), PushPull) == [PushPull(addr(7))]


def test_state_is_exchanged_with_somebody_every_half_minute_or_so() -> None:
    node = Node(others=2)
    for index in (0, 1):
        node.hear(index, Gossip())
    dials = 0
    while node.now_ms < 300_000.0:
        node.now_ms = max(node.now_ms, node.core.next_deadline_ms())
        for effect in node.feed(Tick()):
            if isinstance(effect, PushPull):
                dials += 1
                node.feed(PushPullResult(effect.addr, None))
            elif isinstance(effect, SendPacket) and isinstance(effect.packet.body, Ping):
                body = effect.packet.body
                node.hear(int(body.target[1:]), Ack(body.seq, body.target))
    assert 6 <= dials <= 20
    assert node.core.stats.push_pulls_failed == dials


# -- leaving


def test_a_leave_is_told_to_the_limit_and_then_complete() -> None:
    node = Node(others=2)
    node.run(100.0)
    effects = node.feed(Leave()) + node.run(1000.0)
    told = [update for _, packet in packets(effects, Gossip) for update in packet.updates if update.node == ME]
    assert len(told) == node.core._config.retransmit_limit(3)
    assert {update.state for update in told} == {LEFT}
    assert len(of(effects, LeaveComplete)) == 1
    assert packets(node.run(5000.0), Ping) == []


def test_whoever_leaves_still_answers_but_does_not_fight_the_news_of_its_end() -> None:
    node = Node(others=2)
    node.feed(Leave())
    assert len(packets(node.hear(0, Ping(1, ME)), Ack)) == 1
    node.hear(0, Gossip(), about_me(DEAD, incarnation=0))
    assert node.core.me.state is LEFT
    assert node.core.me.incarnation == 0


def test_leaving_alone_is_complete_at_once() -> None:
    node = Node(others=0)
    assert of(node.feed(Leave()), LeaveComplete) == [LeaveComplete()]
    assert node.core.next_deadline_ms() == math.inf


def test_a_leave_that_nobody_takes_ends_by_time() -> None:
    node = Node(others=1, config=SwimConfig(retransmit_multiplier=1000))
    node.feed(Leave())
    assert len(of(node.run(3001.0), LeaveComplete)) == 1


# -- bounds


@pytest.mark.parametrize(
    "change",
    [
        {"node": NodeId("")},
        {"node": NodeId("x" * 65)},
        {"addr": Address("h" * 65, 1)},
        {"meta": {"k": "v" * 300}},
    ],
    ids=str,
)
def test_identities_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {"node": ME, "addr": MY_ADDR, "meta": {}}
    with pytest.raises(ValueError):
        Swim(SwimConfig(), boot=BootId(1), seeds=(), rng=Random(1), now_ms=0.0, **{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"probe_timeout_ms": 500.0}, {"redial_max_ms": 1.0}, {"gossip_interval_ms": 0.0}, {"suspicion_multiplier": 0}],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        SwimConfig(**change)  # type: ignore[arg-type]
