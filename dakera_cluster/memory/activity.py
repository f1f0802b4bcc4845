"""Readiness, totals and the counts behind the KPI route, for the API. Called by the API."""

from __future__ import annotations

from dakera_cluster.cluster.status import NodeStatus
from dakera_cluster.memory.core import Core
from dakera_cluster.memory.services import Activity
from dakera_cluster.memory.sessions import SessionField
from dakera_cluster.model.ids import AGENT_PREFIX, SESSIONS_NAMESPACE
from dakera_cluster.shard.ops import Conditions, Where

WEEK_S = 7 * 86_400


class ActivityStatus:
    """Implements `services.StatusService`."""

    def __init__(self, core: Core, status: NodeStatus) -> None:
        self._core = core
        self._status = status

    def ready(self) -> dict[str, tuple[bool, str | None]]:
        return self._status.ready()

    def totals(self) -> tuple[int, int]:
        return self._status.totals()

    @property
    def uptime_s(self) -> float:
        return self._status.uptime_s

    async def activity(self) -> Activity:
        """Retention: of the memories a week ago and older that were ever stored, the share that still lives is not kept
        anywhere; what is told is the share of live memories that are older than a week and were used within it."""
        now_s = self._core.now_s
        agents = await self._core.router.inventory(AGENT_PREFIX)
        old = used = 0
        for name in agents:
            page = await self._core.select(
                name, Where(Conditions(created_before=now_s - WEEK_S)), limit=1000, usage=True
            )
            memories = self._core.memories_of(name[len(AGENT_PREFIX) :], page)
            old += len(memories)
            used += sum(memory.last_accessed_at > now_s - WEEK_S for memory in memories)
        sessions = await self._core.select(
            SESSIONS_NAMESPACE, Where(filter={SessionField.STARTED: {"$gte": now_s - WEEK_S}}), limit=0
        )
        return Activity(
            active_agents=len(agents),
            sessions_this_week=sessions.matched,
            cross_agent_nodes=len(agents),
            retention_7d_pct=100.0 * used / old if old else 100.0,
        )
