"""Late interaction: how well each word of a question finds its like among the words of a memory.

MaxSim (ColBERT, https://arxiv.org/abs/2004.12832) with the question's token vectors against one-bit token vectors; each
token of the question weighs its idf. A long memory is matched passage by passage and the best passage counts: otherwise
length alone would win. The question's vectors are rounded to integers, so every sum is exact and the result is the same on
every replica and every processor.

Cost: about 0.03 ms for each 1,000 tokens and 16 question tokens on one core; half of it by tiles (AMX), and where tables fit into
registers (AVX-512 VBMI) in proportion to the question's tokens. Called by the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import late as native
from dakera_cluster.native import pool as pools
from dakera_cluster.retrieval.candidates import Candidates
from dakera_cluster.retrieval.lexical import WordScores
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.tokens import TokenStore

MAX_QUERY_TOKENS = 48
EXACT_TOKENS = 8_000
"""Tokens of a pool up to which the question keeps its floats; beyond, as in ``glance``, signs meet signs. One way for the
whole pool, so that its memories stay comparable."""
MAX_TOKENS = 32_000
"""Tokens of one step of one recall; memories beyond it are matched by their first passage, then not at all."""


LateQuery = native.Query
"""A question and the idf of each of its tokens, whose sum is 1."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Of n slots: ``best``: float32[t, n], similarity of each question token in the slot's best passage; ``first``:
    float64[n], weighted sum in the first passage; ``seen``: bool[n], which were matched; ``bare``: bool[n], which have no tokens
    that could be."""

    best: NDArray[np.float32]
    first: NDArray[np.float64]
    seen: NDArray[np.bool_]
    bare: NDArray[np.bool_]


def late_query(query: QueryFeatures, store: TokenStore, live: int) -> LateQuery:
    """The question as it is compared with ``store``; without tokens its length is 0. ``live``: memories in the namespace."""
    vectors, ids = query.token_vectors, query.token_ids
    if len(ids) > MAX_QUERY_TOKENS:
        vectors, ids = vectors[:MAX_QUERY_TOKENS], ids[:MAX_QUERY_TOKENS]
    width = vectors.shape[1]
    if not len(ids) or width > native.MAX_WIDTH or width % 8:
        return _nothing()
    rarity = []
    for found in store.document_frequencies(ids):
        held = found if found < live else live
        rarity.append(1 + (live - held + 0.5) / (held + 0.5))
    # numpy's logarithm and the C library's differ in a last place here and there: one way, for all answers to stay the same.
    idf = np.log(rarity)
    total = 0.0
    for value in idf.tolist():
        total += value
    weights = idf / total if total > 0 else np.full(len(idf), 1 / len(idf))
    return LateQuery(vectors, weights, _cosine_of(width))


@cache
def _nothing() -> LateQuery:
    return LateQuery(np.zeros((0, 0), np.float32), np.zeros(0), native.Cosines(np.ones(1, np.float32)))


def weighted(query: LateQuery, similarities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over the question's tokens, token by token (a fixed order of addition): float64[n] of float32[t, n]."""
    return native.weighted(similarities, query.weights)


def match(query: LateQuery, store: TokenStore, slots: NDArray[np.int64], max_tokens: int = MAX_TOKENS) -> Matches:
    """Match the question with ``slots``, the likeliest first: when they hold more than ``max_tokens`` tokens, the later ones
    are matched by their first passage only, and those still beyond it not at all. A pool of more than EXACT_TOKENS is matched
    by signs alone."""
    if _are_whole(query, store, slots):
        whole = native.whole(query, store.stored, slots, EXACT_TOKENS, max_tokens)
        if whole is not None:
            best, first, seen = whole
            return Matches(best, first, seen, ~seen)
    best = np.zeros((len(query), len(slots)), np.float32)
    first = np.zeros(len(slots))
    counts = store.counts(slots)
    has_tokens = counts > 0
    total = int(counts.sum(dtype=np.int64))
    if not len(query) or not total or store.width != query.width:
        return Matches(best, first, np.zeros(len(slots), bool), ~has_tokens)
    if total <= max_tokens:
        _match(query, store, slots, np.flatnonzero(has_tokens), best, first, exact=total <= EXACT_TOKENS)
        return Matches(best, first, has_tokens, ~has_tokens)
    fits = np.cumsum(counts, dtype=np.int64) <= max_tokens
    heads = np.where(fits, 0, store.first_counts(slots))
    seen = has_tokens & (np.cumsum(heads) <= max_tokens)
    exact = int(np.where(fits, counts, heads)[seen].sum()) <= EXACT_TOKENS
    _match(query, store, slots, np.flatnonzero(seen & fits), best, first, exact=exact)
    _match(query, store, slots, np.flatnonzero(seen & ~fits), best, first, exact=exact, first_only=True)
    return Matches(best, first, seen, ~has_tokens)


