"""A second look at the candidates of a question: the pool of the best of them, the features of each, and their order.

In one call where the tokens of each memory are one run and its features need nobody else; else in steps, between which the
caller adds what he knows. Called by retrieval/.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import late
from dakera_cluster.native.features import Asked, Layout, Traits
from dakera_cluster.native.importance import Importance, Valuation
from dakera_cluster.native.library import NULL, allocated, filled, given, kernels
from dakera_cluster.native.terms import Found
from dakera_cluster.native.windows import Talk

FOUND_COLUMNS = 5
"""What is known of a candidate: fused score, cosine, BM25, coverage and window."""
COLUMNS = FOUND_COLUMNS + 2
"""The same and the late score, as a whole and that of the first passage."""
COSINE, LATE = 1, FOUND_COLUMNS
ANSWER_COLUMNS = 4
"""Of a result: relevance, score, cosine and BM25."""
WITHOUT_TOKENS, WITHOUT_KEY, BEYOND_COLUMNS, NOT_TAKEN = -4, -5, -6, -7


class Bounds:
    """How a pool is cut: the first ``size`` candidates to the ``kept`` best by their fused scores and ``share`` times their late
    ones, both scaled. They are matched exactly while they hold at most ``most_exact`` tokens together, else by signs, and not
    as whole memories when they hold more than ``most``."""

    def __init__(self, size: int, kept: int, share: float, most_exact: int, most: int) -> None:
        self.size, self.kept = size, kept
        self.struct = filled("pool_bounds *", (size, kept, most_exact, most, share))


class Weights:
    """A linear model: ``weights`` (float64) of the rows of features; a relevance z has the score
    1 / (1 + exp(-(z - middle) / spread))."""

    def __init__(self, weights: NDArray[np.float64], middle: float, spread: float) -> None:
        self.rows = len(weights)
        self._kept = given(weights, np.float64)
        self.struct = filled("ranking_model *", (self._kept, middle, spread))

    def scores(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[n] of float64[n]."""
        scores = np.empty(len(relevance))
        kernels.scores_of(self.struct, given(relevance, np.float64), len(relevance), given(scores, np.float64))
        return scores


