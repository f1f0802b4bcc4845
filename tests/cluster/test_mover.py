"""Shards move without losing an acknowledged write, through every crash, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dakera_cluster.cluster import throttle
from dakera_cluster.cluster.mover import MoverSettings
from dakera_cluster.cluster.mover_wire import SNAPSHOT
from dakera_cluster.cluster.repair_wire import EXCHANGE, ROOT
from dakera_cluster.cluster.rounds import Round
from dakera_cluster.model.errors import DakeraError, ServiceUnavailableError, StorageError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, delete_document, put_document
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols import digest
from dakera_cluster.protocols.rebalance import ReadyReport
from dakera_cluster.protocols.transfer import Holding, Mode, Stage, TransferConfig
from dakera_cluster.shard import keys, ops
from tests.support.replicas import NAMESPACE, Replicant, World, until

MakeWorld = Callable[..., World]
A, B, C, D = (NodeId(name) for name in "abcd")
SMALL_PAGES = MoverSettings(page_bytes=2_000, transfer=TransferConfig(retry_ms=20.0, report_ms=50.0))


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
    return await worlds(shards=1, mover=SMALL_PAGES).born("a", "b", "c")


async def fill(world: World, count: int, shard: int = 0) -> None:
    stamp = Stamp(world.now_ms() << 16, 1)
    rows = [
        Row(NAMESPACE, Kind.DOCUMENT, f"m{n:04d}", put_document(stamp, {Field.TEXT: f"text {n} " + "x" * 150}))
        for n in range(count)
    ]
    for replicant in world.nodes:
        if world.map is not None and replicant.node in world.map.shards[shard].replicas:
            await replicant.host.merge(shard, rows)


async def join(world: World, node: NodeId = D, leaving: tuple[NodeId, ...] = (A,), shard: int = 0) -> None:
    assert world.map is not None
    state = world.map.shards[shard]
    await world.change({shard: ShardState(state.version + 1, state.replicas, (node,), leaving)})


async def finish(world: World, shard: int = 0) -> None:
    """The leader finalises once the reports are there."""
    assert world.map is not None
    state = world.map.shards[shard]
    joining = state.joining
    await until(lambda: all(ReadyReport(ShardId(shard), state.version, node) in world.ready for node in joining))
    await world.change({shard: ShardState(state.version + 1, state.new_set)})
    await world.settled()


async def test_a_fourth_node_joins_under_writes_and_nothing_that_was_acknowledged_is_missing(worlds: MakeWorld) -> None:
    world = await worlds(shards=8, mover=SMALL_PAGES).born("a", "b", "c")
    acknowledged: dict[str, set[str]] = {f"_dakera_agent_{n}": set() for n in range(6)}
    deleted: dict[str, set[str]] = {name: set() for name in acknowledged}
    running = True

    async def write(name: str, coordinators: tuple[str, ...]) -> None:
        number = 0
        while running:
            coordinator = world[coordinators[number % len(coordinators)]]
            row_id = f"m{number}"
            await coordinator.put(row_id, name)
            acknowledged[name].add(row_id)
            if number % 7 == 3:
                await coordinator.delete(f"m{number - 2}", name)
                acknowledged[name].discard(f"m{number - 2}")
                deleted[name].add(f"m{number - 2}")
            number += 1

    writers = [asyncio.create_task(write(name, ("a", "b", "c"))) for name in acknowledged]
    await until(lambda: all(len(ids) > 10 for ids in acknowledged.values()))
    await world.start("d")
    await world.lead_until(lambda: world.map and world.map.holds(D) and world.stable, 60.0)
    running = False
    await asyncio.gather(*writers)
    for replicant in world.nodes:
        await replicant.replicator.close()
    await world.settled()
    for one in world.nodes:
        for other in world.nodes:
            if one is not other:
                await one.repair.compare(other.node)
    assert world.map is not None
    moved = world.map.holds(D)
    assert len(moved) >= 3, "about 8 x 3 / 4 replicas move"
    for shard in range(8):
        assert world.agree(shard)
    for name, ids in acknowledged.items():
        shard = world["a"].shard_for(name, "m0")
        for node in world.map.shards[shard].replicas:
            alive = world[node].alive_ids(shard, name)
            assert ids <= alive
            assert not deleted[name] & alive
    for replicant in world.nodes:
        for shard in range(8):
            if replicant.node not in world.map.shards[shard].replicas:
                assert not replicant.residue(shard)
                assert replicant.holdings.get(ShardId(shard)) is None
    assert world["d"].mover.stats.most_at_once <= SMALL_PAGES.shards_at_once


async def test_a_join_streams_in_pages_repairs_with_a_majority_and_reports(world: World) -> None:
    await fill(world, 100)
    await world.start("d")
    world.wire.calls.clear()
    await join(world)
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    calls = [(target, method) for source, target, method in world.wire.calls if source == D]
    assert sum(method == SNAPSHOT for _, method in calls) > 5
    assert len({target for target, method in calls if method == ROOT}) == 2
    holding = world["d"].holdings.get(ShardId(0))
    assert holding is not None and (holding.version, holding.mode, holding.stage) == (2, Mode.JOIN, Stage.READY)
    assert world.agree(0, "a", "b", "c", "d")
    [move] = world["d"].mover.moves()
    assert (move.shard, move.mode, move.stage, move.rows) == (0, Mode.JOIN, Stage.READY, 100)
    assert move.bytes > 15_000 and move.rate_bytes_per_s > 0
    await finish(world)
    assert world["d"].mover.moves() == []


async def test_what_happens_to_a_row_behind_the_cursor_is_not_missed(world: World) -> None:
    await fill(world, 100)
    await world.start("d")
    pages = 0

    async def change_behind() -> None:
        nonlocal pages
        pages += 1
        if pages == 4:
            # Written under the old map by a majority that did not know of the move: only the repair can bring it.
            stamp = Stamp((world.now_ms() + 1_000) << 16, 2)
            rows = [
                Row(NAMESPACE, Kind.DOCUMENT, "m0001", delete_document(stamp)),
                Row(NAMESPACE, Kind.DOCUMENT, "a-new-one", put_document(stamp, {Field.TEXT: "t"})),
            ]
            await world["b"].host.merge(0, rows)
            await world["c"].host.merge(0, rows)

    world.wire.before = lambda s, t, method, p: change_behind() if method == SNAPSHOT else None
    await join(world)
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert "m0001" not in world["d"].alive_ids(0)
    assert "a-new-one" in world["d"].alive_ids(0)


async def hang() -> None:
    await asyncio.Event().wait()


class Crash:
    """Stops a node's transfer at a point, so that the test can take the node away there."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.reached = asyncio.Event()
        self.pages = 0
        self.roots = 0

    def arm(self, world: World) -> None:
        joiner = world["d"]
        wipe, put = joiner.host.wipe, joiner.holdings.put

        async def crashing_wipe(shard: int) -> None:
            if self.point == "before the wipe":
                await self.stop()
            await wipe(shard)
            if self.point == "after the wipe":
                await self.stop()

        async def crashing_put(*records: Holding) -> None:
            if self.point == f"before noting {records[0].stage.name}":
                await self.stop()
            await put(*records)
            if self.point == f"after noting {records[0].stage.name}":
                await self.stop()

        joiner.host.wipe = crashing_wipe  # type: ignore[method-assign]
        joiner.holdings.put = crashing_put  # type: ignore[method-assign]
        world.wire.before = self.before

    def before(self, source: NodeId, target: NodeId, method: str, payload: bytes) -> Awaitable[None] | None:
        if source != D:
            return None
        self.pages += method == SNAPSHOT
        self.roots += method == ROOT
        stops = {
            "at the first page": method == SNAPSHOT and self.pages == 1,
            "in the middle of the stream": method == SNAPSHOT and self.pages == 6,
            "at the first repair": method == ROOT and self.roots == 1,
            "in a repair": method == EXCHANGE,
            "at the second repair": method == ROOT and self.roots == 2,
        }
        return self.stop() if stops.get(self.point) else None

    async def stop(self) -> None:
        self.reached.set()
        await hang()


