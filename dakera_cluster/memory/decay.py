"""Decay: how much of a memory's importance is left, computed when read.

Nothing is rewritten on a timer: what is left follows from the importance, the last access (or the creation), the half-life
and now. Called by recall and by wake-up.
"""

from __future__ import annotations

WAKE_UP_HALF_LIFE_S = 14 * 86_400


def left(age_s: float, half_life_s: float) -> float:
    """Share of the importance left after ``age_s``: 2^(-age / half-life), 1 for the future."""
    return float(0.5 ** (max(0.0, age_s) / half_life_s))


def decayed(importance: float, *, created_s: int, accessed_s: int, now_s: int, half_life_s: float) -> float:
    """Importance as of now. An access renews a memory: age counts from the later of creation and last access."""
    return importance * left(now_s - max(created_s, accessed_s), half_life_s)
