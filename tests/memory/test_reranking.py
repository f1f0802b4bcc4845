from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dakera_cluster.inference import store
from dakera_cluster.inference.models import Task
from dakera_cluster.inference.pairs import Pair, PairScorer
from dakera_cluster.inference.reranker import Reranker, RerankerSettings, UnavailableReranker
from dakera_cluster.memory.reranking import CrossEncoding, RerankReport
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.rows import put_document
from dakera_cluster.retrieval.options import Rerank
from dakera_cluster.shard.ops import Hit, Hits
from tests.support.pair_models import BERT, telling_weights, write_pair_model

TEXTS = {"e": "one two", "d": "fish two", "c": "two one", "b": "fish fish", "a": "fish one", "f": "two fish"}


class PairAtATime(PairScorer):
    """The real scorer; every pass takes a second of its own clock."""

    now_s = 0.0

    def batches(self, pairs: Sequence[Pair]) -> list[range]:
        return [range(place, place + 1) for place in range(len(pairs))]

    def forward(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        self.now_s += 1
        return super().forward(pairs)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> store.InstalledModel:
    folder = tmp_path_factory.mktemp("models")
    model = write_pair_model(folder / "telling", BERT, telling_weights(BERT))
    store.pull(str(model), folder / "cache")
    return store.find(str(model), folder / "cache", task=Task.RERANKER)


def found() -> Hits:
    """In late order, as TEXTS is written."""
    hits = [
        Hit(row_id, 0.9 - 0.1 * place, body=put_document(Stamp(1, 1), {"text": text}), features={"bm25": 1.0})
        for place, (row_id, text) in enumerate(TEXTS.items())
    ]
    return Hits(hits, 6, 6, reranked=True)


async def crossed(
    installed: store.InstalledModel, k: int, **settings: float
) -> tuple[str, Sequence[Hit], RerankReport]:
    scorer = PairAtATime(installed)
    reranker = Reranker(scorer, RerankerSettings(**settings), lambda: scorer.now_s)  # type: ignore[arg-type]
    hits, report = await CrossEncoding(reranker).reranked("which animal ?", found(), k)
    await reranker.close()
    return "".join(hit.id for hit in hits), hits, report


async def test_equal_scores_go_by_id(installed: store.InstalledModel) -> None:
    order, hits, _ = await crossed(installed, 6, budget_ms=60_000)
    assert order == "badfce"
    assert hits[1].score == hits[2].score == hits[3].score < hits[0].score
    assert hits[0].features is not None and hits[0].features["bm25"] == 1.0
    assert hits[0].features["late_score"] == pytest.approx(0.6)


async def test_what_time_leaves_out_keeps_its_late_order_behind_the_rest(installed: store.InstalledModel) -> None:
    order, hits, report = await crossed(installed, 6, budget_ms=2500)
    assert order == "d" + "ce" + "baf"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert (report.applied, report.reranker, report.candidates, report.skipped) == (True, Rerank.CROSS_ENCODER, 6, 3)
    assert report.reason == "the time ran out"


async def test_memories_beyond_the_candidates_stay_behind_them(installed: store.InstalledModel) -> None:
    order, _, report = await crossed(installed, 6, budget_ms=60_000, candidates=2)
    assert order == "de" + "cbaf"
    assert (report.candidates, report.skipped, report.reason) == (2, 0, None)
    assert (await crossed(installed, 1, budget_ms=60_000, candidates=2))[0] == "d"


async def test_without_a_model_nothing_is_touched() -> None:
    encoding = CrossEncoding(UnavailableReranker("mine", "it is not there"))
    assert encoding.wanted(7) == 7
    hits, report = await encoding.reranked("which ?", found(), 4)
    assert hits == found().hits[:4]
    assert (report.applied, report.reranker, report.reason) == (False, Rerank.LATE, "it is not there")


async def test_nothing_found_is_nothing_to_rerank(installed: store.InstalledModel) -> None:
    reranker = Reranker(PairScorer(installed))
    hits, report = await CrossEncoding(reranker).reranked("which ?", Hits([], 0, 0), 4)
    assert (hits, report.applied, report.candidates, report.reason) == ([], False, 0, None)
    await reranker.close()
