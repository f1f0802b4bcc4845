"""Attribute columns of a namespace partition: a filter expression evaluated for all slots at once.

A column is built when a filter first names its field, from the owner's ``fetch``, and kept current by ``set`` and
``remove`` from then on; a namespace that is never filtered holds nothing. The least recently used columns are dropped
beyond a number and a size, and a column whose dictionaries have filled with values no row has any more is dropped to be
fetched anew.

Invariant: ``mask(filter, n)[slot] == match(filter, record at slot)`` (model/filters.py), where a slot without a record
counts as the empty record: the caller combines the mask with the slots it knows to be alive. Called by the shard; the
owner's lock covers every call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dakera_cluster.index.column import Column
from dakera_cluster.model.filters import MISSING, And, Condition, Filter, Not, Or, resolve

MAX_COLUMNS = 32
MAX_BYTES = 64 << 20
"""Bound on the columns of one namespace partition; the column being read is kept even if it alone is larger."""
SPARE_DISTINCT = 1_024
"""Unused dictionary entries tolerated beside as many as there are values."""


class Columns:
    """See the module. ``fetch(field)`` yields ``(slot, value)`` of every row that has the (possibly dotted) field."""

    __slots__ = ("_columns", "_fetch", "max_bytes", "max_columns")

    def __init__(
        self,
        fetch: Callable[[str], Iterable[tuple[int, Any]]],
        max_columns: int = MAX_COLUMNS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.max_columns = max_columns
        self.max_bytes = max_bytes
        self._fetch = fetch
        self._columns: OrderedDict[str, Column] = OrderedDict()

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that have a column, least recently used first."""
        return tuple(self._columns)

    @property
    def memory_bytes(self) -> int:
        """Estimated bytes held."""
        return sum(column.nbytes for column in self._columns.values())

    def set(self, slot: int, record: Mapping[str, Any]) -> None:
        """Note that ``slot`` now holds ``record`` (the whole of it)."""
        for field, column in list(self._columns.items()):
            column.put(slot, resolve(record, field))
            if column.distinct > 2 * column.count + SPARE_DISTINCT:
                del self._columns[field]

    def remove(self, slot: int) -> None:
        """Note that ``slot`` holds nothing any more."""
        for column in self._columns.values():
            column.put(slot, MISSING)

    def clear(self) -> None:
        """Drop every column; they come back when a filter asks for them."""
        self._columns.clear()

    def mask(self, expression: Filter, slots: int) -> np.ndarray:
        """bool[slots]: which slots meet ``expression``."""
        match expression:
            case Condition():
                return self._column(expression.field).evaluate(expression, slots)
            case Not():
                return ~self.mask(expression.part, slots)
            case And():
                result = np.ones(slots, dtype=bool)
                for part in expression.parts:
                    result &= self.mask(part, slots)
                return result
            case Or():
                result = np.zeros(slots, dtype=bool)
                for part in expression.parts:
                    result |= self.mask(part, slots)
                return result

    def _column(self, field: str) -> Column:
        column = self._columns.get(field)
        if column is None:
            column = Column()
            for slot, value in self._fetch(field):
                column.put(slot, value)
            self._columns[field] = column
        self._columns.move_to_end(field)
        while len(self._columns) > 1 and (len(self._columns) > self.max_columns or self.memory_bytes > self.max_bytes):
            self._columns.popitem(last=False)
        return column
