"""Replicas that differ become equal, byte for byte, and nothing that was deleted comes back on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dakera_cluster.cluster import repair_service
from dakera_cluster.cluster.gate import NotAReplicaError, OutdatedMapError
from dakera_cluster.cluster.intake import StaleRepairError
from dakera_cluster.cluster.repair import RepairSettings
from dakera_cluster.cluster.repair_session import MustWipeError
from dakera_cluster.cluster.repair_wire import BUCKETS, EXCHANGE, ROOT, ROOTS, ROWS
from dakera_cluster.cluster.rounds import Round
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Kind, Row, delete_document, note_usage, put_document
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols.transfer import Holding, Mode, Stage
from tests.support.replicas import NAMESPACE, World, until

MakeWorld = Callable[..., World]
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


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


def row(world: World, row_id: str, text: str = "x", age_ms: int = 0) -> Row:
    stamp = Stamp((world.now_ms() - age_ms) << 16, 7)
    return Row(NAMESPACE, Kind.DOCUMENT, row_id, put_document(stamp, {"text": text}))


async def scatter(world: World, shard: ShardId) -> None:
    """Every replica has rows the others lack, older and newer versions, tombstones and usage."""
    common = [row(world, f"common{n}") for n in range(200)]
    for number, replicant in enumerate(world.nodes):
        stamp = Stamp((world.now_ms() + 5_000) << 16, number)
        mine = [row(world, f"{replicant.node}{n}") for n in range(50)]
        changed = [row(world, f"common{n}", f"by {replicant.node}") for n in range(number * 3, 30)]
        dead = [Row(NAMESPACE, Kind.DOCUMENT, f"common{40 + number}", delete_document(stamp))]
        used = [Row(NAMESPACE, Kind.USAGE, "common1", note_usage(number, number + 1, stamp))]
        await replicant.host.merge(shard, common + mine + changed + dead + used)


async def test_replicas_that_differ_in_every_way_end_with_the_same_bytes(world: World) -> None:
    shard = ShardId(1)
    await scatter(world, shard)
    assert not world.agree(shard)
    assert await world["a"].repair.session(shard, B) == 1
    assert world.agree(shard, "a", "b")
    await world["c"].repair.session(shard, A)
    await world["b"].repair.session(shard, A)
    assert world.agree(shard)
    assert {"a1", "b1", "c1"} <= world["b"].alive_ids(shard)
    assert "common40" not in world["c"].alive_ids(shard)


async def test_a_replica_that_lost_rows_gets_them_back_by_the_periodic_comparison(worlds: MakeWorld) -> None:
    world = await worlds(repair=RepairSettings(interval_ms=30.0)).born("a", "b", "c")
    shard = world["a"].shard_for(NAMESPACE, "m0")
    for number in range(50):
        await world["a"].put(f"m{number}")
    await world["a"].replicator.close()
    await world["b"].host.wipe(shard)
    assert not world["b"].rows(shard)
    for replicant in world.nodes:
        replicant.repair.start()
    await until(lambda: world.agree(shard))
    assert len(world["b"].alive_ids(shard)) == 50


async def test_what_a_repair_brings_is_found_by_a_view_that_is_in_memory(world: World) -> None:
    from dakera_cluster.shard import ops

    shard = world["a"].shard_for(NAMESPACE, "m")
    world.isolate("c")
    await world["a"].put("m")
    query = ops.Search(shard, 1, NAMESPACE, world.now_ms(), ops.Mode.TEXT, 5, text="text")
    empty = await world["c"].gate.handle(query)
    assert isinstance(empty, ops.Hits) and not empty.hits
    world.wire.cut.clear()
    await world["c"].repair.session(shard, A)
    found = await world["c"].gate.handle(query)
    assert isinstance(found, ops.Hits) and [hit.id for hit in found.hits] == ["m"]


async def test_replicas_in_sync_compare_all_shards_in_one_message(worlds: MakeWorld) -> None:
    world = await worlds(shards=64).born("a", "b", "c")
    for number in range(20):
        await world["a"].put(f"m{number}", f"_dakera_agent_{number}")
    await world["a"].replicator.close()
    world.wire.calls.clear()
    assert await world["a"].repair.compare(B) == []
    assert world.wire.calls == [(A, B, ROOTS)]
    assert world["a"].repair.stats.equal == 64


async def test_only_what_differs_travels(world: World) -> None:
    shard = ShardId(1)
    common = [row(world, f"common{n}") for n in range(500)]
    for replicant in world.nodes:
        await replicant.host.merge(shard, common)
    await world["b"].host.merge(shard, [row(world, "new", "y" * 5_000)])
    assert await world["a"].repair.compare(B) == [shard]
    assert world.agree(shard, "a", "b")
    assert (world["a"].repair.stats.shipped_rows, world["a"].repair.stats.received_rows) == (0, 1)
    assert world["a"].repair.stats.bytes < 6_000


async def test_writes_during_a_session_do_not_make_it_miss_what_was_there_before(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "before0")
    world.isolate("c")
    for number in range(40):
        await world["a"].put(f"before{number}")
    await world["a"].replicator.close()
    world.wire.cut.clear()

    async def write_more() -> None:
        await world["b"].host.merge(shard, [row(world, f"during{len(world.wire.calls)}")])

    world.wire.before = lambda s, t, method, p: write_more() if method in (BUCKETS, ROWS, EXCHANGE) else None
    await world["c"].repair.session(shard, A)
    assert {f"before{number}" for number in range(40)} <= world["c"].alive_ids(shard)


async def test_a_responder_refuses_under_another_version_and_while_it_does_not_serve(world: World) -> None:
    shard = ShardId(0)
    state = world["a"].maps.state(shard)
    newer = world.map
    assert newer is not None
    newer = newer.replace(epoch=1, shards={shard: ShardState(state.version + 1, state.replicas)})
    world.map = newer
    await world["b"].maps.adopt(newer)
    with pytest.raises(OutdatedMapError):
        await world["a"].repair.session(shard, B)
    assert world["a"].maps.version(shard) == state.version + 1, "the asker learns of the newer map"
    # A responder that is behind fetches the newer map, and then answers.
    assert world["c"].maps.version(shard) == state.version
    assert await world["a"].repair.session(shard, C) == state.version + 1
    assert world["c"].maps.version(shard) == state.version + 1
    await world["b"].holdings.put(Holding(shard, 1, Mode.REHYDRATE, Stage.STREAMING))
    with pytest.raises(NotAReplicaError):
        await world["a"].repair.session(shard, B)
    assert await world["a"].repair.compare(B) == []
    assert world["a"].repair.last_success_ms(shard, B) is None


@pytest.mark.parametrize("method", [ROOT, BUCKETS, ROWS, EXCHANGE])
async def test_a_map_that_changes_during_a_session_ends_it(world: World, method: str) -> None:
    shard = ShardId(1)
    await scatter(world, shard)
    assert world.map is not None
    newer = world.map.replace(epoch=1, shards={shard: ShardState(2, (A, B, C))})

    async def adopt() -> None:
        await world["b"].maps.adopt(newer)

    world.wire.before = lambda s, t, called, p: adopt() if called == method else None
    before = world["b"].rows(shard)
    world.map = newer
    with pytest.raises(OutdatedMapError):
        await world["a"].repair.session(shard, B)
    assert world["b"].rows(shard) == before
    assert world["a"].repair.last_success_ms(shard, B) is None


@pytest.mark.parametrize("method", [ROOT, BUCKETS, ROWS, EXCHANGE])
async def test_a_lost_answer_fails_the_session_and_the_next_one_finds_the_rest(world: World, method: str) -> None:
    shard = ShardId(1)
    await scatter(world, shard)

    def lose(source: NodeId, target: NodeId, called: str, payload: bytes) -> None:
        if called == method:
            raise ServiceUnavailableError("lost")

    world.wire.after = lose
    with pytest.raises(ServiceUnavailableError):
        await world["a"].repair.session(shard, B)
    assert world["a"].repair.last_success_ms(shard, B) is None
    world.wire.after = None
    await world["a"].repair.session(shard, B)
    assert world.agree(shard, "a", "b")


async def test_terms_and_bodies_come_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = ShardId(1)
    monkeypatch.setattr(repair_service, "TERMS_PER_PAGE", 7)
    monkeypatch.setattr(repair_service, "EXCHANGE_BYTES", 500)
    monkeypatch.setattr("dakera_cluster.cluster.repair_session.EXCHANGE_BYTES", 500)
    await scatter(world, shard)
    await world["a"].repair.session(shard, B)
    assert world.agree(shard, "a", "b")
    methods = [method for _, _, method in world.wire.calls]
    assert methods.count(EXCHANGE) > 10 and methods.count(ROWS) > 20


async def test_a_row_larger_than_a_message_travels_alone(world: World) -> None:
    shard = ShardId(1)
    rows = [row(world, f"large{n}", "x" * (2 << 20)) for n in range(3)]
    await world["a"].host.merge(shard, rows[:2])
    await world["b"].host.merge(shard, rows[2:])
    sizes: list[int] = []
    world.wire.before = lambda s, t, method, payload: sizes.append(len(payload))
    await world["a"].repair.session(shard, B)
    assert world.agree(shard, "a", "b")
    assert max(sizes) < 3 << 20


async def test_rows_read_too_long_ago_are_refused(world: World) -> None:
    shard = ShardId(1)
    await scatter(world, shard)
    lifetime_ms = int(world.tombstones.repair_lifetime_ms + world.tombstones.max_skew_ms)
    old = row(world, "old")
    with pytest.raises(StaleRepairError):
        await world["a"].intake.repair(shard, [old], world.now_ms() - lifetime_ms - 1)
    assert "old" not in world["a"].alive_ids(shard)

    def age(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method == EXCHANGE:
            world.shift_ms += lifetime_ms + 1

    before = world["b"].rows(shard)
    world.wire.before = age
    with pytest.raises(StaleRepairError):
        await world["a"].repair.session(shard, B)
    assert world["b"].rows(shard) == before, "what was shipped is too old as well"


async def test_rows_do_not_land_in_a_copy_that_is_wiped_or_given_up_meanwhile(world: World) -> None:
    shard, a = ShardId(1), world["a"]
    complete = a.holdings.get(shard)
    assert complete is not None
    await a.holdings.put(Holding(shard, 1, Mode.REHYDRATE, Stage.WIPING))
    with pytest.raises(NotAReplicaError):
        await a.intake.repair(shard, [row(world, "m")], world.now_ms())
    await a.holdings.put(complete)
    await world.change({1: ShardState(2, (B, C))})
    with pytest.raises(NotAReplicaError):
        await a.intake.repair(shard, [row(world, "m")], world.now_ms())
    assert not a.rows(shard)


async def test_a_replica_that_never_confirmed_what_others_forgot_exchanges_nothing(world: World) -> None:
    shard = ShardId(1)
    await scatter(world, shard)
    await world["b"].rounds.confirm(shard, 3)
    await world["b"].rounds.collect(shard, 3)
    wiped: list[tuple[str, ShardId]] = []
    for replicant in world.nodes:
        replicant.repair.must_wipe = lambda shard, name=replicant.node: wiped.append((name, shard))  # type: ignore[misc]
    before = world["a"].rows(shard), world["b"].rows(shard)
    with pytest.raises(MustWipeError):
        await world["a"].repair.session(shard, B)
    await world["a"].repair.compare(B)
    assert wiped == [(A, shard)]
    with pytest.raises(NotAReplicaError):
        await world["b"].repair.session(shard, A)
    assert wiped == [(A, shard), (A, shard)]
    assert before == (world["a"].rows(shard), world["b"].rows(shard))
    await world["a"].rounds.confirm(shard, 3)
    await world["a"].repair.session(shard, B)
    assert world.agree(shard, "a", "b")


async def test_numbers_of_a_copy_are_those_of_its_worst_source(world: World) -> None:
    shard, rounds = ShardId(1), world["a"].rounds
    await rounds.inherit(shard, Round(5, 4))
    assert rounds.get(shard) == Round(5, 4) and not rounds.must_wipe(shard, 5)
    await rounds.inherit(shard, Round(4, 4))
    assert rounds.get(shard) == Round(4, 4) and rounds.must_wipe(shard, 5)
    await rounds.inherit(shard, Round(7, 6))
    assert rounds.must_wipe(shard, 0), "rows of one source, tombstones forgotten by another"
    await world["a"].host.wipe(shard)
    assert rounds.get(shard) == Round()


async def test_staleness_is_the_age_of_the_last_comparison_with_enough_others(worlds: MakeWorld) -> None:
    world = await worlds(replication_factor=5, shards=1).born("a", "b", "c", "d", "e")
    shard, repair = ShardId(0), world["a"].repair
    assert repair.staleness_ms(shard) == float("inf")
    await repair.compare(B)
    assert repair.staleness_ms(shard) == float("inf"), "of five, two others must be asked"
    await asyncio.sleep(0.05)
    await repair.session(shard, C)
    assert 50.0 <= repair.staleness_ms(shard) < 10_000.0
    await repair.compare(B)
    assert repair.staleness_ms(shard) < 50.0 + 5_000.0
    state = world["a"].maps.state(shard)
    await world.change({0: ShardState(state.version + 1, state.replicas)})
    assert repair.staleness_ms(shard) == float("inf"), "what was compared under another version says nothing"


async def test_a_lone_replica_is_never_stale_and_one_without_its_rows_always(worlds: MakeWorld) -> None:
    world = await worlds(replication_factor=1, shards=1).born("a")
    assert world["a"].repair.staleness_ms(ShardId(0)) == 0.0
    await world["a"].holdings.put(Holding(ShardId(0), 1, Mode.REHYDRATE, Stage.STREAMING))
    assert world["a"].repair.staleness_ms(ShardId(0)) == float("inf")


async def test_a_refresh_asks_as_many_as_it_takes_and_fails_when_they_are_away(world: World) -> None:
    shard = ShardId(1)
    await scatter(world, shard)
    world.wire.cut.add(frozenset((C, A)))
    await world["c"].repair.refresh(shard)
    assert world.agree(shard, "b", "c")
    world.wire.cut.add(frozenset((C, B)))
    with pytest.raises(ServiceUnavailableError):
        await world["c"].repair.refresh(shard)


async def test_a_strong_read_writes_back_to_a_replica_that_lags(world: World) -> None:
    shard = ShardId(1)
    found = row(world, "found")
    for node in (A, B):
        await world["a"].repair.write_back(node, shard, 1, [found], world.now_ms(), 2_000.0)
    assert "found" in world["a"].alive_ids(shard) and "found" in world["b"].alive_ids(shard)
    with pytest.raises(StaleRepairError):
        await world["a"].repair.write_back(B, shard, 1, [row(world, "late")], world.now_ms() - 86_400_000, 2_000.0)
    state = world["a"].maps.state(shard)
    await world.change({1: ShardState(state.version + 1, state.replicas)})
    with pytest.raises(OutdatedMapError):
        await world["a"].repair.write_back(B, shard, 1, [row(world, "other")], world.now_ms(), 2_000.0)


async def test_the_throttle_holds_over_a_session(worlds: MakeWorld) -> None:
    world = await worlds(repair=RepairSettings(bytes_per_s=200_000.0)).born("a", "b", "c")
    shard = ShardId(1)
    await world["a"].host.merge(shard, [row(world, f"m{n}", "x" * 1_000) for n in range(150)])
    began = asyncio.get_running_loop().time()
    await world["b"].repair.session(shard, A)
    assert asyncio.get_running_loop().time() - began > 0.3
    assert world.agree(shard, "a", "b")


async def test_a_broken_clock_in_a_row_that_is_repaired_does_not_drag_ours(world: World) -> None:
    shard = ShardId(1)
    future = Stamp((world.now_ms() + 3_600_000) << 16, 9)
    await world["a"].host.merge(shard, [Row(NAMESPACE, Kind.DOCUMENT, "m", put_document(future, {"text": "t"}))])
    await world["a"].host.merge(shard, [row(world, "n")])
    await world["b"].repair.session(shard, A)
    assert world["b"].alive_ids(shard) == {"m", "n"}
    assert 0 < world["b"].clock.last_time < future.time


async def test_a_deleted_memory_stays_deleted_after_hints_and_repairs_in_any_order(world: World) -> None:
    shard = world["a"].shard_for(NAMESPACE, "m0")
    for number in range(10):
        await world["a"].put(f"m{number}")
    await world["a"].replicator.close()
    world.isolate("c")
    for number in range(5):
        await world["b"].delete(f"m{number}")
    await world["b"].replicator.close()
    await world["b"].hints.close()
    world.wire.cut.clear()
    await world["c"].repair.session(shard, A)
    await world["a"].repair.session(shard, C)
    assert world.agree(shard)
    assert world["c"].alive_ids(shard) == {f"m{number}" for number in range(5, 10)}
