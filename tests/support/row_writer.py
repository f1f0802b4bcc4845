"""A process that commits numbered batches to a row store and prints the number of each one that was acknowledged.

``python -m tests.support.row_writer DIRECTORY FIRST WRITERS [drop-sync]``. Batch N puts the key N into two column families
and, every fifth time, a large value, so that memtables are flushed and logs are replaced while it runs. It ends by being
killed. ``drop-sync`` leaves the fsync out: the mutant that the tests of durability must catch.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from pathlib import Path

from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rocks import RocksHandle, RowStoreSettings
from dakera_cluster.storage.rows import RowStore

FAMILIES = ("rows", "changes")
SMALL_BUFFERS = RowStoreSettings(
    write_buffer_bytes=64 * 1024, total_write_buffer_bytes=256 * 1024, total_log_bytes=512 * 1024, minimum_free_bytes=0
)


def key_of(number: int) -> bytes:
    return b"%010d" % number


def value_of(number: int) -> bytes:
    rng = random.Random(number)
    return rng.randbytes(rng.randint(1, 60) if number % 5 else 4000)


def lost_and_torn(directory: Path, acknowledged: set[int]) -> tuple[set[int], set[int]]:
    """Acknowledged batches that are not in the store as they were written, and batches of which only a part is there."""
    store = RowStore.open(directory, FAMILIES, settings=SMALL_BUFFERS)
    try:
        rows, changes = (dict(store.scan(family)) for family in FAMILIES)
    finally:
        store.close()
    torn = {int(key) for key in rows.keys() ^ changes.keys()}
    lost = {n for n in acknowledged if rows.get(key_of(n)) != value_of(n) or key_of(n) not in changes}
    return lost, torn


async def main(directory: str, first: str, writers: str, mutation: str = "") -> None:
    if mutation == "drop-sync":
        RocksHandle.sync = lambda self: None  # type: ignore[method-assign]
    store = RowStore.open(directory, FAMILIES, settings=SMALL_BUFFERS)
    numbers = itertools.count(int(first))

    async def write() -> None:
        for number in numbers:
            key = key_of(number)
            await store.commit(WriteBatch().put("rows", key, value_of(number)).put("changes", key, b"c"))
            os.write(1, b"%d\n" % number)

    await asyncio.gather(*(write() for _ in range(int(writers))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