class Pool:
    """The best of some candidates: ``slots`` int64[m], ``columns`` float64[COLUMNS, m] and ``best`` float32[t, m], what each token
    of the question found. They come first in the ``order`` (int64[n]: places) of the whole pool by ``level`` (float64[n] by
    place). ``values``: float64[features, m]. With a model, ``sums``: float64[m], the relevance of each; ``ranking``: int64[m],
    their places by it, then by key; and what ``answered`` says. ``struct``: all of it, for kernels."""

    __slots__ = ("_features", "_kept", "_room", "_size", "_tokens", "held", "struct")

    def __init__(self, tokens: int, size: int, kept: int, features: int) -> None:
        """Room for the ``kept`` best of ``size``, for a kernel to fill."""
        self._tokens, self._size, self._kept, self._features = tokens, size, kept, features
        cells = 2 * size + (COLUMNS + 4 + ANSWER_COLUMNS + features) * kept
        self._room = np.empty(cells + (tokens * kept + 1) // 2)
        self.held = given(self._room, np.float64)
        self.struct = allocated("pool_memories", 1)

    def __len__(self) -> int:
        return self._kept

    def shrink(self, size: int, kept: int) -> None:
        """It was of fewer than there is room for."""
        self._size, self._kept = size, min(size, kept)

    def _part(self, start: int, count: int) -> NDArray[np.float64]:
        """``count`` rows of the kept ones, from the row ``start`` on."""
        first = 2 * self._size + start * self._kept
        return self._room[first : first + count * self._kept]

    @property
    def level(self) -> NDArray[np.float64]:
        return self._room[: self._size]

    @property
    def order(self) -> NDArray[np.int64]:
        return self._room[self._size : 2 * self._size].view(np.int64)

    @property
    def columns(self) -> NDArray[np.float64]:
        return self._part(0, COLUMNS).reshape(COLUMNS, self._kept)

    @property
    def cosine(self) -> NDArray[np.float64]:
        """float64[m]: NaN without a vector."""
        return self._part(COSINE, 1)

    @property
    def late(self) -> NDArray[np.float64]:
        """float64[m]: the late scores."""
        return self._part(LATE, 1)

    @property
    def slots(self) -> NDArray[np.int64]:
        return self._part(COLUMNS, 1).view(np.int64)

    @property
    def ranking(self) -> NDArray[np.int64]:
        return self._part(COLUMNS + 1, 1).view(np.int64)

    @property
    def sums(self) -> NDArray[np.float64]:
        return self._part(COLUMNS + 3 + ANSWER_COLUMNS, 1)

    @property
    def values(self) -> NDArray[np.float64]:
        return self._part(COLUMNS + 4 + ANSWER_COLUMNS, self._features).reshape(self._features, self._kept)

    @property
    def best(self) -> NDArray[np.float32]:
        first = 2 * self._size + (COLUMNS + 4 + ANSWER_COLUMNS + self._features) * self._kept
        cells = self._room[first:].view(np.float32)[: self._tokens * self._kept]
        return cells.reshape(self._tokens, self._kept)

    def answered(self, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """``(slots int64[k], columns float64[ANSWER_COLUMNS, k])`` of the first of the ``ranking``, as many as were wanted."""
        wanted = min(wanted, self._kept)
        first = 2 * self._size + (COLUMNS + 2) * self._kept
        slots, columns = self._room[first : first + wanted], self._room[first + wanted :][: ANSWER_COLUMNS * wanted]
        return slots.view(np.int64), columns.reshape(ANSWER_COLUMNS, wanted)


class Weighing(NamedTuple):
    """What becomes of features: the ``value`` of importance beside them, the ``model`` that weighs them (None to leave them as they
    are), and how many results are ``wanted``."""

    value: Valuation
    model: Weights | None
    wanted: int


class Judging:
    """How the memories of a pool are ranked: what features are made of, and what becomes of them. ``are_alone``: nothing stands
    around any of them. ``is_whole``: no features come from elsewhere, so that what makes the pool concludes as well. Equals are
    told apart by the keys of ``talk``."""

    __slots__ = ("_kept", "are_alone", "is_whole", "layout", "struct")

    def __init__(
        self,
        layout: Layout,
        asked: Asked,
        traits: Traits,
        talk: Talk,
        importance: Importance,
        weighing: Weighing,
        *,
        are_alone: bool,
        is_whole: bool,
    ) -> None:
        value, model, wanted = weighing
        if model is not None and model.rows != layout.rows:
            raise ValueError(f"{layout.rows} features, but {model.rows} weights")
        self.layout, self.are_alone, self.is_whole = layout, are_alone, is_whole
        self._kept = traits, asked, talk, importance, model
        self.struct = filled(
            "judging *",
            (
                traits.struct,
                asked.struct,
                layout.struct,
                talk.struct,
                importance.struct,
                NULL if model is None else model.struct,
                value,
                wanted,
                are_alone,
                is_whole,
            ),
        )


Judged = tuple[Pool, int]
"""A pool and, where it is concluded, how many of the wanted are as relevant as the next one."""


class SecondLook:
    """What is to become of candidates: each is matched as one run of ``stored`` tokens, and they are cut as by ``cut`` and judged.
    A first look goes on with it at once, or it is taken ``at`` them."""

    __slots__ = ("_bounds", "_kept", "_pool", "struct")

    def __init__(self, query: late.Query, stored: late.Stored, bounds: Bounds, how: Judging) -> None:
        if stored.struct[0].width != query.width:
            raise ValueError("tokens of another width")
        self._bounds, self._kept = bounds, (query, stored, how)
        self._pool = pool = Pool(len(query), bounds.size, bounds.kept, how.layout.rows)
        known = query.struct, stored.struct, bounds.struct, how.struct
        self.struct = filled("second_look *", (*known, pool.held, pool.struct, NOT_TAKEN))

    @property
    def is_taken(self) -> bool:
        return bool(self.struct.status != NOT_TAKEN)

    def at(self, slots: NDArray[np.int64], columns: NDArray[np.float64], words: Found) -> None:
        """Take it at some candidates (``columns``: float64[FOUND_COLUMNS, n])."""
        if columns.shape != (FOUND_COLUMNS, len(slots)):
            raise ValueError("the arrays of a pool do not fit together")
        kernels.review(self.struct, given(slots, np.int64), given(columns, np.float64), len(slots), words.struct)

    def judged(self, count: int) -> Judged | None:
        """What came of it for as many candidates. None when a memory has no tokens, or all have more than the bounds allow. Raises
        ValueError for a slot without a key or beyond the columns of traits or importance."""
        status = self.struct.status
        if status in (late.TOO_MANY, WITHOUT_TOKENS):
            return None
        self._pool.shrink(min(self._bounds.size, count), self._bounds.kept)
        return self._pool, _checked(status)


def cut(
    query: late.Query,
    slots: NDArray[np.int64],
    columns: NDArray[np.float64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
    bounds: Bounds,
    how: Judging,
) -> Pool:
    """The pool of some candidates, the first of which are matched: ``best``: float32[t, size], what each token found; its weighted
    sum is the late score, ``first`` (float64[size]) that of the first passage. Ties by key. Raises as ``SecondLook`` does."""
    pool = _room_for(query, slots, columns, bounds, how)
    size = min(bounds.size, len(slots))
    if len(first) != size or best.shape != (len(query), size):
        raise ValueError("the arrays of a pool do not fit together")
    status = kernels.cut_pool(
        query.struct,
        given(slots, np.int64),
        given(columns, np.float64),
        len(slots),
        bounds.struct,
        given(best, np.float32),
        given(first, np.float64),
        how.struct,
        pool.held,
        pool.struct,
    )
    _checked(status)
    return pool


def judged(pool: Pool, query: late.Query, how: Judging, words: Found) -> Judged:
    """``pool`` with its features, and concluded where they are whole. Raises as ``SecondLook`` does."""
    if len(query) != len(pool.best):
        raise ValueError("the tokens of the pool are not the question's")
    return pool, _checked(kernels.judge(pool.struct, query.struct, how.struct, words.struct))


def concluded(pool: Pool, talk_lengths: NDArray[np.float64] | None, how: Judging) -> Judged:
    """``pool`` with the features that are others again, in proportion to what else is known (``talk_lengths``: float64[m], None for
    no talk), the graded ones scaled, and ranked by the model. Raises as ``SecondLook`` does."""
    if talk_lengths is not None and len(talk_lengths) != len(pool):
        raise ValueError("lengths of other talks")
    lengths = NULL if talk_lengths is None else given(talk_lengths, np.float64)
    return pool, _checked(kernels.conclude(pool.struct, lengths, how.struct))


def _room_for(
    query: late.Query, slots: NDArray[np.int64], columns: NDArray[np.float64], bounds: Bounds, how: Judging
) -> Pool:
    if columns.shape != (FOUND_COLUMNS, len(slots)):
        raise ValueError("the arrays of a pool do not fit together")
    size = min(bounds.size, len(slots))
    return Pool(len(query), size, min(bounds.kept, size), how.layout.rows)


def _checked(status: Any) -> int:
    """Raises what a kernel of pools reports."""
    if status == WITHOUT_KEY:
        raise ValueError("a slot has no key")
    if status == BEYOND_COLUMNS:
        raise ValueError("slots reach beyond the columns")
    late.done(status)
    return int(status)