POINTS = [
    "before noting WIPING",
    "after noting WIPING",
    "before the wipe",
    "after the wipe",
    "after noting STREAMING",
    "at the first page",
    "in the middle of the stream",
    "before noting REPAIRING",
    "at the first repair",
    "in a repair",
    "at the second repair",
    "before noting READY",
    "after noting READY",
]


@pytest.mark.parametrize("point", POINTS)
async def test_a_node_that_crashes_anywhere_in_a_move_goes_on_after_its_restart(world: World, point: str) -> None:
    await fill(world, 100)
    # A hundredth of the rows differs between the sources, so that there is something to exchange.
    stamp = Stamp(world.now_ms() << 16, 9)
    await world["c"].host.merge(0, [Row(NAMESPACE, Kind.DOCUMENT, "only-c", put_document(stamp, {Field.TEXT: "t"}))])
    await world["b"].host.merge(0, [Row(NAMESPACE, Kind.DOCUMENT, "only-b", put_document(stamp, {Field.TEXT: "t"}))])
    await world["a"].host.merge(0, [Row(NAMESPACE, Kind.DOCUMENT, "only-a", put_document(stamp, {Field.TEXT: "t"}))])
    await world.start("d")
    # What an earlier stay left behind must not survive the join.
    await world["d"].host.merge(0, [Row(NAMESPACE, Kind.DOCUMENT, "stale", put_document(stamp, {Field.TEXT: "t"}))])
    crash = Crash(point)
    crash.arm(world)
    await join(world)
    async with asyncio.timeout(15.0):
        await crash.reached.wait()
    world.wire.before = None
    assert ReadyReport(ShardId(0), 2, D) not in world.ready
    world.wire.calls.clear()
    await world.restart("d")
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    pages = sum(method == SNAPSHOT for source, _, method in world.wire.calls if source == D)
    if point == "in the middle of the stream":
        assert pages <= 8, "the stream goes on where it was"
    if point in ("at the first repair", "in a repair", "at the second repair", "before noting READY"):
        assert pages == 0
    assert "stale" not in world["d"].alive_ids(0)
    assert {"only-a", "only-b"} <= world["d"].alive_ids(0) or {"only-a", "only-c"} <= world["d"].alive_ids(0)
    assert len([row_id for row_id in world["d"].alive_ids(0) if row_id.startswith("m")]) == 100
    await finish(world)
    assert world.map is not None and D in world.map.shards[0].replicas
    for peer in (B, C):
        await world["d"].repair.session(ShardId(0), peer)
    await world["b"].repair.session(ShardId(0), C)
    assert world.agree(0)
    assert not world["a"].residue(0)


