"""The live postings of some terms. Called by index/postings.py; read by candidates.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dakera_cluster.native.library import allocated, filled, given, kernels

FIRST_ROOM = 8_192
"""Postings there is room for before they are counted: what the words of most questions have."""


class Segments:
    """Sealed segments as the kernel reads them. Holds their arrays; what is not of the promised type is refused (TypeError)."""

    def __init__(self, homes: Sequence[int], arrays: Sequence[Mapping[str, np.ndarray]]) -> None:
        """``arrays`` of each: ``keys`` (uint64, ascending), and ``starts``, ``slots`` and ``frequencies``, all unsigned."""
        self.count = len(homes)
        self.structs = allocated("posting_segment", max(1, len(homes)))
        self._kept = []
        for place, (home, held) in enumerate(zip(homes, arrays, strict=True)):
            keys, starts, slots, counts = (held[name] for name in ("keys", "starts", "slots", "frequencies"))
            if len(starts) != len(keys) + 1 or len(slots) != len(counts):
                raise ValueError("the arrays of a segment do not fit together")
            lists = [given(array, array.dtype) for array in (keys.astype(np.uint64, copy=False), starts, slots, counts)]
            self._kept += lists
            own = self.structs[place]
            own.keys, own.starts, own.slots, own.counts = lists
            own.terms, own.postings, own.home = len(keys), len(slots), home
            own.start_width, own.slot_width, own.count_width = (
                _width(starts),
                _width(slots),
                _width(counts),
            )


def _width(array: np.ndarray) -> int:
    if array.dtype.kind != "u":
        raise TypeError(f"expected unsigned numbers, got {array.dtype}")
    return array.dtype.itemsize


class Lists:
    """An inverted file as kernels read it. ``tail``: keys (uint64), slots (int32, -1 for the dead) and counts (uint16), of which
    the first ``tail_size`` are there. By slot: ``home`` (uint8), what a live one is at home in, and ``lengths`` (float64),
    the terms of its memory. ``documents``: the live ones, of ``average_length`` terms. Good for as long as its
    arrays are the owner's."""

    def __init__(
        self,
        segments: Segments,
        home: np.ndarray,
        tail: tuple[np.ndarray, np.ndarray, np.ndarray],
        tail_size: int,
        lengths: np.ndarray,
        documents: int,
        average_length: float,
    ) -> None:
        if tail_size > min(map(len, tail)):
            raise ValueError("a tail longer than its arrays")
        self.lengths, self.documents, self.average_length = lengths, documents, average_length
        self._segments = segments
        own = given(home, np.uint8), *map(given, tail, (np.uint64, np.int32, np.uint16)), given(lengths, np.float64)
        self._kept = own
        counts = segments.count, len(home), tail_size, len(lengths), documents
        self.struct = filled("posting_lists *", (segments.structs, *own, *counts))


def of(lists: Lists, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(slots int32[n], counts uint16[n], ends int64[t])``: the live postings of each of ``keys`` (uint64[t]), one key after
    another up to its end: segment by segment, then those of the tail."""
    ends, room = np.empty(len(keys), np.int64), FIRST_ROOM
    while True:
        slots, counts = np.empty(room, np.int32), np.empty(room, np.uint16)
        count = kernels.postings_of(
            lists.struct,
            given(keys, np.uint64),
            len(keys),
            given(ends, np.int64),
            given(slots, np.int32),
            given(counts, np.uint16),
            room,
        )
        if count <= room:
            return slots[:count], counts[:count], ends
        room = count
