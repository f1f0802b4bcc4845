"""Recall and search: a question in, the memories that answer it out.

The question is embedded once, here; ranking happens where the rows are; what was found is noted as used afterwards, off
the path. ``top_k`` memories at most are returned, best first; with ``neighborhood`` given as true the memories within five
minutes of a hit in its session come beside them and never push one out. Called by the API.
"""

from __future__ import annotations

import time
from typing import Any

from dakera_cluster.inference.models import TextKind
from dakera_cluster.memory.core import (
    Core,
    agent_space,
    check_choice,
    check_range,
    check_top_k,
    check_type,
    parse_time,
)
from dakera_cluster.memory.decay import decayed
from dakera_cluster.memory.requests import DEFAULT_RECALL_TOP_K, DEFAULT_SEARCH_TOP_K, RecallQuery
from dakera_cluster.memory.services import Recalled
from dakera_cluster.memory.store import check_content, check_tags
from dakera_cluster.memory.usage import UsageNotes
from dakera_cluster.memory.vectors import where_of
from dakera_cluster.model.errors import InvalidRequestError, ModelUnavailableError
from dakera_cluster.model.ids import check_id
from dakera_cluster.model.memories import Memory, ScoredMemory
from dakera_cluster.shard import ops
from dakera_cluster.shard.records import vector_bytes

ROUTINGS = ("auto", "vector", "bm25", "hybrid")
FUSIONS = ("rrf", "minmax")
MAX_ASSOCIATED = 10
MAX_DEPTH = 3
MAX_ITERATIONS = 3
MAX_QUERY_CHARS = 20_000
IMPORTANCE_WEIGHT = 0.1
"""How far importance, after decay, moves a score: from x (1 - w) at 0 to x (1 + w) at 1. Relevance decides, importance
breaks near-ties."""


class Recaller:
    """Implements `services.RecallService`."""

    def __init__(self, core: Core, notes: UsageNotes) -> None:
        self._core = core
        self._notes = notes

    async def recall(self, agent_id: str, query: RecallQuery) -> Recalled:
        """The best memories for a question; counts as their use."""
        recalled = await self._find(agent_id, query, check_top_k(query.top_k, DEFAULT_RECALL_TOP_K))
        self._notes.note(agent_space(agent_id), [found.memory.id for found in recalled.memories])
        return recalled

    async def search(self, agent_id: str, query: RecallQuery) -> Recalled:
        """Like recall, without being a use."""
        return await self._find(agent_id, query, check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K))

    async def _find(self, agent_id: str, query: RecallQuery, k: int) -> Recalled:
        namespace = agent_space(agent_id)
        where = self._check(query)
        routing = query.routing or "auto"
        started = time.perf_counter()
        vector = None if routing == "bm25" else await self._embed(query.query, routing)
        embedded = time.perf_counter()
        mode = ops.Mode.TEXT if vector is None else ops.Mode.VECTOR if routing == "vector" else ops.Mode.HYBRID
        now_ms = self._core.now_ms()
        fusion = ops.Fusion(query.fusion) if query.fusion is not None else ops.Fusion.RRF
        weight = 0.5 if query.vector_weight is None else query.vector_weight

        def request(shard: int, version: int) -> ops.Request:
            return ops.Search(
                shard, version, namespace, now_ms, mode, k, vector, query.query, where,
                fusion=fusion, vector_weight=weight, rrf_k=self._core.settings.rrf_k,
            )  # fmt: skip

        hits = await self._core.router.search(namespace, request, k)
        if hits.searched == 0:
            await self._core.require(namespace)
        found = [self._scored(agent_id, hit, now_ms // 1000) for hit in hits.hits]
        found.sort(key=lambda scored: (-scored.score, scored.memory.id))
        return Recalled(
            memories=found,
            total_found=len(found),
            associated=[] if query.include_associated else None,
            query_embedding_time_ms=(embedded - started) * 1000,
            search_time_ms=(time.perf_counter() - embedded) * 1000,
        )

    async def _embed(self, text: str, routing: str) -> bytes | None:
        try:
            return vector_bytes((await self._core.embed([text], TextKind.QUERY)).vectors[0])
        except ModelUnavailableError:
            if routing == "vector":
                raise
            return None

    def _scored(self, agent_id: str, hit: ops.Hit, now_s: int) -> ScoredMemory:
        memory = self._core.memory_of_hit(agent_id, hit)
        weighted = hit.score * (1 + IMPORTANCE_WEIGHT * (2 * self._importance(memory, now_s) - 1))
        return ScoredMemory(
            memory=memory,
            score=weighted,
            weighted_score=weighted,
            smart_score=weighted,
            vector_score=hit.vector_score,
            text_score=hit.text_score,
        )

    def _importance(self, memory: Memory, now_s: int) -> float:
        settings = self._core.settings
        if not settings.decay_enabled:
            return memory.importance
        return decayed(
            memory.importance,
            created_s=memory.created_at,
            accessed_s=memory.last_accessed_at,
            now_s=now_s,
            half_life_s=settings.decay_half_life_s,
        )

    def _check(self, query: RecallQuery) -> ops.Where | None:
        """The shard's condition of a request whose every value has been checked."""
        check_content(query.query, "query")
        if len(query.query) > MAX_QUERY_CHARS:
            raise InvalidRequestError(f"must be at most {MAX_QUERY_CHARS} characters", field="query")
        check_choice(query.routing, ROUTINGS, "routing")
        check_choice(query.fusion, FUSIONS, "fusion")
        check_range(query.vector_weight, "vector_weight", 0, 1)
        check_range(query.min_importance, "min_importance", 0, 1)
        check_range(query.iterations, "iterations", 1, MAX_ITERATIONS)
        check_range(query.associated_memories_cap, "associated_memories_cap", 0, MAX_ASSOCIATED)
        check_range(query.associated_memories_depth, "associated_memories_depth", 1, 5)
        check_range(query.associated_memories_min_weight, "associated_memories_min_weight", 0, 1)
        check_type(query.memory_type)
        check_tags(query.tags, "tags")
        if query.session_id is not None:
            check_id(query.session_id, "session_id")
        expression = where_of(query.filter)
        conditions = ops.Conditions(
            memory_type=query.memory_type,
            min_importance=query.min_importance or None,
            session_id=query.session_id,
            tags=query.tags or None,
            event_after=parse_time(query.since, "since"),
            event_before=parse_time(query.until, "until"),
        )
        if conditions == ops.Conditions() and expression is None:
            return None
        wanted: dict[str, Any] | None = expression.filter if expression is not None else None
        return ops.Where(conditions, wanted)
