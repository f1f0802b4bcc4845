"""The catalog: namespaces as users configured them, small and linearizable, one object each in the bucket.

An agent's namespace needs no entry: it comes into being with the first memory and has the defaults, so that storing never
waits for the bucket. An entry is made when a namespace is created, configured, or first given vectors. Every node keeps
the whole catalog in memory and refreshes it in the background; changes go through compare-and-swap, so two nodes cannot
create the same namespace or lose each other's edit. With the bucket gone, reads of the catalog go on and changes answer
503. Called by the memory services and, for index settings, by the shard host.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from dakera_cluster.index.flat import Metric
from dakera_cluster.index.vectors import IndexType
from dakera_cluster.model.errors import BucketUnavailableError, ConflictError, DakeraError, NamespaceNotFoundError
from dakera_cluster.model.ids import SESSIONS_NAMESPACE, agent_of
from dakera_cluster.storage.objects import ABSENT, ObjectStore, PreconditionFailedError

log = logging.getLogger(__name__)

PREFIX = "catalog/namespaces/"
REFRESH_INTERVAL_S = 5.0
CAS_ATTEMPTS = 8
SESSION_PARTITIONS = 64
"""Sessions are spread by agent over this many partitions, so no shard holds the sessions of everybody."""


class NamespaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of a namespace. ``dimension`` None is decided by the first vector; times are Unix seconds."""

    name: str
    dimension: int | None = None
    distance: str = Metric.COSINE.value
    index_type: str | None = None
    embedding_model: str | None = None
    metadata: dict[str, Any] | None = None
    partitions: int = 1
    created_at: int | None = None
    updated_at: int | None = None


_JSON = msgspec.json.Encoder(order="deterministic")


class Catalog:
    """All namespace records, cached, with compare-and-swap edits."""

    def __init__(self, objects: ObjectStore, now_s: Callable[[], int], *, partitions: int = 1) -> None:
        self._objects = objects
        self._now_s = now_s
        self._partitions = partitions
        self._records: dict[str, tuple[NamespaceRecord, str]] = {}
        self._refresher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the catalog. Raises BucketUnavailableError when the bucket does not answer."""
        await self.refresh()
        self._refresher = asyncio.create_task(self._keep_fresh(), name="catalog-refresh")

    async def close(self) -> None:
        if self._refresher is not None:
            self._refresher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresher

    def find(self, namespace: str) -> NamespaceRecord | None:
        """The record as this node knows it; never waits."""
        cached = self._records.get(namespace)
        return cached[0] if cached is not None else None

    def effective(self, namespace: str) -> NamespaceRecord:
        """The record, or the defaults a namespace without one has."""
        found = self.find(namespace)
        if found is not None:
            return found
        return NamespaceRecord(name=namespace, partitions=self.partitions(namespace))

    def partitions(self, namespace: str) -> int:
        """Over how many partitions the namespace's rows are spread."""
        found = self.find(namespace)
        if found is not None:
            return found.partitions
        return SESSION_PARTITIONS if namespace == SESSIONS_NAMESPACE else 1

    def names(self) -> list[str]:
        return sorted(self._records)

    def index_settings(self, namespace: str) -> tuple[Metric, IndexType]:
        record = self.effective(namespace)
        return Metric.of(record.distance), IndexType.of(record.index_type)

    async def create(self, record: NamespaceRecord) -> NamespaceRecord:
        """Add a namespace. Raises ConflictError when it exists, BucketUnavailableError."""
        now = self._now_s()
        partitions = 1 if agent_of(record.name) is not None else self._partitions
        made = msgspec.structs.replace(record, created_at=now, updated_at=now, partitions=partitions)
        try:
            etag = await self._objects.put_if(_key(record.name), _JSON.encode(made), etag=ABSENT)
        except PreconditionFailedError:
            await self._fetch(_key(record.name))
            raise ConflictError(f"namespace {record.name!r} already exists") from None
        self._records[record.name] = (made, etag)
        return made

    async def edit(self, namespace: str, change: Callable[[NamespaceRecord], NamespaceRecord]) -> NamespaceRecord:
        """Replace a record by ``change`` of it, made anew when somebody else was faster.

        Raises NamespaceNotFoundError, ConflictError after CAS_ATTEMPTS lost races, BucketUnavailableError.
        """
        for _ in range(CAS_ATTEMPTS):
            cached = self._records.get(namespace)
            if cached is None:
                await self._fetch(_key(namespace))
                cached = self._records.get(namespace)
            if cached is None:
                raise NamespaceNotFoundError(f"namespace {namespace!r} does not exist")
            record, etag = cached
            changed = change(record)
            if changed == record:
                return record
            changed = msgspec.structs.replace(changed, updated_at=self._now_s())
            try:
                self._records[namespace] = (
                    changed,
                    await self._objects.put_if(_key(namespace), _JSON.encode(changed), etag=etag),
                )
                return changed
            except PreconditionFailedError:
                await self._reread(namespace)
        raise ConflictError(f"namespace {namespace!r} is being changed by others; try again")

    async def remove(self, namespace: str) -> None:
        """Delete a record; one that is not there is no error."""
        await self._objects.delete(_key(namespace))
        self._records.pop(namespace, None)

    async def refresh(self) -> None:
        """Bring the cache up to date with the bucket."""
        known = {_key(name): (name, etag) for name, (_, etag) in self._records.items()}
        seen: set[str] = set()
        after = ""
        while page := await self._objects.list(PREFIX, after=after):
            for entry in page:
                seen.add(entry.key)
                if entry.key not in known or known[entry.key][1] != entry.etag:
                    await self._fetch(entry.key)
            after = page[-1].key
        for key in known.keys() - seen:
            self._records.pop(known[key][0], None)

    async def lookup(self, namespace: str) -> NamespaceRecord | None:
        """The record, asked of the bucket when this node does not know it. A bucket that is gone counts as not found."""
        if self.find(namespace) is None and agent_of(namespace) is None:
            with contextlib.suppress(BucketUnavailableError):
                await self._fetch(_key(namespace))
        return self.find(namespace)

    async def _fetch(self, key: str) -> None:
        found = await self._objects.get(key)
        if found is not None:
            record = msgspec.json.decode(found.data, type=NamespaceRecord)
            self._records[record.name] = (record, found.etag)

    async def _reread(self, namespace: str) -> None:
        self._records.pop(namespace, None)
        await self._fetch(_key(namespace))

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            try:
                await self.refresh()
            except DakeraError as error:
                log.warning("catalog was not refreshed, serving what is known: %s", error)


def _key(namespace: str) -> str:
    # Names may be longer and stranger than any store's keys: the object is named by a hash and holds the name.
    return f"{PREFIX}{hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()}.json"
