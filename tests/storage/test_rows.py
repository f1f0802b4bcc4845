"""The row store keeps what it acknowledged, in order, and says so when it cannot."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from dakera_cluster.model.errors import OverloadedError, StorageError
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rocks import RowStoreSettings
from dakera_cluster.storage.rows import ReadView, RowStore, StoreState

FAMILIES = ("rows", "meta")


@pytest.fixture
def store(tmp_path: Path):
    opened = RowStore.open(tmp_path / "db", FAMILIES)
    yield opened
    opened.close()


async def put(store: RowStore, key: bytes, value: bytes, family: str = "rows") -> None:
    await store.commit(WriteBatch().put(family, key, value))


async def test_committed_rows_are_read_back_and_survive_a_reopen(tmp_path: Path) -> None:
    first = RowStore.open(tmp_path / "db", FAMILIES)
    await first.commit(WriteBatch().put("rows", b"a", b"1").put("meta", b"a", b"2").put("rows", b"b", b"3"))
    await first.commit(WriteBatch().delete("rows", b"b"))
    assert first.get("rows", b"a") == b"1"
    first.close()
    again = RowStore.open(tmp_path / "db", FAMILIES)
    assert again.multi_get("rows", [b"a", b"b"]) == [b"1", None]
    assert again.get("meta", b"a") == b"2"
    again.close()


async def test_opening_with_fewer_families_keeps_the_others(tmp_path: Path) -> None:
    first = RowStore.open(tmp_path / "db", FAMILIES)
    await put(first, b"k", b"v", "meta")
    first.close()
    with_one = RowStore.open(tmp_path / "db", ("rows", "hints"))
    assert with_one.get("meta", b"k") == b"v"
    with_one.close()


def test_a_second_opener_is_refused(store: RowStore) -> None:
    with pytest.raises(StorageError, match=r"(?i)lock"):
        RowStore.open(store.path, FAMILIES)


async def test_later_operations_of_a_batch_win(store: RowStore) -> None:
    await store.commit(WriteBatch().put("rows", b"k", b"1").delete("rows", b"k").put("rows", b"k", b"2"))
    assert store.get("rows", b"k") == b"2"
    await store.commit(WriteBatch().put("rows", b"k", b"3").delete_range("rows", b"a", b"z"))
    assert store.get("rows", b"k") is None


async def test_delete_range_excludes_its_end(store: RowStore) -> None:
    for key in (b"a", b"b", b"c"):
        await put(store, key, key)
    await store.delete_range("rows", b"a", b"c")
    assert [key for key, _ in store.scan("rows")] == [b"c"]
    with pytest.raises(ValueError):
        WriteBatch().delete_range("rows", b"b", b"b")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["a", "b1", "b2", "b\u00ff", "c"]),
        ({"prefix": b"b"}, ["b1", "b2", "b\u00ff"]),
        ({"prefix": b"b", "reverse": True}, ["b\u00ff", "b2", "b1"]),
        ({"prefix": b""}, ["a", "b1", "b2", "b\u00ff", "c"]),
        ({"prefix": b"b\xff"}, ["b\u00ff"]),
        ({"start": b"b1", "end": b"c"}, ["b1", "b2", "b\u00ff"]),
        ({"start": b"b1", "end": b"c", "reverse": True}, ["b\u00ff", "b2", "b1"]),
        ({"start": b"b2", "reverse": True}, ["c", "b\u00ff", "b2"]),
        ({"end": b"b2"}, ["a", "b1"]),
        ({"limit": 2}, ["a", "b1"]),
        ({"limit": 2, "reverse": True}, ["c", "b\u00ff"]),
        ({"limit": 0}, []),
        ({"prefix": b"x"}, []),
        ({"start": b"x", "end": b"a"}, []),
    ],
)
async def test_scan_returns_the_range_in_order(store: RowStore, arguments, expected) -> None:
    for key in (b"b2", b"a", b"b\xff", b"c", b"b1"):
        await put(store, key, key)
    assert [key.decode("latin-1") for key, _ in store.scan("rows", **arguments)] == expected
    if "limit" not in arguments:
        paged = [row async for page in store.pages("rows", page_rows=2, **arguments) for row in page]
        assert [key.decode("latin-1") for key, _ in paged] == expected


async def test_pages_show_one_moment_while_writes_go_on(store: RowStore) -> None:
    for n in range(20):
        await put(store, b"%02d" % n, b"old")
    seen = []
    async for page in store.pages("rows", page_rows=3):
        seen += page
        await put(store, b"%02d" % (len(seen) + 1), b"new")
        await put(store, b"zz%02d" % len(seen), b"new")
    assert seen == [(b"%02d" % n, b"old") for n in range(20)]


async def test_many_scans_at_once_keep_to_their_own_ranges(store: RowStore) -> None:
    """RocksDB holds a bound by a pointer; memory that is reused between steps must not move the end of a scan."""
    batch = WriteBatch()
    for n in range(2000):
        batch.put("rows", b"%04d" % n, b"v")
    await store.commit(batch)
    scans = [store.scan("rows", start=b"%04d" % n, end=b"%04d" % (n + 30)) for n in range(0, 1900, 20)]
    found: list[list[bytes]] = [[] for _ in scans]
    for _ in range(30):
        for keys, scan in zip(found, scans, strict=True):
            keys.append(next(scan)[0])
            bytes.fromhex("ffffffff" * 8)
    assert all(next(scan, None) is None for scan in scans)
    assert found == [[b"%04d" % (n + m) for m in range(30)] for n in range(0, 1900, 20)]


async def test_a_scan_over_a_closed_store_says_so(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "db", FAMILIES)
    await store.commit(WriteBatch().put("rows", b"a", b"").put("rows", b"b", b""))
    pages, scan = store.pages("rows", page_rows=1), store.scan("rows")
    assert await anext(pages) == [(b"a", b"")]
    await asyncio.to_thread(store.close)
    with pytest.raises(StorageError, match="closed"):
        await anext(pages)
    with pytest.raises(StorageError, match="closed"):
        next(scan)
    RowStore.open(tmp_path / "db", FAMILIES).close()


async def test_prepare_functions_serialise_read_modify_write(store: RowStore) -> None:
    def increment(view: ReadView) -> tuple[WriteBatch, int]:
        value = int(view.get("rows", b"n") or b"0") + 1
        return WriteBatch().put("rows", b"n", b"%d" % value), value

    answers = await asyncio.gather(*(store.commit(increment) for _ in range(500)))
    assert sorted(answers) == list(range(1, 501))
    assert store.get("rows", b"n") == b"500"
    assert store.stats().largest_group > 1


async def test_a_failing_prepare_reaches_its_caller_only(store: RowStore) -> None:
    def bad(view: ReadView) -> tuple[WriteBatch, None]:
        raise LookupError("mine")

    results = await asyncio.gather(
        put(store, b"a", b"1"),
        store.commit(bad),
        store.commit(WriteBatch().put("nowhere", b"k", b"v")),
        put(store, b"b", b"2"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), LookupError, KeyError, type(None)]
    assert store.multi_get("rows", [b"a", b"b"]) == [b"1", b"2"]
    assert store.state is StoreState.OPEN


async def test_commits_that_wait_share_an_fsync(store: RowStore) -> None:
    await asyncio.gather(*(put(store, b"%d" % n, b"v") for n in range(400)))
    stats = store.stats()
    assert stats.commits == 400 and stats.rows == 400
    assert stats.syncs < 40


class Gate:
    """Holds the disk thread inside a prepare function until it is opened."""

    def __init__(self, store: RowStore) -> None:
        self._open = threading.Event()
        self._entered = threading.Event()
        self._store = store

    async def __aenter__(self) -> Gate:
        def wait(view: ReadView) -> tuple[WriteBatch, None]:
            self._entered.set()
            assert self._open.wait(20)
            return WriteBatch(), None

        self.held = asyncio.create_task(self._store.commit(wait))
        await asyncio.to_thread(self._entered.wait, 20)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open.set()
        await self.held


async def test_nobody_is_answered_before_the_fsync_not_even_who_wrote_nothing(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that finds its rows already there may have found what is not yet durable."""
    syncing, finish = threading.Event(), threading.Event()
    handle = store._handle
    assert handle is not None
    sync = handle.sync

    def slow_sync() -> None:
        syncing.set()
        assert finish.wait(20)
        sync()

    monkeypatch.setattr(handle, "sync", slow_sync)
    async with Gate(store):
        writer = asyncio.create_task(put(store, b"k", b"v"))
        reader = asyncio.create_task(store.commit(lambda view: (WriteBatch(), view.get("rows", b"k"))))
        await asyncio.sleep(0)
    await asyncio.to_thread(syncing.wait, 20)
    assert store.get("rows", b"k") == b"v"
    await asyncio.sleep(0.01)
    assert not writer.done() and not reader.done()
    finish.set()
    await writer
    assert await reader == b"v"


