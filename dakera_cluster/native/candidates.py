"""A first look at a question over a whole namespace, in one call. Called by retrieval/candidates.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, filled, given, kernels
from dakera_cluster.native.pool import SecondLook
from dakera_cluster.native.postings import Lists
from dakera_cluster.native.terms import Found
from dakera_cluster.native.vectors import Rows
from dakera_cluster.native.windows import COLUMNS, Fusion, Outlook, Talk

Look = tuple[Found, NDArray[np.int64], NDArray[np.float64]]
"""What ``look`` returns."""

CELL = 8
"""Bytes of a slot and of a number."""


class Asked:
    """The terms of a question: their ``keys``, and for each whether it is ``named`` (a part of a name). BM25 weighs a memory's
    frequencies with ``k1`` against ``norms[0] + norms[1] * length``; a name is rare while at most ``rare_holders`` hold it."""

    __slots__ = ("_kept", "struct", "terms")

    def __init__(
        self, keys: list[int], named: list[bool], k1: float, norms: tuple[float, float], rare_holders: float
    ) -> None:
        if len(keys) != len(named):
            raise ValueError(f"{len(keys)} terms, but {len(named)} of them may be names")
        self.terms = len(keys)
        self._kept = filled("uint64_t[]", keys + named)
        self.struct = filled("asked_terms *", (self._kept, self.terms, k1, *norms, rare_holders))


def look(
    lists: Lists,
    talk: Talk,
    rows: Rows | None,
    far: Outlook,
    asked: Asked,
    vector: NDArray[np.float32] | None,
    allowed: NDArray[np.bool_] | None,
    others: NDArray[np.int64] | None,
    how: Fusion | None,
    second: SecondLook | None = None,
) -> Look:
    """What the words of a question say of each memory, its candidates (slots, int64[n]) and what is known of them.

    Candidates are the best of the ``allowed`` (bool by slot, None for all) by words, the neighbours of the first of those, and
    ``others`` (int64, None for nobody). Without ``rows`` that is all, as found, repeats included, and nothing is known. With
    them come the nearest to ``vector`` (float32[d]) and, of those that hold a rare name, more of the nearest; each candidate
    stands once, in ascending order, with its cosine (float64[n], NaN without a row). With rows and ``how`` (which must be
    of no particular candidates), ``(slots, columns)`` are those of ``windows.fused``, and if there are any the ``second`` look
    follows. Raises MemoryError, and ValueError for a memory beyond the lengths or without a key.
    """
    most = far.most if others is None else far.most + len(others)
    found = Found(asked.terms, lists.lengths, CELL * (1 + COLUMNS) * most)
    if rows is not None and (vector is None or len(vector) != rows.width):
        raise ValueError("a vector of another width than the rows")
    if how is not None and not how.is_general:
        raise ValueError("a fusion of other candidates")
    count = kernels.look(
        lists.struct,
        talk.struct,
        NULL if rows is None else rows.struct,
        far.struct,
        asked.struct,
        NULL if vector is None else given(vector, np.float32),
        NULL if allowed is None else given(allowed, np.bool_),
        0 if allowed is None else len(allowed),
        NULL if others is None else given(others, np.int64),
        0 if others is None else len(others),
        NULL if how is None else how.struct,
        found.room,
        found.struct,
        NULL if second is None else second.struct,
    )
    if count == -1:
        raise MemoryError("no memory for the candidates of a question")
    if count < 0:
        raise ValueError("a memory lies beyond the lengths or has no key")
    slots = found.others(np.int64, count, 0)
    if how is None or rows is None:
        return found, slots, found.others(np.float64, 0 if rows is None else count, CELL * most)
    return found, slots, found.others(np.float64, COLUMNS * count, CELL * most).reshape(COLUMNS, count)
