"""The filter expression: parsed once, matched many times.

An expression is an object of ``field: value``, ``field: {operator: operand}`` and the logical ``$and``, ``$or``,
``$not``; several entries of one object must all hold. Fields may be nested (``address.city``; a key that contains the
dots literally wins). Semantics, where the contract leaves them open, follow MongoDB:

- Comparison is strict in type: a string never equals or orders against a number, a boolean is not a number.
- An array value meets a scalar operator when any of its elements does; ``$ne`` and ``$nin`` are the exact negations of
  ``$eq`` and ``$in``, so they also hold where the field is missing. ``$eq`` with an array operand compares whole arrays.
- ``$eq: null`` holds for null and for missing fields; ``$exists`` asks for the key only.
- ``$array...`` operators hold for arrays only.
- ``$contains``, ``$startsWith``, ``$endsWith``, ``$glob`` and ``$regex`` (searched anywhere) are case-sensitive.

Patterns run on RE2: linear time in the text and bounded memory whatever the pattern, so a filter cannot stall a node;
look-around and back-references do not exist there and are refused. Every size of an expression is bounded below.

Called by the API (parse), by index/columns.py (whole columns at once) and wherever single records are tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final

import msgspec
import re2

from dakera_cluster.model.errors import InvalidRequestError

MAX_DEPTH = 16
"""Nesting of logical operators."""
MAX_CONDITIONS = 256
"""Conditions in one expression."""
MAX_OPERANDS = 10_000
"""Items of a list operand."""
MAX_PATTERN_CHARS = 512
"""Length of a $regex or $glob."""
MAX_TEXT_CHARS = 8_192
"""Length of a string operand."""
MAX_FIELD_CHARS = 256
PATTERN_MEMORY_BYTES = 1 << 20
"""Memory RE2 may use for one pattern; a pattern that would need more is refused when it is parsed."""


class _Missing(Enum):
    MISSING = "missing"


MISSING: Final = _Missing.MISSING
"""The value of a field that a record does not have (null is a value)."""


class Operator(Enum):
    """The operators of a condition, by their wire names."""

    EQ = "$eq"
    NE = "$ne"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    IN = "$in"
    NIN = "$nin"
    EXISTS = "$exists"
    CONTAINS = "$contains"
    ICONTAINS = "$icontains"
    STARTS_WITH = "$startsWith"
    ENDS_WITH = "$endsWith"
    GLOB = "$glob"
    REGEX = "$regex"
    ARRAY_CONTAINS = "$arrayContains"
    ARRAY_CONTAINS_ALL = "$arrayContainsAll"
    ARRAY_CONTAINS_ANY = "$arrayContainsAny"


NEGATIONS: Final = {Operator.NE: Operator.EQ, Operator.NIN: Operator.IN}
ORDERINGS: Final = frozenset((Operator.GT, Operator.GTE, Operator.LT, Operator.LTE))
LISTS: Final = frozenset((Operator.IN, Operator.NIN, Operator.ARRAY_CONTAINS_ALL, Operator.ARRAY_CONTAINS_ANY))
ARRAYS: Final = frozenset((Operator.ARRAY_CONTAINS, Operator.ARRAY_CONTAINS_ALL, Operator.ARRAY_CONTAINS_ANY))
PATTERNS: Final = frozenset((Operator.GLOB, Operator.REGEX))


class Condition(msgspec.Struct, frozen=True):
    """One field against one operator. ``members`` holds the strict keys of a list operand, ``test`` a string's test."""

    field: str
    operator: Operator
    operand: Any
    members: frozenset[tuple[str, Any]] = frozenset()
    test: Callable[[str], bool] | None = None

    def holds(self, value: Any) -> bool:
        """Whether a field with ``value`` (or MISSING) meets the condition."""
        operator = self.operator
        if operator is Operator.EXISTS:
            return (value is not MISSING) == bool(self.operand)
        if operator in NEGATIONS:
            return not self._positive(NEGATIONS[operator], value)
        return self._positive(operator, value)

    def _positive(self, operator: Operator, value: Any) -> bool:
        if operator in ARRAYS:
            return isinstance(value, (list, tuple)) and self._array(operator, value)
        if operator is Operator.EQ and (self.operand is None or isinstance(self.operand, list)):
            return (value is MISSING and self.operand is None) or strict_key(value) == strict_key(self.operand)
        if isinstance(value, (list, tuple)):
            return any(self.element(element) for element in value)
        return self.element(value)

    def _array(self, operator: Operator, value: list[Any] | tuple[Any, ...]) -> bool:
        keys = {strict_key(element) for element in value}
        if operator is Operator.ARRAY_CONTAINS_ALL:
            return self.members <= keys
        return not self.members.isdisjoint(keys)

    def element(self, value: Any) -> bool:
        """Whether a scalar, on its own or as an element of an array, meets the operator ($ne and $nin: its opposite)."""
        operator = NEGATIONS.get(self.operator, self.operator)
        if operator in ORDERINGS:
            return _ordered(operator, value, self.operand)
        if self.test is not None:
            return isinstance(value, str) and self.test(value)
        return strict_key(value) in self.members