async def test_a_dropped_shard_leaves_no_row_no_book_no_view_and_no_snapshot(world: World) -> None:
    await fill(world, 100)
    a = world["a"]
    await a.gate.handle(ops.Search(0, 1, NAMESPACE, world.now_ms(), ops.Mode.TEXT, 3, text="text"))
    assert a.host.views.of_shard(0) == [NAMESPACE]
    snapshot = a.path / "views" / "00000" / "x.view"
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    snapshot.write_bytes(b"old")
    sequence = a.host.replica(0).sequence
    await world.start("d")
    await join(world)
    await finish(world)
    assert not a.residue(0)
    assert a.host.views.of_shard(0) == [] and not snapshot.exists()
    assert a.holdings.get(ShardId(0)) is None
    assert a.host.replica(0).digests() == {} and a.host.replica(0).root() == 0
    assert a.host.replica(0).changes_since(sequence) is None, "an old snapshot of a view must not catch up"
    with pytest.raises(DakeraError):
        await a.gate.handle(ops.Read(0, 3, NAMESPACE, Kind.DOCUMENT, ["m0001"]))
    # And it can come back.
    await join(world, A, (D,))
    await finish(world)
    assert world.agree(0)
    found = await a.gate.handle(ops.Search(0, 5, NAMESPACE, world.now_ms(), ops.Mode.TEXT, 3, text="text"))
    assert isinstance(found, ops.Hits) and found.matched == 100


async def test_a_drop_waits_for_the_map_without_us(world: World) -> None:
    await fill(world, 20)
    await world.start("d")
    await join(world)
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert len(world["a"].alive_ids(0)) == 20, "it still serves while it leaves"
    state = world["a"].maps.state(ShardId(0))
    assert world["a"].holdings.serves(ShardId(0), state)


