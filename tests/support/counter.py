"""A counter that is incremented by compare-and-swap: a lost update shows as a value that two writers were given.

``python -m tests.support.counter DIRECTORY WRITER TIMES`` is one writer process on a directory store; it
prints ``ready``, waits for a line on its standard input, and prints the list of values it was given.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

from dakera_cluster.model.errors import BucketUnavailableError
from dakera_cluster.storage.directory import DirectoryObjectStore
from dakera_cluster.storage.objects import ABSENT, AmbiguousWriteError, ObjectStore, PreconditionFailedError


async def increment(store: ObjectStore, key: str, times: int, writer: str) -> list[int]:
    """Increment a counter by compare-and-swap; the values this writer was told it wrote.

    The object keeps each writer's last nonce: after a lost reply a later version may stand there, made from ours.
    """
    mine: list[int] = []
    while len(mine) < times:
        found = await store.get(key)
        counter = json.loads(found.data) if found else {"n": 0, "last": {}}
        value, nonce = counter["n"] + 1, secrets.token_hex(4)
        data = json.dumps({"n": value, "last": counter["last"] | {writer: nonce}}).encode()
        try:
            await store.put_if(key, data, etag=found.etag if found else ABSENT)
        except PreconditionFailedError:
            continue
        except AmbiguousWriteError:
            settled = await store.get(key)
            if settled is None or json.loads(settled.data)["last"].get(writer) != nonce:
                continue
        except BucketUnavailableError:
            continue  # refused for certain: nothing was written
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
