"""The cross-encoder's turn in a recall: the head of the late order, put in the order of a model that reads question and
memory together.

Invariants: the pool is the same number of candidates whatever ``top_k`` is, so a list of ten is the head of the list of
fifty; equal scores go by id; what was not scored (beyond the pool, or beyond the time) follows in its late order, with
scores below; when nothing could be scored the late order stands and the report says why. Called by memory/recall.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from dakera_cluster.inference.reranker import Reranker, UnavailableReranker
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import decode_document
from dakera_cluster.retrieval.options import Rerank
from dakera_cluster.shard.ops import Hit, Hits

CROSS_ENCODER_SPELLINGS = (Rerank.CROSS_ENCODER.value, "cross_encoder")
FEATURE = "cross_encoder"


class RerankReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What ordered an answer. ``applied``: whether what was asked for (by the request or by default) ran. ``reranker``: what
    did run. ``candidates``: how many it was given; ``skipped``: those of them left in the order they had, for want of time
    or of the model, for the ``reason`` given. ``model``: the pair model's name."""

    applied: bool
    reranker: Rerank
    candidates: int
    skipped: int
    model: str | None = None
    reason: str | None = None


class CrossEncoding:
    """The node's pair model, applied to what a recall found."""

    def __init__(self, reranker: Reranker | UnavailableReranker) -> None:
        self._reranker = reranker

    def wanted(self, k: int) -> int:
        """How many hits to ask for when ``k`` are to be answered."""
        return max(k, self._reranker.candidates)

    async def reranked(self, query: str, found: Hits, k: int) -> tuple[list[Hit], RerankReport]:
        """The best ``k`` of the hits found, and how they came into their order."""
        hits = found.hits
        pool = hits[: self._reranker.candidates] if self._reranker.available else hits
        texts = [_text(hit) for hit in pool] if self._reranker.available else []
        scores = await self._reranker.score(query, texts)
        scored = len(scores.logits)
        report = RerankReport(
            applied=scored > 0,
            reranker=Rerank.CROSS_ENCODER if scored else late_or_none(found),
            candidates=len(pool),
            skipped=len(pool) - scored,
            model=self._reranker.name,
            reason=scores.reason or ("the time ran out" if scored < len(pool) else None),
        )
        if not scored:
            return hits[:k], report
        return _merged(hits, scores.logits.tolist())[:k], report


def late_or_none(found: Hits) -> Rerank:
    return Rerank.LATE if found.reranked else Rerank.NONE


def plain_report(found: Hits) -> RerankReport:
    """The report of a recall that did not ask for the cross-encoder."""
    return RerankReport(applied=found.reranked, reranker=late_or_none(found), candidates=found.matched, skipped=0)


def _merged(hits: Sequence[Hit], logits: Sequence[float]) -> list[Hit]:
    """The first hits by their logits, the others behind them."""
    order = sorted(range(len(logits)), key=lambda place: (-logits[place], hits[place].id))
    head = [_rescored(hits[place], _sigmoid(logits[place]), logits[place]) for place in order]
    # Late scores lie in (0, 1): under the lowest score of the head they keep falling with the rank.
    floor = head[-1].score
    return head + [_rescored(hit, floor * hit.score, None) for hit in hits[len(logits) :]]


def _rescored(hit: Hit, score: float, logit: float | None) -> Hit:
    features = hit.features
    if features is not None and logit is not None:
        features = {**features, "late_score": hit.score, FEATURE: logit}
    return msgspec.structs.replace(hit, score=score, features=features)


def _sigmoid(logit: float) -> float:
    return 0.5 * (1.0 + math.tanh(logit / 2))


def _text(hit: Hit) -> str:
    return str(decode_document(hit.body).fields.get(Field.TEXT) or "")
