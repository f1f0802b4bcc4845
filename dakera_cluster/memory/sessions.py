"""Sessions: spans of an agent's work that memories can belong to.

A session is a document in the sessions' namespace; its id carries the agent's tag, which also routes it, so an agent's
sessions live together and one is found by its id alone. Counts of memories are read from the agent's memories, not kept.
Called by the API.
"""

from __future__ import annotations

from typing import Any

from dakera_cluster.memory.core import Core, agent_space, check_metadata, check_range, new_id
from dakera_cluster.memory.services import BatchRecalled
from dakera_cluster.memory.store import MAX_OFFSET
from dakera_cluster.model.errors import VectorNotFoundError
from dakera_cluster.model.ids import ROUTE_SEPARATOR, SESSIONS_NAMESPACE, agent_namespace, check_id
from dakera_cluster.model.memories import Field, Session
from dakera_cluster.model.rows import Document, decode_document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard.ops import Conditions, Order, Where

MAX_SUMMARY_CHARS = 100_000
MAX_SESSION_MEMORIES = 500
DEFAULT_LIST = 1_000


class SessionField:
    """Names of a session's fields on disk."""

    AGENT = "agent"
    STARTED = "started"
    ENDED = "ended"
    SUMMARY = "summary"


class Sessions:
    """Implements `services.SessionService`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def start(self, agent_id: str, metadata: dict[str, Any] | None) -> Session:
        agent_space(agent_id)
        check_metadata(metadata)
        now_ms = self._core.now_ms()
        session_id = new_id("sess", agent_id, now_ms, ROUTE_SEPARATOR)
        fields = {
            SessionField.AGENT: agent_id,
            SessionField.STARTED: now_ms // 1000,
            Field.METADATA: metadata,
            Field.CREATED: now_ms // 1000,
        }
        await self._core.put(SESSIONS_NAMESPACE, [(session_id, fields)])
        session = _session(session_id, fields, 0)
        self._core.events.session_started(session)
        return session

    async def get(self, session_id: str) -> Session:
        """Raises VectorNotFoundError."""
        document = await self._find(session_id)
        agent = document.fields[SessionField.AGENT]
        return _session(session_id, document.fields, await self._count(agent, session_id))

    async def end(self, session_id: str, summary: str | None) -> Session:
        """End a session; ending it again changes the summary only. Raises VectorNotFoundError."""
        if summary is not None and len(summary) > MAX_SUMMARY_CHARS:
            check_range(len(summary), "summary", 0, MAX_SUMMARY_CHARS)
        document = await self._find(session_id, ReadLevel.STRONG)
        change: dict[str, Any] = {}
        if not document.fields.get(SessionField.ENDED):
            change[SessionField.ENDED] = self._core.now_s
        if summary is not None:
            change[SessionField.SUMMARY] = summary
        if change:
            await self._core.patch(SESSIONS_NAMESPACE, [(session_id, change)])
        if SessionField.ENDED in change:
            self._core.events.session_ended(_session(session_id, document.fields, 0))
        return await self.get(session_id)

    async def list(
        self, agent_id: str | None, active_only: bool, limit: int | None, offset: int
    ) -> tuple[list[Session], int]:
        """Newest first, and how many there are in all."""
        check_range(limit, "limit", 1, MAX_OFFSET)
        check_range(offset, "offset", 0, MAX_OFFSET)
        wanted: dict[str, Any] = {}
        if agent_id is not None:
            agent_space(agent_id)
            wanted[SessionField.AGENT] = agent_id
        if active_only:
            wanted[SessionField.ENDED] = {"$exists": False}
        where = Where(filter=wanted) if wanted else None
        page = await self._core.select(
            SESSIONS_NAMESPACE, where, order=Order.NEWEST, limit=limit or DEFAULT_LIST, offset=offset
        )
        if agent_id is not None and page.matched == 0:
            await self._core.require(agent_namespace(agent_id))
        fields = [decode_document(body).fields for body in page.bodies]
        counts: dict[str, dict[str, int]] = {}
        for agent in {f[SessionField.AGENT] for f in fields}:
            profile = await self._core.router.profile(agent_namespace(agent), self._core.now_ms())
            counts[agent] = profile.by_session
        sessions = [
            _session(i, f, counts[f[SessionField.AGENT]].get(i, 0)) for i, f in zip(page.ids, fields, strict=True)
        ]
        return sessions, page.matched

    async def memories(self, session_id: str, limit: int, offset: int) -> BatchRecalled:
        """The session's memories, newest first. Raises VectorNotFoundError."""
        check_range(limit, "limit", 1, MAX_SESSION_MEMORIES)
        check_range(offset, "offset", 0, MAX_OFFSET)
        agent = (await self._find(session_id)).fields[SessionField.AGENT]
        page = await self._core.select(
            agent_namespace(agent),
            Where(Conditions(session_id=session_id)),
            order=Order.NEWEST,
            limit=limit,
            offset=offset,
            usage=True,
        )
        return BatchRecalled(self._core.memories_of(agent, page), page.total, page.matched)

    async def _find(self, session_id: str, level: ReadLevel | None = None) -> Document:
        check_id(session_id, "session_id")
        document = (await self._core.documents(SESSIONS_NAMESPACE, [session_id], level)).get(session_id)
        if document is None:
            raise VectorNotFoundError(f"session_id: session {session_id!r} does not exist")
        return document

    async def _count(self, agent_id: str, session_id: str) -> int:
        where = Where(Conditions(session_id=session_id))
        return (await self._core.select(agent_namespace(agent_id), where, limit=0)).matched


def _session(session_id: str, fields: dict[str, Any], memory_count: int) -> Session:
    return Session(
        id=session_id,
        session_id=session_id,
        agent_id=fields[SessionField.AGENT],
        started_at=fields[SessionField.STARTED],
        ended_at=fields.get(SessionField.ENDED),
        summary=fields.get(SessionField.SUMMARY),
        metadata=fields.get(Field.METADATA),
        memory_count=memory_count,
    )
