"""Large views are loaded beside their lane, kept ready for the next read, and made quick once they are quiet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, put_document
from dakera_cluster.shard import ops, views
from tests.support.shards import NAMESPACE, SHARD, Bench, now_ms, vector

LARGE = views.LOADED_IN_LANE_DOCUMENTS + 100


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def _fill(bench: Bench, count: int) -> None:
    rows = [bench.put(f"m{i:05d}", f"item {i} of box {i % 7}") for i in range(count)]
    for start in range(0, count, 256):
        await bench.apply(*rows[start : start + 256])


async def _until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def _total(bench: Bench, namespace: str) -> int:
    request = ops.Select(SHARD, 0, namespace, now_ms(), None, ops.Order.ID, 0)
    answer = await bench.host.handle(request)
    assert isinstance(answer, ops.Selected)
    return answer.total


async def test_while_a_large_view_loads_others_are_answered_and_writes_are_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(bench, LARGE)
    may_go, loads = threading.Event(), []
    prepare = bench.host.views.prepare

    def held(replica: object, namespace: str) -> object:
        view = prepare(replica, namespace)  # type: ignore[arg-type]
        if namespace == NAMESPACE:
            loads.append(namespace)
            may_go.wait(30)
        return view

    monkeypatch.setattr(bench.host.views, "prepare", held)
    first, second = (asyncio.create_task(bench.ids("heron", mode=ops.Mode.TEXT)) for _ in range(2))
    await _until(lambda: loads)
    body = {Field.TEXT: "an otter", Field.TYPE: "episodic", Field.VECTOR: vector("an otter").tobytes()}
    await bench.apply(Row("_dakera_agent_bob", Kind.DOCUMENT, "b", put_document(bench.stamp(), body)))
    assert await _total(bench, "_dakera_agent_bob") == 1
    await bench.apply(bench.put("late", "the heron stood in the reeds"))
    assert not first.done() and not second.done()
    may_go.set()
    assert await first == ["late"] and await second == ["late"]
    assert loads == [NAMESPACE], "loaded once for all who wait"
    assert await _total(bench, NAMESPACE) == LARGE + 1


async def test_a_wipe_during_a_load_leaves_nothing_of_what_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await _fill(bench, LARGE)
    may_go, prepared = threading.Event(), threading.Event()
    prepare = bench.host.views.prepare

    def held(replica: object, namespace: str) -> object:
        view = prepare(replica, namespace)  # type: ignore[arg-type]
        prepared.set()
        may_go.wait(30)
        return view

    monkeypatch.setattr(bench.host.views, "prepare", held)
    asked = asyncio.create_task(_total(bench, NAMESPACE))
    await _until(prepared.is_set)
    await bench.host.wipe(SHARD)
    may_go.set()
    assert await asked == 0
    await bench.apply(bench.put("new", "heron"))
    assert await _total(bench, NAMESPACE) == 1


async def test_a_namespace_that_is_only_written_gets_its_snapshot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SNAPSHOT_CHANGES", LARGE)
    bench.host.start()
    await _fill(bench, LARGE - 1)
    assert bench.host.views.behind() == []
    await bench.apply(bench.put("last", "heron"))
    await _until(lambda: list((bench.path / "views").rglob("*.view")))
    await bench.crash()
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == ["last"]
    assert (bench.host.views.stats.loaded, bench.host.views.stats.rebuilt) == (1, 0)


async def test_a_quiet_view_has_its_postings_in_one_piece(bench: Bench) -> None:
    bench.host.start()
    await bench.ids("the view is in memory from here on")
    await _fill(bench, LARGE)
    view = bench.host.views.loaded(SHARD, NAMESPACE)
    assert view is not None
    await _until(lambda: view.text.segments == 1 and not bench.host.views.unsettled())
    assert await bench.ids("item 7", 1, ops.Mode.TEXT) == ["m00007"]


def test_what_missed_changes_are_counted_for_is_bounded(bench: Bench) -> None:
    for number in range(views.MAX_MISSED + 50):
        bench.host.views.missed(SHARD, f"n{number}", views.SNAPSHOT_CHANGES)
    assert len(bench.host.views.behind()) == views.MAX_MISSED


async def test_a_view_that_is_used_all_the_time_has_its_postings_in_one_piece(bench: Bench) -> None:
    await bench.ids("the view is in memory from here on")
    await _fill(bench, LARGE)
    view = bench.host.views.loaded(SHARD, NAMESPACE)
    assert view is not None
    while view.maintenance():
        pass
    assert not view.settle(), "its documents have just changed"
    await bench.apply(bench.use("m00001", 1))
    assert view.settle()
    await bench.apply(bench.put("new", "heron"))
    assert not view.settle()


async def test_accesses_bring_on_a_snapshot_only_when_the_log_would_run_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(bench, LARGE)
    await bench.ids("item 7")
    await bench.reopen()
    await bench.ids("item 7")
    monkeypatch.setattr(views, "SNAPSHOT_CHANGES", 1_000)
    monkeypatch.setattr(views, "SNAPSHOT_CHANGES_SHARE", 0.0)
    uses = [bench.use(f"m{i:05d}", 1) for i in range(LARGE)]
    await bench.apply(*uses)
    assert not bench.host.views.due_for_snapshot()
    monkeypatch.setattr(views, "CHANGES_KEPT", 2 * LARGE)
    await bench.apply(*[bench.use(f"m{i:05d}", 2) for i in range(LARGE)])
    assert bench.host.views.due_for_snapshot() == [(SHARD, NAMESPACE)]
    bench.host.views.snapshot(SHARD, NAMESPACE)
    await bench.apply(*[bench.use(f"m{i:05d}", 3) for i in range(LARGE // 2)])
    assert not bench.host.views.due_for_snapshot()
