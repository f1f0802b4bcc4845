"""Columns answer exactly what ``match`` answers, for every record, whatever happened to the rows before."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.index.columns import Columns
from dakera_cluster.model.filters import MISSING, match, parse, resolve
from tests.support.filter_strategies import expressions, records


class Rows:
    """The owner's side: the records by slot, and a count of the columns it was asked for."""

    def __init__(self, rows: dict[int, dict[str, Any]]) -> None:
        self.rows = rows
        self.fetched: list[str] = []

    def fetch(self, field: str) -> list[tuple[int, Any]]:
        self.fetched.append(field)
        found = [(slot, resolve(record, field)) for slot, record in self.rows.items()]
        return [(slot, value) for slot, value in found if value is not MISSING]


def expected(rows: dict[int, dict[str, Any]], expression: Any, slots: int) -> list[bool]:
    parsed = parse(expression)
    return [match(parsed, rows.get(slot, {})) for slot in range(slots)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 4), records),
        st.tuples(st.just("remove"), st.integers(0, 4)),
        st.tuples(st.just("mask"), expressions, st.integers(0, 14)),
    ),
    min_size=1,
    max_size=25,
)


@given(steps, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_mask_equals_match_under_any_history(history: list[tuple[Any, ...]], max_columns: int) -> None:
    owner = Rows({})
    columns = Columns(owner.fetch, max_columns=max_columns)
    for step in history:
        if step[0] == "set":
            owner.rows[step[1]] = step[2]
            columns.set(step[1], step[2])
        elif step[0] == "remove":
            owner.rows.pop(step[1], None)
            columns.remove(step[1])
        else:
            assert columns.mask(parse(step[1]), step[2]).tolist() == expected(owner.rows, step[1], step[2])
        assert len(columns.fields) <= max_columns


@given(st.lists(records, min_size=1, max_size=12), st.lists(expressions, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_mask_equals_match_on_fresh_columns(rows: list[dict[str, Any]], filters: list[dict[str, Any]]) -> None:
    owner = Rows(dict(enumerate(rows)))
    columns = Columns(owner.fetch)
    for expression in filters:
        assert columns.mask(parse(expression), len(rows)).tolist() == expected(owner.rows, expression, len(rows))


def test_nothing_is_fetched_before_a_filter_asks_and_then_only_once() -> None:
    owner = Rows({0: {"a": 1}, 1: {"b": "x"}})
    columns = Columns(owner.fetch)
    columns.set(2, {"a": 3})
    owner.rows[2] = {"a": 3}
    assert owner.fetched == [] and columns.memory_bytes == 0
    for _ in range(3):
        assert columns.mask(parse({"a": {"$gte": 1}}), 3).tolist() == [True, False, True]
    assert owner.fetched == ["a"]


def test_a_value_of_any_kind_replaces_one_of_any_other() -> None:
    values: list[Any] = [None, True, 7, 2**60, "x", ["x"], {"z": 1}, MISSING]
    for before in values:
        for after in values:
            columns = Columns(lambda _: [])
            columns.mask(parse({"a": 1}), 1)
            columns.set(0, {} if before is MISSING else {"a": before})
            record = {} if after is MISSING else {"a": after}
            columns.set(0, record)
            for wanted in (None, True, 7, 2**60, "x"):
                expression = {"a": wanted}
                assert columns.mask(parse(expression), 1).tolist() == [match(parse(expression), record)]


def test_least_recently_used_column_is_dropped_and_comes_back() -> None:
    owner = Rows({0: {"a": 1, "b": 2, "c": {"d": 3}}})
    columns = Columns(owner.fetch, max_columns=2)
    for field in ("a", "b", "a", "c.d"):
        columns.mask(parse({field: {"$exists": True}}), 1)
    assert columns.fields == ("a", "c.d")
    assert columns.mask(parse({"b": 2}), 1).tolist() == [True]
    assert owner.fetched == ["a", "b", "c.d", "b"]


def test_columns_are_bounded_in_bytes() -> None:
    owner = Rows({slot: {"a": f"value {slot}", "b": f"other {slot}"} for slot in range(2_000)})
    columns = Columns(owner.fetch, max_bytes=400_000)
    for field in ("a", "b", "a", "b"):
        assert columns.mask(parse({field: {"$contains": "99"}}), 2_000).sum() == 38
        assert len(columns.fields) == 1


def test_column_full_of_outdated_values_is_rebuilt() -> None:
    owner = Rows({0: {"a": "start"}})
    columns = Columns(owner.fetch)
    columns.mask(parse({"a": "start"}), 1)
    largest = 0
    for number in range(5_000):
        owner.rows[0] = {"a": f"value {number}"}
        columns.set(0, owner.rows[0])
        assert columns.mask(parse({"a": f"value {number}"}), 1).tolist() == [True]
        largest = max(largest, columns.memory_bytes)
    assert largest < 5_000 * 60
    assert len(owner.fetched) > 1


def test_large_columns_agree_with_match() -> None:
    rng = np.random.default_rng(5)
    rows = {
        slot: {
            "price": float(rng.integers(0, 100)),
            "city": f"city {rng.integers(0, 50)}",
            "tags": [f"t{tag}" for tag in rng.integers(0, 30, size=rng.integers(0, 5))],
        }
        for slot in range(3_000)
    }
    columns = Columns(Rows(rows).fetch)
    for expression in (
        {"price": {"$gte": 20, "$lt": 40}},
        {"tags": {"$in": ["t1", "t2"]}, "city": {"$ne": "city 3"}},
        {"tags": {"$arrayContainsAll": ["t1", "t2"]}},
        {"$or": [{"city": {"$glob": "*1?"}}, {"tags": {"$arrayContains": "t9"}}]},
        {"$not": {"tags": {"$regex": "^t1"}}},
    ):
        mask = columns.mask(parse(expression), 3_000)
        assert mask.tolist() == expected(rows, expression, 3_000)
        assert 0 < mask.sum() < 3_000
