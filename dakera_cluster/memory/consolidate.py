"""Consolidation: many memories that say the same become one. Called by the API.

Three forms: named memories are merged into a summary and kept; clusters of near-duplicates are reduced to their strongest
member and the rest removed; ``compress`` replaces each cluster by a summary. A summary is extractive (no model writes
text): the distinct sentences of its sources, oldest first. Clusters are the connected components of the graph whose edges
are cosines at or above a threshold (single linkage, which is DBSCAN with min_samples 2), found among the newest
MAX_MEMORIES memories.
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from dakera_cluster.memory.core import Core, agent_space, check_choice, check_range, check_type
from dakera_cluster.memory.requests import ConsolidateQuery, StoreItem
from dakera_cluster.memory.services import Compressed, Consolidated, ConsolidationStep
from dakera_cluster.memory.store import Memories
from dakera_cluster.model.errors import InvalidRequestError, VectorNotFoundError
from dakera_cluster.model.memories import MAX_CONTENT_CHARS, Memory, MemoryType
from dakera_cluster.model.rows import decode_document
from dakera_cluster.shard.ops import Conditions, Order, Where
from dakera_cluster.shard.records import vector_of

DEFAULT_THRESHOLD = 0.92
COMPRESS_THRESHOLD = 0.85
MAX_MEMORIES = 5_000
MAX_SOURCES = 100
BLOCK = 512
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Consolidation:
    """Implements `services.ConsolidationService`."""

    def __init__(self, core: Core, memories: Memories) -> None:
        self._core = core
        self._memories = memories

    async def consolidate(self, agent_id: str, query: ConsolidateQuery) -> Consolidated:
        """Merge named memories, or remove near-duplicates. Raises InvalidRequestError, VectorNotFoundError."""
        namespace = agent_space(agent_id)
        config = query.config
        if config is not None:
            check_choice(config.algorithm, ("dbscan", "greedy"), "config.algorithm")
            check_range(config.min_samples, "config.min_samples", 1, MAX_MEMORIES)
            check_range(config.eps, "config.eps", 0, 2)
        check_range(query.threshold, "threshold", 0, 1)
        check_type(query.memory_type)
        if query.memory_ids:
            return await self._merge(agent_id, query.memory_ids, dry_run=query.dry_run)
        threshold = query.threshold
        if threshold is None:
            threshold = 1.0 - config.eps if config is not None and config.eps is not None else DEFAULT_THRESHOLD
        smallest = max(2, config.min_samples or 2) if config is not None else 2
        started = time.perf_counter()
        found = await self._clusters(agent_id, query.memory_type, threshold, smallest)
        removed = [memory.id for cluster in found for memory in cluster[1:]]
        if removed and not query.dry_run:
            await self._core.delete(namespace, removed)
            self._core.events.forgotten(agent_id, removed)
        before = (await self._core.select(namespace, None, limit=0)).total + (0 if query.dry_run else len(removed))
        step = ConsolidationStep("cluster", before, before - len(removed), (time.perf_counter() - started) * 1000)
        return Consolidated(
            consolidated_count=len(found),
            removed_count=len(removed),
            source_memory_ids=[memory.id for cluster in found for memory in cluster],
            log=[step],
        )

    async def _merge(self, agent_id: str, memory_ids: list[str], *, dry_run: bool) -> Consolidated:
        wanted = list(dict.fromkeys(memory_ids))
        if not 2 <= len(wanted) <= MAX_SOURCES:
            raise InvalidRequestError(
                f"expected 2 to {MAX_SOURCES} different ids, got {len(wanted)}", field="memory_ids"
            )
        documents = await self._core.documents(agent_space(agent_id), wanted)
        missing = [memory_id for memory_id in wanted if memory_id not in documents]
        if missing:
            raise VectorNotFoundError(f"memory_ids: memory {missing[0]!r} does not exist")
        sources = [self._core.memory(agent_id, i, documents[i], None) for i in wanted]
        if dry_run:
            return Consolidated(consolidated_count=1, source_memory_ids=wanted)
        summary = (await self._memories.store(agent_id, [summarised(sources)])).memories[0]
        self._core.events.consolidated(agent_id, summary)
        return Consolidated(consolidated_count=1, new_memories=[summary.id], source_memory_ids=wanted, summary=summary)

    async def compress(self, agent_id: str) -> Compressed:
        """Replace each cluster of similar memories by one summary."""
        namespace = agent_space(agent_id)
        started = time.perf_counter()
        before = (await self._core.select(namespace, None, limit=0)).total
        if before == 0:
            await self._core.require(namespace)
        found = await self._clusters(agent_id, None, COMPRESS_THRESHOLD, 2)
        made: list[str] = []
        gone: list[str] = []
        for cluster in found:
            some = cluster[:MAX_SOURCES]
            # The summary is durable before its sources go: a crash between the two leaves both, never neither.
            stored = await self._memories.store(agent_id, [summarised(some)])
            made.append(stored.memories[0].id)
            originals = [memory.id for memory in some]
            await self._core.delete(namespace, originals)
            self._core.events.forgotten(agent_id, originals)
            self._core.events.consolidated(agent_id, stored.memories[0])
            gone.extend(originals)
        return Compressed(
            memories_before=before,
            memories_after=before - len(gone) + len(made),
            clusters_found=len(found),
            summary_ids=made,
            deprecated_ids=gone,
            duration_ms=(time.perf_counter() - started) * 1000,
        )

    async def _clusters(
        self, agent_id: str, memory_type: str | None, threshold: float, smallest: int
    ) -> list[list[Memory]]:
        """Clusters of similar memories, the strongest member (importance, then age, then id) first."""
        where = Where(Conditions(memory_type=memory_type)) if memory_type is not None else None
        namespace = agent_space(agent_id)
        page = await self._core.select(namespace, where, order=Order.NEWEST, limit=MAX_MEMORIES)
        if page.total == 0:
            await self._core.require(namespace)
        memories = self._core.memories_of(agent_id, page)
        vectors = [vector_of(decode_document(body).fields) for body in page.bodies]
        embedded = [i for i, vector in enumerate(vectors) if vector is not None]
        if len(embedded) < 2:
            return []
        rows = np.stack([vectors[i] for i in embedded])  # type: ignore[misc]
        clusters = components(rows, threshold)
        found = [[memories[embedded[i]] for i in cluster] for cluster in clusters if len(cluster) >= smallest]
        for cluster in found:
            cluster.sort(key=lambda memory: (-memory.importance, memory.created_at, memory.id))
        return sorted(found, key=lambda cluster: cluster[0].id)


def components(rows: np.ndarray[Any, Any], threshold: float) -> list[list[int]]:
    """Connected components of the graph that joins rows (float32[n, d]) whose cosine is at least ``threshold``."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    parent = list(range(len(unit)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for start in range(0, len(unit), BLOCK):
        near = unit[start : start + BLOCK] @ unit.T >= threshold
        for offset, other in zip(*np.nonzero(near), strict=True):
            a, b = root(start + int(offset)), root(int(other))
            if a != b:
                parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for i in range(len(unit)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def summarised(sources: list[Memory]) -> StoreItem:
    """The merged memory: distinct sentences oldest first, the highest importance, all tags, a common session."""
    ordered = sorted(sources, key=lambda memory: (memory.event_time or memory.created_at, memory.id))
    sentences: dict[str, str] = {}
    for memory in ordered:
        for sentence in _SENTENCE_END.split(memory.content):
            plain = " ".join(sentence.lower().split()).rstrip(".!?")
            if plain:
                sentences.setdefault(plain, sentence.strip())
    sessions = {memory.session_id for memory in sources}
    return StoreItem(
        content=" ".join(sentences.values())[:MAX_CONTENT_CHARS],
        memory_type=MemoryType.SEMANTIC.value,
        importance=max(memory.importance for memory in sources),
        tags=sorted({tag for memory in sources for tag in memory.tags})[:256],
        session_id=sessions.pop() if len(sessions) == 1 else None,
        metadata={"consolidated_from": [memory.id for memory in ordered]},
    )
