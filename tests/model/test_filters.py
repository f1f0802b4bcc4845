"""Filters: every operator against its meaning, every refusal against the place it names, RE2's bound on time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.filters import (
    EVERYTHING,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_OPERANDS,
    MAX_PATTERN_CHARS,
    MISSING,
    Complexity,
    Operator,
    complexity,
    fields,
    match,
    parse,
    resolve,
)
from tests.support.filter_strategies import expressions, records

RECORD: dict[str, Any] = {
    "name": "Rex the dog",
    "age": 7,
    "score": 0.5,
    "alive": True,
    "owner": None,
    "tags": ["pet", "Dog", "friend"],
    "numbers": [1, 2, 3],
    "empty": [],
    "address": {"city": "Berlin", "geo": {"lat": 52.5}},
    "dotted.key": "literal",
    "day": "2024-03-01",
    "text": "first line\nsecond (line) 100%",
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"name": "Rex the dog"}, True),
        ({"name": "rex the dog"}, False),
        ({"age": {"$eq": 7.0}}, True),
        ({"age": "7"}, False),
        ({"alive": True}, True),
        ({"alive": 1}, False),
        ({"age": {"$ne": 8}}, True),
        ({"age": {"$ne": 7}}, False),
        ({"nope": {"$ne": 7}}, True),
        ({"age": {"$ne": "7"}}, True),
        ({"age": {"$gt": 6, "$lt": 8}}, True),
        ({"age": {"$gt": 7}}, False),
        ({"age": {"$gte": 7}}, True),
        ({"age": {"$lt": 7}}, False),
        ({"age": {"$lte": 7}}, True),
        ({"alive": {"$gte": 0}}, False),
        ({"name": {"$gt": 1}}, False),
        ({"age": {"$gt": "1"}}, False),
        ({"nope": {"$lt": 1}}, False),
        ({"day": {"$gte": "2024-01-01", "$lt": "2024-12-31"}}, True),
        ({"numbers": {"$gt": 2}}, True),
        ({"numbers": {"$gt": 3}}, False),
        ({"age": {"$in": [1, 7]}}, True),
        ({"age": {"$in": []}}, False),
        ({"age": {"$in": ["7", True]}}, False),
        ({"tags": {"$in": ["cat", "pet"]}}, True),
        ({"tags": {"$in": ["cat", "dog"]}}, False),
        ({"tags": {"$nin": ["cat", "pet"]}}, False),
        ({"tags": {"$nin": ["cat"]}}, True),
        ({"nope": {"$nin": ["cat"]}}, True),
        ({"nope": {"$nin": []}}, True),
        ({"nope": {"$in": [None]}}, False),
        ({"tags": "pet"}, True),
        ({"tags": {"$ne": "pet"}}, False),
        ({"tags": ["pet", "Dog", "friend"]}, True),
        ({"tags": ["Dog", "pet", "friend"]}, False),
        ({"tags": {"$ne": ["pet"]}}, True),
        ({"owner": None}, True),
        ({"nope": None}, True),
        ({"age": None}, False),
        ({"nope": {"$ne": None}}, False),
        ({"owner": {"$exists": True}}, True),
        ({"nope": {"$exists": True}}, False),
        ({"nope": {"$exists": False}}, True),
        ({"address.geo.lat": {"$exists": True}}, True),
        ({"name": {"$contains": "the"}}, True),
        ({"name": {"$contains": "THE"}}, False),
        ({"name": {"$icontains": "THE"}}, True),
        ({"tags": {"$contains": "frie"}}, True),
        ({"age": {"$contains": "7"}}, False),
        ({"name": {"$startsWith": "Rex"}}, True),
        ({"name": {"$startsWith": "rex"}}, False),
        ({"name": {"$endsWith": "dog"}}, True),
        ({"name": {"$endsWith": "Rex"}}, False),
        ({"name": {"$glob": "Rex*d?g"}}, True),
        ({"name": {"$glob": "Rex"}}, False),
        ({"name": {"$glob": "*"}}, True),
        ({"text": {"$glob": "first*(line) 100%"}}, True),
        ({"text": {"$glob": "first*[line]*"}}, False),
        ({"name": {"$regex": "d.g$"}}, True),
        ({"name": {"$regex": "^dog"}}, False),
        ({"name": {"$regex": "(?i)^REX"}}, True),
        ({"tags": {"$arrayContains": "pet"}}, True),
        ({"tags": {"$arrayContains": "cat"}}, False),
        ({"name": {"$arrayContains": "Rex the dog"}}, False),
        ({"numbers": {"$arrayContains": 2.0}}, True),
        ({"numbers": {"$arrayContains": "2"}}, False),
        ({"tags": {"$arrayContainsAll": ["friend", "pet"]}}, True),
        ({"tags": {"$arrayContainsAll": ["friend", "cat"]}}, False),
        ({"tags": {"$arrayContainsAll": []}}, True),
        ({"empty": {"$arrayContainsAll": []}}, True),
        ({"name": {"$arrayContainsAll": []}}, False),
        ({"tags": {"$arrayContainsAny": ["cat", "pet"]}}, True),
        ({"tags": {"$arrayContainsAny": ["cat"]}}, False),
        ({"empty": {"$arrayContainsAny": ["cat"]}}, False),
        ({"address.city": "Berlin"}, True),
        ({"address.city.x": "Berlin"}, False),
        ({"dotted.key": "literal"}, True),
        ({"$and": [{"age": 7}, {"alive": True}]}, True),
        ({"$and": [{"age": 7}, {"alive": False}]}, False),
        ({"$or": [{"age": 8}, {"alive": True}]}, True),
        ({"$or": [{"age": 8}, {"alive": False}]}, False),
        ({"$not": {"age": 7}}, False),
        ({"$not": {"age": 8}}, True),
        ({"age": {"$not": {"$gt": 7}}}, True),
        ({"nope": {"$not": {"$gt": 7}}}, True),
        ({"age": 7, "alive": False}, False),
        ({"age": 7, "$or": [{"name": "x"}, {"tags": "pet"}]}, True),
        ({}, True),
        (None, True),
    ],
)
def test_operator_means_what_the_contract_says(expression: Any, expected: bool) -> None:
    assert match(parse(expression), RECORD) is expected


def test_integers_beyond_float_precision_compare_exactly() -> None:
    record = {"n": 2**53 + 1}
    assert not match(parse({"n": 2**53}), record)
    assert match(parse({"n": {"$gt": 2**53}}), record)


@pytest.mark.parametrize(
    ("expression", "place"),
    [
        (5, "filter"),
        ([], "filter"),
        ({"a": {}}, "filter.a"),
        ({"a": {"$near": 1}}, "filter.a.$near"),
        ({"a": {"b": 1}}, "filter.a.b"),
        ({"$nor": []}, "filter.$nor"),
        ({"$and": []}, "filter.$and"),
        ({"$and": {"a": 1}}, "filter.$and"),
        ({"$or": [{"a": 1}, 3]}, "filter.$or[1]"),
        ({"$or": [{"a": {"$in": 3}}]}, "filter.$or[0].a.$in"),
        ({"$not": 3}, "filter.$not"),
        ({"a": {"$gt": None}}, "filter.a.$gt"),
        ({"a": {"$gt": True}}, "filter.a.$gt"),
        ({"a": {"$gt": [1]}}, "filter.a.$gt"),
        ({"a": {"$gt": float("nan")}}, "filter.a.$gt"),
        ({"a": float("inf")}, "filter.a"),
        ({"a": {"$in": "x"}}, "filter.a.$in"),
        ({"a": {"$in": [1, [2]]}}, "filter.a.$in[1]"),
        ({"a": {"$in": list(range(MAX_OPERANDS + 1))}}, "filter.a.$in"),
        ({"a": {"$exists": 1}}, "filter.a.$exists"),
        ({"a": {"$contains": 1}}, "filter.a.$contains"),
        ({"a": {"$glob": None}}, "filter.a.$glob"),
        ({"a": {"$regex": "("}}, "filter.a.$regex"),
        ({"a": {"$regex": "(?=x)"}}, "filter.a.$regex"),
        ({"a": {"$regex": r"(x)\1"}}, "filter.a.$regex"),
        ({"a": {"$regex": "x" * (MAX_PATTERN_CHARS + 1)}}, "filter.a.$regex"),
        ({"a": {"$regex": "((a{100}){100}){100}"}}, "filter.a.$regex"),
        ({"a": "\ud800"}, "filter.a"),
        ({"a": "x" * 10_000}, "filter.a"),
        ({"a": {"$arrayContains": [1]}}, "filter.a.$arrayContains"),
        ({"a": {"$arrayContainsAny": 1}}, "filter.a.$arrayContainsAny"),
        ({"": 1}, "filter."),
        ({f"f{i}": 1 for i in range(MAX_CONDITIONS + 1)}, "filter"),
        ({"$and": [{"a": 1, "b": 2}] * MAX_CONDITIONS}, "filter"),
    ],
)
def test_refusal_names_the_place(expression: Any, place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(expression)
    assert caught.value.field == place
    assert place in caught.value.message


def test_depth_is_bounded_for_both_kinds_of_nesting() -> None:
    deep: Any = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        deep = {"$not": deep}
    parse(deep)
    with pytest.raises(InvalidRequestError, match="nested"):
        parse({"$not": deep})
    inner: Any = {"$gt": 1}
    for _ in range(200):
        inner = {"$not": inner}
    with pytest.raises(InvalidRequestError, match="nested"):
        parse({"a": inner})


def test_patterns_take_linear_time() -> None:
    hostile = parse({"a": {"$regex": "^(a+)+$"}})
    started = time.process_time()
    assert not match(hostile, {"a": "a" * 5_000 + "b"})
    # A backtracking engine needs about 2^5000 steps here; any finite bound tells them apart.
    assert time.process_time() - started < 5


@given(records, expressions)
def test_not_is_the_opposite_and_negations_mirror(record: dict[str, Any], expression: dict[str, Any]) -> None:
    assert match(parse({"$not": expression}), record) is not match(parse(expression), record)


@given(
    records, st.sampled_from(["a", "b", "c.d"]), st.lists(st.sampled_from(["x", "y", 1, 2.5, True, None]), max_size=4)
)
def test_ne_and_nin_negate_eq_and_in(record: dict[str, Any], field: str, values: list[Any]) -> None:
    assert match(parse({field: {"$nin": values}}), record) is not match(parse({field: {"$in": values}}), record)
    for value in values:
        assert match(parse({field: {"$ne": value}}), record) is not match(parse({field: {"$eq": value}}), record)


@given(records, st.lists(expressions, min_size=1, max_size=4))
def test_and_or_agree_with_all_and_any(record: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    single = [match(parse(part), record) for part in parts]
    assert match(parse({"$and": parts}), record) is all(single)
    assert match(parse({"$or": parts}), record) is any(single)


@given(st.text("ab\n*?.[\\", max_size=8), st.text("ab\n*?.[\\", max_size=10))
@settings(max_examples=300)
def test_glob_agrees_with_a_naive_matcher(pattern: str, text: str) -> None:
    def matches(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return any(matches(p[1:], t[i:]) for i in range(len(t) + 1))
        return bool(t) and p[0] in ("?", t[0]) and matches(p[1:], t[1:])

    assert match(parse({"a": {"$glob": pattern}}), {"a": text}) is matches(pattern, text)


def test_resolve_prefers_the_literal_key_and_tells_null_from_missing() -> None:
    assert resolve({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert resolve({"a": {"b": None}}, "a.b") is None
    assert resolve({"a": 3}, "a.b") is MISSING


def test_complexity_and_fields() -> None:
    assert complexity(None) is complexity(EVERYTHING) is Complexity.NONE
    assert complexity(parse({"a": 1})) is Complexity.SIMPLE
    assert complexity(parse({"a": 1, "b": {"$gt": 2}})) is Complexity.MODERATE
    assert complexity(parse({"a": {"$regex": "x"}})) is Complexity.COMPLEX
    assert complexity(parse({f"f{i}": 1 for i in range(6)})) is Complexity.COMPLEX
    assert fields(parse({"a": 1, "$not": {"b.c": {"$in": [1]}}})) == {"a", "b.c"}


def test_every_operator_is_covered_by_the_table() -> None:
    table = test_operator_means_what_the_contract_says.pytestmark[0].args[1]
    text = repr([expression for expression, _ in table])
    assert [operator.value for operator in Operator if f"'{operator.value}'" not in text] == []
