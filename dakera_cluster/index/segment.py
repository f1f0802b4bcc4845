"""A sealed run of postings: immutable numpy arrays, about 3 bytes a posting and 20 a distinct term.

Terms are looked up by their 64-bit xxh3 hash (native/postings.py); the spelling is kept only
for prefix queries, as one blob of bytes that is scanned vectorised. Two terms of one namespace that shared a hash would
be treated as one term: at a million terms the chance of any such pair is below 1 in 10^7.

Invariant: keys ascend; within a term slots ascend, no slot twice; arrays are as narrow as their content allows and are
never written after construction. Which postings are still live is the business of postings.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import xxhash

MAX_FREQUENCY = 65_535
"""Term frequencies saturate here; BM25 has long since stopped telling them apart."""


hash_of: Callable[[str], int] = xxhash.xxh3_64_intdigest
"""The key of a term."""


def hashes_of(terms: Sequence[str]) -> np.ndarray:
    """uint64[n] keys of ``terms``: stable across processes and platforms, so dumps can be moved between replicas."""
    return np.fromiter(map(hash_of, terms), dtype=np.uint64, count=len(terms))


class Segment:
    """See the module. ``documents`` is the number of documents sealed in, dead ones included."""

    __slots__ = ("documents", "frequencies", "keys", "name_bytes", "names", "slots", "starts")

    def __init__(
        self,
        documents: int,
        keys: np.ndarray,
        starts: np.ndarray,
        slots: np.ndarray,
        frequencies: np.ndarray,
        names: np.ndarray,
        name_bytes: np.ndarray,
    ) -> None:
        self.documents = documents
        self.keys = keys
        self.starts = starts
        self.slots = slots
        self.frequencies = frequencies
        self.names = names
        self.name_bytes = name_bytes

    @property
    def postings(self) -> int:
        """Postings held, dead ones included."""
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, for a dump."""
        return {
            "keys": self.keys,
            "starts": self.starts,
            "slots": self.slots,
            "frequencies": self.frequencies,
            "names": self.names,
            "name_bytes": self.name_bytes,
        }

    @classmethod
    def restored(cls, documents: int, arrays: dict[str, np.ndarray]) -> Segment:
        """The segment of a dump's arrays. Raises ValueError when they contradict each other, KeyError when one lacks."""
        segment = cls(
            documents,
            arrays["keys"],
            arrays["starts"],
            arrays["slots"],
            arrays["frequencies"],
            arrays["names"],
            arrays["name_bytes"],
        )
        starts = segment.starts.astype(np.int64)
        if (
            any(array.dtype.kind != "u" for array in segment.arrays().values())
            or segment.keys.dtype != np.uint64
            or len(starts) != len(segment.keys) + 1
            or len(segment.name_bytes) != len(segment.keys)
            or len(segment.slots) != len(segment.frequencies)
            or int(starts[-1]) != len(segment.slots)
            or bool((np.diff(starts) <= 0).any())
            or bool((segment.keys[1:] <= segment.keys[:-1]).any())
            or int(segment.name_bytes.sum(dtype=np.int64)) != len(segment.names)
        ):
            raise ValueError("a segment's arrays do not match")
        segment.names.tobytes().decode()  # a name that is no text would fail whoever looks for a prefix
        return segment

    def with_prefix(self, prefix: bytes) -> list[bytes]:
        """The terms that begin with ``prefix`` (UTF-8)."""
        ends = np.cumsum(self.name_bytes, dtype=np.int64)
        starts = ends - self.name_bytes
        matching = np.flatnonzero(self.name_bytes >= len(prefix))
        for offset, byte in enumerate(prefix):
            matching = matching[self.names[starts[matching] + offset] == byte]
        return [self.names[starts[term] : ends[term]].tobytes() for term in matching]

    def term_counts(self) -> np.ndarray:
        """Postings of each term, int64[terms]."""
        return np.diff(self.starts.astype(np.int64))


def sealed(
    documents: int, keys: np.ndarray, slots: np.ndarray, frequencies: np.ndarray, names: Iterable[bytes]
) -> Segment:
    """A segment from loose postings in any order: parallel arrays, and the spelling of each posting's term."""
    order = np.lexsort((slots, keys))
    ordered = keys[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    spelled = list(names)
    spellings = [spelled[position] for position in order[first].tolist()]
    return Segment(
        documents,
        ordered[first],
        _narrow(np.r_[first, len(order)]),
        _narrow(slots[order]),
        _narrow(frequencies[order]),
        np.frombuffer(b"".join(spellings), dtype=np.uint8),
        np.fromiter(map(len, spellings), dtype=np.uint8, count=len(spellings)),
    )


def merged(documents: int, parts: Sequence[tuple[Segment, np.ndarray | None]]) -> Segment:
    """One segment of the live postings of ``parts``: each a segment and its bool mask of live postings (None: all)."""
    every = np.concatenate([segment.keys for segment, _ in parts])
    keys, owner = np.unique(every, return_index=True)
    terms, slots, frequencies = [], [], []
    for segment, live in parts:
        term = np.repeat(np.searchsorted(keys, segment.keys).astype(np.int64), segment.term_counts())
        chosen = slice(None) if live is None else live
        terms.append(term[chosen])
        slots.append(segment.slots[chosen].astype(np.int64))
        frequencies.append(segment.frequencies[chosen].astype(np.uint16))
    term, slot = np.concatenate(terms), np.concatenate(slots)
    order = np.argsort((term << 32) | slot)
    counts = np.bincount(term, minlength=len(keys))
    kept = np.flatnonzero(counts)
    names, name_bytes = _spellings([segment for segment, _ in parts], owner[kept])
    return Segment(
        documents,
        keys[kept],
        _narrow(np.r_[0, np.cumsum(counts[kept])]),
        _narrow(slot[order]),
        _narrow(np.concatenate(frequencies)[order]),
        names,
        name_bytes,
    )


def _spellings(segments: Sequence[Segment], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blob and lengths of the terms at ``rows`` of the segments' concatenated term lists."""
    lengths = np.concatenate([segment.name_bytes for segment in segments])
    blob = np.concatenate([segment.names for segment in segments])
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    chosen = lengths[rows].astype(np.int64)
    ends = np.cumsum(chosen)
    total = int(ends[-1]) if len(ends) else 0
    source = np.repeat(starts[rows] - (ends - chosen), chosen) + np.arange(total)
    return blob[source], lengths[rows]


def _narrow(values: np.ndarray) -> np.ndarray:
    """``values`` (non-negative integers) in the narrowest unsigned type that holds them."""
    top = int(values.max(initial=0))
    kind = np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.uint32
    return values.astype(kind)
