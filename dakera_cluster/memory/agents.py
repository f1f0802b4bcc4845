"""Agents: who has memories, how many, and which to start a day with. Called by the API."""

from __future__ import annotations

from dakera_cluster.memory.core import Core, agent_space, check_range
from dakera_cluster.memory.decay import WAKE_UP_HALF_LIFE_S, left
from dakera_cluster.memory.services import AgentStats, AgentSummary, BatchRecalled
from dakera_cluster.memory.sessions import SessionField
from dakera_cluster.model.ids import AGENT_PREFIX, SESSIONS_NAMESPACE, agent_namespace
from dakera_cluster.model.keys import Access
from dakera_cluster.model.memories import Memory
from dakera_cluster.shard.ops import Aggregate, Conditions, Order, Where

TOP_TAGS = 10
MAX_AGENTS = 1_000_000
WAKE_UP_CANDIDATES = 1_000
"""Most important memories among which wake-up ranks: decay only lowers, so the head is found among them."""


class Agents:
    """Implements `services.AgentService`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self, access: Access) -> list[AgentSummary]:
        """Every agent with memories or sessions, by name."""
        memories = await self._core.router.inventory(AGENT_PREFIX)
        all_sessions = await self._sessions(None)
        active = await self._sessions({SessionField.ENDED: {"$exists": False}})
        names = {name[len(AGENT_PREFIX) :] for name in memories} | set(all_sessions)
        return [
            AgentSummary(
                agent_id=agent,
                memory_count=memories.get(agent_namespace(agent), (0, 0))[0],
                session_count=all_sessions.get(agent, 0),
                active_sessions=active.get(agent, 0),
            )
            for agent in sorted(names)
            if access.allows(agent_namespace(agent))
        ]

    async def _sessions(self, wanted: dict[str, object] | None) -> dict[str, int]:
        where = Where(filter=wanted) if wanted else None
        request = Aggregate(0, 0, SESSIONS_NAMESPACE, self._core.now_ms(), where, [SessionField.AGENT], [], MAX_AGENTS)
        return {group.key[0]: group.count for group in await self._core.router.aggregate(request)}

    async def stats(self, agent_id: str) -> AgentStats:
        """Raises NamespaceNotFoundError for an agent nobody has heard of."""
        namespace = agent_space(agent_id)
        profile = await self._core.router.profile(namespace, self._core.now_ms())
        own = {SessionField.AGENT: agent_id}
        sessions = await self._core.select(SESSIONS_NAMESPACE, Where(filter=own), limit=0)
        if profile.count == 0 and sessions.matched == 0:
            await self._core.require(namespace)
        open_ones = {**own, SessionField.ENDED: {"$exists": False}}
        active = await self._core.select(SESSIONS_NAMESPACE, Where(filter=open_ones), limit=0)
        parts = await self._core.router.describe(namespace)
        by_count = sorted(profile.by_tag.items(), key=lambda item: (-item[1], item[0]))
        return AgentStats(
            agent_id=agent_id,
            total_memories=profile.count,
            memories_by_type=profile.by_type,
            total_sessions=sessions.matched,
            active_sessions=active.matched,
            avg_importance=profile.importance_sum / profile.count if profile.count else None,
            oldest_memory_at=profile.oldest if profile.count else None,
            newest_memory_at=profile.newest if profile.count else None,
            storage_bytes=sum(part.disk_bytes for part in parts),
            top_tags=[tag for tag, _ in by_count[:TOP_TAGS]],
        )

    async def wake_up(self, agent_id: str, top_n: int, min_importance: float) -> BatchRecalled:
        """The memories to start with: importance x exp(-ln 2 x age / 14 d), no query and no model."""
        check_range(top_n, "top_n", 1, 100)
        check_range(min_importance, "min_importance", 0, 1)
        namespace = agent_space(agent_id)
        page = await self._core.select(
            namespace,
            Where(Conditions(min_importance=min_importance)),
            order=Order.IMPORTANCE,
            limit=WAKE_UP_CANDIDATES,
            usage=True,
        )
        if page.total == 0:
            await self._core.require(namespace)
        now_s = self._core.now_s

        def rank(memory: Memory) -> tuple[float, str]:
            return -memory.importance * left(now_s - memory.created_at, WAKE_UP_HALF_LIFE_S), memory.id

        memories = sorted(self._core.memories_of(agent_id, page), key=rank)
        return BatchRecalled(memories[:top_n], page.total, page.matched)
