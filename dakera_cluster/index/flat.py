"""The vectors of a namespace partition, by slot, and the exact scan over them.

Every vector index owns one ``VectorRows``: it answers small namespaces alone, narrow filters at any size, and rescores
what an approximate index proposes, so the score of a (query, row) pair never depends on the path that found it.

Encoding. Cosine rows are stored as unit vectors in 16-bit fixed point (a scale a row; the error of a cosine is about
1e-6) together with their original norm: 2 bytes a component, half of float32, in a plane of high and one of low bytes, so
that a scan reads half of that again (native/vectors.py). Rows of other metrics keep float32, because their magnitudes are
the user's.

Invariant: a slot is present in exactly one place, its own; scores are computed row by row in one fixed order of
summation, so that equal vectors score bit-identically whatever their neighbours (BLAS does not promise that; it only
preselects rows of float32). Called by vectors.py, which holds the lock.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from dakera_cluster.index.arrays import FIRST_SLOTS, best, grown
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.native import vectors as native

CHUNK_ROWS = 8192
"""Rows allocated together: bounds the copy a growing namespace ever makes (6 MiB at 384 dimensions); what is not written
takes no memory. Reading scattered rows costs some microseconds for each chunk they lie in."""
BLOCK_ROWS = 256
"""Rows widened to float32 at once: 384 KiB at 384 dimensions, which stays in a core's cache."""
PRESELECT_ERROR = 2e-5
"""Bound, relative to the magnitudes involved, on BLAS against the final summation: ties within it are all rescored."""
FIXED_POINT_MAX = 32767


class Metric(Enum):
    """How two vectors compare. Scores are always 'higher is better'.

    cosine: the cosine, in [-1, 1]. dot_product: the inner product, unbounded. euclidean: 1 / (1 + distance), in (0, 1],
    so that thresholds and fusion see the same orientation and range as a similarity.
    """

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT_PRODUCT = "dot_product"

    @classmethod
    def of(cls, name: str | None, field: str = "distance") -> Metric:
        """The metric a client named (``dot`` is accepted for ``dot_product``; None is cosine)."""
        if name is None:
            return cls.COSINE
        try:
            return cls("dot_product" if name == "dot" else name)
        except ValueError:
            known = ", ".join(metric.value for metric in cls)
            raise InvalidRequestError(f"expected one of {known}, got {name!r}", field=field) from None