async def test_a_cancelled_caller_disturbs_nobody(store: RowStore) -> None:
    async with Gate(store):
        tasks = [asyncio.create_task(put(store, b"%d" % n, b"v")) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
    await put(store, b"after", b"v")


async def test_a_full_queue_refuses_and_drains(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "db", FAMILIES, settings=RowStoreSettings(queued_commits=3))
    async with Gate(store):
        waiting = [asyncio.create_task(put(store, b"%d" % n, b"v")) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await put(store, b"late", b"v")
    await asyncio.gather(*waiting)
    await put(store, b"after", b"v")
    assert store.get("rows", b"late") is None and store.get("rows", b"after") == b"v"
    store.close()


async def test_queued_bytes_are_bounded_but_one_large_batch_passes(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "db", FAMILIES, settings=RowStoreSettings(queued_bytes=1000))
    async with Gate(store):
        large = asyncio.create_task(put(store, b"large", b"v" * 5000))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await put(store, b"small", b"v")
    await large
    assert store.get("rows", b"large") == b"v" * 5000
    assert store.stats().queued_bytes == 0
    store.close()


async def test_close_finishes_what_was_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "db", FAMILIES)
    waiting = [asyncio.create_task(put(store, b"%d" % n, b"v")) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.to_thread(store.close)
    await asyncio.gather(*waiting)
    store.close()
    for use in (lambda: put(store, b"x", b"v"), lambda: asyncio.to_thread(store.get, "rows", b"x"), store.recover):
        with pytest.raises(StorageError, match="closed"):
            await use()
    again = RowStore.open(tmp_path / "db", FAMILIES)
    assert len(list(again.scan("rows"))) == 50
    again.close()


async def test_a_full_disk_refuses_commits_and_heals_by_itself(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "db", FAMILIES, settings=RowStoreSettings(minimum_free_bytes=1 << 60))
    with pytest.raises(StorageError, match="disk is full"):
        await put(store, b"k", b"v")
    assert store.get("rows", b"k") is None
    assert store.state is StoreState.OPEN
    store.close()


async def test_a_checkpoint_is_a_store_of_its_own(store: RowStore, tmp_path: Path) -> None:
    await asyncio.gather(*(put(store, b"%03d" % n, b"v" * 100) for n in range(300)))
    await store.checkpoint(tmp_path / "copy")
    await put(store, b"later", b"v")
    copy = RowStore.open(tmp_path / "copy", FAMILIES)
    assert [key for key, _ in copy.scan("rows")] == [b"%03d" % n for n in range(300)]
    await put(copy, b"mine", b"v")
    copy.close()
    assert store.get("rows", b"mine") is None
    with pytest.raises(StorageError):
        await store.checkpoint(tmp_path / "copy")


async def test_commit_blocking_serves_threads_without_a_loop(store: RowStore) -> None:
    await asyncio.to_thread(store.commit_blocking, WriteBatch().put("meta", b"boot", b"7"))
    assert store.get("meta", b"boot") == b"7"
    assert (
        await asyncio.to_thread(store.commit_blocking, lambda view: (WriteBatch(), view.get("meta", b"boot"))) == b"7"
    )


async def test_stats_and_sizes_count_rows(store: RowStore) -> None:
    await asyncio.gather(*(put(store, b"%03d" % n, b"v" * 100) for n in range(100)))
    assert store.approximate_size("rows").rows == 100
    assert store.stats().families["rows"].memory_bytes > 10_000
    assert store.stats().written_bytes > 10_000
    with pytest.raises(KeyError):
        store.approximate_size("nowhere")
