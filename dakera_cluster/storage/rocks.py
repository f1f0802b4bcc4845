"""One opened RocksDB: tuning, column families, reads, unsynced writes and the sync that makes them durable.

Everything that is particular to RocksDB and to its Python binding stands here; the group commit above it
(``storage/rows.py``) knows only this class. Invariant: a write is durable when, and only when, a ``sync`` that began
after it has returned; the binding holds the interpreter lock during ``write`` and releases it during ``sync``, which is
why the two are never one call.

The write-ahead log is replayed up to the first torn record (RocksDB's point-in-time recovery): what was synced is
before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    ColumnFamily,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
)
from rocksdict import WriteBatch as NativeBatch

from dakera_cluster.model.errors import CorruptionError, StorageError
from dakera_cluster.storage.batches import Change, WriteBatch

DEFAULT_FAMILY = "default"
"""RocksDB always has it; the store keeps its own probe record there and nothing else."""

MIB = 1 << 20


class RowStoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Every bound of the row store. The defaults keep an idle store under 30 MiB of resident memory."""

    block_cache_bytes: int = 32 * MIB
    """Cache of uncompressed blocks, indexes and filters, shared by all column families."""
    write_buffer_bytes: int = 8 * MIB
    """Memtable of one column family."""
    total_write_buffer_bytes: int = 24 * MIB
    """All memtables together; the largest is flushed when it is passed."""
    total_log_bytes: int = 64 * MIB
    """Write-ahead log on disk before old memtables are flushed; bounds the replay at start."""
    open_files: int = 256
    background_jobs: int = 2
    bloom_bits_per_key: int = 10
    block_bytes: int = 8 * 1024

    queued_commits: int = 8192
    """Commits that wait for the disk before new ones are refused."""
    queued_bytes: int = 64 * MIB
    group_commits: int = 512
    """Commits that share one fsync at most: bounds how long the first of them waits for the last."""
    group_bytes: int = 4 * MIB
    yield_bytes: int = 64 * 1024
    """Bytes written before the disk thread lets other threads run."""
    yield_rows: int = 200
    minimum_free_bytes: int = 64 * MIB
    """Free space on the file system below which commits are refused: RocksDB needs room to flush and compact."""


