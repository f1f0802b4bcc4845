"""The plan of a query: which index answers it, in which stages, at what cost. Called by `memory.queries`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dakera_cluster.memory.requests import ExplainQuery
from dakera_cluster.model import filters
from dakera_cluster.shard import ops


class Plan:
    """What explain says of a query: costs are operation counts (components multiplied, postings read), not guesses of
    time; the time estimate divides them by OPERATIONS_PER_MS."""

    OPERATIONS_PER_MS = 2_000_000.0
    GRAPH_CANDIDATES = 128
    BYTES_PER_NUMBER = 4

    def __init__(
        self,
        namespace: str,
        query: ExplainQuery,
        k: int,
        parts: Sequence[ops.Description],
        where: ops.Where | None,
    ) -> None:
        self._namespace = namespace
        self._query = query
        self._k = k
        self._where = where
        self._count = sum(p.documents for p in parts)
        self._dimension = next((p.dimension for p in parts if p.dimension), 0)
        self._memory_bytes = sum(p.memory_bytes for p in parts)
        self._texts = sum(p.texts for p in parts)
        self._index = parts[0].index_type
        self._updated_ms = max((p.updated_ms or 0 for p in parts), default=0)

    def describe(self, matched: int | None) -> dict[str, Any]:
        query = self._query
        stages = self._stages(matched)
        cost = sum(stage["estimated_cost"] for stage in stages)
        filter_words = filters.complexity(filters.parse(query.filter) if query.filter else None).value
        alternative = "flat" if self._index != "flat" else "hnsw"
        reason = (
            f"{self._count} vectors are few enough to be searched exactly"
            if self._index == "flat"
            else f"{self._count} vectors: a graph visits about {self.GRAPH_CANDIDATES} candidates instead of all"
        )
        rejected = "reads every vector" if alternative == "flat" else "not faster than the exact scan at this size"
        return {
            "query_type": query.query_type,
            "namespace": self._namespace,
            "index_selection": {
                "index_type": self._index,
                "selection_reason": reason,
                "alternatives_considered": [
                    {
                        "index_type": alternative,
                        "rejection_reason": rejected,
                        "estimated_cost": self._scan_cost(alternative),
                    }
                ],
                "index_config": {"distance_metric": query.distance_metric or "cosine"},
                "index_stats": {
                    "vector_count": self._count,
                    "dimension": self._dimension,
                    "memory_bytes": self._memory_bytes,
                    "build_time_ms": None,
                    "last_updated": self._updated_ms // 1000 or None,
                },
            },
            "stages": stages,
            "cost_estimate": {
                "total_cost": cost,
                "estimated_time_ms": int(np.ceil(cost / self.OPERATIONS_PER_MS)),
                "estimated_memory_bytes": self._count * self.BYTES_PER_NUMBER + self._k * self._dimension * 4,
                "estimated_io_ops": self._k,
                "cost_breakdown": {stage["name"]: stage["estimated_cost"] for stage in stages},
                "confidence": 0.5,
            },
            "recommendations": self._recommendations(),
            "summary": f"{query.query_type} over {self._count} records by {self._index}, top {self._k}",
            "query_params": {
                "top_k": self._k,
                "has_filter": self._where is not None,
                "filter_complexity": filter_words,
                "vector_dimension": len(query.vector) if query.vector is not None else None,
                "distance_metric": query.distance_metric or "cosine",
                "text_query_length": len(query.text_query) if query.text_query is not None else None,
            },
        }

    def _scan_cost(self, index: str) -> float:
        rows = self._count if index == "flat" else min(self._count, self.GRAPH_CANDIDATES * 16)
        return float(rows * max(1, self._dimension))

    def _stages(self, matched: int | None) -> list[dict[str, Any]]:
        flow: list[tuple[str, str, int, float]] = []
        rows = self._count
        if matched is not None:
            flow.append(("filter", "evaluate the filter on the columns it names", matched, float(self._count)))
            rows = matched
        if self._query.query_type != "full_text_search":
            index = "flat" if matched is not None and matched < self._count // 10 else self._index
            flow.append(("vector_search", f"nearest neighbours by {index}", min(rows, self._k), self._scan_cost(index)))
        if self._query.query_type in ("full_text_search", "hybrid_search"):
            flow.append(
                ("text_search", "BM25 over the postings of the query's terms", min(rows, self._k), float(self._texts))
            )
        if self._query.query_type == "hybrid_search":
            flow.append(("fusion", "weighted sum of normalised scores", min(rows, self._k), float(2 * self._k)))
        flow.append(("fetch", "read the winners' rows", min(rows, self._k), float(self._k)))
        stages: list[dict[str, Any]] = []
        incoming = self._count
        for order, (name, text, outgoing, cost) in enumerate(flow, 1):
            stages.append(
                {
                    "name": name,
                    "description": text,
                    "order": order,
                    "estimated_input": incoming,
                    "estimated_output": outgoing,
                    "estimated_cost": cost,
                    "details": {},
                }
            )
            incoming = outgoing
        return stages

    def _recommendations(self) -> list[dict[str, Any]]:
        if self._k <= 1_000:
            return []
        return [
            {
                "recommendation_type": "query",
                "priority": "medium",
                "description": f"top_k {self._k} reads as many rows",
                "expected_improvement": "fewer row reads and a smaller answer",
                "implementation": "ask for what is shown, and page with export for the rest",
            }
        ]
