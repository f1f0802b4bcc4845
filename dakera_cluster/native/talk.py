"""Memories in company: the talk around each, and what its memories say together. Called by retrieval/."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, given, kernels


def stretches(
    previous: NDArray[np.int32],
    following: NDArray[np.int32],
    words: NDArray[np.uint16],
    speakers: NDArray[np.int32],
    when: NDArray[np.float64],
    slots: NDArray[np.int64],
    reach: int,
    pause: float,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """``(slots int32[n, 2 * reach], words int64 like it, turns int64[n])``: as ``words.neighbours``, but a side ends with the
    first turn that nobody said or after a pause longer than ``pause``; ``turns`` counts what was found. The links and columns
    are by slot."""
    if len(previous) != len(following):
        raise ValueError("the links of a session do not fit together")
    found = np.empty((len(slots), 2 * reach), np.int32)
    words_to = np.empty((len(slots), 2 * reach), np.int64)
    turns = np.empty(len(slots), np.int64)
    kernels.stretches(
        given(previous, np.int32),
        given(following, np.int32),
        len(previous),
        given(words, np.uint16),
        given(speakers, np.int32),
        given(when, np.float64),
        min(len(words), len(speakers), len(when)),
        given(slots, np.int64),
        len(slots),
        reach,
        pause,
        given(found, np.int32),
        given(words_to, np.int64),
        given(turns, np.int64),
    )
    return found, words_to, turns


def places_of(
    known: NDArray[np.int64], around: NDArray[np.int32], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(places int64 like around, others int64[m])``: the place of each slot in ``around`` that is ``wanted`` in the list of the
    ``known`` followed by all ``others`` there are, ascending; -1 for what is not wanted, and for nobody."""
    _check_cells(around, wanted)
    places, others = np.empty(around.shape, np.int64), np.empty(around.size, np.int64)
    count = _found(
        kernels.places_of(
            given(known, np.int64),
            len(known),
            given(around, np.int32),
            given(wanted, np.bool_),
            around.size,
            given(others, np.int64),
            given(places, np.int64),
        )
    )
    return places, others[:count]


def places_among(known: NDArray[np.int64], around: NDArray[np.int32], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 like ``around``: the place of each wanted slot among the ``known``, -1 for all others."""
    _check_cells(around, wanted)
    places = np.empty(around.shape, np.int64)
    _found(
        kernels.places_of(
            given(known, np.int64),
            len(known),
            given(around, np.int32),
            given(wanted, np.bool_),
            around.size,
            NULL,
            given(places, np.int64),
        )
    )
    return places


def means_of(
    own: NDArray[np.float64],
    own_words: NDArray[np.int64],
    values: NDArray[np.float64],
    words: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """float64[n]: the mean of ``own`` and of the ``values`` at ``places`` (int64[n, w], -1 for none), weighed by their words and
    added in order."""
    count, width = places.shape
    if not len(own) == len(own_words) == count or len(words) != len(values):
        raise ValueError("the arrays of a mean do not fit together")
    if places.size and int(places.max()) >= len(values):
        raise ValueError("places beyond the values")
    means = np.empty(count)
    kernels.means_of(
        given(own, np.float64),
        given(own_words, np.int64),
        given(values, np.float64),
        given(words, np.int64),
        given(places, np.int64),
        count,
        width,
        given(means, np.float64),
    )
    return means


def best_alike(values: NDArray[np.float64], codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """float64[n]: the greatest of the values with the same code; a code of -1 is nobody else's."""
    if len(values) != len(codes):
        raise ValueError(f"{len(values)} values, but {len(codes)} codes")
    best = np.empty(len(values))
    kernels.best_alike(given(values, np.float64), given(codes, np.int32), len(values), given(best, np.float64))
    return best


def covering(
    values: NDArray[np.float64], found: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """int64[n], an order of all: next comes whose value, and the weights of what it adds to the greatest ``found`` (float64[n, t],
    none below 0) so far, are the greatest in sum; of equals the first."""
    if found.shape != (len(values), len(weights)):
        raise ValueError("the arrays of a cover do not fit together")
    order, covered = np.empty(len(values), np.int64), np.empty(len(weights))
    kernels.covering_order(
        given(values, np.float64),
        given(found, np.float64),
        given(weights, np.float64),
        *found.shape,
        given(covered, np.float64),
        given(order, np.int64),
    )
    return order


def _check_cells(around: NDArray[np.int32], wanted: NDArray[np.bool_]) -> None:
    if around.shape != wanted.shape:
        raise ValueError("what is wanted does not fit what is around")


def _found(count: int) -> int:
    if count < 0:
        raise MemoryError("no memory to tell slots apart")
    return count