def storage_error(doing: str, error: Exception) -> StorageError:
    """The error of the tree for what RocksDB said while ``doing`` something."""
    text = str(error) or type(error).__name__
    kind = CorruptionError if text.startswith("Corruption") else StorageError
    return kind(f"row store: {doing} failed: {text}")


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above every key with ``prefix``; None when there is none (an empty prefix, or all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


class Cursor:
    """An iterator over a range of one column family, pinned to the moment it was made. Any thread, one at a time.

    The end of the range is checked here and not given to RocksDB: it would read the bound through a pointer that the
    binding lets dangle, and the scan would end wherever the reused memory says.
    """

    __slots__ = ("__weakref__", "_end", "_iterator", "_reverse", "_start")

    def __init__(self, iterator: RdictIter, start: bytes | None, end: bytes | None, *, reverse: bool) -> None:
        self._iterator: RdictIter | None = iterator
        self._reverse = reverse
        self._start = start
        self._end = end
        if reverse:
            if end is None:
                iterator.seek_to_last()
            else:
                iterator.seek_for_prev(end)
                if iterator.valid() and iterator.key() >= end:
                    iterator.prev()
        elif start is None:
            iterator.seek_to_first()
        else:
            iterator.seek(start)

    def close(self) -> None:
        """Let go of the database. Later steps raise StorageError."""
        self._iterator = None

    def take(self, rows: int, size_bytes: int) -> list[tuple[bytes, bytes]]:
        """The next rows, at most ``rows`` and until ``size_bytes`` are passed; empty at the end of the range."""
        iterator = self._iterator
        if iterator is None:
            raise StorageError("row store: it was closed or reopened while being scanned")
        reverse, start, end = self._reverse, self._start, self._end
        out: list[tuple[bytes, bytes]] = []
        size = 0
        try:
            while len(out) < rows and size < size_bytes and iterator.valid():
                key: bytes = iterator.key()
                if (start is not None and key < start) if reverse else (end is not None and key >= end):
                    return out
                value: bytes = iterator.value()
                out.append((key, value))
                size += len(key) + len(value)
                if reverse:
                    iterator.prev()
                else:
                    iterator.next()
            if not iterator.valid():
                iterator.status()
        except Exception as error:
            raise storage_error("scan", error) from error
        return out


class RocksHandle:
    """An opened database. Reads and cursors may be used by any thread; ``write`` and ``sync`` by one thread."""

    def __init__(self, path: Path, families: Sequence[str], settings: RowStoreSettings) -> None:
        """Open or create the database at ``path``. Raises StorageError when it is locked, damaged or unreadable."""
        self.path = path
        self._closed = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            existing = Rdict.list_cf(str(path), Options(raw_mode=True)) if (path / "CURRENT").exists() else []
            names = {name for name in (*families, *existing) if name != DEFAULT_FAMILY}
            cache = Cache(settings.block_cache_bytes)
            self._db = Rdict(
                str(path),
                _database_options(settings, cache),
                column_families={name: _family_options(settings, cache) for name in sorted(names)},
            )
            self._families = {name: self._db.get_column_family(name) for name in sorted(names)}
            self._families[DEFAULT_FAMILY] = self._db
            self._handles: dict[str, ColumnFamily] = {n: self._db.get_column_family_handle(n) for n in self._families}
        except OSError as error:
            raise storage_error(f"opening {path}", error) from error
        except Exception as error:
            raise storage_error("opening", error) from error

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        table = self._table(family)
        try:
            value: bytes | None = table.get(key)
        except Exception as error:
            raise storage_error("read", error) from error
        return value

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys`` in their order; None for each that is not there."""
        table = self._table(family)
        try:
            values: list[bytes | None] = table.get(list(keys))
        except Exception as error:
            raise storage_error("read", error) from error
        return values

    def cursor(self, family: str, start: bytes | None, end: bytes | None, *, reverse: bool) -> Cursor:
        """A cursor over ``[start, end)``; None is open on that side."""
        table = self._table(family)
        try:
            return Cursor(table.iter(), start, end, reverse=reverse)
        except Exception as error:
            raise storage_error("scan", error) from error

    def native(self, batch: WriteBatch) -> NativeBatch:
        """The batch in RocksDB's form. Raises KeyError for an unknown column family."""
        out = NativeBatch(raw_mode=True)
        handles = self._handles
        for change, family, key, value in batch.operations:
            handle = handles[family]
            if change is Change.PUT:
                out.put(key, value, handle)
            elif change is Change.DELETE:
                out.delete(key, handle)
            else:
                out.delete_range(key, value, handle)
        return out

    def write(self, batch: NativeBatch) -> None:
        """Apply a batch: visible to readers at once, durable after the next ``sync``."""
        self._db.write(batch)

    def sync(self) -> None:
        """Make everything written so far durable (one fsync of the log). Releases the interpreter lock."""
        self._db.flush_wal(True)

    def checkpoint(self, path: Path) -> None:
        """Make a consistent copy at ``path`` (must not exist), sharing immutable files by hard links."""
        try:
            for table in self._families.values():
                table.flush(True)  # releases the interpreter lock; the checkpoint below then has nothing left to flush
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise storage_error(f"checkpoint to {path}", error) from error

    def compact(self, family: str) -> None:
        """Rewrite a column family so that deleted rows give their space back."""
        try:
            self._table(family).compact_range(None, None)
        except Exception as error:
            raise storage_error("compaction", error) from error

    def properties(self) -> Iterator[tuple[str, int, int, int]]:
        """For each column family: name, estimated rows, bytes in files, bytes in memtables."""
        for name, table in self._families.items():
            yield (
                name,
                table.property_int_value("rocksdb.estimate-num-keys") or 0,
                table.property_int_value("rocksdb.total-sst-files-size") or 0,
                table.property_int_value("rocksdb.size-all-mem-tables") or 0,
            )

    def free_bytes(self) -> int:
        """Free space on the file system that holds the store."""
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize

    def close(self) -> None:
        """Close. Errors are StorageError; the handle is unusable afterwards in any case."""
        self._closed = True
        tables = [table for name, table in self._families.items() if name != DEFAULT_FAMILY]
        tables.append(self._db)
        # A close that fails leaves the files open and locked until the last reference is gone: keep none.
        self._handles.clear()
        self._families.clear()
        del self._db
        try:
            while tables:
                tables.pop(0).close()
        except Exception as error:
            raise storage_error("closing", error) from None
        finally:
            tables.clear()

    def _table(self, family: str) -> Rdict:
        table = self._families.get(family)
        if table is None:
            if self._closed:
                raise StorageError("row store: closed")
            raise KeyError(family)
        return table


def _database_options(settings: RowStoreSettings, cache: Cache) -> Options:
    options = _family_options(settings, cache)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_db_write_buffer_size(settings.total_write_buffer_bytes)
    options.set_max_total_wal_size(settings.total_log_bytes)
    options.set_max_open_files(settings.open_files)
    options.set_max_background_jobs(settings.background_jobs)
    options.set_max_file_opening_threads(1)
    options.set_skip_stats_update_on_db_open(True)
    options.set_avoid_unnecessary_blocking_io(True)
    options.set_bytes_per_sync(MIB)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_is_fd_close_on_exec(True)
    return options


def _family_options(settings: RowStoreSettings, cache: Cache) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(settings.block_bytes)
    table.set_bloom_filter(settings.bloom_bits_per_key, False)
    # Index and filter blocks live in the bounded cache, or memory would grow with the data without a bound.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(settings.write_buffer_bytes)
    options.set_max_write_buffer_number(2)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_bottommost_compression_type(DBCompressionType.zstd())
    options.set_memtable_whole_key_filtering(True)
    options.set_level_compaction_dynamic_level_bytes(True)
    return options
