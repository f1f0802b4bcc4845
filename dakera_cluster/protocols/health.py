"""Local health: how far this node should distrust its own judgement (Lifeguard's local health multiplier).

0 is healthy; each sign that *we* are the slow one adds a point, each probe that succeeds takes one away, and all probe
times are multiplied by score + 1. In Python the commonest cause of a false suspicion is our own event loop, so its lag
counts here too. Called by ``swim`` and ``beliefs``.
"""

from __future__ import annotations

from dakera_cluster.protocols.swim_config import Feature, SwimConfig


class LocalHealth:
    """The score, 0 .. ``health_max``; stays 0 when the feature is off."""

    __slots__ = ("_max", "score")

    def __init__(self, config: SwimConfig) -> None:
        self._max = config.health_max if config.has(Feature.LOCAL_HEALTH) else 0
        self.score = 0

    def add(self, points: int) -> None:
        self.score = min(self._max, max(0, self.score + points))

    def stretch(self, duration_ms: float) -> float:
        """Lifeguard eq. 1 and 2: base time * (score + 1)."""
        return duration_ms * (self.score + 1)