class VectorRows:
    """Rows of ``dimension`` components addressed by slot; not thread-safe."""

    __slots__ = (
        "_chunks",
        "_high",
        "_low",
        "_norms",
        "_rows",
        "_scales",
        "count",
        "dimension",
        "fixed_point",
        "present",
    )

    def __init__(self, dimension: int, *, fixed_point: bool) -> None:
        self.dimension = dimension
        self.fixed_point = fixed_point
        self.count = 0
        self.present = np.zeros(0, dtype=bool)
        self._norms = np.zeros(0, dtype=np.float32)
        self._scales = np.zeros(0, dtype=np.float32)
        self._chunks: list[np.ndarray | None] = []
        self._high, self._low = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._rows: native.Rows | None = None
        """All of them as kernels read them; None when an array is another."""

    @property
    def rows(self) -> native.Rows:
        """All of them, for kernels, where they are in fixed point; good until the next change."""
        if self._rows is None:
            self._rows = native.Rows(self._high, self._low, CHUNK_ROWS, self.dimension, self.present, self._scales)
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes held by the rows and their per-slot arrays."""
        chunks = sum(chunk.nbytes for chunk in self._chunks if chunk is not None)
        return chunks + self.present.nbytes + self._norms.nbytes + self._scales.nbytes

    def put(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Store ``vectors`` (float32[n, d]) at ``slots`` (int64[n], no duplicates); a present slot is replaced."""
        if len(slots) == 0:
            return
        length = int(slots.max()) + 1
        self.present = grown(self.present, length, False)
        self._norms = grown(self._norms, length)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)).astype(np.float32)
        if self.fixed_point:
            self._scales = grown(self._scales, length)
            units = vectors / np.where(norms > 0, norms, 1)[:, None]
            peaks = np.abs(units).max(axis=1)
            scales = np.where(peaks > 0, peaks, 1).astype(np.float32) / np.float32(FIXED_POINT_MAX)
            encoded: np.ndarray = np.rint(units / scales[:, None]).astype(np.int16)
            self._scales[slots] = scales
        else:
            encoded = vectors
        self._norms[slots] = norms
        self._rows = None
        self.count += int(np.count_nonzero(~self.present[slots]))
        self.present[slots] = True
        self._write(slots, encoded)

    def drop(self, slots: np.ndarray) -> None:
        """Forget ``slots`` (all present). A chunk left empty is released."""
        self.present[slots] = False
        self.count -= len(slots)
        for number in np.unique(slots // CHUNK_ROWS):
            start = int(number) * CHUNK_ROWS
            if not self.present[start : start + CHUNK_ROWS].any():
                self._keep(int(number), None)

    def read(self, slots: np.ndarray) -> np.ndarray:
        """The vectors of present ``slots`` as float32[n, d], in their original magnitude."""
        rows = self._decoded(slots)
        if self.fixed_point:
            rows *= (self._scales[slots] * self._norms[slots])[:, None]
        return rows

    def scores(self, query: np.ndarray, slots: np.ndarray, metric: Metric) -> np.ndarray:
        """Final scores (float32[n]) of present ``slots``: one order of summation, independent of the other rows.

        For the cosine, here and in ``nearest``, ``query`` must have unit length (or be zero).
        """
        if self.fixed_point and metric is not Metric.EUCLIDEAN:
            return self._fixed_scores(query, slots, metric)
        result = np.empty(len(slots), dtype=np.float32)
        for start in range(0, len(slots), BLOCK_ROWS):
            part = slots[start : start + BLOCK_ROWS]
            result[start : start + BLOCK_ROWS] = self._block_scores(query, part, metric)
        return result

    def _fixed_scores(self, query: np.ndarray, slots: np.ndarray, metric: Metric) -> np.ndarray:
        dots = native.gather(self.rows, slots, query) * self._scales[slots]
        return np.asarray(np.clip(dots, -1.0, 1.0) if metric is Metric.COSINE else dots * self._norms[slots])

    def _block_scores(self, query: np.ndarray, slots: np.ndarray, metric: Metric) -> np.ndarray:
        if metric is Metric.EUCLIDEAN:
            gaps = self.read(slots) - query
            distances = np.sqrt(np.einsum("ij,ij->i", gaps, gaps))
            return np.asarray(1.0 / (1.0 + distances), dtype=np.float32)
        dots = np.einsum("ij,j->i", self._decoded(slots), query)
        if metric is Metric.DOT_PRODUCT:
            return np.asarray(dots)
        norms = self._norms[slots]
        dots = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        return np.asarray(np.clip(dots, -1.0, 1.0))

    def nearest(
        self, query: np.ndarray, k: int, metric: Metric, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best present and allowed slots by final score, then slot: ``(slots int64[m], scores float32[m])``."""
        if self.fixed_point and metric is Metric.COSINE:
            # The scan's own products are the final ones.
            return native.nearest(self.rows, allowed, query, k)
        slots = self._preselect(query, k, metric, allowed)
        return best(self.scores(query, slots, metric), slots, k)

    def survey(
        self,
        query: np.ndarray,
        keys: np.ndarray,
        wanted: int,
        allowed: np.ndarray | None,
        held: np.ndarray,
        wanted_held: int,
        others: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``VectorIndex.survey``; for the cosine of rows in fixed point."""
        return native.survey(self.rows, allowed, query, keys, wanted, held, wanted_held, others)

    def _preselect(self, query: np.ndarray, k: int, metric: Metric, allowed: np.ndarray | None) -> np.ndarray:
        """A superset of the ``k`` best present and allowed slots, everything within rounding of the k-th: for all that the
        kernel does not search."""
        chosen = self.present if allowed is None else self._chosen(allowed)
        slots = np.flatnonzero(chosen)
        if len(slots) <= k:
            return slots
        # A gather copies rows, a scan reads them in place: gather only when it skips most of them.
        closeness, magnitude = (
            self._closeness(query, metric, slots)
            if self.fixed_point or 4 * len(slots) < self.count
            else self._scanned(query, metric, slots)
        )
        floor = np.partition(closeness, len(closeness) - k)[len(closeness) - k]
        return np.asarray(slots[closeness >= floor - PRESELECT_ERROR * magnitude])

    def _chosen(self, allowed: np.ndarray) -> np.ndarray:
        if len(allowed) >= len(self.present):
            return np.asarray(self.present & allowed[: len(self.present)])
        chosen = np.zeros(len(self.present), dtype=bool)
        np.logical_and(self.present[: len(allowed)], allowed, out=chosen[: len(allowed)])
        return chosen

    def _scanned(self, query: np.ndarray, metric: Metric, slots: np.ndarray) -> tuple[np.ndarray, float]:
        dots = np.zeros(len(self.present), dtype=np.float32)
        for number, chunk in enumerate(self._chunks):
            if chunk is not None:
                base = number * CHUNK_ROWS
                rows = chunk[: len(dots) - base]
                np.dot(rows, query, out=dots[base : base + len(rows)])
        return self._from_dots(dots[slots], query, metric, slots)

    def _closeness(self, query: np.ndarray, metric: Metric, slots: np.ndarray) -> tuple[np.ndarray, float]:
        if self.fixed_point:
            return self._from_dots(native.gather(self.rows, slots, query), query, metric, slots)
        dots = np.empty(len(slots), dtype=np.float32)
        for start in range(0, len(slots), BLOCK_ROWS):
            part = slots[start : start + BLOCK_ROWS]
            np.dot(self._decoded(part), query, out=dots[start : start + len(part)])
        return self._from_dots(dots, query, metric, slots)

    def _from_dots(
        self, dots: np.ndarray, query: np.ndarray, metric: Metric, slots: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Turn raw dot products into a monotone stand-in for the score, and the magnitude its rounding scales with."""
        norms = self._norms[slots]
        length = float(np.linalg.norm(query))
        if self.fixed_point:
            dots = dots * self._scales[slots] * norms
        elif metric is Metric.COSINE:
            return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0), length
        longest = float(norms.max(initial=0))
        if metric is Metric.DOT_PRODUCT:
            return dots, length * longest
        # -|q - v|^2 = 2 q.v - |v|^2 - |q|^2, and |q|^2 is the same for every row.
        return 2 * dots - norms * norms, (length + longest) ** 2

    def _decoded(self, slots: np.ndarray) -> np.ndarray:
        return self._read(slots).astype(np.float32, copy=False)

    def _read(self, slots: np.ndarray) -> np.ndarray:
        """The rows as they are encoded: int16 or float32[n, d]."""
        rows = np.empty((len(slots), self.dimension), dtype=np.int16 if self.fixed_point else np.float32)
        for chunk, positions, where in self._spread(slots):
            if self.fixed_point:
                rows[where] = native.joined(chunk[0, positions], chunk[1, positions])
            else:
                rows[where] = chunk[positions]
        return rows

    def _write(self, slots: np.ndarray, rows: np.ndarray) -> None:
        for chunk, positions, where in self._spread(slots, allocate=True):
            if self.fixed_point:
                chunk[0, positions], chunk[1, positions] = native.split(rows[where])
            else:
                chunk[positions] = rows[where]

    def _spread(
        self, slots: np.ndarray, *, allocate: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | slice]]:
        """(chunk, positions in it, positions in ``slots``) for every chunk that ``slots`` touch."""
        if len(slots) == 0:
            return []
        numbers = slots // CHUNK_ROWS
        first, last = int(numbers.min()), int(numbers.max())
        if first == last:
            return [(self._chunk(first, slots, allocate), slots - first * CHUNK_ROWS, slice(None))]
        result: list[tuple[np.ndarray, np.ndarray, np.ndarray | slice]] = []
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order])) + 1
        for where in np.split(order, edges):
            inside = slots[where]
            number = int(numbers[where[0]])
            result.append((self._chunk(number, inside, allocate), inside - number * CHUNK_ROWS, where))
        return result

    def _chunk(self, number: int, slots: np.ndarray, allocate: bool) -> np.ndarray:
        if not allocate:
            chunk = self._chunks[number]
            assert chunk is not None
            return chunk
        while len(self._chunks) <= number:
            self._chunks.append(None)
        chunk = self._chunks[number]
        needed = int(slots.max()) - number * CHUNK_ROWS + 1
        held = 0 if chunk is None else chunk.shape[-2]
        if chunk is None or held < needed:
            # Only the first chunk starts small: 10,000 namespaces of 100 rows must not pay for a whole one each.
            rows = CHUNK_ROWS if number else min(CHUNK_ROWS, max(FIRST_SLOTS, needed, held + held // 2))
            shape = (rows, self.dimension)
            larger = np.zeros((2, *shape), np.uint8) if self.fixed_point else np.zeros(shape, np.float32)
            if chunk is not None:
                larger[..., :held, :] = chunk
            self._keep(number, larger)
            return larger
        return chunk

    def _keep(self, number: int, chunk: np.ndarray | None) -> None:
        """The only place where a chunk comes or goes: its addresses must never outlive it."""
        self._chunks[number] = chunk
        if self.fixed_point:
            high, low = (np.zeros(len(self._chunks), np.uint64) for _ in range(2))
            for place, held in enumerate(self._chunks):
                if held is not None:
                    high[place], low[place] = held[0].ctypes.data, held[1].ctypes.data
            self._high, self._low, self._rows = high, low, None

    def encoded(self) -> dict[str, np.ndarray]:
        """Arrays for a dump: present slots in order, their norms, scales and encoded rows."""
        slots = np.flatnonzero(self.present)
        arrays = {"slots": slots.astype(np.int32), "norms": self._norms[slots], "rows": self._read(slots)}
        if self.fixed_point:
            arrays["scales"] = self._scales[slots]
        return arrays

    @property
    def last_slot(self) -> int:
        """The highest present slot, -1 when there is none."""
        slots = np.flatnonzero(self.present)
        return int(slots[-1]) if len(slots) else -1

    def restore(self, arrays: dict[str, np.ndarray], last_slot: int) -> None:
        """Fill an empty object from ``encoded()``'s arrays. Raises ValueError or KeyError when they do not fit.

        ``last_slot`` is told twice in a dump, because a damaged slot would make us allocate up to it.
        """
        slots, rows = arrays["slots"].astype(np.int64), arrays["rows"]
        plain = all(arrays[name].dtype == np.float32 for name in ("norms", *(["scales"] if self.fixed_point else [])))
        expected = np.dtype(np.int16 if self.fixed_point else np.float32)
        if (
            rows.shape != (len(slots), self.dimension)
            or rows.dtype != expected
            or not plain
            or len(arrays["norms"]) != len(slots)
        ):
            raise ValueError("rows do not match the header")
        if last_slot != (int(slots[-1]) if len(slots) else -1):
            raise ValueError("slots do not match the header")
        if len(slots) == 0:
            return
        if int(slots[0]) < 0 or bool((np.diff(slots) <= 0).any()):
            raise ValueError("slots are not ascending")
        length = int(slots[-1]) + 1
        self.present = np.zeros(length, dtype=bool)
        self.present[slots] = True
        self._norms = np.zeros(length, dtype=np.float32)
        self._norms[slots] = arrays["norms"]
        if self.fixed_point:
            self._scales = np.zeros(length, dtype=np.float32)
            self._scales[slots] = arrays["scales"]
        self.count = len(slots)
        self._write(slots, rows)
