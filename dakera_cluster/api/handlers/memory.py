"""Memories: store, recall, search, get, update, importance, forget, consolidate, feedback."""

from __future__ import annotations

from typing import Any

import msgspec

from dakera_cluster.api import bodies, shapes, vector_shapes
from dakera_cluster.api.auth import require_namespace
from dakera_cluster.api.handlers import agent
from dakera_cluster.api.route import Call
from dakera_cluster.memory.requests import ConsolidateQuery, ForgetQuery, MemoryChanges, RecallQuery, StoreItem
from dakera_cluster.model.errors import InvalidRequestError, VectorNotFoundError
from dakera_cluster.model.ids import agent_namespace
from dakera_cluster.model.memories import Signal

ANY_TYPE = "any"
DEFAULT_PAGE = 50
MAX_PAGE = 1_000
MAX_OFFSET = 100_000
DEFAULT_MATCHING = 100


def _plain(body: Any, kind: type[Any]) -> Any:
    """The services' request inside a wire body."""
    return kind(**{name: getattr(body, name) for name in kind.__struct_fields__})


async def store(call: Call, body: StoreItem) -> dict[str, Any]:
    agent_id = agent(call, body)
    answer = await call.services.memories.store(agent_id, [_plain(body, StoreItem)])
    call.runtime.metrics.memory("store", agent_id, answer.memories[0].memory_type)
    return shapes.stored(answer)


async def store_batch(call: Call, body: bodies.StoreBatchBody) -> dict[str, Any]:
    items = body.memories
    if body.lang is not None:
        items = [item if item.lang is not None else msgspec.structs.replace(item, lang=body.lang) for item in items]
    answer = await call.services.memories.store(body.agent_id, items)
    for item in answer.memories:
        call.runtime.metrics.memory("store", body.agent_id, item.memory_type)
    return shapes.stored_batch(answer)


async def recall(call: Call, body: RecallQuery) -> dict[str, Any]:
    agent_id = agent(call, body)
    call.runtime.metrics.memory("recall", agent_id, body.memory_type or ANY_TYPE)
    return shapes.recalled(await call.services.recall.recall(agent_id, body))


async def search(call: Call, body: RecallQuery) -> dict[str, Any]:
    agent_id = agent(call, body)
    call.runtime.metrics.memory("recall", agent_id, body.memory_type or ANY_TYPE)
    return shapes.recalled(await call.services.recall.search(agent_id, body))


async def search_get(call: Call, _: None) -> dict[str, Any]:
    query: bodies.MemorySearchQuery = call.query
    agent_id = query.agent()
    require_namespace(call.identity, agent_namespace(agent_id))
    call.runtime.metrics.memory("recall", agent_id, ANY_TYPE)
    return shapes.recalled(await call.services.recall.search(agent_id, query.search()))


async def list_memories(call: Call, _: None) -> dict[str, Any]:
    query: bodies.AgentPageQuery = call.query
    limit, offset = page(query)
    if query.agent_id is not None:
        return shapes.memory_page(await call.services.memories.list(query.agent_id, None, limit, offset))
    return shapes.memory_page(await call.services.memories.list_all(call.access, limit, offset))


async def recall_batch(call: Call, body: bodies.BatchRecallBody) -> dict[str, Any]:
    limit = body.limit if body.limit is not None else DEFAULT_MATCHING
    return shapes.matching(await call.services.memories.recall_matching(body.agent_id, body.conditions(), limit))


async def forget_batch(call: Call, body: bodies.BatchForgetBody) -> dict[str, Any]:
    count = await call.services.memories.forget_matching(body.agent_id, body.conditions())
    call.runtime.metrics.memory("forget", body.agent_id, ANY_TYPE, count)
    return shapes.forgotten(count)


async def forget(call: Call, body: bodies.ForgetBody) -> dict[str, Any]:
    count = await call.services.memories.forget(body.agent_id, body.conditions())
    call.runtime.metrics.memory("forget", body.agent_id, ANY_TYPE, count)
    return shapes.forgotten(count)


