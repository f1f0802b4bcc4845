"""What a recall answers about a memory is what was acknowledged last, however often it was answered before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, decode_document, decode_usage
from dakera_cluster.retrieval.options import Options
from dakera_cluster.shard import ops
from dakera_cluster.shard.kept_rows import BYTES_PER_ROW, KeptRow, KeptRows
from dakera_cluster.shard.view import NamespaceView
from tests.support.shards import NAMESPACE, SHARD, Bench, now_ms, vector


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def recalled(bench: Bench, text: str) -> dict[str, ops.Hit]:
    options = Options(k=10)
    request = ops.Recall(
        SHARD, 0, NAMESPACE, now_ms(), 10, text, vector(text).tobytes(), [], b"", None, options, neighbours=True
    )
    answer = await bench.host.handle(request)
    assert isinstance(answer, ops.Hits)
    return {hit.id: hit for hit in answer.hits}


def importance_of(hit: ops.Hit) -> float:
    importance: float = decode_document(hit.body).fields[Field.IMPORTANCE]
    return importance


def view_of(bench: Bench) -> NamespaceView:
    view = bench.host.views.loaded(SHARD, NAMESPACE)
    assert view is not None
    return view


async def test_a_memory_is_answered_as_it_was_left_by_the_last_change(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"), bench.put("b", "heron and otter"))
    first = await recalled(bench, "heron")
    assert await recalled(bench, "heron") == first
    await bench.apply(bench.patch("a", importance=0.9))
    changed = await recalled(bench, "heron")
    assert [importance_of(changed[row_id]) for row_id in "ab"] == [pytest.approx(0.9), 0.5]
    await bench.apply(bench.delete("a"))
    assert list(await recalled(bench, "heron")) == ["b"]
    await bench.apply(bench.put("a", "heron again"))
    assert decode_document((await recalled(bench, "heron"))["a"].body).fields[Field.TEXT] == "heron again"


async def test_each_use_is_in_the_next_answer(bench: Bench) -> None:
    await bench.apply(bench.put("a", "heron"), bench.put("b", "heron too"))
    assert {hit.usage for hit in (await recalled(bench, "heron")).values()} == {None}
    for count in (1, 2, 3):
        await bench.apply(bench.use("a", count))
        hits = await recalled(bench, "heron")
        usage = hits["a"].usage
        assert usage is not None
        assert decode_usage(usage).count == count
        assert hits["b"].usage is None


async def test_an_answer_carries_the_document_without_what_only_indexes_read(bench: Bench) -> None:
    row = bench.put("a", "heron", **{Field.TOKENS: b"\x93\x90\xc4\x00\xc4\x00", Field.METADATA: {"speaker": "Ann"}})
    await bench.apply(row)
    whole, answered = decode_document(row.body), decode_document((await recalled(bench, "heron"))["a"].body)
    left_out = (Field.VECTOR, Field.TOKENS)
    assert answered.fields == {name: value for name, value in whole.fields.items() if name not in left_out}
    assert (answered.birth, answered.deleted, answered.stamps) == (whole.birth, whole.deleted, whole.stamps)
    [stored] = bench.host.replica(SHARD).read(NAMESPACE, Kind.DOCUMENT, ["a"])
    assert stored == row.body


async def test_rows_are_kept_once_answered_and_weigh_in_the_view(bench: Bench) -> None:
    await bench.apply(*[bench.put(f"m{place}", f"heron {place}") for place in range(30)])
    await recalled(bench, "heron")
    view = view_of(bench)
    answered, weight = len(view.kept), view.memory_bytes
    assert answered == 10
    await recalled(bench, "heron")
    assert (len(view.kept), view.memory_bytes) == (answered, weight)
    await bench.apply(*[bench.delete(f"m{place}") for place in range(30)])
    assert (len(view.kept), view.kept.nbytes) == (0, 0)


def kept(size: int, sequence: int = 5) -> KeptRow:
    return KeptRow(bytes(size), None, sequence)


def test_what_was_kept_first_goes_first_when_the_bound_is_passed() -> None:
    rows = KeptRows(3 * (BYTES_PER_ROW + 100))
    for slot in (4, 1, 9):
        rows.keep(slot, kept(100))
    assert rows.nbytes == 3 * (BYTES_PER_ROW + 100)
    rows.keep(2, kept(50))
    assert [slot for slot in (4, 1, 9, 2) if rows.get(slot) is not None] == [1, 9, 2]
    rows.keep(7, kept(10_000))
    assert (len(rows), rows.nbytes) == (0, 0)


def test_a_usage_older_than_the_one_known_is_passed_over() -> None:
    rows = KeptRows()
    rows.keep(3, kept(10, sequence=5))
    for sequence, expected in ((5, None), (7, b"7"), (6, b"7"), (8, b"8")):
        rows.used(3, str(sequence).encode(), sequence)
        row = rows.get(3)
        assert row is not None
        assert row.usage == expected
    rows.used(4, b"9", 9)
    assert (len(rows), rows.nbytes) == (1, BYTES_PER_ROW + 11)