class And(msgspec.Struct, frozen=True):
    """All of ``parts``; without parts it matches everything."""

    parts: tuple[Filter, ...]


class Or(msgspec.Struct, frozen=True):
    """Any of ``parts``."""

    parts: tuple[Filter, ...]


class Not(msgspec.Struct, frozen=True):
    """The opposite of ``part``."""

    part: Filter


Filter = Condition | And | Or | Not
EVERYTHING: Final = And(())


class Complexity(Enum):
    """What a filter costs, for explain."""

    NONE = "none"
    SIMPLE = "simple"
    MODERATE = "moderate"
    COMPLEX = "complex"


def match(expression: Filter, record: Mapping[str, Any]) -> bool:
    """Whether ``record`` meets ``expression``."""
    match expression:
        case Condition():
            return expression.holds(resolve(record, expression.field))
        case And():
            return all(match(part, record) for part in expression.parts)
        case Or():
            return any(match(part, record) for part in expression.parts)
        case Not():
            return not match(expression.part, record)


def resolve(record: Mapping[str, Any], field: str) -> Any:
    """The value of a possibly dotted ``field``, or MISSING."""
    if field in record:
        return record[field]
    value: Any = record
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def conditions(expression: Filter) -> Iterator[Condition]:
    """Every condition of ``expression``, left to right."""
    match expression:
        case Condition():
            yield expression
        case Not():
            yield from conditions(expression.part)
        case And() | Or():
            for part in expression.parts:
                yield from conditions(part)


def fields(expression: Filter) -> frozenset[str]:
    """The fields ``expression`` reads."""
    return frozenset(condition.field for condition in conditions(expression))


def complexity(expression: Filter | None) -> Complexity:
    """none: no condition. simple: one without a pattern. complex: more than five, or any pattern. moderate: the rest."""
    found = list(conditions(expression)) if expression is not None else []
    if not found:
        return Complexity.NONE
    if len(found) > 5 or any(condition.operator in PATTERNS for condition in found):
        return Complexity.COMPLEX
    return Complexity.SIMPLE if len(found) == 1 else Complexity.MODERATE