async def forget_one(call: Call, _: None) -> dict[str, Any]:
    agent_id, memory_id = call.path["agent_id"], call.path["memory_id"]
    count = await call.services.memories.forget(agent_id, ForgetQuery(memory_ids=[memory_id]))
    if count == 0:
        raise VectorNotFoundError(f"no memory {memory_id} of agent {agent_id}")
    call.runtime.metrics.memory("forget", agent_id, ANY_TYPE, count)
    return shapes.forgotten(count)


def _holder(call: Call, body: Any = None) -> str | None:
    """The agent whose memory is meant, when the request says so; the services look elsewhere only within the access."""
    found = call.path.get("agent_id") or getattr(body, "agent_id", None) or getattr(call.query, "agent_id", None)
    if found is not None:
        require_namespace(call.identity, agent_namespace(found))
    return found


async def get(call: Call, _: None) -> dict[str, Any]:
    found = await call.services.memories.get(call.path["memory_id"], _holder(call), call.access)
    return shapes.memory(found, score=shapes.LISTED_SCORE)


async def update(call: Call, body: MemoryChanges) -> dict[str, Any]:
    changes = _plain(body, MemoryChanges)
    return shapes.memory(
        await call.services.memories.update(call.path["memory_id"], _holder(call, body), changes, call.access)
    )


async def set_importance(call: Call, body: bodies.AgentImportanceBody) -> dict[str, Any]:
    changed = await call.services.memories.set_importance(agent(call, body), body.ids(), body.importance)
    return shapes.importance_set(changed, body.importance)


async def patch_importance(call: Call, body: bodies.ImportancePatch) -> dict[str, Any]:
    changed = await call.services.memories.set_importance(body.agent_id, [call.path["memory_id"]], body.importance)
    return shapes.importance_patched(changed[0])


async def consolidate(call: Call, body: ConsolidateQuery) -> dict[str, Any]:
    query = _plain(body, ConsolidateQuery)
    return shapes.consolidated(await call.services.consolidation.consolidate(agent(call, body), query))


def _signal(text: str, field: str) -> str:
    try:
        return Signal(text.lower()).value
    except ValueError:
        expected = ", ".join(Signal)
        raise InvalidRequestError(f"must be one of {expected}, got {text[:64]!r}", field=field) from None


async def feedback(call: Call, body: bodies.AgentFeedbackBody) -> dict[str, Any]:
    signal = _signal(body.verdict(), "signal" if body.signal is not None else "feedback")
    change = await call.services.feedback.give(body.memory_id, agent(call, body), signal, call.access)
    return shapes.feedback(change, signal)


async def memory_feedback(call: Call, body: bodies.MemoryFeedbackBody) -> dict[str, Any]:
    signal = _signal(body.signal, "signal")
    change = await call.services.feedback.give(call.path["memory_id"], body.agent_id, signal, call.access)
    return shapes.feedback(change, signal)


async def feedback_history(call: Call, _: None) -> dict[str, Any]:
    memory_id = call.path["memory_id"]
    entries = await call.services.feedback.history(memory_id, _holder(call), call.access)
    return {"memory_id": memory_id, "entries": entries}


async def feedback_summary(call: Call, _: None) -> Any:
    return await call.services.feedback.summary(call.path["agent_id"])


async def feedback_health(call: Call, _: None) -> Any:
    return await call.services.feedback.health(call.query.agent_id, call.access)


async def hybrid(call: Call, body: Any) -> dict[str, Any]:
    hits = await call.services.texts.hybrid(agent_namespace(body.agent_id), body.hybrid())
    return vector_shapes.hybrid_hits(call.client, hits)


def page(query: bodies.PageQuery) -> tuple[int, int]:
    """(limit, offset); a limit above the maximum means the maximum."""
    if query.offset > MAX_OFFSET:
        raise InvalidRequestError(f"must be at most {MAX_OFFSET}, got {query.offset}", field="offset")
    return min(query.limit if query.limit is not None else DEFAULT_PAGE, MAX_PAGE), query.offset
