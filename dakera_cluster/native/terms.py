"""What a question's words say of every memory. Filled by candidates.py, read by windows.py and features.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import address, allocated, given

MAX_FREQUENCY = 255
"""Counts of a term are kept in a byte: beyond this they count as this many."""


class Found:
    """The m memories that hold one of t terms, in a namespace of ``size`` slots. ``struct``: all of it, for kernels; the arrays are
    taken from it when they are wanted."""

    __slots__ = ("_room", "lengths", "room", "size", "struct", "terms")

    def __init__(self, terms: int, lengths: NDArray[np.float64], before: int) -> None:
        """``room`` and ``struct`` are what the kernel fills: behind as many bytes ``before``, which are for others. ``lengths``:
        float64[size], terms of each memory."""
        self.terms, self.size, self.lengths = terms, len(lengths), lengths
        # Two cells a slot and one of none, two a term; a place by slot; a byte for each of both.
        self._room = np.empty(before + 16 * (1 + self.size + terms) + (4 + terms) * self.size, np.uint8)
        self.room = given(self._room, np.uint8)
        self.struct = allocated("word_scores", 1)

    @property
    def places(self) -> NDArray[np.int32]:
        """int32 by slot: 1 + its place among the found ones, 0 for none."""
        return self._part(self.struct[0].places, np.int32, self.size)

    @property
    def bm25(self) -> NDArray[np.float64]:
        """float64[1 + m], 0 in the cell of none."""
        return self._part(self.struct[0].bm25, np.float64, 1 + self.struct[0].found)

    @property
    def coverage(self) -> NDArray[np.float64]:
        """float64[1 + m]: the share of the terms' idf that a memory holds, 0 to 1; 0 in the cell of none."""
        return self._part(self.struct[0].coverage, np.float64, 1 + self.struct[0].found)

    @property
    def idf(self) -> NDArray[np.float64]:
        """float64[t]."""
        return self._part(self.struct[0].idf, np.float64, self.terms)

    @property
    def frequencies(self) -> NDArray[np.uint8]:
        """uint8[t, size], at most MAX_FREQUENCY."""
        return self._part(self.struct[0].frequencies, np.uint8, self.terms * self.size).reshape(self.terms, self.size)

    @property
    def rare(self) -> NDArray[np.int64]:
        """Those of the terms that are rare names."""
        return self._part(self.struct[0].rare, np.int64, self.struct[0].rare_count)

    def others(self, dtype: type[np.generic], count: int, at: int) -> NDArray[Any]:
        """What lies in the room of others from byte ``at`` on."""
        return np.frombuffer(self._room, dtype, count, at)

    def _part(self, at: Any, dtype: type[np.generic], count: int) -> NDArray[Any]:
        return np.frombuffer(self._room, dtype, count, address(at) - address(self.room))
