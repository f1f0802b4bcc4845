"""What the engine reads of a namespace. The shard's NamespaceView provides it; tests build one from the same indexes.

Everything is addressed by slot. Slots differ between replicas, so nothing the engine returns may depend on their order:
ties are broken by ``ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.native.importance import Importance
from dakera_cluster.retrieval.evidence import Evidence


class RecallView(Protocol):
    """``ids``: row id by slot. ``importance``: of each, good until the next change."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def text(self) -> FullTextIndex: ...
    @property
    def vectors(self) -> VectorIndex | None: ...
    @property
    def evidence(self) -> Evidence: ...
    @property
    def importance(self) -> Importance: ...
