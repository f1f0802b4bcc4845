"""Namespaces: create, configure, describe, delete. Called by the API.

A namespace exists when it is in the catalog or has (or had) rows. An agent's namespace needs no creation. Its dimension is
the model's; another namespace's is what it was created with or its first vector's.
"""

from __future__ import annotations

import math

import msgspec

from dakera_cluster.cluster.catalog import NamespaceRecord
from dakera_cluster.index.flat import Metric
from dakera_cluster.index.vectors import IndexType
from dakera_cluster.memory.core import PAGE, Core, check_metadata, check_range, vector_space
from dakera_cluster.memory.requests import NamespaceSpec
from dakera_cluster.memory.services import NamespaceInfo, NamespaceStats
from dakera_cluster.model.errors import ConflictError, DimensionMismatchError
from dakera_cluster.model.ids import SESSIONS_NAMESPACE, agent_of
from dakera_cluster.model.keys import Access
from dakera_cluster.shard.ops import Description

MAX_DIMENSION = 65_536


class Namespaces:
    """Implements `services.NamespaceService`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self, access: Access) -> list[NamespaceInfo]:
        """By name, with what the inventory knows; sizes of single namespaces are exact in ``get``."""
        inventory = await self._core.router.inventory("")
        names = (set(inventory) | set(self._core.catalog.names())) - {SESSIONS_NAMESPACE}
        return [
            self._info(self._core.catalog.effective(name), *inventory.get(name, (0, 0)))
            for name in sorted(names)
            if access.allows(name)
        ]

    def _info(self, record: NamespaceRecord, documents: int, size: int, *, created: bool = False) -> NamespaceInfo:
        return NamespaceInfo(
            name=record.name,
            vector_count=documents,
            dimension=self.dimension(record),
            distance=record.distance,
            index_type=record.index_type or "hnsw",
            created_at=record.created_at,
            updated_at=record.updated_at,
            metadata=record.metadata,
            estimated_storage_bytes=size,
            created=created,
        )

    def dimension(self, record: NamespaceRecord) -> int | None:
        """The namespace's dimension; None when no vector has decided it yet."""
        if record.dimension is not None or agent_of(record.name) is None:
            return record.dimension
        return self._core.embedder.dimension if self._core.embedder.available else None

    async def create(self, spec: NamespaceSpec) -> NamespaceInfo:
        """Raises ConflictError when it exists, InvalidRequestError, BucketUnavailableError."""
        record = self._record(spec)
        if await self._core.known(record.name):
            raise ConflictError(f"namespace {record.name!r} already exists")
        made = await self._core.catalog.create(record)
        self._core.events.namespace_created(made.name, made.dimension)
        return self._info(made, 0, 0, created=True)

    async def configure(self, spec: NamespaceSpec) -> NamespaceInfo:
        """Create, or change what may change. Raises DimensionMismatchError when the dimension is another."""
        wanted = self._record(spec)
        if await self._core.catalog.lookup(wanted.name) is None:
            existing = await self._describe(wanted.name)
            self._check_dimension(wanted, existing.dimension)
            try:
                made = await self._core.catalog.create(wanted)
                self._core.events.namespace_created(made.name, made.dimension)
                return self._info(made, existing.documents, existing.disk_bytes, created=not existing.known)
            except ConflictError:
                pass  # somebody else created it between our look and our write: configure theirs
        self._check_dimension(wanted, self._core.catalog.effective(wanted.name).dimension)

        def change(record: NamespaceRecord) -> NamespaceRecord:
            return msgspec.structs.replace(
                record,
                dimension=record.dimension or wanted.dimension,
                distance=wanted.distance if spec.distance is not None else record.distance,
                index_type=wanted.index_type if spec.index_type is not None else record.index_type,
                embedding_model=spec.embedding_model or record.embedding_model,
                metadata=spec.metadata if spec.metadata is not None else record.metadata,
            )

        record = await self._core.catalog.edit(wanted.name, change)
        parts = await self._describe(wanted.name)
        return self._info(record, parts.documents, parts.disk_bytes)

    def _record(self, spec: NamespaceSpec) -> NamespaceRecord:
        check_range(spec.dimension, "dimension", 1, MAX_DIMENSION)
        IndexType.of(spec.index_type)
        return NamespaceRecord(
            name=vector_space(spec.name),
            dimension=spec.dimension,
            distance=Metric.of(spec.distance).value,
            index_type=spec.index_type,
            embedding_model=spec.embedding_model,
            metadata=check_metadata(spec.metadata),
        )

    @staticmethod
    def _check_dimension(wanted: NamespaceRecord, present: int | None) -> None:
        if wanted.dimension is not None and present is not None and wanted.dimension != present:
            raise DimensionMismatchError(
                f"namespace {wanted.name!r} has dimension {present}, not {wanted.dimension}", field="dimension"
            )

    async def get(self, namespace: str) -> NamespaceInfo:
        """Raises NamespaceNotFoundError."""
        record, parts = await self._found(namespace)
        info = self._info(record, parts.documents, parts.disk_bytes)
        if info.dimension is None:
            info.dimension = parts.dimension
        return info

    async def _found(self, namespace: str) -> tuple[NamespaceRecord, Description]:
        vector_space(namespace)
        await self._core.require(namespace)
        return self._core.catalog.effective(namespace), await self._describe(namespace)

    async def _describe(self, namespace: str) -> Description:
        parts = await self._core.router.describe(namespace)
        first = parts[0]
        if len(parts) == 1:
            return first
        return Description(
            documents=sum(p.documents for p in parts),
            vectors=sum(p.vectors for p in parts),
            texts=sum(p.texts for p in parts),
            unique_terms=max(p.unique_terms for p in parts),
            text_tokens=sum(p.text_tokens for p in parts),
            dimension=next((p.dimension for p in parts if p.dimension is not None), None),
            index_type=first.index_type,
            built=all(p.built for p in parts),
            memory_bytes=sum(p.memory_bytes for p in parts),
            disk_bytes=sum(p.disk_bytes for p in parts),
            created_ms=min((p.created_ms for p in parts if p.created_ms), default=None),
            updated_ms=max((p.updated_ms for p in parts if p.updated_ms), default=None),
            known=any(p.known for p in parts),
        )

    async def delete(self, namespace: str) -> int:
        """Delete all documents and the configuration; returns how many documents there were."""
        vector_space(namespace)
        await self._core.require(namespace)
        ids = await self._core.every_id(namespace, None)
        for start in range(0, len(ids), PAGE):
            await self._core.delete(namespace, ids[start : start + PAGE])
        await self._core.catalog.remove(namespace)
        self._core.events.namespace_deleted(namespace)
        return len(ids)

    async def stats(self, namespace: str) -> NamespaceStats:
        """Raises NamespaceNotFoundError."""
        record, parts = await self._found(namespace)
        return NamespaceStats(
            total_vectors=parts.documents,
            dimension=self.dimension(record) or parts.dimension,
            index_type=parts.index_type,
            memory_usage_bytes=parts.memory_bytes,
            disk_usage_bytes=parts.disk_bytes,
            is_trained=parts.built,
            is_built=parts.built,
            indexed_vectors=parts.vectors,
            build_progress=1.0 if parts.built else 0.0,
            last_rebuild=None,
        )

    async def compact(self, namespace: str) -> None:
        """Rebuild the namespace's views from its rows, without what is dead."""
        await self._found(namespace)
        await self._core.router.describe(namespace, compact=True)

    async def flush(self, namespace: str) -> None:
        """Everything acknowledged is durable already: this only checks that the namespace exists."""
        await self._found(namespace)

    async def warm(self, namespace: str, ids: list[str] | None, limit: int | None) -> tuple[int, int, int]:
        """Load the namespace's views; returns (entries warmed, entries skipped, bytes)."""
        _, parts = await self._found(namespace)
        wanted = parts.documents if ids is None else len(await self._core.documents(namespace, ids))
        warmed = min(wanted, limit) if limit is not None else wanted
        skipped = (len(ids) - wanted if ids is not None else 0) + (wanted - warmed)
        share = warmed / parts.documents if parts.documents else 0.0
        return warmed, skipped, math.ceil(parts.memory_bytes * share)
