"""The merge laws: whatever order replicas hear of writes in, and however often, they end with the same bytes."""

from __future__ import annotations

import itertools
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.hlc import NEVER, Stamp
from dakera_cluster.model.rows import (
    Document,
    Kind,
    Usage,
    UsageEntry,
    decode_document,
    decode_usage,
    delete_document,
    delete_usage,
    encode_value,
    is_tombstone,
    merge,
    note_usage,
    outrun_by,
    patch_document,
    put_document,
    version_of,
)

# Few stamps and few names, so that collisions of every sort are common rather than rare.
stamps = st.builds(Stamp, st.integers(1, 6), st.integers(1, 2))
names = st.sampled_from(["a", "b", "c"])
scalars = st.sampled_from([None, 0, 1, 1.0, True, False, 0.0, -0.0, float("nan"), "x", "", b"x"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2), max_leaves=3
)
fields = st.dictionaries(names, values, max_size=3)
documents = st.one_of(
    st.builds(put_document, stamps, fields),
    st.builds(patch_document, stamps, fields),
    st.builds(delete_document, stamps),
)
usages = st.one_of(st.builds(note_usage, st.integers(1, 3), st.integers(1, 4), stamps), st.builds(delete_usage, stamps))


def bodies(kind: Kind) -> st.SearchStrategy[bytes]:
    return usages if kind is Kind.USAGE else documents


def merged(kind: int, *parts: bytes) -> bytes:
    body: bytes | None = None
    for part in parts:
        body = merge(kind, body, part)
    assert body is not None
    return body


@pytest.mark.parametrize("kind", [Kind.DOCUMENT, Kind.USAGE, Kind.EDGE])
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_merge_is_commutative_associative_and_idempotent(kind: Kind, data: st.DataObject) -> None:
    a, b, c = (data.draw(bodies(kind)) for _ in range(3))
    assert merged(kind, a, b) == merged(kind, b, a)
    assert merge(kind, merged(kind, a, b), c) == merge(kind, merged(kind, a), merged(kind, b, c))
    once = merged(kind, a, b, c)
    assert all(merge(kind, once, part) == once for part in (a, b, c, once))


@pytest.mark.parametrize("kind", [Kind.DOCUMENT, Kind.USAGE])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_order_of_delivery_and_grouping_ends_in_the_same_bytes(kind: Kind, data: st.DataObject) -> None:
    parts = data.draw(st.lists(bodies(kind), min_size=2, max_size=4))
    expected = merged(kind, *parts)
    for order in itertools.permutations(parts):
        assert merged(kind, *order) == expected
        singles = [merged(kind, part) for part in order]
        assert reduce(lambda left, right: merge(kind, right, left), singles) == expected


@given(st.lists(documents, min_size=1, max_size=5), stamps, st.lists(st.builds(patch_document, stamps, fields)))
@settings(max_examples=200, deadline=None)
def test_no_patch_brings_a_deleted_document_back(history: list[bytes], deleted: Stamp, patches: list[bytes]) -> None:
    stored = decode_document(merged(Kind.DOCUMENT, *history, delete_document(deleted)))
    after = decode_document(merged(Kind.DOCUMENT, *history, delete_document(deleted), *patches))
    assert after.alive == stored.alive
    assert (after.birth, after.deleted) == (stored.birth, stored.deleted)


