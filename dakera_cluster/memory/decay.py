"""Decay: how much of a memory's importance is left, computed when read.

Nothing is rewritten on a timer: what is left follows from the importance, the last access (or the creation), the half-life
and now. Recall computes the same over arrays (`retrieval.engine`). Called by wake-up.
"""

from __future__ import annotations

WAKE_UP_HALF_LIFE_S = 14 * 86_400


def left(age_s: float, half_life_s: float) -> float:
    """Share of the importance left after ``age_s``: 2^(-age / half-life), 1 for the future."""
    return float(0.5 ** (max(0.0, age_s) / half_life_s))
