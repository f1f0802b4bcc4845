"""A namespace in memory, as the engine sees it: the shard's view without rows, replicas or snapshots.

Used by the fit, the benchmarks and the tests of retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.model.memories import DEFAULT_IMPORTANCE, Field
from dakera_cluster.native.importance import Importance
from dakera_cluster.retrieval.evidence import Evidence


class LocalView:
    """Implements `retrieval.view.RecallView`. A replaced memory keeps its slot; one that comes back gets a new one."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.text = FullTextIndex()
        self.vectors: VectorIndex | None = None
        self.evidence = Evidence()
        self._slots: dict[str, int] = {}
        self._importance: list[float] = []
        self._created: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, row_id: str, fields: Mapping[str, Any]) -> None:
        """Store or replace a memory, given the fields of its row."""
        slot = self._slots.get(row_id)
        if slot is None:
            slot = self._slots[row_id] = len(self.ids)
            self.ids.append(row_id)
            self._importance.append(0.0)
            self._created.append(0)
        self._importance[slot] = float(fields.get(Field.IMPORTANCE, DEFAULT_IMPORTANCE))
        self._created[slot] = int(fields.get(Field.CREATED) or 0)
        self.text.add(slot, fields.get(Field.TEXT) or "")
        vector = fields.get(Field.VECTOR)
        if vector:
            values = np.frombuffer(vector, dtype="<f4")
            if self.vectors is None:
                self.vectors = VectorIndex(len(values))
            self.vectors.add(np.array([slot]), values[None, :])
        self.evidence.put(slot, row_id, fields)

    def remove(self, row_id: str) -> None:
        """Forget a memory."""
        slot = self._slots.pop(row_id)
        self.text.remove(slot)
        if self.vectors is not None:
            self.vectors.remove(np.array([slot]))
        self.evidence.remove(slot)

    @property
    def importance(self) -> Importance:
        accessed_ms = np.zeros(len(self.ids), np.int64)
        return Importance(np.array(self._importance, np.float32), np.array(self._created, np.int64), accessed_ms)
