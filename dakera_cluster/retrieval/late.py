"""Late interaction: how well each word of a question finds its like among the words of a memory.

MaxSim (ColBERT, https://arxiv.org/abs/2004.12832) with the question's token vectors against one-bit token vectors; each
token of the question weighs its idf. A long memory is matched passage by passage and the best passage counts: otherwise
length alone would win. The question's vectors are rounded to integers so small that every sum is exact in float32: the result
then does not depend on how BLAS blocks the product, and is the same on every replica.

Cost: about 0.2 ms for each 1,000 tokens at 10 question tokens on one core. Called by the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.tokens import Gathered, TokenStore

STEPS = 2047
"""Integer steps of a component: 2,047 times 8,192 dimensions still fits the 24 bits of a float32."""
BLOCK_TOKENS = 4096
"""Tokens unpacked at once: 6 MB at 384 dimensions."""
MAX_QUERY_TOKENS = 48
EXACT_TOKENS = 8_000
"""Tokens of a pool up to which the question keeps its floats; beyond, as in ``glance``, signs meet signs. One way for the
whole pool, so that its memories stay comparable."""
MAX_TOKENS = 32_000
"""Tokens of one step of one recall; memories beyond it are matched by their first passage, then not at all."""


@dataclass(frozen=True, slots=True)
class LateQuery:
    """``steps``: float32[t, d] of integers; ``sums``: float64[t] their row sums; ``scales``: float64[t], a step's worth;
    ``weights``: float64[t], idf of the tokens, sum 1; ``signs``: uint64[t, d / 64], sign bits."""

    steps: NDArray[np.float32]
    sums: NDArray[np.float64]
    scales: NDArray[np.float64]
    weights: NDArray[np.float64]
    signs: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, slots=True)
class Matches:
    """Of n slots: ``best``: float32[t, n], similarity of each question token in the slot's best passage; ``first``:
    float64[n], weighted sum in the first passage; ``has_tokens``: bool[n]."""

    best: NDArray[np.float32]
    first: NDArray[np.float64]
    has_tokens: NDArray[np.bool_]


def late_query(query: QueryFeatures, store: TokenStore, live: int) -> LateQuery:
    """The question made ready for ``store``; without tokens its length is 0. ``live``: memories in the namespace."""
    vectors = query.token_vectors[:MAX_QUERY_TOKENS]
    ids = query.token_ids[:MAX_QUERY_TOKENS]
    if not len(ids):
        return LateQuery(
            np.zeros((0, 0), np.float32), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0), np.uint64)
        )
    peaks = np.maximum(np.abs(vectors).max(axis=1), np.finfo(np.float32).tiny).astype(np.float64)
    steps = np.rint(vectors / peaks[:, None] * STEPS).astype(np.float32)
    found = np.minimum(store.document_frequencies(ids), live)
    idf = np.log(1 + (live - found + 0.5) / (found + 0.5))
    total = 0.0
    for value in idf.tolist():
        total += value
    return LateQuery(
        steps,
        steps.sum(axis=1, dtype=np.float64),
        peaks / (STEPS * math.sqrt(vectors.shape[1])),
        idf / total if total > 0 else np.full(len(idf), 1 / len(idf)),
        _as_words(np.packbits(vectors > 0, axis=1)),
    )


def weighted(query: LateQuery, similarities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over the question's tokens, token by token (a fixed order of addition): float64[n] of float32[t, n]."""
    total = np.zeros(similarities.shape[1])
    for row, weight in enumerate(query.weights.tolist()):
        total += weight * similarities[row]
    return total


def match(query: LateQuery, store: TokenStore, slots: NDArray[np.int64], max_tokens: int = MAX_TOKENS) -> Matches:
    """Match the question with ``slots``, the likeliest first: when they hold more than ``max_tokens`` tokens, the later ones
    are matched by their first passage only, and those still beyond it not at all. A pool of more than EXACT_TOKENS is matched
    by signs alone."""
    best = np.zeros((len(query), len(slots)), np.float32)
    first = np.zeros(len(slots))
    counts = store.counts(slots).astype(np.int64)
    has_tokens = counts > 0
    if not len(query) or not has_tokens.any() or store.width != query.steps.shape[1]:
        return Matches(best, first, np.zeros(len(slots), bool))
    fits = np.cumsum(counts) <= max_tokens
    heads = np.where(fits, 0, store.first_counts(slots))
    seen = has_tokens & (np.cumsum(heads) <= max_tokens)
    exact = int(np.where(fits, counts, heads)[seen].sum()) <= EXACT_TOKENS
    for positions, first_only, sizes in (
        (np.flatnonzero(seen & fits), False, counts),
        (np.flatnonzero(seen & ~fits), True, heads),
    ):
        for block in _blocks(sizes[positions]):
            tokens = store.gather(slots[positions[block]], first_unit_only=first_only)
            similar = _exact(query, tokens) if exact else _estimated(query, tokens.signs, tokens.unit_starts)
            _keep(query, tokens, similar, positions[block], best, first)
    return Matches(best, first, seen)


