"""What answers look like on the wire: every alias, union and client-dependent key, here and in `vector_shapes` only.

Each function turns an answer of the services into what is encoded. Where official clients disagree the union of their
shapes is sent; the few keys that may not stand together are chosen by the `compat.Client` that is passed in. Handlers
hold no shape logic. Field lists: the wire contract's tables; the types for the OpenAPI document stand in `answers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from dakera_cluster.api.compat import Client
from dakera_cluster.memory.services import (
    AgentStats,
    BatchRecalled,
    Compressed,
    Consolidated,
    Importance,
    NewKey,
    Recalled,
    Stored,
)
from dakera_cluster.model.keys import KeyInfo, KeyUsage, Scope
from dakera_cluster.model.memories import Memory, ScoredMemory, Session

_fields = msgspec.structs.astuple
LISTED_SCORE = 1.0
"""Score of a memory that was listed, not searched for."""
KEY_WARNING = "Store this key now: it cannot be shown again."


def iso_time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- memories ---------------------------------------------------------------------------------------------------------


class RecalledMemory(Memory, gc=False):
    """A memory that was found: flat fields, the same object under ``memory``, and the scores that are known."""

    memory: Memory | UnsetType = UNSET
    score: float = LISTED_SCORE
    weighted_score: float | UnsetType = UNSET
    smart_score: float | UnsetType = UNSET
    vector_score: float | UnsetType = UNSET
    text_score: float | UnsetType = UNSET
    explain: dict[str, Any] | UnsetType = UNSET


def recalled_memory(found: ScoredMemory) -> RecalledMemory:
    memory = found.memory
    weighted, smart = found.weighted_score, found.smart_score
    vector, text, explain = found.vector_score, found.text_score, found.explain
    # By position, and one object for the encoder's one pass over the whole answer: recall is the hot path.
    return RecalledMemory(
        *_fields(memory),
        memory,
        found.score,
        UNSET if weighted is None else weighted,
        UNSET if smart is None else smart,
        UNSET if vector is None else vector,
        UNSET if text is None else text,
        UNSET if explain is None else explain,
    )


def listed_memory(memory: Memory) -> RecalledMemory:
    return RecalledMemory(*_fields(memory), memory)


def recalled(answer: Recalled) -> dict[str, Any]:
    out: dict[str, Any] = {
        "memories": [recalled_memory(found) for found in answer.memories],
        "total_found": answer.total_found,
        "query_embedding_time_ms": answer.query_embedding_time_ms,
        "search_time_ms": answer.search_time_ms,
    }
    if answer.associated is not None:
        out["associated_memories"] = [recalled_memory(found) for found in answer.associated]
    if answer.explain is not None:
        out["explain"] = answer.explain
    if answer.rerank_report is not None:
        out["rerank_report"] = answer.rerank_report
    return out


def listed(answer: BatchRecalled) -> list[RecalledMemory]:
    return [listed_memory(memory) for memory in answer.memories]


def memory_page(answer: BatchRecalled) -> dict[str, Any]:
    return {"memories": listed(answer), "total_found": len(answer.memories), "total": answer.total}


def matching(answer: BatchRecalled) -> dict[str, Any]:
    return {"memories": answer.memories, "total": answer.total, "filtered": answer.filtered}


def memory(item: Memory, **more: Any) -> dict[str, Any]:
    """Flat fields, the object under ``memory``, its id under ``memory_id``, and ``more``."""
    return {**msgspec.to_builtins(item), "memory_id": item.id, "memory": item, **more}


def stored(answer: Stored) -> dict[str, Any]:
    warnings = {"warnings": answer.warnings} if answer.warnings else {}
    return memory(answer.memories[0], ok=True, embedding_time_ms=answer.embedding_time_ms, **warnings)


def stored_batch(answer: Stored) -> dict[str, Any]:
    out: dict[str, Any] = {
        "stored": [
            {
                "id": item.id,
                "content": item.content,
                "agent_id": item.agent_id,
                "tags": item.tags,
                "importance": item.importance,
                "created_at": item.created_at,
                "session_id": item.session_id,
                "memory_type": item.memory_type,
            }
            for item in answer.memories
        ],
        "stored_count": len(answer.memories),
        "total_embedding_time_ms": answer.embedding_time_ms,
    }
    if answer.warnings:
        out["warnings"] = answer.warnings
    return out


def importance_set(changed: list[Importance], importance: float) -> dict[str, Any]:
    """One memory: the union with its flat fields; several: how many."""
    out = {"status": "ok", "updated": len(changed), "importance": importance}
    return memory(changed[0].memory, **out) if len(changed) == 1 else out


def feedback(change: Importance, signal: str) -> dict[str, Any]:
    importance = change.memory.importance
    return {
        "status": "ok",
        "memory_id": change.memory.id,
        "signal": signal,
        "new_importance": importance,
        "updated_importance": importance,
    }


def importance_patched(change: Importance) -> dict[str, Any]:
    """A feedback answer (whose signal must be one of the client's enum) and the memory."""
    raised = change.memory.importance >= change.old_importance
    return memory(
        change.memory, new_importance=change.memory.importance, signal="upvote" if raised else "downvote", status="ok"
    )


def forgotten(count: int) -> dict[str, Any]:
    return {"deleted_count": count, "status": "ok"}


def consolidated(answer: Consolidated) -> dict[str, Any]:
    return {
        "consolidated_count": answer.consolidated_count,
        "removed_count": answer.removed_count,
        "memories_removed": answer.removed_count,
        "new_memories": answer.new_memories,
        "source_memory_ids": answer.source_memory_ids,
        "consolidated_memory": answer.summary,
        "log": answer.log,
    }


def compressed(client: Client, agent_id: str, answer: Compressed) -> dict[str, Any]:
    removed = len(answer.deprecated_ids)
    out: dict[str, Any] = {
        "agent_id": agent_id,
        "memories_before": answer.memories_before,
        "memories_after": answer.memories_after,
        "duration_ms": answer.duration_ms,
        "memories_scanned": answer.memories_before,
        "clusters_found": answer.clusters_found,
        "summaries_created": len(answer.summary_ids),
        "originals_deprecated": removed,
        "summary_ids": answer.summary_ids,
        "deprecated_ids": answer.deprecated_ids,
    }
    if client.aliased_pairs:
        out["removed_count"] = removed
    return out


# -- sessions and agents ----------------------------------------------------------------------------------------------


def started(session: Session) -> dict[str, Any]:
    return {"session": session, "id": session.id, "session_id": session.id}


def sessions(client: Client, found: list[Session], total: int) -> Any:
    return found if client.bare_sessions else {"sessions": found, "total": total}


def agent_stats(stats: AgentStats) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(stats),
        "oldest_memory_at": iso_time(stats.oldest_memory_at),
        "newest_memory_at": iso_time(stats.newest_memory_at),
        "memory_count": stats.total_memories,
        "session_count": stats.total_sessions,
    }


