"""Fitting the weights: a listwise logistic loss, convex, minimised by L-BFGS.

For each piece of evidence: softplus(log sum exp of the relevance of the pool's other memories - its own), averaged over the
evidence of a question, then over the questions of a kind, then over the kinds, so that no kind outweighs another by its
size. The penalty pulls weights towards PRIOR rather than towards zero: what must hold where the data say nothing. Called by
ops/fit_recall.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.retrieval.features import NAMES

Vector = NDArray[np.float64]

EXPLAIN_ONLY = frozenset(("bm25", "coverage", "cosine", "late", "length", "in_session"))
"""Features that are shown but not weighed: others say the same, and leaving them out generalised better."""
FITTED = tuple(name for name in NAMES if name not in EXPLAIN_ONLY)
PRIOR = {"assistant": -1.5}
"""A question about oneself is answered by what one said, not by an assistant's reply that repeats it. Most kinds of
memory have no such roles, and would leave the weight at nothing."""
PENALTY = 1e-3
MAX_STEPS = 200
HISTORY = 12
TOLERANCE = 1e-7


class Pool(msgspec.Struct, frozen=True):
    """What the model may order for one question. ``values``: float64[n, features]; ``gold``: bool[n]; ``evidence``: how many
    memories are evidence, in the pool or not; ``group``: its conversation; ``share``: what it weighs beside the others of its
    kind; ``is_altered``: asked of a store that was changed, to learn from and not to be measured."""

    values: NDArray[np.float64]
    gold: NDArray[np.bool_]
    evidence: int
    group: str
    share: float = 1.0
    is_altered: bool = False


def fitted(kinds: Sequence[Sequence[Pool]], penalty: float = PENALTY) -> dict[str, float]:
    """Weights of FITTED over several kinds of memory."""
    columns = [list(NAMES).index(name) for name in FITTED]
    values, gold, weights = [], [], []
    for pools in kinds:
        useful = [pool for pool in pools if pool.gold.any() and not pool.gold.all()]
        values += [pool.values[:, columns] for pool in useful]
        gold += [pool.gold for pool in useful]
        total = sum(pool.share for pool in useful) * len(kinds)
        weights += [pool.share / total for pool in useful]
    prior = np.array([PRIOR.get(name, 0.0) for name in FITTED])
    found = minimised(_loss(values, gold, np.array(weights), prior, penalty), prior)
    return dict(zip(FITTED, found.tolist(), strict=True))


def _loss(
    values: list[NDArray[np.float64]], gold: list[NDArray[np.bool_]], weights: Vector, prior: Vector, penalty: float
) -> Callable[[Vector], tuple[float, Vector]]:
    lengths = np.array([len(rows) for rows in values])
    starts = np.cumsum(lengths) - lengths
    question = np.repeat(np.arange(len(lengths)), lengths)
    every, is_gold = np.concatenate(values), np.concatenate(gold)
    share = np.repeat(weights / np.add.reduceat(is_gold.astype(float), starts), lengths) * is_gold

    def loss(weight: Vector) -> tuple[float, Vector]:
        relevance = every @ weight
        others = np.where(is_gold, -np.inf, relevance)
        peak = np.maximum.reduceat(others, starts)
        grown = np.exp(others - peak[question])
        total = np.add.reduceat(grown, starts)
        gap = (peak + np.log(total))[question] - relevance
        slope = share / (1 + np.exp(-np.clip(gap, -50, 50)))
        pull = np.add.reduceat(slope, starts)[question] * grown / total[question] - slope
        away = weight - prior
        return (
            float((share * np.logaddexp(0, gap)).sum() + penalty * away @ away),
            every.T @ pull + 2 * penalty * away,
        )

    return loss


def minimised(loss: Callable[[Vector], tuple[float, Vector]], start: Vector) -> Vector:
    """The minimum of a convex function that returns its value and gradient (Nocedal and Wright, algorithm 7.5)."""
    at = start.copy()
    value, gradient = loss(at)
    pairs: list[tuple[Vector, Vector]] = []
    for _ in range(MAX_STEPS):
        direction = -_preconditioned(gradient, pairs)
        slope = float(gradient @ direction)
        step = 1.0
        while True:
            there = at + step * direction
            new_value, new_gradient = loss(there)
            if new_value <= value + 1e-4 * step * slope or step < 1e-10:
                break
            step /= 2
        moved, turned = there - at, new_gradient - gradient
        if moved @ turned > 1e-12:
            pairs = [*pairs, (moved, turned)][-HISTORY:]
        done = abs(value - new_value) <= TOLERANCE * max(1.0, abs(value))
        at, value, gradient = there, new_value, new_gradient
        if done:
            break
    return at


def _preconditioned(gradient: Vector, pairs: list[tuple[Vector, Vector]]) -> Vector:
    result = gradient.copy()
    shares = []
    for moved, turned in reversed(pairs):
        share = (moved @ result) / (moved @ turned)
        result -= share * turned
        shares.append(share)
    if pairs:
        moved, turned = pairs[-1]
        result *= (moved @ turned) / (turned @ turned)
    else:
        result /= max(1.0, float(np.linalg.norm(gradient)))
    for (moved, turned), share in zip(pairs, reversed(shares), strict=True):
        result += (share - (turned @ result) / (moved @ turned)) * moved
    return result
