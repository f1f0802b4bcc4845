"""A process whose disk fails under an open row store, heals and fails again; prints what it saw as one JSON object.

``python -m tests.support.failing_disk DIRECTORY`` in the environment of ``make_powerloss_env``. It does not close the
store: the caller cuts the power afterwards.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from typing import Any

from dakera_cluster.model.errors import StorageError
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rocks import RowStoreSettings
from dakera_cluster.storage.rows import RowStore
from tests.support.powerloss import set_fault

FAMILIES = ("rows",)


async def outcome(waiting: Any) -> str:
    try:
        await waiting
    except StorageError as error:
        return f"refused: {error.message}"
    return "done"


async def main(directory: str) -> None:
    store = RowStore.open(directory, FAMILIES, settings=RowStoreSettings(minimum_free_bytes=0))

    def put(key: bytes) -> Any:
        return outcome(store.commit(WriteBatch().put("rows", key, b"v" * 100)))

    saw: dict[str, Any] = {}
    for fault in ({"sync": errno.EIO}, {"write": errno.ENOSPC}):
        name = next(iter(fault))
        before, after = f"{name}-before".encode(), f"{name}-after".encode()
        steps: dict[str, Any] = {"before": await put(before)}
        scan = store.scan("rows")
        next(scan)
        set_fault(directory, **fault)
        steps["during"] = await asyncio.gather(*(put(b"%s-%d" % (name.encode(), n)) for n in range(20)))
        steps["state"], steps["failure"] = store.state.value, store.failure
        syncs = store.stats().syncs
        steps["later"] = await put(b"later")
        steps["touched_disk"] = store.stats().syncs != syncs
        steps["read"] = store.get("rows", before) is not None
        steps["recover_too_early"] = await outcome(store.recover())
        steps["state_still"] = store.state.value
        set_fault(directory)
        steps["recover"] = await outcome(store.recover())
        steps["recover_again"] = await outcome(store.recover())
        steps["after"] = await put(after)
        steps["read_after"] = store.multi_get("rows", [before, after]) == [b"v" * 100] * 2
        saw[name] = steps
    os.write(1, json.dumps(saw).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