def wake_up(client: Client, agent_id: str, answer: BatchRecalled) -> dict[str, Any]:
    memories: Iterable[Any] = answer.memories
    if client.iso_wake_up:
        memories = [
            {
                **msgspec.to_builtins(item),
                "created_at": iso_time(item.created_at),
                "updated_at": iso_time(item.updated_at),
            }
            for item in answer.memories
        ]
    return {"agent_id": agent_id, "memories": memories, "total_available": answer.total}


# -- keys -------------------------------------------------------------------------------------------------------------


def permissions(scope: Scope) -> list[str]:
    """The older Python client's words for a scope: every scope it includes."""
    return [each.wire for each in Scope if Scope.NONE < each <= scope]


def key_info(info: KeyInfo) -> dict[str, Any]:
    return {
        "key_id": info.key_id,
        "id": info.key_id,
        "name": info.name,
        "scope": info.scope.wire,
        "permissions": permissions(info.scope),
        "namespaces": info.namespaces,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "active": info.active,
        "last_used": info.last_used_at,
    }


def new_key(made: NewKey) -> dict[str, Any]:
    return {**key_info(made.info), "key": made.key, "warning": KEY_WARNING}


def rotated_key(made: NewKey) -> dict[str, Any]:
    return {**new_key(made), "new_key": made.key}


def namespace_key(name: str, info: KeyInfo) -> dict[str, Any]:
    return {**key_info(info), "namespace": name}


def key_usage(key_id: str, usage: KeyUsage) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "total_requests": usage.total_requests,
        "successful_requests": usage.successful_requests,
        "failed_requests": usage.failed_requests,
        "rate_limited_requests": usage.rate_limited_requests,
        "bytes_transferred": usage.bytes_transferred,
        "avg_latency_ms": usage.avg_latency_ms,
        "last_used": usage.last_used_at,
        "by_endpoint": [
            {"endpoint": route, "requests": count, "avg_latency_ms": total_ms / count}
            for route, (count, total_ms) in sorted(usage.by_endpoint.items())
        ],
        "requests_by_endpoint": {route: count for route, (count, _) in sorted(usage.by_endpoint.items())},
        "by_namespace": [
            {"namespace": name, "requests": count, "vectors_accessed": 0}
            for name, count in sorted(usage.by_namespace.items())
        ],
    }


def done(message: str, **more: Any) -> dict[str, Any]:
    return {"success": True, "status": "ok", "message": message, **more}
