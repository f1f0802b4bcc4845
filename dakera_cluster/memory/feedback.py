"""Feedback: an upvote raises a memory's importance, a downvote lowers it, a flag marks it; the history stays with it.

upvote / positive: importance x 1.15, at most 1. downvote / negative: x 0.85, at least 0. flag: sets ``decay_flag``.
neutral: recorded only. Called by the API.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from dakera_cluster.memory.core import PAGE, Core, agent_space, check_choice
from dakera_cluster.memory.services import AgentHealth, FeedbackSummary, Importance
from dakera_cluster.memory.store import Memories
from dakera_cluster.model.ids import AGENT_PREFIX, agent_namespace
from dakera_cluster.model.keys import Access
from dakera_cluster.model.memories import DEFAULT_IMPORTANCE, FEEDBACK_HISTORY, FeedbackEntry, Field, Signal
from dakera_cluster.model.rows import decode_document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard.ops import Where

RAISE = 1.15
LOWER = 0.85
_RAISING = (Signal.UPVOTE, Signal.POSITIVE)
_LOWERING = (Signal.DOWNVOTE, Signal.NEGATIVE)


class Feedback:
    """Implements `services.FeedbackService`."""

    def __init__(self, core: Core, memories: Memories) -> None:
        self._core = core
        self._memories = memories

    async def give(self, memory_id: str, agent_id: str | None, signal: str, access: Access) -> Importance:
        """Record a signal and apply its effect. Raises VectorNotFoundError, InvalidRequestError."""
        check_choice(signal, tuple(Signal), "signal")
        agent, document = await self._memories.find(memory_id, agent_id, access, ReadLevel.STRONG)
        before = float(document.fields.get(Field.IMPORTANCE, DEFAULT_IMPORTANCE))
        after = before
        if signal in _RAISING:
            after = min(1.0, before * RAISE)
        elif signal in _LOWERING:
            after = max(0.0, before * LOWER)
        entry = FeedbackEntry(signal=signal, timestamp=self._core.now_s, old_importance=before, new_importance=after)
        history = [*(document.fields.get(Field.FEEDBACK) or ()), msgspec.to_builtins(entry)][-FEEDBACK_HISTORY:]
        change: dict[str, Any] = {Field.FEEDBACK: history}
        if after != before:
            change[Field.IMPORTANCE] = after
        if signal == Signal.FLAG:
            change[Field.DECAY_FLAG] = True
        await self._core.patch(agent_namespace(agent), [(memory_id, change)])
        if after != before:
            self._core.events.importance_updated(agent, memory_id, after)
        return Importance(await self._memories.changed(agent, memory_id, document, change), before, signal)

    async def history(self, memory_id: str, agent_id: str | None, access: Access) -> list[FeedbackEntry]:
        """Oldest first, at most the last FEEDBACK_HISTORY."""
        _, document = await self._memories.find(memory_id, agent_id, access)
        return msgspec.convert(document.fields.get(Field.FEEDBACK) or [], list[FeedbackEntry])

    async def summary(self, agent_id: str) -> FeedbackSummary:
        namespace = agent_space(agent_id)
        health = await self._health_of(agent_id)
        signals: Counter[str] = Counter()
        after: str | None = None
        where = Where(filter={Field.FEEDBACK: {"$exists": True}})
        while True:
            page = await self._core.select(namespace, where, limit=PAGE, after=after)
            for body in page.bodies:
                signals.update(entry["signal"] for entry in decode_document(body).fields.get(Field.FEEDBACK) or ())
            if len(page.ids) < PAGE:
                break
            after = page.ids[-1]
        return FeedbackSummary(
            agent_id=agent_id,
            upvotes=sum(signals[signal] for signal in _RAISING),
            downvotes=sum(signals[signal] for signal in _LOWERING),
            flags=signals[Signal.FLAG],
            total_feedback=signals.total(),
            health_score=health.health_score,
        )

    async def health(self, agent_id: str | None, access: Access) -> AgentHealth:
        """Mean importance of live memories, of one agent or over all the caller may read."""
        if agent_id is not None:
            return await self._health_of(agent_id)
        count, total = 0, 0.0
        for name in await self._core.router.inventory(AGENT_PREFIX):
            if access.allows(name):
                profile = await self._core.router.profile(name, self._core.now_ms())
                count += profile.count
                total += profile.importance_sum
        mean = total / count if count else 0.0
        return AgentHealth(agent_id="", health_score=mean, memory_count=count, avg_importance=mean)

    async def _health_of(self, agent_id: str) -> AgentHealth:
        namespace = agent_space(agent_id)
        profile = await self._core.router.profile(namespace, self._core.now_ms())
        if profile.count == 0:
            await self._core.require(namespace)
        mean = profile.importance_sum / profile.count if profile.count else 0.0
        return AgentHealth(agent_id=agent_id, health_score=mean, memory_count=profile.count, avg_importance=mean)