def strict_key(value: Any) -> tuple[str, Any]:
    """A hashable stand-in for ``value``: two values are equal in a filter exactly when their keys are."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return ("number", value)
    if isinstance(value, str):
        return ("string", value)
    if value is None:
        return ("null", None)
    if isinstance(value, (list, tuple)):
        return ("array", tuple(strict_key(element) for element in value))
    if isinstance(value, Mapping):
        return ("object", frozenset((key, strict_key(item)) for key, item in value.items()))
    return ("other", repr(value))


def _ordered(operator: Operator, value: Any, operand: Any) -> bool:
    if isinstance(operand, str) != isinstance(value, str):
        return False
    if not isinstance(value, str) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return False
    match operator:
        case Operator.GT:
            return bool(value > operand)
        case Operator.GTE:
            return bool(value >= operand)
        case Operator.LT:
            return bool(value < operand)
        case _:
            return bool(value <= operand)


def parse(expression: Any, path: str = "filter") -> Filter:
    """The filter that ``expression`` (decoded JSON) describes; None and ``{}`` match everything.

    Raises InvalidRequestError that names the place (``filter.price.$gt``) and says what was expected there.
    """
    if expression is None:
        return EVERYTHING
    result = _group(expression, path, 1)
    if sum(1 for _ in conditions(result)) > MAX_CONDITIONS:
        raise InvalidRequestError(f"must hold at most {MAX_CONDITIONS} conditions", field=path)
    return result


def _group(expression: Any, path: str, depth: int) -> Filter:
    if not isinstance(expression, Mapping):
        raise InvalidRequestError(f"expected an object of conditions, got {_kind(expression)}", field=path)
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"must be nested at most {MAX_DEPTH} deep", field=path)
    if len(expression) > MAX_CONDITIONS:
        raise InvalidRequestError(f"must hold at most {MAX_CONDITIONS} conditions", field=path)
    parts: list[Filter] = []
    for key, value in expression.items():
        here = f"{path}.{key}"
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value or len(value) > MAX_CONDITIONS:
                raise InvalidRequestError(f"expected a list of 1 to {MAX_CONDITIONS} filters", field=here)
            members = tuple(_group(part, f"{here}[{index}]", depth + 1) for index, part in enumerate(value))
            parts.append(And(members) if key == "$and" else Or(members))
        elif key == "$not":
            parts.append(Not(_group(value, here, depth + 1)))
        elif key.startswith("$"):
            raise InvalidRequestError("expected $and, $or, $not or the name of a field", field=here)
        else:
            parts.append(_field(key, value, here, depth))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _field(name: str, value: Any, path: str, depth: int) -> Filter:
    if not name or len(name) > MAX_FIELD_CHARS:
        raise InvalidRequestError(f"a field name must have 1 to {MAX_FIELD_CHARS} characters", field=path)
    if not isinstance(value, Mapping):
        return _condition(name, Operator.EQ, value, path)
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"must be nested at most {MAX_DEPTH} deep", field=path)
    if not value:
        raise InvalidRequestError("expected a value or an object of operators, got an empty object", field=path)
    parts: list[Filter] = []
    for key, operand in value.items():
        here = f"{path}.{key}"
        if key == "$not":
            parts.append(Not(_field(name, operand, here, depth + 1)))
            continue
        try:
            operator = Operator(key)
        except ValueError:
            known = ", ".join(operator.value for operator in Operator)
            hint = "" if key.startswith("$") else f" (nested fields are written {name}.{key})"
            raise InvalidRequestError(f"expected one of {known}{hint}", field=here) from None
        parts.append(_condition(name, operator, operand, here))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _condition(name: str, operator: Operator, operand: Any, path: str) -> Condition:
    if operator in LISTS:
        if not isinstance(operand, list) or len(operand) > MAX_OPERANDS:
            raise InvalidRequestError(
                f"expected a list of at most {MAX_OPERANDS} values, got {_kind(operand)}", field=path
            )
        for index, item in enumerate(operand):
            _check_scalar(item, f"{path}[{index}]")
        return Condition(name, operator, operand, members=frozenset(map(strict_key, operand)))
    if operator is Operator.EXISTS:
        if not isinstance(operand, bool):
            raise InvalidRequestError(f"expected true or false, got {_kind(operand)}", field=path)
        return Condition(name, operator, operand)
    if operator in ORDERINGS:
        _check_scalar(operand, path)
        if operand is None or isinstance(operand, bool):
            raise InvalidRequestError(f"expected a number or a string, got {_kind(operand)}", field=path)
        return Condition(name, operator, operand)
    if operator in (Operator.EQ, Operator.NE) and isinstance(operand, list):
        if len(operand) > MAX_OPERANDS:
            raise InvalidRequestError(f"expected a list of at most {MAX_OPERANDS} values", field=path)
        for index, item in enumerate(operand):
            _check_scalar(item, f"{path}[{index}]")
        return Condition(name, operator, operand)
    _check_scalar(operand, path)
    if operator in (Operator.EQ, Operator.NE, Operator.ARRAY_CONTAINS):
        return Condition(name, operator, operand, members=frozenset((strict_key(operand),)))
    if not isinstance(operand, str):
        raise InvalidRequestError(f"expected a string, got {_kind(operand)}", field=path)
    return Condition(name, operator, operand, test=_text_test(operator, operand, path))


def _text_test(operator: Operator, operand: str, path: str) -> Callable[[str], bool]:
    match operator:
        case Operator.CONTAINS:
            return lambda text: operand in text
        case Operator.ICONTAINS:
            wanted = operand.casefold()
            return lambda text: wanted in text.casefold()
        case Operator.STARTS_WITH:
            return lambda text: text.startswith(operand)
        case Operator.ENDS_WITH:
            return lambda text: text.endswith(operand)
        case Operator.GLOB:
            wild = {"*": ".*", "?": "."}
            body = "".join(wild.get(char) or re2.escape(char) for char in operand)
            return _pattern(rf"(?s)\A(?:{body})\z", operand, path)
        case _:
            return _pattern(operand, operand, path)


def _pattern(source: str, operand: str, path: str) -> Callable[[str], bool]:
    if len(operand) > MAX_PATTERN_CHARS:
        raise InvalidRequestError(f"a pattern must have at most {MAX_PATTERN_CHARS} characters", field=path)
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES
    options.log_errors = False
    try:
        compiled = re2.compile(source, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args else "it cannot be compiled"
        raise InvalidRequestError(f"expected a regular expression in RE2 syntax: {reason}", field=path) from None

    return lambda text: compiled.search(text) is not None


def _check_scalar(value: Any, path: str) -> None:
    if value is not None and not isinstance(value, (str, int, float)):
        raise InvalidRequestError(f"expected a string, number, boolean or null, got {_kind(value)}", field=path)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequestError("expected a finite number", field=path)
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARS:
            raise InvalidRequestError(f"a string must have at most {MAX_TEXT_CHARS} characters", field=path)
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise InvalidRequestError("must be valid Unicode", field=path)


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
