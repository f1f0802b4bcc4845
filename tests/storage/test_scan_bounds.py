"""A scan ends at its bound, also while the memory its bound was built in is reused."""

from __future__ import annotations

from pathlib import Path

from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import RowStore

FAMILY = "rows"
GROUPS = 60
EACH = 40


def prefix_of(group: int) -> bytes:
    return b"group-%04d-with-a-long-name\x00" % group


async def test_scans_by_prefix_return_their_rows_and_no_others_under_memory_churn(tmp_path: Path) -> None:
    store = RowStore.open(tmp_path / "rows", [FAMILY])
    try:
        batch = WriteBatch()
        for group in range(GROUPS):
            for number in range(EACH):
                batch.put(FAMILY, prefix_of(group) + b"%04d" % number, b"v" * 50)
        await store.commit(lambda _view: (batch, None), size_bytes=1)
        for round_ in range(20):
            for group in range(GROUPS):
                scan = store.scan(FAMILY, prefix=prefix_of(group))
                found = [next(scan)]
                # As large as a bound, so that they are put where a forgotten one was.
                churn = [prefix_of(7919 * round_ + index) for index in range(50)]
                found += scan
                assert len(found) == EACH, (round_, group, len(churn))
                assert all(key.startswith(prefix_of(group)) for key, _ in found)
    finally:
        store.close()