def glance(
    query: LateQuery, store: TokenStore, slots: NDArray[np.int64], max_tokens: int = MAX_TOKENS
) -> NDArray[np.float32]:
    """float32[t, n]: the similarity of each question token in each slot, estimated from signs on both sides: a third of the
    time of ``match``, good enough for what stands around a memory. 0 for slots beyond ``max_tokens`` tokens.

    For vectors whose signs agree in a share 1 - h of the dimensions the cosine is about sin(pi / 2 (1 - 2 h)) (Charikar
    2002), and the cosine with a sign vector about sqrt(2 / pi) of that.
    """
    best = np.zeros((len(query), len(slots)), np.float32)
    counts = store.counts(slots).astype(np.int64)
    seen = np.flatnonzero((counts > 0) & (np.cumsum(counts) <= max_tokens))
    if not len(query) or not len(seen) or store.width != query.steps.shape[1]:
        return best
    for block in _blocks(counts[seen]):
        tokens = store.gather(slots[seen[block]])
        starts = tokens.unit_starts[tokens.slot_units]
        best[:, seen[block]] = _estimated(query, tokens.signs, starts)
    return best


@cache
def _cosine_of(width: int) -> NDArray[np.float32]:
    """By the number of differing signs."""
    share = np.arange(width + 1) / width
    return (math.sqrt(2 / math.pi) * np.sin(math.pi / 2 * (1 - 2 * share))).astype(np.float32)


def _as_words(signs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sign rows as 64-bit words, column by column in memory; the bits that fill the last word up are all 0."""
    spare = -signs.shape[1] % 8
    padded = np.pad(signs, ((0, 0), (0, spare))) if spare else np.ascontiguousarray(signs)
    return np.asfortranarray(padded.view(np.uint64))


def _exact(query: LateQuery, tokens: Gathered) -> NDArray[np.float32]:
    """float32[t, u]: MaxSim in each unit."""
    bits = np.unpackbits(tokens.signs, axis=1).astype(np.float32)
    # Against signs of +-1: q . s = 2 q . bits - sum(q). The maximum may be taken before that, it is monotone.
    dots = np.maximum.reduceat(query.steps @ bits.T, tokens.unit_starts, axis=1)
    return np.asarray((2.0 * dots - query.sums[:, None]) * query.scales[:, None], dtype=np.float32)


def _estimated(query: LateQuery, signs: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[t, u]: MaxSim in each run of tokens, from signs on both sides."""
    words = _as_words(signs)
    differing = np.zeros((len(query), len(words)), np.uint16)
    for column in range(words.shape[1]):
        differing += np.bitwise_count(query.signs[:, column, None] ^ words[None, :, column])
    return np.asarray(_cosine_of(8 * signs.shape[1])[np.minimum.reduceat(differing, starts, axis=1)])


def _keep(
    query: LateQuery,
    tokens: Gathered,
    similar: NDArray[np.float32],
    positions: NDArray[np.int64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
) -> None:
    """Write what the units' similarities mean for the slots at ``positions``."""
    totals = weighted(query, similar)
    first[positions] = totals[tokens.slot_units]
    units = len(tokens.unit_starts)
    if units == len(positions):
        best[:, positions] = similar
        return
    ends = np.append(tokens.slot_units[1:], units)
    for place, (start, stop) in enumerate(zip(tokens.slot_units.tolist(), ends.tolist(), strict=True)):
        best[:, positions[place]] = similar[:, start + int(np.argmax(totals[start:stop]))]


def _blocks(counts: NDArray[np.int64]) -> list[slice]:
    """Runs of positions with at most BLOCK_TOKENS tokens together (a larger one is a run of its own)."""
    blocks: list[slice] = []
    start = total = 0
    for place, count in enumerate(counts.tolist()):
        if total and total + count > BLOCK_TOKENS:
            blocks.append(slice(start, place))
            start, total = place, 0
        total += count
    if start < len(counts):
        blocks.append(slice(start, len(counts)))
    return blocks
