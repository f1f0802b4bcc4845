"""From bytes to typed requests, and from what is wrong to an error that names the field.

Rules of the wire: a missing or empty body is ``{}``; ``null`` for an optional field means absent; unknown fields are
ignored; a missing field or a value out of range is 400, a value of the wrong type is 422; NaN and infinity do not exist.
Free-form values (metadata, filters) are bounded in depth and integers to 64 bits, because they are stored and sent on in
other formats. Decoders are built once per type; the lenient path runs only when the strict one met a ``null``.
Called by `endpoint`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from dakera_cluster.model.errors import DakeraError, InvalidRequestError, SchemaError

_INT64_MIN = -(2**63)
_INT64_MAX = 2**63 - 1
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`(?: - at `(?P<path>[^`]*)`)?")
_AT = re.compile(r"^(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_WRONG_TYPE = re.compile(r"^Expected `[^`]+`, got `[^`]+`$")
_NULL = "got `null`"


class Decoder:
    """Decodes bodies of one type."""

    def __init__(self, kind: type[Any], *, max_depth: int) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._max_depth = max_depth
        self._free = _free_paths(kind)

    def decode(self, data: bytes) -> Any:
        """The typed body. Raises InvalidRequestError or SchemaError."""
        if not data or data.isspace():
            data = b"{}"
        elif not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                raise InvalidRequestError(f"is not valid UTF-8 (byte {error.start})", field="body") from None
        try:
            body = self._decoder.decode(data)
        except msgspec.ValidationError as error:
            if _NULL not in str(error):
                raise explain(error) from None
            body = self._decode_leniently(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"is not valid JSON: {error}", field="body") from None
        except RecursionError:
            raise self._too_deep("body") from None
        for path in self._free:
            self._guard(body, path, 0, "")
        return body

    def _decode_leniently(self, data: bytes) -> Any:
        try:
            raw = msgspec.json.decode(data)
        except RecursionError:
            raise self._too_deep("body") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"is not valid JSON: {error}", field="body") from None
        try:
            return msgspec.convert(without_nulls(raw, self._kind), self._kind)
        except msgspec.ValidationError as error:
            raise explain(error) from None

    def _too_deep(self, field: str) -> DakeraError:
        return InvalidRequestError(f"is nested deeper than {self._max_depth} levels", field=field)

    def _guard(self, value: Any, path: tuple[str, ...], at: int, name: str) -> None:
        if value is None or value is msgspec.UNSET:
            return
        if at == len(path):
            self._check_free(value, name)
        elif path[at] == "[]":
            for item in value:
                self._guard(item, path, at + 1, name)
        else:
            field = path[at]
            self._guard(getattr(value, field, None), path, at + 1, f"{name}.{field}" if name else field)

    def _check_free(self, root: Any, name: str) -> None:
        """Walk a free-form value without recursion."""
        level = [root]
        depth = 0
        while level:
            deeper: list[Any] = []
            for value in level:
                kind = type(value)
                if kind is dict:
                    deeper.extend(value.values())
                elif kind is list:
                    deeper.extend(value)
                elif kind is int and not _INT64_MIN <= value <= _INT64_MAX:
                    raise InvalidRequestError("holds an integer that does not fit 64 bits", field=name)
            depth += 1
            if deeper and depth > self._max_depth:
                raise self._too_deep(name)
            level = deeper


def decode_query(raw: Mapping[str, str], kind: type[Any]) -> Any:
    """Query parameters as ``kind``. Empty values count as not given. Raises InvalidRequestError."""
    given = {name: value for name, value in raw.items() if value != ""}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        reason = explain(error)
        if isinstance(reason, InvalidRequestError):
            raise reason from None
        raise InvalidRequestError(reason.message, details=reason.details) from None


def explain(error: msgspec.ValidationError) -> DakeraError:
    """What a validation error means on the wire: 400 for a missing field or a value out of range, 422 for a wrong type."""
    text = str(error)
    if missing := _MISSING.fullmatch(text):
        field = missing["field"]
        parent = field_name(missing["path"])
        return InvalidRequestError("is required", field=f"{parent}.{field}" if parent else field)
    match = _AT.match(text)
    assert match is not None
    field = field_name(match["path"]) or "body"
    reason = match["text"].replace("`", "")
    reason = reason[0].lower() + reason[1:]
    if _WRONG_TYPE.fullmatch(match["text"]):
        return SchemaError(f"{field}: {reason}", details={"field": field})
    return InvalidRequestError(reason, field=field)


def field_name(path: str | None) -> str:
    """``$.memories[...].content`` as clients would write it: ``memories[].content``."""
    return (path or "").removeprefix("$").removeprefix(".").replace("[...]", "[]")


def without_nulls(value: Any, kind: Any) -> Any:
    """``value`` without the null fields of the structs that ``kind`` describes; free-form parts are left alone."""
    kind = _strip_optional(kind)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = _hints(kind)
        return {
            name: without_nulls(item, hints[name]) if name in hints else item
            for name, item in value.items()
            if item is not None
        }
    if isinstance(value, list) and typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        return [without_nulls(item, item_kind) for item in value]
    return value


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=False)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}


def _strip_optional(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return next((part for part in kinds if _is_struct(part) or typing.get_origin(part) is list), kinds[0])
    return kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _free_paths(kind: Any, seen: tuple[Any, ...] = ()) -> list[tuple[str, ...]]:
    """Attribute paths of the values in ``kind`` that may hold anything."""
    kind = _strip_optional(kind)
    if kind in seen:
        return []
    if _is_struct(kind):
        found = []
        hints = typing.get_type_hints(kind)
        for field in msgspec.structs.fields(kind):
            found += [(field.name, *path) for path in _free_paths(hints[field.name], (*seen, kind))]
        return found
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return [("[]", *path) for path in _free_paths(item, seen)] if _is_struct(_strip_optional(item)) else _free(item)
    return _free(kind)


def _free(kind: Any) -> list[tuple[str, ...]]:
    """``[()]`` when a value of this kind may hold anything, else nothing."""
    if kind is Any or kind is dict or kind is list:
        return [()]
    return [()] if any(_free(part) for part in typing.get_args(kind)) else []
