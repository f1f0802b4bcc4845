"""The token vectors of a namespace's memories, one bit a dimension, by slot; and late interaction over them.

All tokens lie in two growing arrays (ids, sign rows); a slot owns a run of them. A memory that goes or changes leaves a
hole; when more than half of the array is holes it is packed. The similarity of a query token q (L2 norm 1) and a token's
signs s is q . s / sqrt(d), the cosine with the sign vector (asymmetric: only the stored side is quantised; ColBERT's MaxSim,
https://arxiv.org/abs/2004.12832, over 1-bit vectors as in https://arxiv.org/abs/2112.01488).

RAM: d / 8 + 2 bytes a token (50 at 384 dimensions), 12 a slot. Owned by evidence.py, read by late.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.arrays import grown
from dakera_cluster.native import words as native
from dakera_cluster.native.late import Runs, Stored, occurrences

MAX_HOLE_SHARE = 0.5
MIN_TOKENS_TO_PACK = 4096
ID_SPACE = 1 << 16
COUNTED_FROM_TOKENS = 65_536
"""Tokens from which document frequencies of pieces are kept in an array (256 KB) instead of being counted when asked for."""


class TokenStore:
    """See the module. The width of a row is set by the first tokens put; tokens of another width are refused."""

    def __init__(self) -> None:
        self._ids: NDArray[np.uint16] = np.zeros(0, np.uint16)
        self._signs: NDArray[np.uint8] = np.zeros((0, 0), np.uint8)
        self._used = 0
        self._live = 0
        self._starts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._counts: NDArray[np.int32] = np.zeros(0, np.int32)
        self._units: dict[int, tuple[int, ...]] = {}
        self._frequencies: NDArray[np.int32] | None = None
        self._stored: Stored | None = None

    @property
    def tokens(self) -> int:
        """Live tokens."""
        return self._live

    @property
    def nbytes(self) -> int:
        frequencies = 0 if self._frequencies is None else self._frequencies.nbytes
        own = self._ids.nbytes + self._signs.nbytes + self._starts.nbytes + self._counts.nbytes
        return int(own + frequencies + 120 * len(self._units))

    @property
    def width(self) -> int:
        """Dimensions of a token vector; 0 before the first."""
        return 8 * int(self._signs.shape[1])

    def counts(self, slots: NDArray[np.int64]) -> NDArray[np.int32]:
        """Tokens of each of ``slots``, 0 where a slot has none."""
        return self._column(self._counts, slots)

    def first_counts(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens in the first passage of each of ``slots``."""
        counts = self.counts(slots).astype(np.int64)
        for row, slot in enumerate(slots.tolist() if self._units else ()):
            if slot in self._units:
                counts[row] = self._units[slot][0]
        return counts

    def put(self, slot: int, passage_counts: Sequence[int], ids: NDArray[np.uint16], signs: NDArray[np.uint8]) -> bool:
        """Give ``slot`` its tokens, replacing what it had; False (and no tokens) when their width is not the store's."""
        self.remove(slot)
        if not len(ids):
            return True
        if not self._used:
            self._signs = np.zeros((0, signs.shape[1]), np.uint8)
        elif signs.shape[1] != self._signs.shape[1]:
            return False
        first, end = self._used, self._used + len(ids)
        self._ids = grown(self._ids, end)
        self._signs = grown(self._signs, end)
        self._ids[first:end] = ids
        self._signs[first:end] = signs
        self._starts = grown(self._starts, slot + 1)
        self._counts = grown(self._counts, slot + 1)
        self._starts[slot], self._counts[slot] = first, len(ids)
        filled = [count for count in passage_counts if count]
        if len(filled) > 1:
            self._units[slot] = tuple(np.cumsum(filled[:-1]).tolist())
        self._used = end
        self._live += len(ids)
        self._count(ids, 1)
        return True

    def remove(self, slot: int) -> None:
        """Forget the tokens of ``slot``."""
        if slot >= len(self._counts) or not self._counts[slot]:
            return
        first, count = int(self._starts[slot]), int(self._counts[slot])
        self._count(self._ids[first : first + count], -1)
        self._counts[slot] = 0
        self._units.pop(slot, None)
        self._live -= count
        if self._used > MIN_TOKENS_TO_PACK and self._used - self._live > MAX_HOLE_SHARE * self._used:
            self._pack()

    @property
    def stored(self) -> Stored:
        """All tokens as the kernels see them, and what ``runs`` point into, until the next change."""
        own = self._signs, self._starts, self._counts
        if self._stored is None or not self._stored.is_of(*own):
            self._stored = Stored(*own)
        return self._stored

    @property
    def are_whole(self) -> bool:
        """Whether no memory has more than one passage."""
        return not self._units

    def have_passages(self, slots: NDArray[np.int64]) -> bool:
        """Whether any of ``slots`` has more than one passage."""
        return bool(self._units) and not self._units.keys().isdisjoint(slots.tolist())

    def runs(self, slots: NDArray[np.int64]) -> Runs:
        """The tokens of ``slots``, each of which must have some, as one run a slot."""
        return self._starts[slots], self._counts[slots].astype(np.int64), np.arange(len(slots), dtype=np.int64)

    def passage_runs(self, slots: NDArray[np.int64], *, first_only: bool = False) -> Runs:
        """The same with a run a passage, those of a slot in order; ``first_only``: the first passage of each."""
        begins, lengths, owners = self.runs(slots)
        known = self._units
        split = [(row, known[slot]) for row, slot in enumerate(slots.tolist()) if slot in known] if known else []
        if first_only:
            for row, cuts in split:
                lengths[row] = cuts[0]
            return begins, lengths, owners
        if split:
            repeats = np.ones(len(slots), np.int64)
            repeats[[row for row, _ in split]] = [1 + len(cuts) for _, cuts in split]
            owners = np.repeat(owners, repeats)
            stops = begins + lengths
            begins = np.repeat(begins, repeats)
            ends = np.cumsum(repeats) - 1
            is_cut = np.ones(len(begins), np.bool_)
            is_cut[ends - repeats + 1] = False
            begins[is_cut] += [cut for _, cuts in split for cut in cuts]
            lengths = np.append(begins[1:], 0)
            lengths[ends] = stops
            lengths -= begins
        return begins, lengths, owners

    def document_frequencies(self, ids: NDArray[np.int32]) -> list[int]:
        """In how many memories each piece stands (a repeat within a memory counts in small stores)."""
        if self._frequencies is not None:
            frequency: Callable[[int], int] = self._frequencies.item
            return [frequency(piece % ID_SPACE) for piece in ids.tolist()]
        # Holes may hold removed tokens; a count over them would make the order depend on the replica's history.
        found: list[int] = occurrences(self._live_ids(), (ids % ID_SPACE).astype(np.uint16)).tolist()
        return found

    def dump(self) -> dict[str, np.ndarray]:
        """The arrays, packed, and what ``load`` needs."""
        self._pack()
        cuts = [(slot, cut) for slot, all_cuts in sorted(self._units.items()) for cut in all_cuts]
        return {
            "token_ids": self._ids[: self._used],
            "token_signs": self._signs[: self._used],
            "token_starts": self._starts,
            "token_counts": self._counts,
            "token_cuts": np.asarray(cuts, np.int64).reshape(-1, 2),
        }

    @classmethod
    def load(cls, arrays: dict[str, np.ndarray]) -> TokenStore:
        """The store of a dump's arrays. Raises KeyError or ValueError when they do not fit together."""
        self = cls()
        self._ids, self._signs = arrays["token_ids"].copy(), arrays["token_signs"].copy()
        self._starts, self._counts = arrays["token_starts"].copy(), arrays["token_counts"].copy()
        self._used = self._live = len(self._ids)
        if len(self._signs) != self._used or int(self._counts.sum()) != self._used:
            raise ValueError("token arrays do not match")
        cuts: dict[int, list[int]] = {}
        for slot, cut in arrays["token_cuts"].tolist():
            cuts.setdefault(slot, []).append(cut)
        self._units = {slot: tuple(found) for slot, found in cuts.items()}
        self._count(self._ids[:0], 1)
        return self

    def _count(self, ids: NDArray[np.uint16], sign: int) -> None:
        if self._frequencies is not None:
            native.tally(ids, sign, self._frequencies)
        elif self._live >= COUNTED_FROM_TOKENS:
            self._frequencies = np.bincount(self._live_ids(), minlength=ID_SPACE).astype(np.int32)

    def _live_ids(self) -> NDArray[np.uint16]:
        if self._live == self._used:
            return self._ids[: self._used]
        return self._ids[self._live_rows()]

    def _live_rows(self) -> NDArray[np.int64]:
        slots = np.flatnonzero(self._counts)
        counts = self._counts[slots].astype(np.int64)
        ends = np.cumsum(counts)
        return np.repeat(self._starts[slots] - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)

    def _pack(self) -> None:
        if self._live == self._used:
            return
        rows = self._live_rows()
        slots = np.flatnonzero(self._counts)
        counts = self._counts[slots].astype(np.int64)
        self._ids, self._signs = self._ids[rows], self._signs[rows]
        self._starts[slots] = np.cumsum(counts) - counts
        self._used = self._live

    def _column(self, column: NDArray[np.int32], slots: NDArray[np.int64]) -> NDArray[np.int32]:
        if len(slots) and int(slots.max()) >= len(column):
            inside = slots < len(column)
            return np.where(inside, column[np.where(inside, slots, 0)] if len(column) else 0, 0).astype(np.int32)
        return column[slots]
