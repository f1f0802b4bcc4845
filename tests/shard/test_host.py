"""What a replica was given is durable, visible at once, and the same after a restart, however the restart came about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, decode_document, decode_usage
from dakera_cluster.shard import ops
from dakera_cluster.shard.views import SNAPSHOT_MIN_DOCUMENTS
from tests.support.shards import NAMESPACE, SHARD, Bench, now_ms


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def test_a_write_is_found_by_vector_and_by_keyword_as_soon_as_it_is_acknowledged(bench: Bench) -> None:
    await bench.ids("warm up the view")
    await bench.apply(bench.put("a", "the heron stood in the reeds"))
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == ["a"]
    assert await bench.ids("the heron stood in the reeds", mode=ops.Mode.VECTOR) == ["a"]


async def test_an_edit_replaces_what_was_found_before(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"), bench.put("b", "otter"))
    await bench.apply(bench.put("a", "badger"))
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == []
    assert await bench.ids("badger", mode=ops.Mode.TEXT) == ["a"]
    assert (await bench.ids("badger", 1, ops.Mode.VECTOR)) == ["a"]


async def test_a_deleted_document_is_gone_from_every_read(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"), bench.put("b", "heron"))
    await bench.apply(bench.delete("a"))
    assert await bench.ids("heron") == ["b"]
    assert (await bench.select()).ids == ["b"]
    late_edit = bench.patch("a", importance=0.9)
    await bench.apply(late_edit)
    assert await bench.ids("heron") == ["b"]


async def test_a_document_stored_again_after_its_delete_is_back(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"))
    await bench.apply(bench.delete("a"))
    await bench.apply(bench.put("a", "otter"))
    assert await bench.ids("otter", mode=ops.Mode.TEXT) == ["a"]
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == []


async def test_repeating_an_apply_changes_nothing(bench: Bench) -> None:
    row = bench.put("a", "heron")
    assert (await bench.apply(row)).changed == 1
    assert (await bench.apply(row)).changed == 0
    assert (await bench.select()).total == 1


async def test_rows_in_any_order_give_the_same_bytes_and_digests(tmp_path: Path) -> None:
    first, second = Bench(tmp_path / "one"), Bench(tmp_path / "two")
    rows = [first.put(f"m{i % 20}", f"text {i}") for i in range(60)]
    rows += [first.delete(f"m{i}") for i in range(5)] + [first.patch(f"m{i}", importance=0.1 * i) for i in range(10)]
    rows += [first.use(f"m{i}", i) for i in range(8)]
    shuffled = random.Random(3).sample(rows, len(rows))
    for row in rows:
        await first.apply(row)
    await second.apply(*shuffled)
    one, two = first.host.replica(SHARD), second.host.replica(SHARD)
    assert one.digests() == two.digests()
    assert one.page(b"", most_rows=1_000, most_bytes=1 << 30) == two.page(b"", most_rows=1_000, most_bytes=1 << 30)
    assert one.counts(NAMESPACE).documents == two.counts(NAMESPACE).documents == (await first.select()).total
    await first.close()
    await second.close()


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_restart_finds_everything_by_snapshot_or_from_the_rows(bench: Bench, orderly: bool) -> None:
    rows = [bench.put(f"m{i:05d}", f"item {i} of box {i % 7}") for i in range(SNAPSHOT_MIN_DOCUMENTS + 50)]
    for start in range(0, len(rows), 256):
        await bench.apply(*rows[start : start + 256])
    before = await bench.ids("item 77 of box 0", 20)
    await bench.host.handle(ops.Describe(SHARD, 0, NAMESPACE))
    await (bench.reopen() if orderly else bench.crash())
    assert await bench.ids("item 77 of box 0", 20) == before
    assert (await bench.select(limit=0)).matched == len(rows)
    assert bench.host.views.stats.loaded == (1 if orderly else 0)


async def test_a_snapshot_catches_up_with_what_came_after_it(bench: Bench) -> None:
    rows = [bench.put(f"m{i:05d}", f"item {i}") for i in range(SNAPSHOT_MIN_DOCUMENTS)]
    await bench.apply(*rows)
    await bench.ids("item")
    await bench.reopen()
    await bench.apply(bench.put("new", "zebra"), bench.delete("m00001"), bench.put("m00002", "zebra too"))
    await bench.crash()
    assert sorted(await bench.ids("zebra", mode=ops.Mode.TEXT)) == ["m00002", "new"]
    assert bench.host.views.stats.loaded == 1
    total = (await bench.select(limit=0)).total
    assert total == SNAPSHOT_MIN_DOCUMENTS


async def test_a_snapshot_catches_up_with_the_use_of_what_came_after_it(bench: Bench) -> None:
    await bench.apply(*[bench.put(f"m{i:05d}", f"item {i}") for i in range(SNAPSHOT_MIN_DOCUMENTS)])
    await bench.ids("item")
    await bench.reopen()
    await bench.apply(bench.put("new", "zebra"), bench.use("new", 3), bench.use("m00001", 2), bench.use("m00001", 5))
    await bench.crash()
    assert await bench.ids("zebra", mode=ops.Mode.TEXT) == ["new"]
    view = bench.host.views.loaded(SHARD, NAMESPACE)
    assert view is not None
    assert [int(view.attributes.accesses[view.slots[row_id]]) for row_id in ("new", "m00001", "m00002")] == [3, 5, 0]
    assert bench.host.views.stats.loaded == 1


async def test_a_damaged_snapshot_costs_a_rebuild_and_nothing_else(bench: Bench) -> None:
    await bench.apply(*[bench.put(f"m{i:05d}", f"item {i}") for i in range(SNAPSHOT_MIN_DOCUMENTS)])
    await bench.ids("item 9", 5)
    await bench.close()
    snapshot = next((bench.path / "views").rglob("*.view"))
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 0xFF
    snapshot.write_bytes(data)
    bench.open()
    assert (await bench.ids("item 9", mode=ops.Mode.TEXT))[0] == "m00009"
    assert bench.host.views.stats.rebuilt == 1


async def test_expired_documents_are_passed_over_from_that_second_on(bench: Bench) -> None:
    now_s = now_ms() // 1000
    await bench.apply(bench.put("a", "heron", expires=now_s + 60), bench.put("b", "heron"))
    assert sorted(await bench.ids("heron")) == ["a", "b"]
    later = (now_s + 60) * 1000
    assert await bench.ids("heron", now_ms=later) == ["b"]
    assert (await bench.select(now_ms=later)).total == 1
    answer = await bench.host.handle(ops.Expired(SHARD, 0, later, 10))
    assert answer == ops.Places([(NAMESPACE, "a")])
    await bench.apply(bench.delete("a"))
    assert await bench.host.handle(ops.Expired(SHARD, 0, later, 10)) == ops.Places([])


async def test_conditions_and_filters_select_exactly_what_matches(bench: Bench) -> None:
    rng = random.Random(5)
    facts = {}
    for i in range(300):
        fields = {
            Field.IMPORTANCE: round(rng.random(), 2),
            Field.TYPE: rng.choice(["episodic", "semantic"]),
            Field.TAGS: rng.sample(["red", "green", "blue"], rng.randint(0, 3)) or None,
            Field.SESSION: rng.choice([None, "s1", "s2"]),
            Field.CREATED: 1_000 + i,
            Field.METADATA: {"n": i % 10, "who": rng.choice(["ann", "bob"])},
        }
        facts[f"m{i:03d}"] = fields
        await bench.apply(bench.put(f"m{i:03d}", f"note {i}", **{k: v for k, v in fields.items() if v is not None}))

    def expect(check: object) -> list[str]:
        return [row_id for row_id, fields in facts.items() if check(fields)]  # type: ignore[operator]

    cases = [
        (ops.Where(ops.Conditions(memory_type="semantic")), lambda f: f["type"] == "semantic"),
        (ops.Where(ops.Conditions(min_importance=0.7)), lambda f: f["importance"] >= 0.7),
        (ops.Where(ops.Conditions(max_importance=0.3)), lambda f: f["importance"] <= 0.3),
        (ops.Where(ops.Conditions(session_id="s2")), lambda f: f["session"] == "s2"),
        (ops.Where(ops.Conditions(tags=["red", "blue"])), lambda f: {"red", "blue"} <= set(f["tags"] or ())),
        (
            ops.Where(ops.Conditions(created_after=1_100, created_before=1_150)),
            lambda f: 1_100 <= f["created"] <= 1_150,
        ),
        (
            ops.Where(filter={"n": {"$gte": 5}, "who": "ann"}),
            lambda f: f["metadata"]["n"] >= 5 and f["metadata"]["who"] == "ann",
        ),
        (
            ops.Where(ops.Conditions(session_id="s1"), {"n": {"$in": [1, 2]}}),
            lambda f: f["session"] == "s1" and f["metadata"]["n"] in (1, 2),
        ),
    ]
    for where, check in cases:
        assert (await bench.select(where)).ids == expect(check), where
        found = await bench.ids("note", 300, where=where)
        assert sorted(found) == expect(check), where


async def test_a_filtered_search_returns_top_k_when_enough_rows_match(bench: Bench) -> None:
    rows = [bench.put(f"m{i:04d}", f"note {i}", metadata={"rare": i % 50 == 0}) for i in range(1_000)]
    await bench.apply(*rows)
    hits = await bench.ids("note 3", 10, ops.Mode.VECTOR, where=ops.Where(filter={"rare": True}))
    assert len(hits) == 10
    assert all(int(row_id[1:]) % 50 == 0 for row_id in hits)


async def test_pages_by_id_walk_everything_once(bench: Bench) -> None:
    await bench.apply(*[bench.put(f"m{i:03d}", "x") for i in range(95)])
    seen: list[str] = []
    after: str | None = None
    while True:
        page = await bench.select(limit=10, after=after)
        seen += page.ids
        if len(page.ids) < 10:
            break
        after = page.ids[-1]
    assert seen == [f"m{i:03d}" for i in range(95)]


async def test_usage_reaches_the_view_and_leaves_the_memory_alone(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"))
    [before] = [hit.body for hit in await bench.search("heron")]
    await bench.apply(bench.use("a", 4))
    [hit] = await bench.search("heron")
    assert hit.body == before
    assert hit.usage is not None
    assert decode_usage(hit.usage).count == 4


async def test_each_hit_comes_with_its_own_body_and_usage(bench: Bench) -> None:
    for place in range(6):
        await bench.apply(bench.put(f"m{place}", f"heron {place}"))
    await bench.apply(bench.use("m4", 2))
    await bench.apply(bench.delete("m3"))
    held, usages = bench.host.replica(SHARD).read_with_usage(NAMESPACE, ["m4", "nobody", "m1"])
    texts = [None if body is None else decode_document(body).fields[Field.TEXT] for body in held]
    assert texts == ["heron 4", None, "heron 1"]
    assert [None if usage is None else decode_usage(usage).count for usage in usages] == [2, None, None]
    found = {hit.id: hit.usage is not None for hit in await bench.search("heron", k=10)}
    assert found == {f"m{place}": place == 4 for place in (0, 1, 2, 4, 5)}


async def test_aggregates_group_and_count(bench: Bench) -> None:
    await bench.apply(*[bench.put(f"m{i}", "x", metadata={"n": i, "even": i % 2 == 0}) for i in range(10)])
    answer = await bench.host.handle(ops.Aggregate(SHARD, 0, NAMESPACE, now_ms(), None, ["even"], ["n"], 10))
    assert isinstance(answer, ops.Groups)
    groups = {group.key[0]: group for group in answer.groups}
    assert groups[True].count == 5
    assert groups[True].values["n"] == [5, 20, 0, 8]
    assert groups[False].values["n"] == [5, 25, 1, 9]


async def test_concurrent_patches_of_one_document_all_survive(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"))
    patches = [bench.patch("a", **{f"f{i}": i}) for i in range(50)]
    await asyncio.gather(*(bench.apply(row) for row in patches))
    answer = await bench.host.handle(ops.Read(SHARD, 0, NAMESPACE, Kind.DOCUMENT, ["a"]))
    assert isinstance(answer, ops.Bodies)
    assert answer.bodies[0] is not None
    fields = decode_document(answer.bodies[0]).fields
    assert {f"f{i}": i for i in range(50)}.items() <= fields.items()


async def test_an_older_write_is_told_that_it_was_outrun(bench: Bench) -> None:
    older, newer = bench.put("a", "old"), bench.put("a", "new")
    assert (await bench.apply(newer)).outrun_by is None
    assert (await bench.apply(older)).outrun_by is not None
    assert await bench.ids("new", mode=ops.Mode.TEXT) == ["a"]


async def test_a_write_whose_caller_goes_away_is_still_shown(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"))
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == ["a"]
    for number in range(20):
        caller = asyncio.create_task(bench.apply(bench.put(f"b{number}", "otter"), bench.delete("a")))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    await bench.host.settle()
    await bench.close()
    view = bench.host.views.loaded(SHARD, NAMESPACE)
    assert view is not None
    shown = set(view.slots)
    bench.open()
    assert shown == set(await bench.ids("otter", 50, ops.Mode.TEXT)), "the view shows what the rows say"
    assert await bench.ids("heron", mode=ops.Mode.TEXT) == []
