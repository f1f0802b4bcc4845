"""What answers about namespaces, vectors and texts look like on the wire: the counterpart of `shapes`, under its rules."""

from __future__ import annotations

from typing import Any

from dakera_cluster.api.compat import Client
from dakera_cluster.memory.services import Aggregated, Hit, Hits, NamespaceInfo, NamespaceStats, TextStats


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# -- namespaces -------------------------------------------------------------------------------------------------------


def distance(name: str) -> str:
    return "dot_product" if name == "dot" else name


def namespace(client: Client, info: NamespaceInfo) -> dict[str, Any]:
    out: dict[str, Any] = {
        "namespace": info.name,
        "dimension": info.dimension,
        "vector_count": info.vector_count,
        "distance": distance(info.distance),
        "index_type": info.index_type,
        "created_at": info.created_at,
        "updated_at": info.updated_at,
        "metadata": info.metadata,
        "estimated_storage_bytes": info.estimated_storage_bytes,
    }
    if client.aliased_pairs:
        out["name"] = info.name
        out["dimensions"] = info.dimension
    return out


def namespaces(client: Client, found: list[NamespaceInfo]) -> dict[str, Any]:
    if client.namespace_objects:
        return {"namespaces": [namespace(client, info) for info in found]}
    return {"namespaces": [info.name for info in found]}


def configured(client: Client, info: NamespaceInfo) -> dict[str, Any]:
    return {**namespace(client, info), "dimension": info.dimension or 0, "created": info.created}


def namespace_stats(stats: NamespaceStats) -> dict[str, Any]:
    return {
        "total_vectors": stats.total_vectors,
        "dimensions": stats.dimension or 0,
        "index_type": stats.index_type,
        "memory_usage_bytes": stats.memory_usage_bytes,
        "disk_usage_bytes": stats.disk_usage_bytes,
        "build_progress": stats.build_progress,
        "is_trained": stats.is_trained,
        "is_built": stats.is_built,
        "size_bytes": stats.memory_usage_bytes + stats.disk_usage_bytes,
        "indexed_vectors": stats.indexed_vectors,
        "last_rebuild": stats.last_rebuild,
    }


def warmed(counts: tuple[int, int, int], *, target_tier: str, priority: str) -> dict[str, Any]:
    entries, skipped, size = counts
    return {
        "success": True,
        "entries_warmed": entries,
        "entries_skipped": skipped,
        "bytes_warmed": size,
        "message": f"warmed {entries} entries",
        "target_tier": target_tier,
        "priority": priority,
    }


# -- vectors and texts ------------------------------------------------------------------------------------------------


def _values(hit: Hit) -> dict[str, Any]:
    return {} if hit.values is None else {"values": hit.values, "vector": hit.values}


def vector_hit(hit: Hit) -> dict[str, Any]:
    out = {"id": hit.id, "score": hit.score, **_values(hit)}
    if hit.metadata is not None:
        out["metadata"] = hit.metadata
    return out


def _timed(hits: Hits) -> dict[str, Any]:
    return {"total_searched": hits.total_searched, "search_time_ms": hits.search_time_ms}


def vector_hits(client: Client, hits: Hits) -> dict[str, Any]:
    out = {client.hits_key: [vector_hit(hit) for hit in hits.hits], **_timed(hits)}
    if hits.next_cursor is not None:
        out["next_cursor"] = hits.next_cursor
    out["has_more"] = hits.next_cursor is not None
    return out


def batch_hits(answers: list[tuple[Any, Hits, float]], total_ms: float) -> dict[str, Any]:
    """``answers``: (the query's id, its hits, its milliseconds)."""
    return {
        "results": [
            {
                **({} if query_id is None else {"id": str(query_id)}),
                "results": [vector_hit(hit) for hit in hits.hits],
                "latency_ms": latency_ms,
                **_timed(hits),
            }
            for query_id, hits, latency_ms in answers
        ],
        "total_latency_ms": total_ms,
        "query_count": len(answers),
    }


def fetched(hits: list[Hit]) -> dict[str, Any]:
    """``values`` always stands: the Python client needs the key even when it did not ask for the numbers."""
    return {"vectors": [{"id": hit.id, "values": hit.values or [], "metadata": hit.metadata} for hit in hits]}


def multi_vector_hits(hits: Hits) -> dict[str, Any]:
    results = [
        {**vector_hit(hit), **_without_none({"mmr_score": hit.mmr_score, "original_rank": hit.original_rank})}
        for hit in hits.hits
    ]
    return {"results": results, "computed_query_vector": hits.computed_query_vector, **_timed(hits)}


def unified_hits(hits: Hits) -> dict[str, Any]:
    results = [
        {**vector_hit(hit), "$dist": hit.distance if hit.distance is not None else hit.score} for hit in hits.hits
    ]
    return {"results": results, "next_cursor": hits.next_cursor, **_timed(hits)}


def aggregated(answer: Aggregated) -> dict[str, Any]:
    groups = answer.groups
    return _without_none({"aggregations": answer.totals, "aggregation_groups": groups, "groups": groups})


def exported(hits: Hits, total: int) -> dict[str, Any]:
    return {
        "vectors": [
            _without_none(
                {"id": hit.id, "values": hit.values, "metadata": hit.metadata, "ttl_seconds": hit.ttl_seconds}
            )
            for hit in hits.hits
        ],
        "next_cursor": hits.next_cursor,
        "total_count": total,
        "returned_count": len(hits.hits),
    }


def text_hits(client: Client, hits: Hits) -> dict[str, Any]:
    results = [
        {
            "id": hit.id,
            "score": hit.score,
            "content": hit.text,
            "text": hit.text,
            "highlights": hit.highlights,
            "metadata": hit.metadata,
        }
        for hit in hits.hits
    ]
    return {client.hits_key: results, **_timed(hits)}


def text_stats(name: str, stats: TextStats) -> dict[str, Any]:
    return {
        "namespace": name,
        "document_count": stats.document_count,
        "unique_terms": stats.unique_terms,
        "term_count": stats.unique_terms,
        "avg_doc_length": stats.avg_doc_length,
    }


def _text_query_hit(hit: Hit) -> dict[str, Any]:
    out: dict[str, Any] = {"id": hit.id, "score": hit.score}
    if hit.text is not None:
        out["text"] = hit.text
    if hit.metadata is not None:
        out["metadata"] = {name: value for name, value in hit.metadata.items() if name != "_text"}
    if hit.values is not None:
        out["vector"] = hit.values
    return out


def _text_query_times(hits: list[Hits]) -> dict[str, Any]:
    """Whole milliseconds: the Python client's type."""
    return {
        "model": next((answer.model for answer in hits if answer.model), "minilm"),
        "embedding_time_ms": round(max((answer.embedding_time_ms for answer in hits), default=0.0)),
        "search_time_ms": round(sum(answer.search_time_ms for answer in hits)),
    }


def text_query(hits: Hits) -> dict[str, Any]:
    return {"results": [_text_query_hit(hit) for hit in hits.hits], **_text_query_times([hits])}


def text_queries(answers: list[Hits]) -> dict[str, Any]:
    return {
        "results": [[_text_query_hit(hit) for hit in hits.hits] for hits in answers],
        **_text_query_times(answers),
    }


def hybrid_hits(client: Client, hits: Hits) -> dict[str, Any]:
    results = [
        {
            **vector_hit(hit),
            "vector_score": hit.vector_score or 0.0,
            "text_score": hit.text_score or 0.0,
            **({} if hit.text is None else {"content": hit.text, "text": hit.text}),
        }
        for hit in hits.hits
    ]
    return {client.hits_key: results, **_timed(hits)}
