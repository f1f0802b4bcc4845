"""What the engine reads of a namespace. The shard's NamespaceView provides it; tests build one from the same indexes.

Everything is addressed by slot. Slots differ between replicas, so nothing the engine returns may depend on their order:
ties are broken by ``ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.retrieval.evidence import Evidence


class RecallView(Protocol):
    """``ids``: row id by slot. ``importance_of``: float32[n], 0 to 1. ``accessed_of``: float64[n], Unix seconds of the later
    of creation and last access."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def text(self) -> FullTextIndex: ...
    @property
    def vectors(self) -> VectorIndex | None: ...
    @property
    def evidence(self) -> Evidence: ...

    def importance_of(self, slots: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def accessed_of(self, slots: NDArray[np.int64]) -> NDArray[np.float64]: ...
