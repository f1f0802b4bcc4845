"""Bodies and queries become typed requests, or errors that name the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dakera_cluster.api.decode import Decoder, decode_query
from dakera_cluster.model.errors import InvalidRequestError, SchemaError

MAX_DEPTH = 8


class Item(msgspec.Struct):
    name: str
    size: int = 3
    extra: dict[str, Any] | None = None


class Body(msgspec.Struct):
    items: list[Item] = []
    item: Item | None = None
    on: bool = True
    ratio: float = 0.5
    free: Any = None


class Query(msgspec.Struct):
    limit: int = 10
    on: bool = False
    ratio: float | None = None
    name: str | None = None


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Body, max_depth=MAX_DEPTH)


@pytest.mark.parametrize("data", [b"", b" \n\t", b"{}", b'{"unknown": [1, {"a": null}]}'])
def test_nothing_given_means_all_defaults(decoder: Decoder, data: bytes) -> None:
    assert decoder.decode(data) == Body()


def test_null_means_absent_at_every_level_of_the_schema(decoder: Decoder) -> None:
    items = b'[{"name":"a","size":null,"extra":{"keep":null}}]'
    data = b'{"items":%s,"item":{"name":"b","size":null},"on":null,"ratio":null}' % items
    assert decoder.decode(data) == Body(items=[Item("a", extra={"keep": None})], item=Item("b"))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b'{"item":{}}', InvalidRequestError, "item.name: is required"),
        (b'{"item":{"name":null}}', InvalidRequestError, "item.name: is required"),
        (b'{"items":[{"name":"a"},{}]}', InvalidRequestError, "items[1].name: is required"),
        (b'{"items":[{"name":5}]}', SchemaError, "items[0].name: expected str, got int"),
        (b'{"on":"yes"}', SchemaError, "on: expected bool, got str"),
        (b'{"ratio":"x","on":null}', SchemaError, "ratio"),
        (b'{"ratio":1e999}', InvalidRequestError, "ratio: number out of range"),
        (b"[]", SchemaError, "body: expected object, got array"),
        (b"null", SchemaError, "body"),
        (b"{", InvalidRequestError, "body: is not valid JSON"),
        (b'{"ratio":NaN}', InvalidRequestError, "body: is not valid JSON"),
        (b'{"ratio":Infinity}', InvalidRequestError, "body: is not valid JSON"),
        (b'{"x":"\xff"}', InvalidRequestError, "body: is not valid UTF-8 (byte 6)"),
    ],
)
def test_what_is_wrong_is_named(decoder: Decoder, data: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        decoder.decode(data)
    assert text in str(raised.value)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"1" + b"]" * depth


def test_free_values_are_bounded_in_depth_exactly(decoder: Decoder) -> None:
    decoder.decode(b'{"free":%s}' % nested(MAX_DEPTH))
    for data in (
        b'{"free":%s}' % nested(MAX_DEPTH + 1),
        b'{"items":[{"name":"a","extra":{"x":%s}}]}' % nested(MAX_DEPTH),
    ):
        with pytest.raises(InvalidRequestError, match=f"nested deeper than {MAX_DEPTH} levels"):
            decoder.decode(data)


@pytest.mark.parametrize("field", ["free", "unknown", "items"])
def test_no_depth_overflows_the_stack(decoder: Decoder, field: str) -> None:
    data = b'{"on":null,"%s":%s}' % (field.encode(), nested(200_000))
    with pytest.raises((InvalidRequestError, SchemaError)):
        decoder.decode(data)


def test_integers_of_free_values_fit_64_bits(decoder: Decoder) -> None:
    decoder.decode(b'{"free":[9223372036854775807,-9223372036854775808]}')
    for number in (b"9223372036854775808", b"-9223372036854775809", b"1" + b"0" * 300):
        with pytest.raises(InvalidRequestError, match="free"):
            decoder.decode(b'{"free":{"a":[%s]}}' % number)


def test_queries_are_read_from_text() -> None:
    raw = {"limit": "5", "on": "true", "ratio": "0.25", "name": "x", "unknown": "y"}
    assert decode_query(raw, Query) == Query(5, True, 0.25, "x")
    assert decode_query({"limit": "", "on": "false"}, Query) == Query()


@pytest.mark.parametrize("raw", [{"limit": "many"}, {"limit": "1.5"}, {"on": "perhaps"}, {"ratio": "x"}])
def test_a_bad_query_is_a_400_that_names_the_parameter(raw: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        decode_query(raw, Query)
    assert next(iter(raw)) in str(raised.value)
