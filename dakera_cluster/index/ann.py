"""What the approximate indexes have in common: faiss, its lock, and the two-way map between slots and faiss's numbers.

faiss numbers vectors in the order they were added and cannot remove from a graph. So a removed or replaced vector only
loses its node here (a tombstone, kept out of results by a bitmap selector); vectors.py rebuilds when too many are dead.

faiss crashes when one index is searched while it is added to (measured: segmentation fault, HNSW): both happen under
this object's lock. faiss is imported on first use, since most namespaces stay below the size that needs it, and is kept
to one thread: its OpenMP pool spins, and the cores belong to the other workers. Called by vectors.py only.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from dakera_cluster.index.arrays import grown
from dakera_cluster.index.flat import Metric

NO_NODE = -1
OVERSAMPLING = 1.25
"""Candidates proposed per result wanted: the codes are 8 bits a component, the final order is not."""
EXTRA_CANDIDATES = 16


@cache
def faiss() -> ModuleType:
    """The faiss module, imported on first use and limited to the calling thread."""
    import faiss as module

    module.omp_set_num_threads(1)
    return module


def faiss_metric(metric: Metric) -> int:
    """faiss's constant; cosine rows are unit vectors, for which the inner product is the cosine."""
    return int(faiss().METRIC_L2 if metric is Metric.EUCLIDEAN else faiss().METRIC_INNER_PRODUCT)


class Approximate(ABC):
    """One faiss index over a growing set of nodes. A node is one version of one slot's vector."""

    name: str

    def __init__(self, dimension: int, metric: Metric, index: Any) -> None:
        self.dimension = dimension
        self.metric = metric
        self.dead = 0
        self._index = index
        self._lock = threading.Lock()
        self._slots = np.zeros(0, dtype=np.int32)
        self._alive = np.zeros(0, dtype=bool)
        self._nodes = np.zeros(0, dtype=np.int32)
        self._size = 0

    @property
    def size(self) -> int:
        """Nodes, dead ones included."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Estimated bytes: faiss's own storage plus the maps."""
        return self._size * self._node_bytes() + self._slots.nbytes + self._alive.nbytes + self._nodes.nbytes

    def insert(self, vectors: np.ndarray) -> None:
        """Add ``vectors`` to faiss only; ``adopt`` makes them findable. May run without the owner's lock."""
        with self._lock:
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def adopt(self, slots: np.ndarray, stale: np.ndarray) -> None:
        """Name the nodes of the last ``insert``; those whose slot changed meanwhile (``stale``) are born dead."""
        first, last = self._size, self._size + len(slots)
        self._slots = grown(self._slots, last)
        self._alive = grown(self._alive, last, False)
        self._nodes = grown(self._nodes, int(slots.max(initial=-1)) + 1, NO_NODE)
        self._slots[first:last] = slots
        self._alive[first:last] = ~stale
        fresh = np.flatnonzero(~stale)
        self._nodes[slots[fresh]] = fresh + first
        self._size = last
        self.dead += int(np.count_nonzero(stale))

    def forget(self, slots: np.ndarray) -> None:
        """Tombstone the nodes of ``slots``; slots that have none are ignored."""
        known = slots[slots < len(self._nodes)]
        nodes = self._nodes[known]
        nodes = nodes[nodes != NO_NODE]
        self._alive[nodes] = False
        self._nodes[known] = NO_NODE
        self.dead += len(nodes)

    def lacks(self, present: np.ndarray) -> np.ndarray:
        """bool[len(present)]: present slots that have no live node here."""
        missing = present.copy()
        length = min(len(present), len(self._nodes))
        missing[:length] &= self._nodes[:length] == NO_NODE
        return missing

    def candidates(self, query: np.ndarray, k: int, allowed: np.ndarray | None, selectivity: float) -> np.ndarray:
        """About ``k`` * OVERSAMPLING live, allowed slots near ``query`` (already a unit vector for cosine)."""
        wanted = min(self._size, int(k * OVERSAMPLING) + EXTRA_CANDIDATES)
        if wanted == 0:
            return np.zeros(0, dtype=np.int64)
        selector = None
        if allowed is not None or self.dead:
            eligible = self._alive[: self._size]
            if allowed is not None:
                slots = self._slots[: self._size]
                eligible = eligible & (slots < len(allowed)) & allowed[np.minimum(slots, len(allowed) - 1)]
            selector = np.packbits(eligible, bitorder="little")
        with self._lock:
            parameters = self._parameters(wanted, selectivity)
            if selector is not None:
                parameters.sel = faiss().IDSelectorBitmap(selector)
            _, nodes = self._index.search(query[None, :], wanted, params=parameters)
        found = nodes[0]
        # faiss says -1 for "no more"; a node past the size is inserted but not adopted yet, so it has no name.
        return np.asarray(self._slots[found[(found >= 0) & (found < self._size)]], dtype=np.int64)

    def encoded(self) -> dict[str, np.ndarray]:
        """Arrays for a dump."""
        with self._lock:
            blob = faiss().serialize_index(self._index)
        return {
            "ann": blob,
            "ann_slots": self._slots[: self._size].copy(),
            "ann_alive": self._alive[: self._size].copy(),
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Fill an untrained object from ``encoded()``'s arrays. Raises ValueError when they do not fit."""
        index = faiss().deserialize_index(arrays["ann"].copy())
        slots, alive = arrays["ann_slots"], arrays["ann_alive"]
        if index.d != self.dimension or index.ntotal != len(slots) or len(alive) != len(slots):
            raise ValueError("the approximate index does not match the header")
        self._index = index
        self.adopt(slots, ~alive.astype(bool))

    @abstractmethod
    def train(self, sample: np.ndarray) -> None:
        """Fit the codes (and centroids) to ``sample`` float32[n, d]; once, before the first ``insert``."""

    @abstractmethod
    def outgrown(self) -> bool:
        """Whether the structure chosen at training is now too small for the rows it holds."""

    @abstractmethod
    def _parameters(self, wanted: int, selectivity: float) -> Any:
        """faiss search parameters to find ``wanted`` nodes when the fraction ``selectivity`` of rows is eligible."""

    @abstractmethod
    def _node_bytes(self) -> int:
        """Estimated bytes faiss keeps for one node."""
