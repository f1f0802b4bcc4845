"""Whole clusters in simulation: the same core, many of them, on a network that misbehaves by seed."""

from __future__ import annotations

import pytest

from chaos.sim.net import LinkProfile
from chaos.sim.swim_world import SwimWorld, address_of, count_changes
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import ALIVE, DEAD, LEFT, NodeState
from dakera_cluster.protocols.packets import ClusterState
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import (
    Change,
    Conflict,
    Effect,
    Leave,
    MemberEvent,
    PublishState,
    UpdateMeta,
)

CONFIG = SwimConfig()
LOSSY = LinkProfile(loss=0.2, duplicate=0.05, delay_max_ms=20.0)


def all_believe(world: SwimWorld, about: list[NodeId], state: NodeState, observers: list[NodeId] | None = None) -> bool:
    watching = [process.node for process in world.running()] if observers is None else observers
    return all(world.believes(observer, node) is state for observer in watching for node in about if observer != node)


def one_cluster(world: SwimWorld) -> bool:
    return all_believe(world, [process.node for process in world.running()], ALIVE)


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize("seed", range(4))
def test_a_crash_is_known_to_all_and_nobody_else_dies(n: int, seed: int) -> None:
    world = SwimWorld(CONFIG, seed=seed, encodes_packets=True)
    names = world.settle(n)
    deaths: dict[str, int] = {}
    count_changes(world, deaths, lambda _, event: event.member.node != names[0] and event.change is Change.DEAD)
    world.run_for(2_000)
    world.crash(names[0])
    assert world.run_until(lambda: all_believe(world, names[:1], DEAD), 10_000 if n < 10 else 20_000)
    assert deaths == {}


def test_at_three_nodes_a_kill_is_known_within_three_and_a_half_seconds_at_the_median() -> None:
    times = []
    for seed in range(60):
        world = SwimWorld(CONFIG, seed=seed)
        names = world.settle(3)
        world.run_for(2_000 + 17 * seed)
        world.crash(names[seed % 3])
        start_ms = world.now_ms
        assert world.run_until(lambda: all_believe(world, [names[seed % 3]], DEAD), 10_000, step_ms=10)  # noqa: B023
        times.append(world.now_ms - start_ms)
    times.sort()
    assert times[30] <= 3_500
    assert times[-1] <= 4_500


@pytest.mark.parametrize("seed", range(5))
def test_a_partition_splits_and_heals_without_help(seed: int) -> None:
    world = SwimWorld(CONFIG, seed=seed, profile=LOSSY)
    names = world.settle(7)
    world.run_for(1_000)
    left, right = names[:3], names[3:]
    world.net.partition([address_of(i) for i in range(3)], [address_of(i) for i in range(3, 7)])
    assert world.run_until(
        lambda: all_believe(world, right, DEAD, left) and all_believe(world, left, DEAD, right), 60_000
    )
    world.run_for(20_000)
    world.net.heal()
    assert world.run_until(lambda: one_cluster(world), 30_000)


def test_a_partition_longer_than_the_memory_of_the_dead_still_heals() -> None:
    world = SwimWorld(SwimConfig(reap_ms=20_000.0, gossip_to_dead_ms=5_000.0), seed=4)
    names = world.settle(6)
    world.net.partition([address_of(i) for i in range(3)])
    assert world.run_until(lambda: all(world.believes(names[0], name) is None for name in names[3:]), 120_000)
    world.run_for(60_000)
    world.net.heal()
    assert world.run_until(lambda: one_cluster(world), 60_000)


def test_a_node_that_hears_but_is_not_heard_does_not_split_the_others() -> None:
    world = SwimWorld(CONFIG, seed=2)
    names = world.settle(5)
    for index in range(1, 5):
        world.net.block(address_of(0), address_of(index))
    world.run_for(30_000)
    assert all_believe(world, names[1:], ALIVE, names[1:])
    assert all_believe(world, names[:1], DEAD, names[1:])
    world.net.heal()
    assert world.run_until(lambda: one_cluster(world), 30_000)


def test_a_broken_link_between_two_members_is_bridged_by_the_others() -> None:
    world = SwimWorld(CONFIG, seed=3)
    names = world.settle(4)
    counts: dict[str, int] = {}
    count_changes(world, counts, lambda _, event: True)
    world.net.block(address_of(0), address_of(1))
    world.net.block(address_of(1), address_of(0))
    world.run_for(60_000)
    assert counts == {}
    assert one_cluster(world)
    assert world.processes[names[0]].core.stats.probes_acked_indirectly > 5


def test_nodes_that_know_one_seed_become_one_cluster() -> None:
    world = SwimWorld(CONFIG, seed=5, profile=LOSSY, encodes_packets=True)
    world.start("n0", 0)
    for index in range(1, 12):
        world.run_for(50)
        world.start(f"n{index}", index, seeds=[0])
    assert world.run_until(lambda: all(process.core.size == 12 for process in world.running()), 20_000)


def test_a_seed_that_starts_last_is_found() -> None:
    world = SwimWorld(CONFIG, seed=6)
    for index in range(1, 5):
        world.start(f"n{index}", index, seeds=[0])
    world.run_for(60_000)
    assert [process.core.size for process in world.running()] == [1, 1, 1, 1]
    world.start("n0", 0, seeds=[1, 2])
    assert world.run_until(lambda: all(process.core.size == 5 for process in world.running()), 15_000)