async def test_an_aborted_join_is_dropped_and_a_new_one_begins_from_nothing(world: World) -> None:
    await fill(world, 100)
    await world.start("d")
    blocked = asyncio.Event()

    def block(source: NodeId, target: NodeId, method: str, payload: bytes) -> Awaitable[None] | None:
        if source == D and method == SNAPSHOT and len(world["d"].rows(0)) > 20:
            blocked.set()
            raise ServiceUnavailableError("the source is gone")
        return None

    world.wire.before = block
    await join(world)
    await blocked.wait()
    state = world["a"].maps.state(ShardId(0))
    await world.change({0: ShardState(state.version + 1, state.replicas)})
    await world.settled()
    assert not world["d"].residue(0) and world["d"].holdings.get(ShardId(0)) is None
    assert world["d"].mover.stats.cancelled == 1
    world.wire.before = None
    await join(world)
    await finish(world)
    assert world.agree(0)


async def test_a_source_that_fails_is_replaced_and_takes_no_ones_place(worlds: MakeWorld) -> None:
    one_at_a_time = MoverSettings(shards_at_once=1, transfer=TransferConfig(retry_ms=50.0, report_ms=50.0))
    world = await worlds(shards=3, mover=one_at_a_time).born("a", "b", "c")
    await fill(world, 10)
    await world.start("d")

    def refuse(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        # Nobody gives shard 0 away; of the others, one source is out of order.
        if source == D and method in (SNAPSHOT, ROOT):
            shard = payload[1]
            if shard == 0 or target == A:
                raise ServiceUnavailableError("out of order")

    world.wire.before = refuse
    for shard in range(3):
        await join(world, D, (B,), shard)
    await until(lambda: {report.shard for report in world.ready} == {1, 2})
    assert world["d"].mover.stats.most_at_once == 1
    assert world["d"].mover.stats.source_failures > 0
    world.wire.before = None
    await until(lambda: {report.shard for report in world.ready} == {0, 1, 2})
    assert world.agree(0, "a", "d")


async def test_no_more_shards_than_configured_are_fetched_at_once(worlds: MakeWorld) -> None:
    world = await worlds(shards=12).born("a", "b", "c")
    await world.start("d")
    inside = most = 0

    async def slow() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.02)
        inside -= 1

    world.wire.before = lambda source, t, method, p: slow() if source == D and method == SNAPSHOT else None
    assert world.map is not None
    states = dict(enumerate(world.map.shards))
    await world.change({n: ShardState(2, state.replicas, (D,), state.replicas[:1]) for n, state in states.items()})
    await until(lambda: len(world.ready) == 12)
    assert most == 2 == world["d"].mover.stats.most_at_once


