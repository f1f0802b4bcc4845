"""Writes that a replica missed reach it, and hints never bring back what was deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dakera_cluster.cluster.hintlog import APPLY
from dakera_cluster.cluster.repair_wire import REFRESH
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Kind, Row, put_document
from dakera_cluster.model.shardmap import Member, MemberState, ShardState
from dakera_cluster.protocols.hints import HintsConfig
from dakera_cluster.protocols.transfer import Holding, Mode, Stage
from dakera_cluster.shard import keys
from tests.support.replicas import NAMESPACE, World, until

MakeWorld = Callable[..., World]
A, C = NodeId("a"), NodeId("c")


@pytest.fixture
async def worlds(tmp_path: Path) -> AsyncIterator[MakeWorld]:
    made: list[World] = []

    def make(**settings: object) -> World:
        made.append(World(tmp_path / f"world{len(made)}", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for world in made:
        await world.close()


@pytest.fixture
async def world(worlds: MakeWorld) -> World:
    return await worlds().born("a", "b", "c")


def a_row(world: World, row_id: str, age_ms: int = 0) -> Row:
    stamp = Stamp((world.now_ms() - age_ms) << 16, 7)
    return Row(NAMESPACE, Kind.DOCUMENT, row_id, put_document(stamp, {"text": row_id}))


async def test_what_a_node_missed_is_delivered_when_it_is_back(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m0")
    world.isolate("c")
    for number in range(20):
        await world["a"].put(f"m{number}")
    await world["a"].replicator.close()
    assert not world["c"].alive_ids(shard)
    assert world["a"].hints.waiting(C) == 20
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0)
    assert world.agree(shard)
    assert world["c"].alive_ids(shard) == {f"m{number}" for number in range(20)}


async def test_hints_outlive_the_coordinator(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    await world.restart("a")
    assert world["a"].hints.waiting(C) == 1
    world.heal()
    await until(lambda: "m" in world["c"].alive_ids(shard))
    await until(lambda: not list(world["a"].store.scan(keys.HINTS)))
    assert world["a"].hints.waiting(C) == 0


async def test_a_hint_is_on_the_disk_when_add_returns(world: World) -> None:
    world.isolate("c")
    before = world["a"].store.stats().syncs
    await world["a"].hints.add(C, ShardId(0), [a_row(world, "m")])
    assert len(list(world["a"].store.scan(keys.HINTS))) == 2
    assert world["a"].store.stats().syncs > before


async def test_a_delivery_whose_answer_is_lost_is_repeated_and_changes_nothing(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    lost = 0

    def lose(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        nonlocal lost
        if method == APPLY and lost < 2:
            lost += 1
            raise ServiceUnavailableError("the answer was lost")

    world.wire.after = lose
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0)
    assert lost == 2
    assert world.agree(shard)
    assert world["c"].host.replica(shard).sequence == 1, "a repeated delivery is not a change"


async def test_a_hint_that_is_too_old_is_not_applied_but_the_replica_is_repaired(worlds: MakeWorld) -> None:
    week_ms = 7 * 86_400_000
    world = await worlds(hints=HintsConfig(max_age_ms=float(2 * week_ms), retry_ms=20.0)).born("a", "b", "c")
    shard = world["a"].shard_for(NAMESPACE, "old")
    await world["b"].put("repaired")
    await world["b"].replicator.close()
    await world["c"].host.wipe(shard)
    world.isolate("c")
    await world["a"].hints.add(C, shard, [a_row(world, "old", age_ms=week_ms)])
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0 and not world["a"].hints.marks)
    assert world["c"].alive_ids(shard) == {"repaired"}
    await until(lambda: not list(world["a"].store.scan(keys.HINTS)))


async def test_hints_that_outgrow_their_bound_become_a_mark_that_ends_in_a_repair(worlds: MakeWorld) -> None:
    world = await worlds(hints=HintsConfig(target_max_bytes=2_000, retry_ms=20.0)).born("a", "b", "c")
    shard = world["a"].shard_for(NAMESPACE, "m0")
    world.isolate("c")
    for number in range(30):
        await world["a"].put(f"m{number}", text="x" * 200)
    await world["a"].replicator.close()
    assert world["a"].hints.marks == {(C, shard)}
    assert world["a"].hints.total_bytes <= 2_000
    await world.restart("a")
    assert world["a"].hints.marks == {(C, shard)}
    world.heal()
    await until(lambda: not world["a"].hints.marks)
    assert world.agree(shard)
    assert len(world["c"].alive_ids(shard)) == 30


async def test_a_mark_stays_when_another_write_is_missed_during_the_repair(worlds: MakeWorld) -> None:
    world = await worlds(hints=HintsConfig(target_max_bytes=10, retry_ms=20.0)).born("a", "b", "c")
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    assert world["a"].hints.marks == {(C, shard)}
    refreshes = 0

    async def miss_another() -> None:
        await world["a"].hints.add(C, shard, [a_row(world, "n")])

    def during(source: NodeId, target: NodeId, method: str, payload: bytes) -> object:
        nonlocal refreshes
        if method != REFRESH:
            return None
        refreshes += 1
        return miss_another() if refreshes == 1 else None

    world.wire.after = during  # type: ignore[assignment]
    world.heal()
    await until(lambda: not world["a"].hints.marks)
    assert refreshes == 2


async def test_a_node_that_holds_the_shard_no_more_is_owed_nothing(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    state = world["a"].maps.state(shard)
    await world.change({shard: ShardState(state.version + 1, (NodeId("a"), NodeId("b")))})
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0)
    await world.settled()
    assert not world["c"].residue(shard)


async def test_a_removed_member_is_forgotten(world: World) -> None:
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    assert world.map is not None
    members = tuple(
        Member(m.node, m.disk, m.zone, MemberState.REMOVED if m.node == "c" else m.state) for m in world.map.members
    )
    await world.publish(world.map.replace(epoch=1, members=members))
    assert world["a"].hints.waiting(C) == 0
    await until(lambda: not list(world["a"].store.scan(keys.HINTS)))


async def test_a_disk_that_refuses_a_hint_does_not_fail_the_write_and_the_hint_is_still_delivered(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    commit = world["a"].store.commit

    async def refuse(*args: object, **kwargs: object) -> object:
        raise ServiceUnavailableError("the disk is behind")

    world["a"].store.commit = refuse  # type: ignore[method-assign]
    await world["a"].hints.add(C, shard, [a_row(world, "m")])
    world["a"].store.commit = commit  # type: ignore[method-assign]
    assert world["a"].hints.stats.lost_by_disk == 1
    world.heal()
    await until(lambda: "m" in world["c"].alive_ids(shard))


async def test_rows_that_are_gone_from_the_disk_leave_a_mark(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    await world["a"].replicator.close()
    await world["a"].store.delete_range(keys.HINTS, b"r", b"s")
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0 and not world["a"].hints.marks)
    assert world.agree(shard)


async def test_a_replica_that_is_being_wiped_takes_the_hint_later(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    complete = world["c"].holdings.get(shard)
    assert complete is not None
    await world["c"].holdings.put(Holding(shard, 1, Mode.REHYDRATE, Stage.WIPING))
    await world["a"].hints.add(C, shard, [a_row(world, "m")])
    await until(lambda: world["a"].hints.stats.delivered == 0 and (A, C, APPLY) in world.wire.calls)
    assert world["a"].hints.waiting(C) == 1 and not world["c"].rows(shard)
    await world["c"].holdings.put(complete)
    await until(lambda: world["a"].hints.waiting(C) == 0)
    assert world["c"].alive_ids(shard) == {"m"}


async def test_a_stamp_from_a_broken_clock_is_not_taken(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m")
    await world["a"].hints.add(C, shard, [a_row(world, "m", age_ms=-3_600_000)])
    await until(lambda: world.wire.calls.count((A, C, APPLY)) >= 2)
    assert world["a"].hints.waiting(C) == 1 and not world["c"].rows(shard)


async def test_a_receiver_whose_map_is_older_does_not_call_the_shard_foreign(worlds: MakeWorld) -> None:
    world = await worlds(replication_factor=2).born("a", "b", "c")
    assert world.map is not None
    shard = next(ShardId(n) for n, state in enumerate(world.map.shards) if C not in state.replicas)
    newer = world.map.replace(epoch=1, shards={shard: ShardState(2, world.map.shards[shard].replicas, (C,))})
    await world["a"].maps.adopt(newer)
    await world["a"].hints.add(C, shard, [a_row(world, "m")])
    await until(lambda: (A, C, APPLY) in world.wire.calls)
    world.map = newer
    await until(lambda: "m" in world["c"].alive_ids(shard))
    assert world["a"].hints.stats.rejected == 0


async def test_large_hints_travel_in_bounded_messages(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m0")
    world.isolate("c")
    for number in range(6):
        await world["a"].put(f"m{number}", text="x" * (1 << 20))
    await world["a"].replicator.close()
    sizes: list[int] = []
    world.wire.before = lambda s, t, method, payload: sizes.append(len(payload)) if method == APPLY else None
    world.heal()
    await until(lambda: world["a"].hints.waiting(C) == 0)
    assert len(sizes) >= 2
    assert max(sizes) < 6 << 20
    assert world.agree(shard)