def test_a_restart_with_a_new_address_is_the_same_member_and_dies_not_even_for_a_moment() -> None:
    world = SwimWorld(CONFIG, seed=7)
    names = world.settle(5)
    changes: list[Change] = []
    world.watchers.append(lambda _, __, e: changes.append(e.change) if isinstance(e, MemberEvent) else None)
    world.run_for(1_000)
    world.crash(names[2])
    world.run_for(200)
    world.start("n2", 77, boot=2, seeds=[0, 1])

    def known() -> bool:
        members = [process.core.member(names[2]) for process in world.running()]
        return all(member is not None and member.boot == 2 and member.addr == address_of(77) for member in members)

    assert world.run_until(known, 5_000)
    assert Change.DEAD not in changes
    world.run_for(10_000)
    assert one_cluster(world)


def test_a_foreign_process_on_the_address_of_a_dead_member_does_not_keep_it_alive() -> None:
    world = SwimWorld(CONFIG, seed=8)
    names = world.settle(4)
    world.crash(names[3])
    world.start("foreign", 3, seeds=[0])
    observers = names[:3]
    assert world.run_until(
        lambda: (
            all_believe(world, names[3:], DEAD, observers) and all_believe(world, [NodeId("foreign")], ALIVE, observers)
        ),
        20_000,
    )


def test_a_copied_disk_is_reported() -> None:
    world = SwimWorld(CONFIG, seed=9)
    world.settle(3)
    conflicts: list[Conflict] = []
    world.watchers.append(lambda _, __, e: conflicts.append(e) if isinstance(e, Conflict) else None)
    world.start("n2", 50, boot=1, seeds=[0])
    assert world.run_until(lambda: any(conflict.is_self for conflict in conflicts), 10_000)
    assert {conflict.node for conflict in conflicts} == {"n2"}


def test_a_leave_reaches_all_and_stays_a_leave() -> None:
    world = SwimWorld(CONFIG, seed=10, profile=LOSSY)
    names = world.settle(10)
    deaths: dict[str, int] = {}
    count_changes(world, deaths, lambda _, event: event.change is Change.DEAD)
    world.feed(world.processes[names[9]], Leave())
    assert world.run_until(lambda: world.processes[names[9]].left, 5_000)
    world.crash(names[9])
    assert world.run_until(lambda: all_believe(world, names[9:], LEFT), 40_000)
    world.run_for(20_000)
    assert deaths == {}


def test_metadata_and_cluster_state_reach_everybody_in_logarithmic_time() -> None:
    world = SwimWorld(CONFIG, seed=11)
    names = world.settle(200)
    world.run_for(1_000)
    world.feed(world.processes[names[0]], UpdateMeta({"zone": "b"}))
    world.feed(world.processes[names[1]], PublishState(ClusterState(4, 2)))

    def told() -> bool:
        return all(
            process.core.member(names[0]).meta == {"zone": "b"}  # type: ignore[union-attr]
            and process.core.cluster_state == ClusterState(4, 2)
            for process in world.running()
        )

    assert world.run_until(told, 3_000)


def test_a_stopped_process_takes_nobody_with_it_and_comes_back() -> None:
    world = SwimWorld(CONFIG, seed=12)
    names = world.settle(5)
    deaths: dict[str, int] = {}
    count_changes(world, deaths, lambda _, event: event.member.node != names[0] and event.change is Change.DEAD)
    for _ in range(4):
        world.pause(names[0])
        assert world.run_until(lambda: all_believe(world, names[:1], DEAD, names[1:]), 15_000)
        world.resume(names[0])
        assert world.run_until(lambda: one_cluster(world), 15_000)
    assert deaths == {}


def false_deaths(features: Feature, seed: int) -> int:
    """Deaths of healthy members while one member's loop turns take 0.2 to 4 s."""
    world = SwimWorld(SwimConfig(features=features), seed=seed)
    names = world.settle(5)
    counts: dict[str, int] = {}
    count_changes(world, counts, lambda _, event: event.member.node != names[0])

    def turn() -> None:
        world.resume(names[0])
        world.timeline.after(1.0, stall)

    def stall() -> None:
        world.pause(names[0])
        world.timeline.after(world.rng.uniform(200.0, 4_000.0), turn)

    stall()
    world.run_for(120_000)
    return counts.get("dead", 0)


def test_a_slow_member_kills_the_healthy_in_plain_swim_and_not_here() -> None:
    plain = sum(false_deaths(Feature.SWIM, seed) for seed in range(3))
    full = sum(false_deaths(Feature.FULL, seed) for seed in range(3))
    assert plain >= 5, "the baseline must show the fault, or the comparison shows nothing"
    assert full == 0


def test_messages_per_member_do_not_grow_with_the_cluster() -> None:
    rates = []
    for n in (5, 50, 400):
        world = SwimWorld(CONFIG, seed=13)
        world.settle(n)
        world.run_for(10 * CONFIG.probe_interval_ms)
        rates.append(world.packets_sent / n / 10)
    assert all(1.9 <= rate <= 2.1 for rate in rates)


def story(seed: int) -> tuple[str, list[str]]:
    world = SwimWorld(CONFIG, seed=seed, profile=LOSSY, encodes_packets=True)
    names = world.settle(6)
    events: list[str] = []

    def note(now_ms: float, who: NodeId, effect: Effect) -> None:
        events.append(f"{now_ms} {who} {effect}")

    world.watchers.append(note)
    world.run_for(3_000)
    world.crash(names[5])
    world.run_for(5_000)
    world.net.partition([address_of(0), address_of(1)])
    world.run_for(10_000)
    world.net.heal()
    world.start("n5", 9, boot=2, seeds=[0])
    world.run_for(10_000)
    return world.trace_digest(), events


def test_the_same_seed_gives_the_same_trace_byte_for_byte() -> None:
    assert story(1) == story(1)
    assert story(1)[0] != story(2)[0]
