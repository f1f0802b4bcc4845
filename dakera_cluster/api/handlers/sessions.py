"""Sessions and agents. A session is found by its id alone, so that the pins of the caller's key are checked here, once its
agent is known."""

from __future__ import annotations

import asyncio
from typing import Any

from dakera_cluster.api import bodies, shapes
from dakera_cluster.api.auth import require_namespace
from dakera_cluster.api.handlers.memory import page
from dakera_cluster.api.route import Call
from dakera_cluster.model.ids import agent_namespace
from dakera_cluster.model.memories import Session

MAX_SESSION_PAGE = 500
MAX_WAKE_UP = 100


async def _session(call: Call) -> Session:
    session = await call.services.sessions.get(call.path["session_id"])
    require_namespace(call.identity, agent_namespace(session.agent_id))
    return session


async def start(call: Call, body: bodies.SessionStartBody) -> dict[str, Any]:
    return shapes.started(await call.services.sessions.start(body.agent_id, body.metadata))


async def get(call: Call, _: None) -> Session:
    return await _session(call)


async def end(call: Call, body: bodies.SessionEndBody) -> dict[str, Any]:
    await _session(call)
    session = await call.services.sessions.end(call.path["session_id"], body.summary)
    return {**shapes.started(session), "memory_count": session.memory_count}


async def memories(call: Call, _: None) -> dict[str, Any]:
    await _session(call)
    query: bodies.PageQuery = call.query
    limit, offset = page(query)
    return shapes.memory_page(
        await call.services.sessions.memories(call.path["session_id"], min(limit, MAX_SESSION_PAGE), offset)
    )


async def list_sessions(call: Call, _: None) -> Any:
    query: bodies.SessionsQuery = call.query
    service = call.services.sessions
    pins = call.access.namespaces
    if query.agent_id is not None or pins is None:
        found, total = await service.list(query.agent_id, query.active_only, query.limit, query.offset)
        return shapes.sessions(call.client, found, total)
    summaries = await call.services.agents.list(call.access)
    pages = await asyncio.gather(*(service.list(summary.agent_id, query.active_only, None, 0) for summary in summaries))
    merged = sorted((each for found, _ in pages for each in found), key=lambda each: (-each.started_at, each.id))
    end = None if query.limit is None else query.offset + query.limit
    return shapes.sessions(call.client, merged[query.offset : end], len(merged))


async def agent_sessions(call: Call, _: None) -> list[Session]:
    query: bodies.SessionsQuery = call.query
    found, _total = await call.services.sessions.list(
        call.path["agent_id"], query.active_only, query.limit, query.offset
    )
    return found


async def list_agents(call: Call, _: None) -> Any:
    return await call.services.agents.list(call.access)


async def agent_memories(call: Call, _: None) -> Any:
    query: bodies.AgentMemoriesQuery = call.query
    limit, offset = page(query)
    return shapes.listed(await call.services.memories.list(call.path["agent_id"], query.memory_type, limit, offset))


async def agent_stats(call: Call, _: None) -> dict[str, Any]:
    return shapes.agent_stats(await call.services.agents.stats(call.path["agent_id"]))


async def wake_up(call: Call, _: None) -> dict[str, Any]:
    query: bodies.WakeUpQuery = call.query
    agent_id = call.path["agent_id"]
    answer = await call.services.agents.wake_up(agent_id, min(query.top_n, MAX_WAKE_UP), query.min_importance)
    return shapes.wake_up(call.client, agent_id, answer)


async def compress(call: Call, _: None) -> dict[str, Any]:
    agent_id = call.path["agent_id"]
    return shapes.compressed(call.client, agent_id, await call.services.consolidation.compress(agent_id))
