"""Reads over one view: search, selection, aggregation. Pure functions of (view, rows, request).

Called by `shard.host` in the namespace's lane.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dakera_cluster.index.highlight import highlights
from dakera_cluster.model import filters
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, decode_document, encode_value
from dakera_cluster.shard.attributes import NO_SESSION, NO_TYPE, TYPES
from dakera_cluster.shard.ops import Aggregate, Group, Groups, Hit, Hits, Order, Profiled, Search, Select, Selected
from dakera_cluster.shard.ranking import Ranked, rank
from dakera_cluster.shard.records import record_of
from dakera_cluster.shard.replica import Replica
from dakera_cluster.shard.view import NamespaceView

ROWS_PER_FETCH = 256
MAX_HIGHLIGHTS = 3


def search(view: NamespaceView, replica: Replica, request: Search) -> Hits:
    """The best documents with their bodies."""
    started = time.perf_counter_ns()
    allowed = view.allowed(request.where, request.now_ms)
    ranked = rank(view, request, allowed)
    ranked_at = time.perf_counter_ns()
    hits = _hits(view, replica, request, ranked)
    matched = len(view) if allowed is None else int(allowed.sum())
    timings = {"rank": (ranked_at - started) // 1000, "fetch": (time.perf_counter_ns() - ranked_at) // 1000}
    return Hits(hits, len(view), matched, timings)


def _hits(view: NamespaceView, replica: Replica, request: Search, ranked: Ranked) -> list[Hit]:
    slots = ranked.slots.tolist()
    ids = [view.ids[slot] for slot in slots]
    bodies, usages = replica.read_with_usage(view.namespace, ids)
    hits: list[Hit] = []
    for rank_, (row_id, body) in enumerate(zip(ids, bodies, strict=True)):
        if body is None:
            continue
        marked = None
        if request.highlights and request.text:
            content = decode_document(body).fields.get(Field.TEXT) or ""
            marked = highlights(content, request.text, MAX_HIGHLIGHTS)
        hits.append(
            Hit(
                row_id,
                float(ranked.scores[rank_]),
                _known(ranked.vector[rank_]),
                _known(ranked.text[rank_]),
                body,
                usages[rank_],
                highlights=marked,
            )
        )
    return hits


def _known(score: Any) -> float | None:
    return None if math.isnan(score) else float(score)


def select(view: NamespaceView, replica: Replica, request: Select) -> Selected:
    """A page of the matching documents in the requested order, ties by id."""
    visible = view.mask(None, request.now_ms)
    mask = view.mask(request.where, request.now_ms)
    slots = np.flatnonzero(mask)
    matched, total = len(slots), int(visible.sum())
    if request.limit == 0 or matched == 0:
        return Selected([], [], [], [], total, matched)
    ids, sort_keys = _ordered(view, slots, request.order)
    if request.after is not None:
        first = int(np.searchsorted(np.array(ids, dtype=object), request.after, side="right"))
        ids, sort_keys = ids[first:], sort_keys[first:]
    page = slice(request.offset, request.offset + request.limit)
    ids, sort_keys = ids[page], sort_keys[page]
    bodies: list[bytes] = []
    if request.bodies:
        found = replica.read(view.namespace, Kind.DOCUMENT, ids)
        kept = [i for i, body in enumerate(found) if body is not None]
        ids, sort_keys = [ids[i] for i in kept], [sort_keys[i] for i in kept]
        bodies = [body for body in found if body is not None]
    usages = replica.read(view.namespace, Kind.USAGE, ids) if request.usage else []
    return Selected(ids, sort_keys, bodies, usages, total, matched)


def _ordered(view: NamespaceView, slots: Any, order: Order) -> tuple[list[str], list[float]]:
    ids = [view.ids[slot] for slot in slots.tolist()]
    if order is Order.ID:
        return sorted(ids), [0.0] * len(ids)
    column = view.attributes.created if order is Order.NEWEST else view.attributes.importance
    values = column[slots].astype(np.float64)
    by_id = np.argsort(np.array(ids, dtype=object), kind="stable")
    best_first = by_id[np.argsort(-values[by_id], kind="stable")]
    return [ids[i] for i in best_first.tolist()], values[best_first].tolist()


def profile(view: NamespaceView, now_ms: int) -> Profiled:
    """Counts over what is visible now."""
    slots = np.flatnonzero(view.attributes.visible(now_ms))
    a = view.attributes
    types, type_counts = np.unique(a.type[slots], return_counts=True)
    sessions, session_counts = np.unique(a.session[slots], return_counts=True)
    return Profiled(
        count=len(slots),
        importance_sum=float(a.importance[slots].astype(np.float64).sum()),
        oldest=int(a.created[slots].min()) if len(slots) else 0,
        newest=int(a.created[slots].max()) if len(slots) else 0,
        by_type={TYPES[t]: int(n) for t, n in zip(types, type_counts, strict=True) if t != NO_TYPE},
        by_session={a.sessions[s]: int(n) for s, n in zip(sessions, session_counts, strict=True) if s != NO_SESSION},
        by_tag=a.tag_counts(),
    )


def aggregate(view: NamespaceView, replica: Replica, request: Aggregate) -> Groups:
    """Count, sum, minimum and maximum of numeric fields over groups, in order of first document id."""
    slots = np.flatnonzero(view.mask(request.where, request.now_ms)).tolist()
    groups: dict[bytes, Group] = {}
    ids = sorted(view.ids[slot] for slot in slots)
    for start in range(0, len(ids), ROWS_PER_FETCH):
        page = ids[start : start + ROWS_PER_FETCH]
        for row_id, body in zip(page, replica.read(view.namespace, Kind.DOCUMENT, page), strict=True):
            if body is not None:
                record = record_of(view.namespace, row_id, decode_document(body).fields)
                fold(groups, [_plain(record, name) for name in request.group_by], _numbers(record, request.fields))
    return Groups(list(groups.values())[: request.limit])


def _plain(record: dict[str, Any], name: str) -> Any:
    value = filters.resolve(record, name)
    return None if value is filters.MISSING else value


def _numbers(record: dict[str, Any], fields: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name in fields:
        value = _plain(record, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = [1, value, value, value]
    return found


def fold(groups: dict[bytes, Group], key: list[Any], values: dict[str, list[Any]], count: int = 1) -> None:
    """Add ``count`` documents with ``values`` (field -> [count, sum, min, max]) to the group of ``key``."""
    name = encode_value(key)
    before = groups.get(name)
    if before is None:
        groups[name] = Group(key, count, values)
        return
    merged = dict(before.values)
    for field, (n, total, low, high) in values.items():
        if field in merged:
            m, sum_, least, most = merged[field]
            merged[field] = [m + n, sum_ + total, min(least, low), max(most, high)]
        else:
            merged[field] = [n, total, low, high]
    groups[name] = Group(before.key, before.count + count, merged)
