"""What kind of question it is: by the nearest of the centroids in shipped/questions.json.

The centroids are means of embeddings of sentences written for this purpose (ops/recall/question_centroids.py makes them from
ops/recall/questions.txt), one set for each embedding model. A question far from all of them, or embedded by a model without
centroids, is told by its words (when, last week) or is FACTUAL, which changes nothing in the ranking.

Called by the engine.
"""

from __future__ import annotations

import base64
from enum import StrEnum
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.retrieval.temporal import QueryTime

CENTROIDS_FILE = "questions.json"


class QuestionKind(StrEnum):
    """FACTUAL asks for one fact; MULTI_HOP needs several memories together; TEMPORAL asks when, or about a time; COMPARISON
    sets things side by side."""

    FACTUAL = "factual"
    MULTI_HOP = "multi-hop"
    TEMPORAL = "temporal"
    COMPARISON = "comparison"


class Centroids(msgspec.Struct, frozen=True):
    """``vectors``: kind to base64 of little-endian float16[c, d], rows of norm 1. ``margin``: how much nearer than
    factual a kind must be to count."""

    model: str
    margin: float
    vectors: dict[QuestionKind, str]


DIMENSION = 384
"""Of the model the shipped centroids belong to."""


class _Rows(NamedTuple):
    """Every centroid: ``vectors``: float32[c, d], kind by kind, each in its part of ``parts``. ``factual``: the place of FACTUAL
    among the ``kinds``."""

    margin: float
    kinds: list[QuestionKind]
    factual: int
    parts: list[slice]
    vectors: NDArray[np.float32]


@cache
def _centroids() -> _Rows:
    data = resources.files("dakera_cluster.retrieval").joinpath("shipped", CENTROIDS_FILE).read_bytes()
    found = msgspec.json.decode(data, type=Centroids)
    kinds = sorted(found.vectors)
    rows = [np.frombuffer(base64.b64decode(found.vectors[kind]), dtype="<f2").reshape(-1, DIMENSION) for kind in kinds]
    parts = [slice(first, last) for first, last in pairwise((0, *accumulate(map(len, rows))))]
    vectors = np.concatenate(rows).astype(np.float32)
    return _Rows(found.margin, kinds, kinds.index(QuestionKind.FACTUAL), parts, vectors)


def classify(vector: NDArray[np.float32] | None, time: QueryTime) -> QuestionKind:
    """The kind of the question with that vector (float32[d], norm 1). One that asks when in so many words, and that no
    centroid claims, is TEMPORAL."""
    best = QuestionKind.FACTUAL
    if vector is not None and len(vector) == DIMENSION:
        margin, kinds, factual, parts, rows = _centroids()
        every = rows.dot(vector).tolist()
        near = [max(every[part]) for part in parts]
        nearest = max(near)
        if nearest >= near[factual] + margin:
            best = kinds[near.index(nearest)]
    if best is QuestionKind.FACTUAL and (time.asks_when or time.is_bound):
        return QuestionKind.TEMPORAL
    return best