@given(st.lists(documents, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_the_document_shows_for_each_field_what_a_replay_in_stamp_order_shows(history: list[bytes]) -> None:
    """A sequential model: apply whole writes in stamp order. Only histories without equal stamps have one answer."""
    used = [version_of(Kind.DOCUMENT, body) for body in history]
    if len(set(used)) != len(used):
        return
    alive, shown = False, dict[str, Any]()
    pending = dict[str, Any]()
    for _, body in sorted(zip(used, history, strict=True), key=lambda pair: pair[0]):
        document = decode_document(body)
        if document.deleted > NEVER:
            alive, shown, pending = False, {}, {}
        elif document.birth > NEVER:
            alive, shown, pending = True, dict(document.fields), {}
        else:
            pending.update(document.fields)
            shown.update(document.fields)
    result = decode_document(merged(Kind.DOCUMENT, *history))
    assert result.alive == alive
    if alive:
        visible = {name: value for name, value in result.fields.items() if value is not None}
        assert encode_value(visible) == encode_value({k: v for k, v in shown.items() if v is not None})


def test_an_importance_patch_does_not_undo_a_concurrent_edit_of_the_content() -> None:
    put = put_document(Stamp(1, 1), {"text": "old", "importance": 0.5})
    edit = patch_document(Stamp(2, 1), {"text": "new"})
    rate = patch_document(Stamp(3, 2), {"importance": 0.9})
    for order in itertools.permutations([put, edit, rate]):
        assert decode_document(merged(Kind.DOCUMENT, *order)).fields == {"text": "new", "importance": 0.9}


def test_a_whole_put_drops_older_fields_it_does_not_name() -> None:
    body = merged(
        Kind.DOCUMENT, put_document(Stamp(1, 1), {"a": 1, "b": 1}), put_document(Stamp(2, 1), {"a": 2, "b": None})
    )
    assert decode_document(body) == Document(Stamp(2, 1), NEVER, {"a": 2}, {})


def test_values_python_calls_equal_still_merge_to_the_same_bytes() -> None:
    for left, right in itertools.permutations([1, 1.0, True, 0.0, -0.0, None, [], {}], 2):
        a, b = patch_document(Stamp(1, 1), {"f": left}), patch_document(Stamp(1, 1), {"f": right})
        assert merged(Kind.DOCUMENT, a, b) == merged(Kind.DOCUMENT, b, a)


def test_a_clearing_patch_with_the_stamp_of_a_put_loses_to_every_value() -> None:
    put, clear = put_document(Stamp(1, 1), {"a": 1}), patch_document(Stamp(1, 1), {"a": None})
    once = merged(Kind.DOCUMENT, clear, put)
    assert once == merged(Kind.DOCUMENT, put, clear) == merge(Kind.DOCUMENT, once, put)
    assert decode_document(once).fields == {"a": 1}


def test_usage_adds_over_nodes_and_forgets_what_is_older_than_a_delete() -> None:
    body = merged(
        Kind.USAGE,
        note_usage(1, 3, Stamp(10 << 16, 1)),
        note_usage(2, 4, Stamp(20 << 16, 2)),
        note_usage(1, 2, Stamp(5 << 16, 1)),
    )
    assert (decode_usage(body).count, decode_usage(body).last_access_ms) == (7, 20)
    assert decode_usage(merge(Kind.USAGE, body, delete_usage(Stamp(10 << 16, 1)))).count == 4
    gone = merge(Kind.USAGE, body, delete_usage(Stamp(20 << 16, 2)))
    assert is_tombstone(Kind.USAGE, gone)
    assert not is_tombstone(Kind.USAGE, body)


def test_merging_what_is_known_returns_the_stored_bytes() -> None:
    stored = merged(Kind.DOCUMENT, put_document(Stamp(2, 1), {"b": 1, "a": {"z": 1, "y": 2}}))
    assert merge(Kind.DOCUMENT, stored, delete_document(Stamp(1, 1))) != stored
    assert merge(Kind.DOCUMENT, stored, put_document(Stamp(1, 9), {"b": 7})) == stored


@pytest.mark.parametrize(
    ("stored", "incoming", "rival"),
    [
        (put_document(Stamp(5, 1), {"a": 1}), put_document(Stamp(4, 1), {"a": 2}), Stamp(5, 1)),
        (put_document(Stamp(5, 1), {"a": 1}), put_document(Stamp(6, 1), {"a": 2}), None),
        (delete_document(Stamp(5, 1)), put_document(Stamp(4, 1), {"a": 2}), Stamp(5, 1)),
        (put_document(Stamp(5, 1), {"a": 1}), delete_document(Stamp(4, 1)), Stamp(5, 1)),
        (put_document(Stamp(5, 1), {"a": 1}), delete_document(Stamp(5, 1)), None),
        (put_document(Stamp(5, 1), {"a": 1}), patch_document(Stamp(4, 1), {"b": 2}), Stamp(5, 1)),
        (delete_document(Stamp(5, 1)), patch_document(Stamp(4, 1), {"a": 2}), None),
        (delete_document(Stamp(5, 1)), delete_document(Stamp(4, 1)), None),
    ],
)
def test_a_replica_tells_which_stamp_a_late_stamped_write_loses_to(
    stored: bytes, incoming: bytes, rival: Stamp | None
) -> None:
    assert outrun_by(Kind.DOCUMENT, stored, incoming) == rival


@given(st.lists(documents, min_size=1, max_size=3), documents)
@settings(max_examples=300, deadline=None)
def test_a_write_that_is_not_outrun_takes_full_effect(history: list[bytes], incoming: bytes) -> None:
    stored = merged(Kind.DOCUMENT, *history)
    before, new = decode_document(stored), decode_document(incoming)
    after = decode_document(merge(Kind.DOCUMENT, stored, incoming))
    if outrun_by(Kind.DOCUMENT, stored, incoming) is not None or before.version == version_of(Kind.DOCUMENT, incoming):
        return
    if new.deleted > NEVER:
        assert not after.alive
    elif new.birth > NEVER:
        assert after.alive
        assert encode_value(after.fields) == encode_value(new.fields)
    elif before.alive:
        for name, value in new.fields.items():
            if before.stamps.get(name, before.birth) != new.stamps[name]:
                assert encode_value(after.fields[name]) == encode_value(value)


def test_bytes_that_are_no_body_are_reported_as_corruption() -> None:
    for kind in (Kind.DOCUMENT, Kind.USAGE):
        with pytest.raises(CorruptionError):
            merge(kind, None, b"\xc1nonsense")
    with pytest.raises(CorruptionError):
        merge(Kind.DOCUMENT, b"\x93", delete_document(Stamp(1, 1)))


def test_a_tombstone_keeps_none_of_the_deleted_content() -> None:
    body = merged(Kind.DOCUMENT, put_document(Stamp(1, 1), {"text": "secret"}), delete_document(Stamp(2, 1)))
    assert is_tombstone(Kind.DOCUMENT, body)
    assert b"secret" not in body


@given(st.lists(usages, min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_usage_keeps_of_each_node_the_youngest_entry_behind_the_last_delete(history: list[bytes]) -> None:
    parts = [decode_usage(body) for body in history]
    deleted = max(part.deleted for part in parts)
    entries = dict[int, UsageEntry]()
    for node in {node for part in parts for node in part.entries}:
        noted = [part.entries[node] for part in parts if node in part.entries]
        youngest = max(noted, key=lambda entry: (entry.stamp, entry.count))
        if youngest.stamp > deleted:
            entries[node] = youngest
    body = merged(Kind.USAGE, *history)
    assert decode_usage(body) == Usage(deleted, entries)
    assert list(decode_usage(body).entries) == sorted(entries)
    assert version_of(Kind.USAGE, body) == max([deleted, *(entry.stamp for entry in entries.values())])
    assert is_tombstone(Kind.USAGE, body) == (not entries)


def test_a_count_whose_bytes_end_like_those_of_no_counts_is_no_tombstone() -> None:
    body = note_usage(1, 1, Stamp(1 << 16, 0x12345680))
    assert body.endswith(b"\x80")
    assert not is_tombstone(Kind.USAGE, body)