def _are_whole(query: LateQuery, store: TokenStore, slots: NDArray[np.int64]) -> bool:
    """Whether each of ``slots`` is one run of tokens that the question can be compared with."""
    return len(query) > 0 and store.width == query.width and not store.have_passages(slots)


def second_look(
    query: LateQuery, store: TokenStore, bounds: pools.Bounds, how: pools.Judging
) -> pools.SecondLook | None:
    """How candidates are looked at closely when each is one run of tokens; None where the question cannot be compared."""
    return pools.SecondLook(query, store.stored, bounds, how) if len(query) and store.width == query.width else None


def best_of(
    query: LateQuery,
    store: TokenStore,
    words: WordScores,
    found: Candidates,
    bounds: pools.Bounds,
    how: pools.Judging,
    second: pools.SecondLook | None,
    keys: NDArray[np.uint64],
) -> pools.Judged:
    """The best of the candidates, by their fused scores and their late ones, as far as ``how`` judges them: what the ``second``
    look makes of them where it can. Of the donors of what memories without tokens are supposed to match, ``keys`` (by slot)
    decide."""
    slots, columns = found.slots, found.columns
    head = slots[: bounds.size]
    if second is not None and (second.is_taken or not store.have_passages(head)):
        if not second.is_taken:
            second.at(slots, columns, words.found)
        judged = second.judged(len(slots))
        if judged is not None:
            return judged
    own = match(query, store, head)
    if own.bare.any():
        own = supposed(own, found.cosine[: bounds.size], keys[head])
    pool = pools.cut(query, slots, columns, own.best, own.first, bounds, how)
    return pools.judged(pool, query, how, words.found)


def _match(
    query: LateQuery,
    store: TokenStore,
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
    *,
    exact: bool,
    first_only: bool = False,
) -> None:
    if len(positions):
        begins, lengths, owners = store.passage_runs(slots[positions], first_only=first_only)
        _write(query, store, (begins, lengths, positions[owners]), best, first, exact=exact)


def supposed(own: Matches, cosine: NDArray[np.float64], keys: NDArray[np.uint64]) -> Matches:
    """``own`` with what memories without token vectors may be supposed to match: what the one whose cosine is the
    nearest to theirs does. A memory that came with a ready vector would else lose to every other that has any words at all.
    Of donors with one cosine the key decides."""
    donors = np.flatnonzero(own.seen & ~np.isnan(cosine))
    takers = np.flatnonzero(own.bare & ~np.isnan(cosine))
    if not len(donors) or not len(takers):
        return own
    donors = donors[np.lexsort((keys[donors], cosine[donors]))]
    known, wanted = cosine[donors], cosine[takers]
    above = np.minimum(np.searchsorted(known, wanted), len(donors) - 1)
    below = np.maximum(above - 1, 0)
    chosen = donors[np.where(np.abs(wanted - known[below]) <= np.abs(known[above] - wanted), below, above)]
    best, first = own.best.copy(), own.first.copy()
    best[:, takers], first[takers] = best[:, chosen], first[chosen]
    return Matches(best, first, own.seen, own.bare)


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
    if len(query) and len(seen) and store.width == query.width:
        begins, lengths, _ = store.runs(slots[seen])
        _write(query, store, (begins, lengths, seen), best, np.zeros(len(slots)), exact=False)
    return best


@cache
def _cosine_of(width: int) -> native.Cosines:
    """By the number of differing signs."""
    share = np.arange(width + 1) / width
    return native.Cosines((math.sqrt(2 / math.pi) * np.sin(math.pi / 2 * (1 - 2 * share))).astype(np.float32))


def _write(
    query: LateQuery,
    store: TokenStore,
    runs: native.Runs,
    best: NDArray[np.float32],
    first: NDArray[np.float64],
    *,
    exact: bool,
) -> None:
    """Write what the runs of tokens mean for their owners, the positions in ``best`` and ``first``."""
    if exact:
        native.exact(query, store.stored, runs, best, first)
    else:
        native.estimated(query, store.stored, runs, best, first)
