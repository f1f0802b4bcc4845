from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dakera_cluster.inference import store
from dakera_cluster.inference.models import Task, UnknownModelError
from dakera_cluster.inference.pairs import Pair, PairScorer
from dakera_cluster.inference.reranker import (
    OUT_OF_TIME,
    SHUTTING_DOWN,
    TOO_MANY_WAIT,
    Reranker,
    RerankerSettings,
    UnavailableReranker,
    open_reranker,
)
from tests.support.pair_models import BERT, XLM_ROBERTA, telling_weights, write_pair_model

from .test_sources import Handler, serving

QUERY = "which animal swims ?"
TEXTS = ["one two fish", "fish fish fish", "one two three", "fish one fish"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> store.InstalledModel:
    folder = tmp_path_factory.mktemp("models")
    model = write_pair_model(folder / "tiny", BERT, telling_weights(BERT))
    store.pull(str(model), folder / "cache")
    return store.find(str(model), folder / "cache", task=Task.RERANKER)


class SteppedScorer(PairScorer):
    """The real scorer, a pass of which takes a second of its own clock and can be held up."""

    def __init__(self, installed: store.InstalledModel) -> None:
        super().__init__(installed, max_batch_tokens=1)
        self.now_s = 0.0
        self.passes = 0
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def forward(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        self.entered.set()
        assert self.go.wait(30)
        self.passes += 1
        self.now_s += 1
        return super().forward(pairs)

    def clock_s(self) -> float:
        return self.now_s


def stepped(installed: store.InstalledModel, **settings: float) -> tuple[SteppedScorer, Reranker]:
    scorer = SteppedScorer(installed)
    return scorer, Reranker(scorer, RerankerSettings(**settings), scorer.clock_s)  # type: ignore[arg-type]


async def test_every_text_is_scored_when_there_is_time(installed: store.InstalledModel) -> None:
    _, reranker = stepped(installed, budget_ms=60_000)
    scores = await reranker.score(QUERY, TEXTS)
    assert np.argsort(-scores.logits).tolist() == [1, 3, 0, 2]
    assert scores.reason == ""
    assert len((await reranker.score(QUERY, [])).logits) == 0
    await reranker.close()


async def test_time_that_runs_out_leaves_the_tail_unscored(installed: store.InstalledModel) -> None:
    scorer, reranker = stepped(installed, budget_ms=1500)
    scores = await reranker.score(QUERY, TEXTS)
    assert scorer.passes == len(scores.logits) == 2
    _, unhurried = stepped(installed, budget_ms=60_000)
    np.testing.assert_array_equal(scores.logits, (await unhurried.score(QUERY, TEXTS)).logits[:2])
    await reranker.close()
    await unhurried.close()


async def test_waiting_counts_as_time(installed: store.InstalledModel) -> None:
    scorer, reranker = stepped(installed, budget_ms=3500)
    scorer.go.clear()  # no time goes by before both have begun to wait
    asked = [asyncio.create_task(reranker.score(QUERY, TEXTS)) for _ in range(2)]
    await asyncio.to_thread(scorer.entered.wait, 30)
    scorer.go.set()
    first, second = await asyncio.gather(*asked)
    assert (len(first.logits), first.reason) == (4, "")
    assert (len(second.logits), second.reason) == (0, OUT_OF_TIME)
    assert scorer.passes == 4
    await reranker.close()


async def test_candidates_beyond_the_bound_are_not_scored(installed: store.InstalledModel) -> None:
    scorer, reranker = stepped(installed, budget_ms=60_000, candidates=3)
    assert len((await reranker.score(QUERY, TEXTS)).logits) == scorer.passes == 3
    await reranker.close()


async def test_a_full_queue_answers_at_once_and_a_cancelled_request_costs_no_further_pass(
    installed: store.InstalledModel,
) -> None:
    scorer, reranker = stepped(installed, budget_ms=60_000, max_waiting=1)
    scorer.go.clear()
    held = asyncio.create_task(reranker.score(QUERY, TEXTS))
    await asyncio.to_thread(scorer.entered.wait, 30)
    assert (await reranker.score(QUERY, TEXTS)).reason == TOO_MANY_WAIT
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    scorer.go.set()
    await reranker.close()
    assert scorer.passes == 1
    assert (await reranker.score(QUERY, TEXTS)).reason == SHUTTING_DOWN


async def test_a_model_that_fails_scores_nothing_and_says_so(installed: store.InstalledModel) -> None:
    class Broken(PairScorer):
        def forward(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
            raise RuntimeError("out of registers")

    reranker = Reranker(Broken(installed))
    scores = await reranker.score(QUERY, TEXTS)
    assert len(scores.logits) == 0 and "out of registers" in scores.reason
    await reranker.close()


async def test_without_its_files_it_says_what_to_run(tmp_path: Path) -> None:
    reranker = open_reranker("bge-reranker-base", tmp_path)
    assert isinstance(reranker, UnavailableReranker)
    assert "run `dakera models pull bge-reranker-base`" in reranker.reason
    scores = await reranker.score(QUERY, TEXTS)
    assert (len(scores.logits), scores.reason) == (0, reranker.reason)
    assert "no model" not in open_reranker(str(tmp_path / "absent"), tmp_path).reason
    assert not open_reranker(str(tmp_path / "absent"), tmp_path).available
    assert "DAKERA_RERANKER_ENABLED" in open_reranker(cache_dir=tmp_path, enabled=False).reason
    with pytest.raises(UnknownModelError, match="bge-reranker-base"):
        open_reranker("minilm", tmp_path)


@pytest.mark.parametrize("damaged", ["tokenizer.json", "model.onnx"])
def test_files_that_cannot_be_read_make_it_unavailable(tmp_path: Path, damaged: str) -> None:
    folder = write_pair_model(tmp_path / "model", BERT, telling_weights(BERT))
    (folder / "model.safetensors").unlink()
    (folder / "model.onnx").write_bytes(b"\0")
    (folder / damaged).write_bytes(b"no model")
    reranker = open_reranker(str(folder), tmp_path / "cache")
    assert not reranker.available and "cannot be read" in reranker.reason


async def test_the_catalogues_reranker_is_pulled_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_pair_model(tmp_path / "model", XLM_ROBERTA, telling_weights(XLM_ROBERTA))

    class Hub(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.server.asked.append((self.path, None))
            body = (model / self.path.rsplit("/", 1)[1]).read_bytes()
            self.answer(200, body, X_Linked_Etag=f'"{hashlib.sha256(body).hexdigest()}"')

    with serving(Hub) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        store.pull("BAAI/bge-reranker-base", tmp_path / "cache")
    assert all(path.startswith("/BAAI/bge-reranker-base/resolve/") for path, _ in hub.asked)
    reranker = open_reranker(cache_dir=tmp_path / "cache")
    assert reranker.available and reranker.name == "bge-reranker-base"
    scores = await reranker.score(QUERY, TEXTS)
    assert np.argsort(-scores.logits).tolist() == [1, 3, 0, 2]
    await reranker.close()
