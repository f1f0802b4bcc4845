"""hit@k, recall@k and binary nDCG@10, and intervals by bootstrap. Used by the fit and the tests of retrieval."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

NDCG_AT = 10
ROUNDS = 1000


def hit(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """1.0 when one of ``gold`` is among the first ``k``."""
    return float(any(row_id in gold for row_id in ranked[:k]))


def recall(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """The share of ``gold`` among the first ``k``."""
    return sum(row_id in gold for row_id in ranked[:k]) / len(gold)


def ndcg(ranked: Sequence[str], gold: Collection[str]) -> float:
    """Normalised discounted cumulative gain of the first ten, every piece of evidence worth the same."""
    gain = sum(1 / math.log2(place + 2) for place, row_id in enumerate(ranked[:NDCG_AT]) if row_id in gold)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(NDCG_AT, len(gold))))


def interval(values: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    sample = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(0, len(sample), (ROUNDS, len(sample)))
    low, high = np.percentile(sample[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
