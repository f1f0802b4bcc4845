"""A counter that is incremented by compare-and-swap: a lost update shows as a value that two writers were given.

``python -m tests.support.counter DIRECTORY WRITER TIMES`` is one writer process on a directory store; it
prints ``ready``, waits for a line on its standard input, and prints the list of values it was given.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

from dakera_cluster.storage.directory import DirectoryObjectStore
from dakera_cluster.storage.objects import ABSENT, AmbiguousWriteError, ObjectStore, PreconditionFailedError


async def increment(store: ObjectStore, key: str, times: int, writer: str) -> list[int]:
    """Increment a counter by compare-and-swap; the values this writer was told it wrote."""
    mine: list[int] = []
    while len(mine) < times:
        found = await store.get(key)
        value = json.loads(found.data)["n"] + 1 if found else 1
        data = json.dumps({"n": value, "nonce": f"{writer}-{secrets.token_hex(4)}"}).encode()
        try:
            await store.put_if(key, data, etag=found.etag if found else ABSENT)
        except PreconditionFailedError:
            continue
        except AmbiguousWriteError:
            settled = await store.get(key)
            assert settled is not None
            if settled.data != data:
                continue
        mine.append(value)
    return mine


async def main(directory: str, writer: str, times: str) -> None:
    store = DirectoryObjectStore(directory)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(await increment(store, "counter", int(times), writer)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
