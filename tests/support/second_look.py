"""What a second look at candidates is made of, for tests: a layout with one row the kernels do not know, and SIZE memories."""

from __future__ import annotations

import numpy as np

from dakera_cluster.native import features, importance, late, pool, terms, windows
from tests.support.first_look import found_of

SIZE = 50
NAMES = ["unused", *reversed(features._PLACED)]
GRADED = ("cosine", "late", "window_met", "cover_said")
RANK_SCALE, WINDOW_BM25 = 5, (1.2, 0.75)
LAYOUT = features.Layout(NAMES, GRADED, RANK_SCALE, WINDOW_BM25)
LENGTHS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
ASSISTANT = 2

_rng = np.random.default_rng(1)
KEYS = _rng.integers(0, 2**63, SIZE).astype(np.uint64)
COLUMNS = {
    "words": _rng.integers(0, 9, SIZE).astype(np.uint16),
    "about_self": _rng.random(SIZE).astype(np.float32),
    "asks": _rng.random(SIZE) < 0.5,
    "has_time": _rng.random(SIZE) < 0.5,
    "has_number": _rng.random(SIZE) < 0.5,
    "role": _rng.integers(0, 3, SIZE).astype(np.uint8),
}
STORED = _rng.random(SIZE).astype(np.float32)
CREATED = _rng.integers(1_000, 2_000, SIZE)
ACCESSED_MS = _rng.integers(0, 2_500_000, SIZE)
IMPORTANCE = importance.Importance(STORED, CREATED, ACCESSED_MS)
LASTING: importance.Valuation = (0.0, 0.0, 1.0, 0.5)
MODEL = pool.Weights(_rng.normal(size=len(NAMES)), 0.5, 2.0)


def asked_about(*, everything: bool) -> features.Asked:
    return features.Asked(LENGTHS, ASSISTANT, asks_when=everything, asks_how_much=everything, of_self=everything)


def nothing_said() -> terms.Found:
    """What the words of a question say that has none."""
    return found_of([], np.ones(SIZE), SIZE)


def talk_of(keys: np.ndarray = KEYS) -> windows.Talk:
    """Nobody beside anybody."""
    nobody = np.full(len(keys), -1, np.int32)
    return windows.Talk(nobody, nobody, np.zeros(len(keys), np.uint16), nobody, keys)


def judging(
    *,
    columns: dict[str, np.ndarray] = COLUMNS,
    held: importance.Importance = IMPORTANCE,
    value: importance.Valuation = LASTING,
    model: pool.Weights | None = MODEL,
    wanted: int = 10,
    keys: np.ndarray = KEYS,
    everything: bool = True,
    are_alone: bool = False,
    is_whole: bool = True,
) -> pool.Judging:
    return pool.Judging(
        LAYOUT,
        asked_about(everything=everything),
        features.Traits(columns),
        talk_of(keys),
        held,
        pool.Weighing(value, model, wanted),
        are_alone=are_alone,
        is_whole=is_whole,
    )


def question(tokens: int, width: int = 16) -> late.Query:
    rng = np.random.default_rng(tokens)
    vectors = rng.normal(size=(tokens, width)).astype(np.float32)
    cosines = late.Cosines(np.linspace(1, -1, width + 1).astype(np.float32))
    return late.Query(vectors, rng.random(tokens), cosines)
