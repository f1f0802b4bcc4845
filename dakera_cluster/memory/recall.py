"""Recall and search: a question in, the memories that answer it out.

The question is embedded once, here; ranking happens where the rows are; what was found is noted as used afterwards, off
the path. ``top_k`` memories at most are returned, best first; with ``neighborhood`` given as true the memories within five
minutes of a hit in its session come beside them and never push one out. With ``rerank`` "cross-encoder" the head of what
was found is put in the order of the node's pair model; the memories beside are then those of all its candidates. Every
answer reports what ordered it. Called by the API.
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
from dakera_cluster.memory.requests import DEFAULT_RECALL_TOP_K, DEFAULT_SEARCH_TOP_K, RecallQuery
from dakera_cluster.memory.reranking import (
    CROSS_ENCODER_SPELLINGS,
    FEATURE,
    CrossEncoding,
    RerankReport,
    plain_report,
)
from dakera_cluster.memory.services import Recalled
from dakera_cluster.memory.store import check_content, check_tags
from dakera_cluster.memory.usage import UsageNotes
from dakera_cluster.memory.vectors import take_consistency, where_of
from dakera_cluster.model.errors import InvalidRequestError, ModelUnavailableError
from dakera_cluster.model.ids import check_id
from dakera_cluster.model.memories import Memory, ScoredMemory
from dakera_cluster.retrieval.options import Fusion, Options, Rerank, Routing
from dakera_cluster.retrieval.query import EmbeddedQuery
from dakera_cluster.retrieval.writing import embedded_query
from dakera_cluster.shard import ops

MAX_ASSOCIATED = 10
MAX_DEPTH = 3
MAX_ITERATIONS = 3
MAX_QUERY_CHARS = 20_000
_ROUTINGS, _FUSIONS = tuple(Routing), tuple(Fusion)
_RERANKS = (*Rerank, *CROSS_ENCODER_SPELLINGS[1:])
_ANY = ops.Conditions()


class Recaller:
    """Implements `services.RecallService`."""

    def __init__(self, core: Core, notes: UsageNotes, cross: CrossEncoding) -> None:
        self._core = core
        self._notes = notes
        self._cross = cross

    async def recall(self, agent_id: str, query: RecallQuery) -> Recalled:
        """The best memories for a question; counts as their use."""
        recalled = await self._found(agent_id, query, check_top_k(query.top_k, DEFAULT_RECALL_TOP_K), rerank=True)
        self._notes.note(agent_space(agent_id), [found.memory.id for found in recalled.memories])
        self._core.events.recalled(agent_id, (found.memory for found in recalled.memories))
        return recalled

    async def search(self, agent_id: str, query: RecallQuery) -> Recalled:
        """Like recall, without being a use."""
        return await self._found(agent_id, query, check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K), rerank=False)

    async def _found(self, agent_id: str, query: RecallQuery, k: int, *, rerank: bool) -> Recalled:
        with self._core.embedder.asking():
            namespace = agent_space(agent_id)
            where = self._check(query)
            crossed = query.rerank in CROSS_ENCODER_SPELLINGS
            wanted = self._cross.wanted(k) if crossed else k
            options = self._options(query, wanted, rerank=rerank)
            started = time.perf_counter()
            asked = await self._embedded(query.query, options.routing)
            embedded = time.perf_counter()
            now_ms = self._core.now_ms()
            neighbours = query.neighborhood is True

            def request(shard: int, version: int) -> ops.Request:
                return ops.Recall(
                    shard, version, namespace, now_ms, wanted, query.query, asked.vector, asked.token_ids,
                    asked.token_vectors, where, options, neighbours,
                )  # fmt: skip

            hits = await self._core.router.search(namespace, request, wanted)
            if hits.searched == 0:
                await self._core.require(namespace)
            best, report = hits.hits, plain_report(hits)
            found = time.perf_counter()
            if crossed:
                best, report = await self._cross.reranked(query.query, hits, k)
                hits.timings_us[FEATURE] = int((time.perf_counter() - found) * 1e6)
            return Recalled(
                memories=list(map(_scored, best, self._core.memories_of_hits(agent_id, best))),
                total_found=len(best),
                associated=[] if query.include_associated else None,
                context=self._core.memories_of_hits(agent_id, hits.extra) if neighbours else None,
                query_embedding_time_ms=(embedded - started) * 1000,
                search_time_ms=(time.perf_counter() - embedded) * 1000,
                explain=self._explanation(hits, asked, report) if query.explain else None,
                rerank_report=report,
            )

    async def _embedded(self, text: str, routing: Routing) -> EmbeddedQuery:
        encoded = None
        if routing is not Routing.BM25:
            try:
                encoded = await self._core.embed([text], TextKind.QUERY, tokens=True)
            except ModelUnavailableError:
                if routing is Routing.VECTOR:
                    raise
        return embedded_query(encoded, self._core.pieces)

    def _options(self, query: RecallQuery, k: int, *, rerank: bool) -> Options:
        """What the engine is told. Without an explicit ``rerank`` a single candidate list is returned in its own order."""
        routing = Routing(query.routing) if query.routing else Routing.AUTO
        if not self._core.settings.bm25_enabled and routing in (Routing.AUTO, Routing.HYBRID):
            routing = Routing.VECTOR
        if query.rerank is not None:
            late = query.rerank in (True, Rerank.LATE, *CROSS_ENCODER_SPELLINGS)
        else:
            late = rerank and routing in (Routing.AUTO, Routing.HYBRID)
        return Options(
            k=k,
            routing=routing,
            rerank=Rerank.LATE if late else Rerank.NONE,
            fusion=Fusion(query.fusion) if query.fusion is not None else None,
            vector_weight=query.vector_weight,
            iterations=query.iterations or 1,
            explain=bool(query.explain),
        )

    @staticmethod
    def _explanation(hits: ops.Hits, asked: EmbeddedQuery, report: RerankReport) -> dict[str, Any]:
        return {
            "question": hits.question,
            "reranker": report.reranker.value,
            "embedded": asked.vector is not None,
            "candidates": hits.matched,
            "timings_us": hits.timings_us,
        }

    def _check(self, query: RecallQuery) -> ops.Where | None:
        """The shard's condition of a request whose every value has been checked."""
        check_content(query.query, "query")
        if query.consistency is not None or query.staleness_config:
            staleness = (query.staleness_config or {}).get("max_staleness_ms")
            take_consistency(query.consistency, staleness if isinstance(staleness, int) else None)
        if len(query.query) > MAX_QUERY_CHARS:
            raise InvalidRequestError(f"must be at most {MAX_QUERY_CHARS} characters", field="query")
        check_choice(query.routing, _ROUTINGS, "routing")
        check_choice(query.fusion, _FUSIONS, "fusion")
        if isinstance(query.rerank, str):
            check_choice(query.rerank, _RERANKS, "rerank")
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
        if conditions == _ANY and expression is None:
            return None
        wanted: dict[str, Any] | None = expression.filter if expression is not None else None
        return ops.Where(conditions, wanted)


def _scored(hit: ops.Hit, memory: Memory) -> ScoredMemory:
    score, features = hit.score, hit.features
    explain = dict(features) if features is not None else None
    return ScoredMemory(memory, score, score, score, hit.vector_score, hit.text_score, explain=explain)
