"""A process that commits an endless seeded history of batches, several in flight, and prints how many were acknowledged.

``python -m tests.support.row_history DIRECTORY SEED FIRST WINDOW``. Batch N is a function of seed and N alone, so that
the parent can say which states the store may be in after a crash: the batches up to some N, in order, and none after it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from pathlib import Path

from dakera_cluster.storage.batches import Change, WriteBatch
from dakera_cluster.storage.rows import RowStore
from tests.support.row_writer import SMALL_BUFFERS

FAMILIES = ("rows", "changes")
KEYS = 40

State = dict[str, dict[bytes, bytes]]


def batch_of(seed: int, number: int) -> WriteBatch:
    """Puts, deletes and range deletes over few keys, so that every batch depends on the order."""
    rng = random.Random(f"{seed}/{number}")
    batch = WriteBatch()
    for _ in range(rng.randint(1, 5)):
        family, key = rng.choice(FAMILIES), rng.randrange(KEYS)
        kind = rng.random()
        if kind < 0.7:
            size = 4000 if rng.random() < 0.1 else rng.randint(0, 50)
            batch.put(family, b"%03d" % key, b"%d:" % number + rng.randbytes(size))
        elif kind < 0.9:
            batch.delete(family, b"%03d" % key)
        else:
            batch.delete_range(family, b"%03d" % key, b"%03d" % (key + rng.randint(1, 8)))
    return batch


def apply(batch: WriteBatch, state: State) -> None:
    """What a store is to do with a batch, on dicts."""
    for change, family, key, value in batch.operations:
        rows = state[family]
        if change is Change.PUT:
            rows[key] = value
        elif change is Change.DELETE:
            rows.pop(key, None)
        else:
            for gone in [found for found in rows if key <= found < value]:
                del rows[gone]


def read_state(directory: Path) -> State:
    store = RowStore.open(directory, FAMILIES, settings=SMALL_BUFFERS)
    try:
        return {family: dict(store.scan(family)) for family in FAMILIES}
    finally:
        store.close()


async def main(directory: str, seed: str, first: str, window: str) -> None:
    store = RowStore.open(directory, FAMILIES, settings=SMALL_BUFFERS)
    numbers = itertools.count(int(first))

    async def write() -> None:
        for number in numbers:
            await store.commit(batch_of(int(seed), number))
            os.write(1, b"%d\n" % number)

    await asyncio.gather(*(write() for _ in range(int(window))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
