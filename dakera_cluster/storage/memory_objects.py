"""Objects in this process: for ``DAKERA_STORAGE=memory``, where nothing outlives the node, and for tests.

The compare-and-swap is atomic because nothing waits between the comparison and the write. Etags are a counter: they change
with every write, also of the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dakera_cluster.storage.objects import (
    ABSENT,
    LIST_LIMIT,
    Absent,
    Object,
    ObjectInfo,
    PreconditionFailedError,
    check_key,
    check_prefix,
    probe_conditions,
)


class MemoryObjectStore:
    """An ObjectStore in a dict. Share one instance between the parties that are to see each other's writes."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._versions = itertools.count(1)

    async def get(self, key: str) -> Object | None:
        return self._objects.get(check_key(key))

    async def put(self, key: str, data: bytes) -> str:
        return self._write(check_key(key), data)

    async def put_if(self, key: str, data: bytes, *, etag: str | Absent) -> str:
        current = self._objects.get(check_key(key))
        if (current is not None) if etag is ABSENT else (current is None or current.etag != etag):
            raise PreconditionFailedError(f"{key} is not in the version the write asked for")
        return self._write(key, data)

    async def delete(self, key: str) -> None:
        self._objects.pop(check_key(key), None)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_LIMIT) -> Sequence[ObjectInfo]:
        keys = sorted(key for key in self._objects if key.startswith(check_prefix(prefix)) and key > after)
        return [ObjectInfo(key, len(self._objects[key].data), self._objects[key].etag) for key in keys[:limit]]

    async def probe(self) -> None:
        await probe_conditions(self)

    async def close(self) -> None:
        """Nothing to release: the objects stay for the others that share this instance."""

    def _write(self, key: str, data: bytes) -> str:
        etag = f"{next(self._versions):x}"
        self._objects[key] = Object(bytes(data), etag)
        return etag
