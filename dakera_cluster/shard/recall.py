"""Recall over one view: the engine's ranking, the winners' bodies, and, when asked for, what stood beside them.

The bridge between `retrieval` (which knows slots) and the wire (which knows ids and bodies). Called by `shard.host` in the
namespace's lane.
"""

from __future__ import annotations

import time
from itertools import repeat

import numpy as np

from dakera_cluster.model.memories import readable_in
from dakera_cluster.retrieval.engine import Ranking, rank
from dakera_cluster.retrieval.options import Settings
from dakera_cluster.retrieval.query import EmbeddedQuery
from dakera_cluster.shard.attributes import NO_SESSION
from dakera_cluster.shard.kept_rows import KeptRow
from dakera_cluster.shard.ops import Hit, Hits, Recall
from dakera_cluster.shard.replica import Replica
from dakera_cluster.shard.view import NamespaceView

NEIGHBOUR_SECONDS = 300
MAX_NEIGHBOURS = 20


def recall(view: NamespaceView, replica: Replica, request: Recall, settings: Settings) -> Hits:
    """The best memories for a question."""
    allowed = view.allowed(request.where, request.now_ms)
    embedded = EmbeddedQuery(request.vector, request.token_ids, request.token_vectors)
    query = embedded.features(request.text, request.now_ms / 1000)
    ranking = rank(view, query, request.options, settings, allowed)
    started = time.perf_counter_ns()
    slots = ranking.slots.tolist()
    hits = _hits(view, replica, slots, ranking)
    beside = _neighbours(view, slots, request.now_ms) if request.neighbours else []
    extra = _hits(view, replica, beside, None)
    timings = {**ranking.timings_us, "fetch": (time.perf_counter_ns() - started) // 1000}
    return Hits(hits, len(view), ranking.candidates, timings, extra, ranking.kind.value, ranking.reranked)


def _hits(view: NamespaceView, replica: Replica, slots: list[int], ranking: Ranking | None) -> list[Hit]:
    if not slots:
        return []
    rows = _rows(view, replica, slots)
    ids = view.ids
    if ranking is None:
        found = zip(slots, rows, strict=True)
        return [Hit(ids[slot], 0.0, None, None, row.body, row.usage) for slot, row in found if row is not None]
    features = ranking.features if ranking.features is not None else repeat(None)
    # What is no number is not equal to itself.
    return [
        Hit(
            ids[slot],
            score,
            cosine if cosine == cosine else None,
            bm25 if bm25 > 0 else None,
            row.body,
            row.usage,
            about,
            None,
            relevance,
        )
        for slot, row, relevance, score, cosine, bm25, about in zip(
            slots, rows, *ranking.columns.tolist(), features, strict=False
        )
        if row is not None
    ]


def _rows(view: NamespaceView, replica: Replica, slots: list[int]) -> list[KeptRow | None]:
    """The rows of ``slots``; None for each that is gone from the store."""
    rows = list(map(view.kept.get, slots))
    if None not in rows:
        return rows
    missing = [place for place, row in enumerate(rows) if row is None]
    # Before the read: changes up to here are in what it finds, later ones arrive in this lane after it.
    sequence = replica.sequence
    bodies, usages = replica.read_with_usage(view.namespace, [view.ids[slots[place]] for place in missing])
    for place, body, usage in zip(missing, bodies, usages, strict=True):
        if body is not None:
            rows[place] = row = KeptRow(readable_in(body), usage, sequence)
            view.keep(slots[place], row)
    return rows


def _neighbours(view: NamespaceView, slots: list[int], now_ms: int) -> list[int]:
    """Slots of memories within five minutes of a hit in its session, hits left out, in order of time and id."""
    attributes = view.attributes
    size = attributes.size
    session, when = attributes.session[:size], attributes.when()
    near = np.zeros(size, dtype=bool)
    for slot in slots:
        if session[slot] != NO_SESSION:
            near |= (session == session[slot]) & (np.abs(when - when[slot]) <= NEIGHBOUR_SECONDS)
    near[slots] = False
    found = np.flatnonzero(near & attributes.visible(now_ms)).tolist()
    return sorted(found, key=lambda slot: (when[slot], view.ids[slot]))[:MAX_NEIGHBOURS]
