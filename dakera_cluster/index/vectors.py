"""The vector view of a namespace partition: exact while small, approximate when large, never short of results.

Rows live in ``VectorRows`` (flat.py). Up to ``flat_threshold`` rows every search is an exact scan. Above it an
approximate index (HNSW, or IVF when asked for) is built beside the rows by repeated calls of ``maintenance``; until it
is whole, searches keep scanning. Afterwards a search asks the approximate index for candidates, scans the rows it has
not taken in yet, and rescores all of them, so a row is findable from the moment ``add`` returns.

Invariants. The score of (query, row) is the same on every path. A search returns min(k, matching rows) results: when the
approximate index proposes too few, or the filter keeps few rows, the allowed rows are scanned exactly. Order is score
descending, then slot ascending.

Threads: every method takes the object's lock for its own state; ``maintenance`` releases it while faiss works, so a
worker thread may call it while others search and write. Called by the shard, and by retrieval for stored vectors.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import msgspec
import numpy as np

from dakera_cluster.index import dump
from dakera_cluster.index.ann import Approximate
from dakera_cluster.index.arrays import best
from dakera_cluster.index.flat import CHUNK_ROWS, Metric, VectorRows
from dakera_cluster.index.hnsw import Hnsw
from dakera_cluster.index.ivf import SAMPLE_PER_LIST, Ivf
from dakera_cluster.model.errors import CorruptionError, DimensionMismatchError, EmptyVectorError, InvalidRequestError
from dakera_cluster.native import hits
from dakera_cluster.native.vectors import Rows

FLAT_THRESHOLD_ROWS = 50_000
"""Rows up to which the exact scan answers: 0.7 ms at 384 dimensions, what a graph takes for as many candidates as recall needs."""
MIN_APPROXIMATE_ROWS = 1_000
"""Rows below which an explicitly requested approximate index is not built: it would be slower than the scan."""
SHRINK_SHARE = 0.5
"""The approximate index is dropped below this share of the threshold; the gap stops it flapping at the border."""
EXACT_FILTER_SHARE = 0.15
"""Filters that keep at most this share of the rows are scanned: a graph loses recall there (.94 at 12 %, .59 at 1 %)."""
EXACT_FILTER_ROWS = 25_000
"""Filters that keep at most this many rows are scanned at any share: it is faster than the widened graph search."""
MAX_DEAD_SHARE = 0.30
"""Share of tombstones at which the approximate index is rebuilt."""
TRAINING_ROWS = 10_000
STEP_ROWS = 64
"""Rows one ``maintenance`` call adds: about 20 ms of one core at 384 dimensions."""
TIE_ROOM = 64
"""Further results fetched so that equal scores at the end of a list can be told apart."""
MAX_COMPONENT = 1e15
"""Largest magnitude of a component: squares and their sums stay within float32."""
DUMP_KIND = "vectors"
DUMP_VERSION = 1

T = TypeVar("T")


class IndexType(Enum):
    """What a namespace asks for. AUTO is flat below the threshold and HNSW above; see ivf.py for SPFRESH."""

    AUTO = "auto"
    FLAT = "flat"
    HNSW = "hnsw"
    IVF = "ivf"
    SPFRESH = "spfresh"

    @classmethod
    def of(cls, name: str | None, field: str = "index_type") -> IndexType:
        """The index type a client named (None is AUTO)."""
        if name is None:
            return cls.AUTO
        try:
            return cls(name.lower())
        except ValueError:
            known = ", ".join(kind.value for kind in cls if kind is not cls.AUTO)
            raise InvalidRequestError(f"expected one of {known}, got {name!r}", field=field) from None


class VectorStats(msgspec.Struct, frozen=True):
    """How the view stands. ``serving`` is the structure that answers unfiltered searches: flat, hnsw or ivf."""

    vectors: int
    indexed: int
    dimension: int
    requested: IndexType
    serving: str
    is_built: bool
    build_progress: float
    memory_bytes: int


class VectorIndex:
    """Vectors of one namespace partition by slot; see the module."""

    __slots__ = (
        "_ann",
        "_draft",
        "_in_flight",
        "_lock",
        "_rows",
        "dimension",
        "flat_threshold",
        "index_type",
        "metric",
    )

    def __init__(
        self,
        dimension: int,
        metric: Metric = Metric.COSINE,
        index_type: IndexType = IndexType.AUTO,
        flat_threshold: int = FLAT_THRESHOLD_ROWS,
    ) -> None:
        if dimension < 1:
            raise EmptyVectorError("must have at least one component", field="dimension")
        self.dimension = dimension
        self.metric = metric
        self.index_type = index_type
        self.flat_threshold = flat_threshold
        self._rows = VectorRows(dimension, fixed_point=metric is Metric.COSINE)
        self._ann: Approximate | None = None
        self._draft: Approximate | None = None
        self._in_flight: set[int] | None = None
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self._rows.count

    @property
    def memory_bytes(self) -> int:
        """Bytes this view holds (faiss's share is estimated)."""
        return self._rows.nbytes + sum(ann.nbytes for ann in (self._ann, self._draft) if ann is not None)

    def add(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Store ``vectors`` (float[n, d]) at ``slots`` (int[n]); a present slot is replaced, the last duplicate wins.

        Raises DimensionMismatchError, or InvalidRequestError when a component is not a number or too large.
        """
        slots = np.asarray(slots, dtype=np.int64)
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or len(vectors) != len(slots):
            raise InvalidRequestError(f"expected {len(slots)} vectors, got an array of shape {vectors.shape}")
        self._check(vectors.shape[1], vectors)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if len(slots) > 1 and len(np.unique(slots)) < len(slots):
            reverse = len(slots) - 1 - np.unique(slots[::-1], return_index=True)[1]
            slots, vectors = slots[reverse], vectors[reverse]
        with self._lock:
            self._withdraw(slots)
            for start in range(0, len(slots), CHUNK_ROWS):
                self._rows.put(slots[start : start + CHUNK_ROWS], vectors[start : start + CHUNK_ROWS])

    def remove(self, slots: np.ndarray) -> None:
        """Forget ``slots``; slots that hold nothing are ignored."""
        slots = np.unique(np.asarray(slots, dtype=np.int64))
        with self._lock:
            slots = slots[self._holds(slots)]
            if len(slots):
                self._withdraw(slots)
                self._rows.drop(slots)

    def search(
        self,
        query: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        exact: bool = False,
        metric: Metric | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best rows: ``(slots int64[m], scores float32[m])``, m = min(k, rows that match).

        ``allowed`` is a bool mask by slot (slots past its end are not allowed). ``exact`` forces the scan. ``metric``
        overrides the view's own for this query (always by scan). Raises DimensionMismatchError or InvalidRequestError.
        """
        metric = metric or self.metric
        vector = self._query(query, metric)
        with self._lock:
            if k <= 0 or self._rows.count == 0:
                return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
            slots = None
            if self._ann is not None and not exact and metric is self.metric:
                slots = self._approximate(self._ann, vector, k, allowed)
            if slots is None:
                return self._rows.nearest(vector, k, metric, allowed)
            return best(self._rows.scores(vector, slots, metric), slots, k)

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
        """``(slots int64[m] ascending, scores float64[m])`` of all that a recall looks at, in one pass: the ``wanted`` best of
        the allowed rows, the ``wanted_held`` best of those of them that are among ``held`` (int64), and ``others``
        (int64), which may be neither allowed nor hold a vector (NaN). Ties at the end of a list are settled by ``keys`` (uint64
        by slot, for every slot that holds a vector). Raises DimensionMismatchError or InvalidRequestError."""
        vector = self._query(query, self.metric)
        with self._lock:
            if self._scans:
                return self._rows.survey(vector, keys, wanted, allowed, held, wanted_held, others)
            among = np.zeros(len(self._rows.present), np.bool_)
            among[held[held < len(among)]] = True
            if allowed is not None:
                among[: len(allowed)] &= allowed[: len(among)]
                among[len(allowed) :] = False
            near = self._settled(query, wanted, keys, allowed)
            named = self._settled(query, wanted_held, keys, among)
            slots = np.unique(np.concatenate([near, named, others]))
            return slots, self.scores(query, slots).astype(np.float64)

    def look(self, query: np.ndarray, work: Callable[[Rows | None, np.ndarray], T]) -> T:
        """What ``work`` makes of the rows, which stay as they are meanwhile, and of ``query`` as they are compared with it. The
        rows are None where a survey is no scan of them. Raises as ``survey`` does."""
        vector = self._query(query, self.metric)
        with self._lock:
            return work(self._rows.rows if self._scans else None, vector)

    @property
    def _scans(self) -> bool:
        return self._ann is None and self.metric is Metric.COSINE

    def _settled(self, query: np.ndarray, k: int, keys: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        """The slots of the ``k`` best, ties by key. A search breaks them by slot, so all that tie with the last one are
        fetched."""
        fetch = k + TIE_ROOM
        while True:
            slots, scores = self.search(query, fetch, allowed)
            if len(scores) < fetch or scores[-1] < scores[k - 1]:
                break
            fetch *= 4
        return np.asarray(slots[hits.best(slots, scores.astype(np.float64), keys, k)])

    def scores(self, query: np.ndarray, slots: np.ndarray, metric: Metric | None = None) -> np.ndarray:
        """Scores (float32[n]) of ``slots`` against ``query``; NaN where a slot holds no vector."""
        metric = metric or self.metric
        vector = self._query(query, metric)
        slots = np.asarray(slots, dtype=np.int64)
        result = np.full(len(slots), np.nan, dtype=np.float32)
        with self._lock:
            held = self._holds(slots)
            result[held] = self._rows.scores(vector, slots[held], metric)
        return result

    def vectors(self, slots: np.ndarray) -> np.ndarray:
        """Stored vectors of ``slots`` as float32[n, d] in their original magnitude; NaN rows where a slot holds none."""
        slots = np.asarray(slots, dtype=np.int64)
        result = np.full((len(slots), self.dimension), np.nan, dtype=np.float32)
        with self._lock:
            held = self._holds(slots)
            result[held] = self._rows.read(slots[held])
        return result

    def contains(self, slots: np.ndarray) -> np.ndarray:
        """bool[n]: whether each of ``slots`` holds a vector."""
        with self._lock:
            return self._holds(np.asarray(slots, dtype=np.int64))

    def stats(self) -> VectorStats:
        """Counts, progress and memory, for status and explain."""
        with self._lock:
            count = self._rows.count
            wanted = self._wanted()
            ann = self._ann
            indexed = 0 if ann is None else ann.size - ann.dead
            progress = 1.0
            if ann is None and wanted is not IndexType.FLAT:
                progress = 0.0 if self._draft is None else min(1.0, (self._draft.size - self._draft.dead) / count)
            return VectorStats(
                vectors=count,
                indexed=indexed if ann is not None else count,
                dimension=self.dimension,
                requested=self.index_type,
                serving=ann.name if ann is not None else "flat",
                is_built=ann is not None or wanted is IndexType.FLAT,
                build_progress=progress,
                memory_bytes=self.memory_bytes,
            )

    def maintenance(self) -> bool:
        """Do one bounded step of background work; False when there is nothing to do.

        One caller at a time; searches and writes may go on meanwhile.
        """
        with self._lock:
            target = self._next_target()
            if target is None:
                return False
            if isinstance(target, bool):
                return True
            if target.size == 0 and target is self._draft:
                sample = self._sample(target)
            else:
                sample = None
            missing = np.flatnonzero(target.lacks(self._rows.present))[:STEP_ROWS]
            vectors = self._indexable(missing)
            self._in_flight = set()
        if sample is not None:
            target.train(sample)
        if len(missing):
            target.insert(vectors)
        with self._lock:
            changed, self._in_flight = self._in_flight, None
            stale = np.fromiter((int(slot) in changed for slot in missing), dtype=bool, count=len(missing))
            target.adopt(missing, stale)
            if target is self._draft and not target.lacks(self._rows.present).any():
                self._ann, self._draft = target, None
        return True

    def _next_target(self) -> Approximate | bool | None:
        """The index to extend next; True when the step is already done (an index was dropped), None when idle."""
        wanted = self._wanted()
        if wanted is IndexType.FLAT:
            held = self._ann is not None or self._draft is not None
            self._ann = self._draft = None
            return True if held else None
        ann = self._ann
        if self._draft is not None:
            return self._draft
        if ann is None or ann.dead > MAX_DEAD_SHARE * ann.size or ann.outgrown():
            self._draft = self._fresh(wanted)
            return self._draft
        return ann if ann.lacks(self._rows.present).any() else None

    def _wanted(self) -> IndexType:
        """FLAT, HNSW or IVF for the present size; SHRINK_SHARE of hysteresis once an approximate index exists."""
        if self.index_type is IndexType.FLAT:
            return IndexType.FLAT
        threshold = self.flat_threshold
        if self.index_type is not IndexType.AUTO:
            threshold = min(threshold, MIN_APPROXIMATE_ROWS)
        if self._ann is not None or self._draft is not None:
            threshold = int(threshold * SHRINK_SHARE)
        if self._rows.count <= threshold:
            return IndexType.FLAT
        return IndexType.IVF if self.index_type in (IndexType.IVF, IndexType.SPFRESH) else IndexType.HNSW

    def _fresh(self, wanted: IndexType) -> Approximate:
        if wanted is IndexType.IVF:
            return Ivf(self.dimension, self.metric, self._rows.count)
        return Hnsw(self.dimension, self.metric)

    def _sample(self, target: Approximate) -> np.ndarray:
        """Rows spread evenly over the slots: deterministic, and blind to the order in which they came."""
        slots = np.flatnonzero(self._rows.present)
        limit = SAMPLE_PER_LIST * target.lists if isinstance(target, Ivf) else TRAINING_ROWS
        if len(slots) > limit:
            slots = slots[np.linspace(0, len(slots) - 1, limit).astype(np.int64)]
        return self._indexable(slots)

    def _indexable(self, slots: np.ndarray) -> np.ndarray:
        """Vectors as the approximate index sees them: unit length for cosine."""
        vectors = self._rows.read(slots)
        if self.metric is Metric.COSINE:
            norms = np.linalg.norm(vectors, axis=1)
            vectors /= np.where(norms > 0, norms, 1)[:, None]
        return vectors

    def _approximate(
        self, ann: Approximate, query: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> np.ndarray | None:
        """Candidate slots, or None when the exact scan is the better or the only sound answer."""
        count = self._rows.count
        matching, selectivity = count, 1.0
        if allowed is not None:
            length = min(len(allowed), len(self._rows.present))
            matching = int(np.count_nonzero(allowed[:length] & self._rows.present[:length]))
            selectivity = matching / count
            if matching <= max(EXACT_FILTER_ROWS, EXACT_FILTER_SHARE * count):
                return None
        if 2 * k >= matching:
            return None
        found = ann.candidates(query, k, allowed, selectivity)
        pending = ann.lacks(self._rows.present)
        if pending.any():
            if allowed is not None:
                pending[: len(allowed)] &= allowed[: len(pending)]
                pending[len(allowed) :] = False
            found = np.concatenate([found, self._rows.nearest(query, k, self.metric, pending)[0]])
        return found if len(found) >= min(k, matching) else None

    def _withdraw(self, slots: np.ndarray) -> None:
        for ann in (self._ann, self._draft):
            if ann is not None:
                ann.forget(slots)
        if self._in_flight is not None:
            self._in_flight.update(slots.tolist())

    def _holds(self, slots: np.ndarray) -> np.ndarray:
        present = self._rows.present
        inside = (slots >= 0) & (slots < len(present))
        if not len(present):
            return inside
        result: np.ndarray = inside & present[np.where(inside, slots, 0)]
        return result

    def _query(self, query: np.ndarray, metric: Metric) -> np.ndarray:
        """The query as float32[d]; of unit length for the cosine, so that tiny and huge queries neither vanish nor burst."""
        vector = np.asarray(query, dtype=np.float64)
        if vector.ndim != 1:
            vector = vector.reshape(-1)
        # Not by dot: that lets other threads go first, which costs more than the sum.
        length = math.sqrt(np.add.reduce(vector * vector))
        # Every component is within what the whole is.
        if not length <= MAX_COMPONENT or len(vector) != self.dimension:
            self._check(len(vector), vector)
        if metric is not Metric.COSINE:
            length = 0.0
        return (vector / length if length > 0 else vector).astype(np.float32)

    def _check(self, components: int, values: np.ndarray) -> None:
        if components == 0:
            raise EmptyVectorError("must have at least one component", field="vector")
        if components != self.dimension:
            raise DimensionMismatchError(f"expected {self.dimension} components, got {components}", field="vector")
        if values.size and not (values.min() >= -MAX_COMPONENT and values.max() <= MAX_COMPONENT):
            raise InvalidRequestError(f"every component must be a number within +-{MAX_COMPONENT:g}", field="vector")

    def dump(self) -> bytes:
        """The view as bytes: rows, and the approximate index when it is whole."""
        return b"".join(self.dump_parts())

    def dump_parts(self) -> list[bytes | memoryview]:
        """``dump`` in parts to be written one after the other, at any time: half the memory of ``dump``."""
        with self._lock:
            meta: dict[str, int | str] = {
                "dimension": self.dimension,
                "metric": self.metric.value,
                "index_type": self.index_type.value,
            }
            meta |= {"last_slot": self._rows.last_slot}
            arrays = self._rows.encoded()
            if self._ann is not None:
                meta |= {"ann": self._ann.name, "expected": getattr(self._ann, "expected", 0)}
                arrays |= self._ann.encoded()
            return dump.pack(DUMP_KIND, DUMP_VERSION, meta, arrays)

    @classmethod
    def load(cls, data: bytes | memoryview, flat_threshold: int = FLAT_THRESHOLD_ROWS) -> VectorIndex:
        """The view that ``dump`` wrote. Raises CorruptionError when ``data`` is anything else."""
        meta, arrays = dump.unpack(DUMP_KIND, DUMP_VERSION, data)
        try:
            view = cls(meta["dimension"], Metric(meta["metric"]), IndexType(meta["index_type"]), flat_threshold)
            view._rows.restore(arrays, meta["last_slot"])
            if "ann" in meta:
                ivf = meta["ann"] == Ivf.name
                ann = Ivf(view.dimension, view.metric, meta["expected"]) if ivf else Hnsw(view.dimension, view.metric)
                ann.restore(arrays)
                view._ann = ann
        except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise CorruptionError(f"the vector dump does not fit together: {error}") from error
        return view
