"""Hypothesis strategies for records and filter expressions that are likely to meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

FIELDS = ("a", "b", "c.d")

scalars = st.one_of(
    st.sampled_from(["x", "y", "xy", "X", "", "é"]),
    st.integers(-3, 3),
    st.sampled_from([0.5, -1.5, 2.0, 2**53, 2**53 + 1, -(2**60), 10**400]),
    st.booleans(),
    st.none(),
)
values = st.one_of(scalars, st.lists(scalars, max_size=4), st.just({"z": 1}), st.lists(st.just([1]), max_size=1))
records: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b"]), values),
    st.fixed_dictionaries({"a": values, "c": st.one_of(scalars, st.dictionaries(st.just("d"), values))}),
)

_operands = {
    "$eq": st.one_of(scalars, st.lists(scalars, max_size=3)),
    "$ne": st.one_of(scalars, st.lists(scalars, max_size=3)),
    "$exists": st.booleans(),
    **{name: st.lists(scalars, max_size=4) for name in ("$in", "$nin", "$arrayContainsAny")},
    "$arrayContainsAll": st.one_of(st.lists(scalars, max_size=3), st.lists(scalars, min_size=10, max_size=12)),
    "$arrayContains": scalars,
    **{
        name: scalars.filter(lambda value: value is not None and not isinstance(value, bool))
        for name in ("$gt", "$gte", "$lt", "$lte")
    },
    **{
        name: st.sampled_from(["x", "y", "", "É", "X"])
        for name in ("$contains", "$icontains", "$startsWith", "$endsWith")
    },
    "$glob": st.sampled_from(["*", "?", "x*", "*y", "??"]),
    "$regex": st.sampled_from(["x", "^y", "x|y", "^$", "(?i)x"]),
}
_conditions = st.one_of(
    *(st.fixed_dictionaries({name: operand}) for name, operand in _operands.items()),
    st.lists(st.sampled_from(sorted(_operands)), min_size=2, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: _operands[name] for name in names})
    ),
    scalars,
)
_leaves = st.dictionaries(st.sampled_from(FIELDS), _conditions, min_size=1, max_size=2)
expressions: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=6,
)
"""Valid filter expressions (decoded JSON)."""
