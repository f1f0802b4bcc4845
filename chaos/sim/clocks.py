"""The clocks of one simulated node: a monotone one whose rate is a little off, and a wall clock that is skewed and jumps.

Invariant: the wall clocks of all nodes stay within ``SKEW_MAX_MS`` of true time, which bounds how far two of them differ.
Used by every node of the world; changed by the nemesis.
"""

from __future__ import annotations

from random import Random

WALL_START_MS = 1_700_000_000_000
SKEW_USUAL_MS = 500.0
SKEW_MAX_MS = 1_000.0
"""A jump may go this far; the usual skew is half of it."""
RATE_ERROR = 0.01


class Clock:
    """Reads true time (milliseconds of the timeline) as this node's hardware would show it."""

    __slots__ = ("_offset_ms", "_rate", "_skew_ms")

    def __init__(self, rng: Random) -> None:
        self._rate = 1.0 + rng.uniform(-RATE_ERROR, RATE_ERROR)
        self._offset_ms = rng.uniform(0, 1e6)
        self._skew_ms = rng.uniform(-SKEW_USUAL_MS, SKEW_USUAL_MS)

    def mono_ms(self, true_ms: float) -> float:
        return self._offset_ms + true_ms * self._rate

    def true_ms(self, mono_ms: float) -> float:
        """When the monotone clock will show ``mono_ms``; rounded up, so that a timer never fires early."""
        return (mono_ms - self._offset_ms) / self._rate + 1e-6

    def wall_ms(self, true_ms: float) -> int:
        return int(WALL_START_MS + true_ms + self._skew_ms)

    def jump(self, rng: Random) -> float:
        """Set the wall clock to some other time; returns the new skew in milliseconds."""
        limit = SKEW_MAX_MS if rng.random() < 0.3 else SKEW_USUAL_MS
        self._skew_ms = rng.uniform(-limit, limit)
        return self._skew_ms
