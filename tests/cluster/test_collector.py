"""Tombstones are forgotten when, and only when, nobody can bring their rows back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.cluster.collector_wire import COLLECT, HOLD
from dakera_cluster.cluster.rounds import Round
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Kind, Row, delete_usage, is_tombstone, note_usage
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols.tombstones import GcState, TombstoneConfig
from dakera_cluster.protocols.transfer import Holding, Mode, Stage
from dakera_cluster.shard import keys
from tests.support.replicas import NAMESPACE, Replicant, World, until

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
SHARD = ShardId(0)
HOUR_MS = 3_600_000
CONFIG = TombstoneConfig(grace_ms=4.0 * HOUR_MS, quarantine_ms=1_000_000.0, batch_rows=50)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World(tmp_path, shards=1, tombstones=CONFIG).born("a", "b", "c")
    for number in range(10):
        await made["a"].put(f"m{number}")
    for number in range(4):
        await made["b"].delete(f"m{number}")
    for replicant in made.nodes:
        await replicant.replicator.close()
    await until(lambda: made.agree(0))
    made.shift_ms += 5 * HOUR_MS
    yield made
    await made.close()


def rows(world: World, name: str) -> int:
    return len(world[name].rows(0))


async def quarantine(world: World, name: str = "a") -> None:
    """A round begins, and everybody confirms."""
    await world[name].collection.look()
    assert world[name].collection.running == {SHARD: GcState.CONFIRMING}
    await until(lambda: world[name].collection.running == {SHARD: GcState.QUARANTINE})


async def test_old_tombstones_are_dropped_everywhere_after_the_quarantine(world: World) -> None:
    await quarantine(world)
    assert all(world[name].rounds.get(SHARD) == Round(1, 0) for name in "abc")
    world.shift_ms += 999_000
    world["a"].collection.tick()
    assert rows(world, "a") == 10, "not before the quarantine is over"
    world.shift_ms += 2_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 6 for name in "abc"))
    assert world.agree(0)
    assert all(world[name].rounds.get(SHARD) == Round(1, 1) for name in "abc")
    assert world["a"].collection.stats.dropped == 4 and world["a"].collection.stats.collected == 1
    assert world["a"].alive_ids(0) == {f"m{number}" for number in range(4, 10)}
    await world["a"].collection.look()
    assert not world["a"].collection.running, "nothing is left to collect"
    assert all(_sums(world[name]) for name in "abc")


def _sums(replicant: Replicant) -> bool:
    """Are the books what one would write down from the rows alone?"""
    replica = replicant.host.replica(0)
    graves = {
        keys.local_of_grave_key(key)
        for family, key in replicant.residue(0)
        if family == keys.META and key.startswith(b"G")
    }
    terms = {bucket: replica.terms(bucket) for bucket in range(256)}
    digests = {bucket: sum(found.values()) % (1 << 64) for bucket, found in terms.items() if found}
    told = {bucket: value for bucket, value in replica.digests().items() if value}
    counts = replica.counts(NAMESPACE)
    page = replica.page(b"", most_rows=1_000, most_bytes=1 << 30)
    dead = {local for local, body in page if is_tombstone(keys.split_local(local)[1], body)}
    return (
        graves == dead
        and digests == told
        and replica.root() == sum(told.values()) % (1 << 64)
        and counts.bytes == sum(len(body) for _, body in page)
        and sum(len(found) for found in terms.values()) == len(page)
    )


async def test_young_tombstones_are_left_alone(world: World) -> None:
    world.shift_ms -= 2 * HOUR_MS
    await world["a"].collection.look()
    assert not world["a"].collection.running


async def test_one_replica_at_a_time_begins_and_it_is_the_first_that_lives(world: World) -> None:
    first, second = (str(node) for node in world["a"].maps.state(SHARD).replicas[:2])
    await world[second].collection.look()
    assert not world[second].collection.running
    await world.stop(first)
    await world[second].collection.look()
    assert world[second].collection.running
    await until(lambda: not world[second].collection.running)
    assert world[second].collection.stats.abandoned == 1, "the one that is away confirms nothing"
    assert all(rows(world, name) == 10 for name in world.wire.nodes)


async def test_a_replica_that_fetches_its_rows_confirms_nothing(world: World) -> None:
    await world["c"].holdings.put(Holding(SHARD, 1, Mode.REHYDRATE, Stage.STREAMING))
    await world["a"].collection.look()
    await until(lambda: not world["a"].collection.running)
    assert world["a"].collection.stats.abandoned == 1
    assert world["c"].rounds.get(SHARD) == Round()


async def test_a_replica_that_missed_the_delete_has_it_before_anything_is_forgotten(world: World) -> None:
    await world["c"].host.wipe(0)
    dead = next(body for local, body in world["a"].rows(0).items() if local.endswith(b"m0"))
    await quarantine(world)
    assert dead in world["c"].rows(0).values()


async def test_a_row_that_was_written_again_meanwhile_is_not_dropped(world: World) -> None:
    await quarantine(world)
    await world["b"].put("m1")
    await until(lambda: all("m1" in world[name].alive_ids(0) for name in "abc"))
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 7 for name in "abc"))
    assert all("m1" in world[name].alive_ids(0) for name in "abc")
    assert all(_sums(world[name]) for name in "abc")


async def test_a_map_that_changes_in_the_quarantine_ends_the_round(world: World) -> None:
    await quarantine(world)
    await world.change({0: ShardState(2, world["a"].maps.state(SHARD).replicas)})
    assert not world["a"].collection.running
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    assert all(rows(world, name) == 10 for name in "abc")


async def test_a_late_order_to_collect_is_refused_under_another_version_or_round(world: World) -> None:
    late: list[bytes] = []
    world.wire.before = lambda s, t, method, payload: late.append(payload) if method == COLLECT else None
    await quarantine(world)
    world.wire.cut.add(frozenset((A, C)))
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: rows(world, "a") == 6 and rows(world, "b") == 6)
    assert rows(world, "c") == 10 and late
    await world["c"].rounds.confirm(SHARD, 2)
    await world["c"].handlers[COLLECT](late[0], None)
    assert rows(world, "c") == 10, "an earlier round than the last one confirmed"
    await world.change({0: ShardState(2, world["a"].maps.state(SHARD).replicas)})
    with pytest.raises(ServiceUnavailableError):
        await world["c"].handlers[COLLECT](late[0], None)


async def test_a_lost_order_to_collect_is_given_again(world: World) -> None:
    await quarantine(world)
    lost = 0

    def lose(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        nonlocal lost
        if method == COLLECT and lost < 2:
            lost += 1
            raise ServiceUnavailableError("lost")

    world.wire.before = lose
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 6 for name in "abc"))
    assert lost == 2


async def test_a_lost_answer_to_a_confirmation_ends_the_round_and_the_next_has_a_higher_number(world: World) -> None:
    def lose(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method == HOLD and target == C:
            raise ServiceUnavailableError("lost")

    world.wire.after = lose
    await world["a"].collection.look()
    await until(lambda: not world["a"].collection.running)
    world.wire.after = None
    assert world["c"].rounds.get(SHARD) == Round(1, 0)
    await quarantine(world)
    assert all(world[name].rounds.get(SHARD) == Round(2, 0) for name in "abc")


async def test_a_new_collector_learns_the_number_of_rounds_it_did_not_see(world: World) -> None:
    await world["c"].rounds.confirm(SHARD, 7)
    await world["a"].collection.look()
    await until(lambda: not world["a"].collection.running)
    assert world["c"].rounds.get(SHARD) == Round(7, 0)
    await quarantine(world)
    assert world["c"].rounds.get(SHARD) == Round(8, 0)


async def test_numbers_survive_a_restart(world: World) -> None:
    await quarantine(world)
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 6 for name in "abc"))
    await world.restart("b")
    assert world["b"].rounds.get(SHARD) == Round(1, 1)


async def test_a_round_is_bounded(world: World) -> None:
    for number in range(100):
        await world["a"].put(f"n{number}")
        await world["a"].delete(f"n{number}")
    await world["a"].replicator.close()
    world.shift_ms += 5 * HOUR_MS
    await quarantine(world)
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 60 for name in "abc"))


async def test_usage_of_deleted_memories_is_collected_too(world: World) -> None:
    stamp = world["a"].clock.tick(world.now_ms())
    used = Row(NAMESPACE, Kind.USAGE, "m0", note_usage(1, 5, stamp))
    gone = Row(NAMESPACE, Kind.USAGE, "m0", delete_usage(world["a"].clock.tick(world.now_ms())))
    for replicant in world.nodes:
        await replicant.host.merge(0, [used])
        await replicant.host.merge(0, [gone])
    world.shift_ms += 5 * HOUR_MS
    await quarantine(world)
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 6 for name in "abc"))
    assert all(_sums(world[name]) for name in "abc")


async def test_the_whole_way_of_a_delete_whose_replica_was_away_too_long(world: World) -> None:
    """c is away with m5 alive; m5 is deleted, and forgotten by a set without c; c comes back with its old rows."""
    await world.change({0: ShardState(2, (A, B, C), (), (C,))})
    await world.change({0: ShardState(3, (A, B))})
    await until(lambda: not world["c"].residue(0))
    await world["a"].delete("m5")
    await world["a"].replicator.close()
    world.shift_ms += 5 * HOUR_MS
    await quarantine(world)
    world.shift_ms += 1_001_000
    world["a"].collection.tick()
    await until(lambda: all(rows(world, name) == 5 for name in "ab"))
    await world.change({0: ShardState(4, (A, B), (C,), ())})
    await until(lambda: any(report.node == C for report in world.ready))
    assert world["c"].rounds.get(SHARD) == Round(1, 1)
    await world.change({0: ShardState(5, (A, B, C))})
    await world.settled()
    assert world.agree(0) and rows(world, "c") == 5
    await world["c"].repair.compare(A)
    await world["a"].repair.compare(C)
    assert world["c"].mover.stats.begun == 1