async def test_the_throttle_holds_over_a_move(worlds: MakeWorld) -> None:
    slow = MoverSettings(page_bytes=2_000, bytes_per_s=50_000.0, transfer=TransferConfig(retry_ms=20.0))
    world = await worlds(shards=1, mover=slow).born("a", "b", "c")
    await fill(world, 150)
    await world.start("d")
    began = asyncio.get_running_loop().time()
    await join(world)
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert asyncio.get_running_loop().time() - began > 0.3


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What moves rested after; none of them really does. Demand is judged at once."""
    taken: list[float] = []

    def rest_s(pace: throttle.Pace, worked_s: float) -> float:
        taken.append(worked_s)
        return 0.0

    monkeypatch.setattr(throttle.Pace, "rest_s", rest_s)
    monkeypatch.setattr(throttle, "LOOK_S", 1e-6)
    return taken


@contextlib.asynccontextmanager
async def asked(world: World, names: str) -> AsyncIterator[None]:
    """Users ask these nodes all the time."""

    async def ask(replicant: Replicant) -> None:
        while True:
            await replicant.host.handle(ops.Read(0, 0, NAMESPACE, Kind.DOCUMENT, ["m0000"]))

    tasks = [asyncio.create_task(ask(world[name])) for name in names]
    yield
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize(("busy", "rested"), [("", False), ("abc", True), ("d", True)])
async def test_a_join_rests_while_users_ask_its_source_or_itself(
    worlds: MakeWorld, rests: list[float], busy: str, rested: bool
) -> None:
    world = await worlds(shards=1, mover=SMALL_PAGES).born("a", "b", "c")
    await fill(world, 60)
    await world.start("d")
    async with asked(world, busy):
        await join(world)
        await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert bool(rests) is rested


async def test_a_lost_disk_is_refilled_without_rest(world: World, rests: list[float]) -> None:
    await fill(world, 60)
    async with asked(world, "ab"):
        await world.restart("c", new_disk=True)
        assert world.map is not None
        await world.change({0: ShardState(2, world.map.shards[0].replicas)})
        await world.settled()
    assert world.agree(0)
    assert not rests


async def test_a_node_that_lost_its_disk_fetches_everything_and_does_not_vote_before(worlds: MakeWorld) -> None:
    world = await worlds(shards=4, mover=SMALL_PAGES).born("a", "b", "c")
    for shard in range(4):
        await fill(world, 60, shard)
    blocked, go = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        blocked.set()
        await go.wait()

    world.wire.before = lambda source, t, method, p: wait() if source == C and method == SNAPSHOT else None
    await world.restart("c", new_disk=True)
    await blocked.wait()
    shard = ShardId(0)
    state = world["c"].maps.state(shard)
    row = Row(NAMESPACE, Kind.DOCUMENT, "meanwhile", put_document(Stamp(world.now_ms() << 16, 1), {Field.TEXT: "t"}))
    assert not world["c"].holdings.serves(shard, state)
    await until(lambda: world["c"].door.takes_rows(shard))
    answer = await world["c"].gate.handle(ops.Apply(shard, state.version, [row]))
    assert isinstance(answer, ops.Applied) and not answer.voted
    with pytest.raises(DakeraError):
        await world["c"].gate.handle(ops.Read(shard, state.version, NAMESPACE, Kind.DOCUMENT, ["m0001"]))
    go.set()
    await world.settled()
    assert world["c"].mover.moves() == [], "nobody waits for a rehydration to be told again and again"
    assert "meanwhile" in world["c"].alive_ids(shard)
    for number in range(4):
        assert world["c"].holdings.serves(ShardId(number), world["c"].maps.state(ShardId(number)))
        assert len(world["c"].alive_ids(number)) >= 60
    await world["a"].repair.session(shard, C)
    await world["a"].repair.session(shard, B)
    assert world.agree(0)


async def test_a_rehydration_goes_on_after_a_crash_where_it_was(world: World) -> None:
    await fill(world, 100)
    blocked = asyncio.Event()
    pages = 0

    def stop(source: NodeId, target: NodeId, method: str, payload: bytes) -> Awaitable[None] | None:
        nonlocal pages
        pages += method == SNAPSHOT
        if method == SNAPSHOT and pages == 7:
            blocked.set()
            return hang()
        return None

    world.wire.before = stop
    await world.restart("c", new_disk=True)
    await blocked.wait()
    world.wire.before = None
    world.wire.calls.clear()
    await world.restart("c")
    await world.settled()
    assert sum(method == SNAPSHOT for _, _, method in world.wire.calls) <= 7
    assert world.agree(0)


async def test_a_copy_that_is_too_old_is_wiped_and_what_was_deleted_stays_so(world: World) -> None:
    """An old image of a disk holds a row alive whose tombstone all others have collected."""
    await fill(world, 30)
    for node in "ab":
        replicant = world[node]
        local = keys.local_key(NAMESPACE, Kind.DOCUMENT, "m0003")
        await replicant.host.merge(
            0, [Row(NAMESPACE, Kind.DOCUMENT, "m0003", delete_document(Stamp((world.now_ms() + 5) << 16, 1)))]
        )
        await replicant.rounds.confirm(ShardId(0), 1)
        await replicant.rounds.collect(ShardId(0), 1)
        await replicant.host.collect(0, {local: replicant.host.replica(0).terms(digest.bucket_of(local))[local]})
    assert "m0003" in world["c"].alive_ids(0)
    await world["a"].repair.compare(C)
    await until(lambda: world["c"].mover.stats.completed == 1)
    await world.settled()
    assert "m0003" not in world["c"].alive_ids(0) and len(world["c"].alive_ids(0)) == 29
    assert world["c"].rounds.get(ShardId(0)) == Round(1, 1)
    await world["a"].repair.compare(C)
    await world["c"].repair.compare(A)
    assert world.agree(0)
    assert world["c"].mover.stats.begun == 1, "once is enough"


async def test_a_join_from_a_source_that_is_too_old_starts_over_from_another(world: World) -> None:
    await fill(world, 30)
    for node in "bc":
        await world[node].rounds.confirm(ShardId(0), 4)
        await world[node].rounds.collect(ShardId(0), 4)
        local = keys.local_key(NAMESPACE, Kind.DOCUMENT, "m0003")
        await world[node].host.collect(0, {local: world[node].host.replica(0).terms(digest.bucket_of(local))[local]})
    await world.start("d")
    await join(world, D, ())
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert "m0003" not in world["d"].alive_ids(0)
    assert world["d"].rounds.get(ShardId(0)).confirmed == 4


async def test_the_replicas_that_stay_confirm_before_a_shard_shrinks(world: World) -> None:
    await fill(world, 30)
    stamp = Stamp(world.now_ms() << 16, 9)
    await world["c"].host.merge(0, [Row(NAMESPACE, Kind.DOCUMENT, "only-c", put_document(stamp, {Field.TEXT: "t"}))])
    await world.change({0: ShardState(2, (A, B, C), (), (C,))})
    await until(lambda: {report.node for report in world.ready} == {A, B})
    assert world["a"].holdings.get(ShardId(0)) == Holding(ShardId(0), 1, Mode.JOIN, Stage.READY)
    assert [move.mode for move in world["a"].mover.moves()] == [Mode.CONFIRM]
    await world.change({0: ShardState(3, (A, B))})
    await world.settled()
    assert not world["c"].residue(0)


async def test_an_operator_can_accept_the_loss_of_all_other_sources(world: World) -> None:
    await fill(world, 30)
    await world.stop("a")
    await world.stop("b")
    await world.restart("c", new_disk=True)
    await until(lambda: world["c"].mover.stats.source_failures > 1)
    [move] = world["c"].mover.moves()
    assert (move.mode, move.stage) == (Mode.REHYDRATE, Stage.STREAMING)
    world["c"].mover.accept_loss(ShardId(0))
    await world.settled()
    assert world["c"].holdings.serves(ShardId(0), world["c"].maps.state(ShardId(0)))


async def test_a_disk_that_fails_in_the_middle_of_a_transfer_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dakera_cluster.cluster.mover.RETRY_S", 0.02)
    await fill(world, 100)
    await world.start("d")
    merge, failures = world["d"].host.merge, 0

    async def fail_twice(shard: int, rows: Any) -> Any:
        nonlocal failures
        if len(world["d"].rows(0)) > 20 and failures < 2:
            failures += 1
            raise StorageError("the disk is full")
        return await merge(shard, rows)

    world["d"].host.merge = fail_twice  # type: ignore[method-assign]
    await join(world)
    await until(lambda: ReadyReport(ShardId(0), 2, D) in world.ready)
    assert failures == 2
    assert world.agree(0, "a", "d")


async def test_a_node_whose_map_is_older_than_its_sources_fetches_it_and_begins_anew(world: World) -> None:
    await fill(world, 30)
    await world.start("d")
    assert world.map is not None
    older = world.map.replace(epoch=1, shards={ShardId(0): ShardState(2, (A, B, C), (D,), (A,))})
    newer = older.replace(epoch=1, shards={ShardId(0): ShardState(3, (A, B, C), (D,), (B,))})
    world.map = newer
    for node in "abc":
        await world[node].maps.adopt(newer)
    await world["d"].maps.adopt(older)
    await until(lambda: ReadyReport(ShardId(0), 3, D) in world.ready)
    assert ReadyReport(ShardId(0), 2, D) not in world.ready


async def test_a_restart_with_nothing_to_do_does_nothing(world: World) -> None:
    await fill(world, 10)
    world.wire.calls.clear()
    await world.restart("b")
    await world.settled()
    assert world["b"].mover.stats.begun == 0 and not world.wire.calls
