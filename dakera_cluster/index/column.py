"""One attribute of all rows of a namespace partition, laid out so that a condition is answered for all slots at once.

Each slot has a kind (missing, null, false, true, number, string, array, other). Numbers are a float64 array; strings and
arrays are dictionary-coded, so a string operator runs once per distinct string and an array operator once per distinct
element. What float64 cannot hold exactly (integers beyond 2^53, NaN) and objects are kept aside and tested one by one.

Invariant: ``evaluate(condition, n)[slot]`` equals ``condition.holds(value at slot)`` for every slot. Called by
columns.py only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dakera_cluster.index.arrays import grown
from dakera_cluster.model.filters import ARRAYS, MISSING, NEGATIONS, ORDERINGS, Condition, Operator, strict_key

MISSING_KIND, NULL, FALSE, TRUE, NUMBER, STRING, ARRAY, OTHER = range(8)
EXACT_INTEGER = 1 << 53
"""Integers up to this magnitude are exact in float64."""
SPARSE_MEMBERS = 8
"""$arrayContainsAll with at most this many members is answered element by element, else array by array."""
DISTINCT_BYTES = 120
"""Estimate of what one dictionary entry costs beside its characters."""


class Column:
    """See the module."""

    __slots__ = (
        "_array_codes",
        "_array_ends",
        "_arrays",
        "_characters",
        "_codes",
        "_element_codes",
        "_elements",
        "_flat",
        "_flat_size",
        "_kinds",
        "_numbers",
        "_others",
        "_string_codes",
        "_strings",
        "count",
    )

    def __init__(self) -> None:
        self.count = 0
        self._kinds = np.zeros(0, dtype=np.uint8)
        self._numbers = np.zeros(0, dtype=np.float64)
        self._codes = np.zeros(0, dtype=np.int32)
        self._strings: list[str] = []
        self._string_codes: dict[str, int] = {}
        self._characters = 0
        self._arrays: list[tuple[Any, ...]] = []
        self._array_codes: dict[tuple[int, ...], int] = {}
        self._array_ends: list[int] = []
        self._elements: list[Any] = []
        self._element_codes: dict[tuple[str, Any], int] = {}
        self._flat = np.zeros(0, dtype=np.int32)
        self._flat_size = 0
        self._others: dict[int, Any] = {}

    @property
    def distinct(self) -> int:
        """Dictionary entries, those no slot uses any more included."""
        return len(self._strings) + len(self._arrays)

    @property
    def nbytes(self) -> int:
        """Estimated bytes held."""
        arrays = self._kinds.nbytes + self._numbers.nbytes + self._codes.nbytes + self._flat.nbytes
        entries = self.distinct + len(self._elements) + len(self._others)
        return arrays + entries * DISTINCT_BYTES + self._characters

    def put(self, slot: int, value: Any) -> None:
        """Set the value at ``slot``; MISSING clears it."""
        if slot >= len(self._kinds):
            if value is MISSING:
                return
            self._kinds = grown(self._kinds, slot + 1, MISSING_KIND)
        before = int(self._kinds[slot])
        if before == OTHER:
            del self._others[slot]
        kind = self._kind(value)
        if kind == NUMBER:
            self._numbers = grown(self._numbers, slot + 1)
            self._numbers[slot] = value
        elif kind in (STRING, ARRAY):
            self._codes = grown(self._codes, slot + 1)
            self._codes[slot] = self._string(value) if kind == STRING else self._array(value)
        elif kind == OTHER:
            self._others[slot] = value
        self._kinds[slot] = kind
        self.count += (kind != MISSING_KIND) - (before != MISSING_KIND)

    @staticmethod
    def _kind(value: Any) -> int:
        if value is MISSING:
            return MISSING_KIND
        if value is None:
            return NULL
        if isinstance(value, bool):
            return TRUE if value else FALSE
        if isinstance(value, str):
            return STRING
        if isinstance(value, int):
            return NUMBER if -EXACT_INTEGER <= value <= EXACT_INTEGER else OTHER
        if isinstance(value, float):
            return OTHER if math.isnan(value) else NUMBER
        return ARRAY if isinstance(value, (list, tuple)) else OTHER

    def _string(self, value: str) -> int:
        code = self._string_codes.get(value)
        if code is None:
            code = self._string_codes[value] = len(self._strings)
            self._strings.append(value)
            self._characters += len(value)
        return code

    def _array(self, value: list[Any] | tuple[Any, ...]) -> int:
        elements = tuple(self._element(element) for element in value)
        code = self._array_codes.get(elements)
        if code is None:
            code = self._array_codes[elements] = len(self._arrays)
            self._arrays.append(tuple(value))
            last = self._flat_size + len(elements)
            self._flat = grown(self._flat, last)
            self._flat[self._flat_size : last] = elements
            self._flat_size = last
            self._array_ends.append(last)
        return code

    def _element(self, value: Any) -> int:
        key = strict_key(value)
        code = self._element_codes.get(key)
        if code is None:
            code = self._element_codes[key] = len(self._elements)
            self._elements.append(value)
        return code

    def evaluate(self, condition: Condition, slots: int) -> np.ndarray:
        """bool[slots]: whether the value at each slot meets ``condition``."""
        constant = np.zeros(8, dtype=bool)
        for kind, value in ((MISSING_KIND, MISSING), (NULL, None), (FALSE, False), (TRUE, True)):
            constant[kind] = condition.holds(value)
        kinds = self._kinds[:slots]
        result = np.full(slots, constant[MISSING_KIND])
        known = result[: len(kinds)]
        np.take(constant, kinds, out=known)
        if len(self._numbers):
            where = np.flatnonzero(kinds == NUMBER)
            known[where] = self._number_test(condition, self._numbers[where])
        if self._strings:
            where = np.flatnonzero(kinds == STRING)
            known[where] = self._string_table(condition)[self._codes[where]]
        if self._arrays:
            where = np.flatnonzero(kinds == ARRAY)
            known[where] = self._array_table(condition)[self._codes[where]]
        for slot, value in self._others.items():
            if slot < slots:
                known[slot] = condition.holds(value)
        return result

    def _number_test(self, condition: Condition, values: np.ndarray) -> np.ndarray:
        operator, operand = condition.operator, condition.operand
        if operator in ORDERINGS:
            if isinstance(operand, str):
                return np.zeros(len(values), dtype=bool)
            if isinstance(operand, int) and abs(operand) > EXACT_INTEGER:
                # Rounding the operand to float64 could move it across a value: Python compares exactly.
                return np.fromiter((condition.holds(value) for value in values.tolist()), bool, len(values))
            compare = {
                Operator.GT: np.greater,
                Operator.GTE: np.greater_equal,
                Operator.LT: np.less,
                Operator.LTE: np.less_equal,
            }[operator]
            return np.asarray(compare(values, operand))
        if NEGATIONS.get(operator, operator) in (Operator.EQ, Operator.IN):
            wanted = [number for kind, number in condition.members if kind == "number" and _exact(number)]
            positive = np.isin(values, np.array(wanted, dtype=np.float64))
            return ~positive if operator in NEGATIONS else positive
        return np.full(len(values), condition.holds(0))

    def _string_table(self, condition: Condition) -> np.ndarray:
        operator = condition.operator
        positive = NEGATIONS.get(operator, operator)
        if positive in (Operator.EQ, Operator.IN):
            table = np.zeros(len(self._strings), dtype=bool)
            codes = [self._string_codes.get(text, -1) for kind, text in condition.members if kind == "string"]
            table[[code for code in codes if code >= 0]] = True
            return ~table if operator in NEGATIONS else table
        return np.fromiter(map(condition.holds, self._strings), bool, len(self._strings))

    def _array_table(self, condition: Condition) -> np.ndarray:
        operator = condition.operator
        whole = NEGATIONS.get(operator, operator) is Operator.EQ and (
            condition.operand is None or isinstance(condition.operand, list)
        )
        many = operator is Operator.ARRAY_CONTAINS_ALL and len(condition.members) > SPARSE_MEMBERS
        if whole or many or operator is Operator.EXISTS:
            return np.fromiter(map(condition.holds, self._arrays), bool, len(self._arrays))
        if operator is Operator.ARRAY_CONTAINS_ALL:
            table = np.ones(len(self._arrays), dtype=bool)
            for member in condition.members:
                table &= self._any_element(self._member_table([member]))
            return table
        if operator in ARRAYS:
            return self._any_element(self._member_table(condition.members))
        elements = np.fromiter(map(condition.element, self._elements), bool, len(self._elements))
        table = self._any_element(elements)
        return ~table if operator in NEGATIONS else table

    def _member_table(self, members: Any) -> np.ndarray:
        """bool by element code: which elements are among ``members`` (strict keys)."""
        table = np.zeros(len(self._elements), dtype=bool)
        codes = [self._element_codes.get(member, -1) for member in members]
        table[[code for code in codes if code >= 0]] = True
        return table

    def _any_element(self, elements: np.ndarray) -> np.ndarray:
        """bool by array code: which arrays hold an element that ``elements`` (bool by element code) marks."""
        counts = np.zeros(self._flat_size + 1, dtype=np.int64)
        np.cumsum(elements[self._flat[: self._flat_size]], out=counts[1:])
        ends = np.array(self._array_ends, dtype=np.int64)
        starts = np.r_[0, ends[:-1]]
        return np.asarray(counts[ends] > counts[starts])


def _exact(number: int | float) -> bool:
    """Whether float64 holds ``number`` as it is: no other number can equal a stored one."""
    try:
        return float(number) == number
    except OverflowError:
        return False
