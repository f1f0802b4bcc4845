"""The cross-encoder over HTTP: a real node, a tiny pair model whose order can be told by looking at the texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dakera_cluster.inference import store
from tests.support.node_process import NodeProcess
from tests.support.pair_models import BERT, TELLING_WORD, telling_weights, write_pair_model

AGENT = "angler"
QUERY = "which animal swims in the deep blue sea ?"
WORDS = ["one", "two", "three", "four", "sea", "blue"]
MEMORIES, CANDIDATES = 40, 30

Recall = Callable[..., dict[str, Any]]


def start(folder: Path, **settings: str) -> NodeProcess:
    """A node with the embedding model of this machine and no other."""
    cache = folder / "cache"
    cache.mkdir()
    entry = store.pull("minilm", store.default_cache_dir())
    (cache / entry.name).symlink_to(entry)
    return NodeProcess(folder / "node.log", {"DAKERA_MODEL_CACHE": str(cache), **settings}).start()


def recaller(node: NodeProcess) -> Iterator[Recall]:
    headers = {"Authorization": f"Bearer {node.key}", "User-Agent": "test"}
    with httpx.Client(base_url=node.url, headers=headers, timeout=60) as client:
        shuffled = random.Random(3)
        texts = set[str]()
        while len(texts) < MEMORIES:
            fish = len(texts) % 6
            texts.add(" ".join(shuffled.sample([TELLING_WORD] * fish + shuffled.sample(WORDS, 6 - fish), 6)))
        memories = [{"content": text} for text in sorted(texts)]
        client.post("/v1/memories/store/batch", json={"agent_id": AGENT, "memories": memories}).raise_for_status()

        def recall(route: str = "recall", **fields: Any) -> dict[str, Any]:
            answer = client.post(f"/v1/memory/{route}", json={"agent_id": AGENT, "query": QUERY, **fields})
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found

        yield recall


@pytest.fixture(scope="module")
def with_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recall]:
    folder = tmp_path_factory.mktemp("with")
    model = write_pair_model(folder / "telling", BERT, telling_weights(BERT))
    # Time is not what is tested here.
    node = start(folder, DAKERA_RERANKER_MODEL=str(model), DAKERA_RERANKER_BUDGET_MS="60000")
    yield from recaller(node)
    node.stop()


@pytest.fixture(scope="module")
def without_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recall]:
    node = start(tmp_path_factory.mktemp("without"))
    yield from recaller(node)
    node.stop()


def ids(answer: dict[str, Any]) -> list[str]:
    return [memory["id"] for memory in answer["memories"]]


def expected_order(late: dict[str, Any]) -> list[str]:
    """The candidates by their share of the telling word, ties by id; then the others as they were."""
    pool, rest = late["memories"][:CANDIDATES], late["memories"][CANDIDATES:]
    ranked = sorted(pool, key=lambda memory: (-memory["content"].split().count(TELLING_WORD), memory["id"]))
    return [memory["id"] for memory in ranked + rest]


@pytest.mark.parametrize("spelling", ["cross-encoder", "cross_encoder"])
def test_the_candidates_come_in_the_models_order_and_the_others_behind(with_model: Recall, spelling: str) -> None:
    late = with_model(top_k=MEMORIES, rerank="late")
    crossed = with_model(top_k=MEMORIES, rerank=spelling)
    assert len(late["memories"]) == MEMORIES
    assert ids(crossed) == expected_order(late) != ids(late)
    scores = [memory["score"] for memory in crossed["memories"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


def test_a_short_list_is_the_head_of_a_long_one(with_model: Recall) -> None:
    longest = ids(with_model(top_k=MEMORIES, rerank="cross-encoder"))
    for top_k in (1, 5, 10, CANDIDATES, CANDIDATES + 1):
        answer = with_model(top_k=top_k, rerank="cross-encoder")
        assert ids(answer) == longest[:top_k]
        assert answer["total_found"] == top_k


def test_answers_say_which_reranker_ran(with_model: Recall) -> None:
    crossed = with_model(rerank="cross-encoder", explain=True)
    assert crossed["rerank_report"] == {
        "applied": True,
        "reranker": "cross-encoder",
        "candidates": CANDIDATES,
        "skipped": 0,
        "model": "telling",
    }
    assert crossed["explain"]["reranker"] == "cross-encoder"
    assert crossed["explain"]["timings_us"]["cross_encoder"] > 0
    logits = [memory["explain"]["cross_encoder"] for memory in crossed["memories"]]
    assert logits == sorted(logits, reverse=True) and logits[0] > logits[-1]
    assert with_model()["rerank_report"]["reranker"] == "late"
    assert with_model(rerank=True, explain=True)["explain"]["reranker"] == "late"
    for unranked in (with_model(rerank=False), with_model(rerank="none"), with_model("search")):
        assert (unranked["rerank_report"]["applied"], unranked["rerank_report"]["reranker"]) == (False, "none")
    assert ids(with_model("search", rerank="cross-encoder", top_k=5)) == ids(
        with_model(rerank="cross-encoder", top_k=5)
    )


def test_without_the_files_the_late_order_stands_and_the_answer_says_why(without_model: Recall) -> None:
    crossed, late = (without_model(top_k=10, rerank=rerank) for rerank in ("cross-encoder", "late"))
    assert ids(crossed) == ids(late) and len(ids(late)) == 10
    assert crossed["memories"][0]["score"] == late["memories"][0]["score"]
    report = crossed["rerank_report"]
    assert (report["applied"], report["reranker"], report["skipped"]) == (False, "late", 10)
    assert "dakera models pull bge-reranker-base" in report["reason"]


def test_another_word_is_refused_with_those_that_are_known(without_model: Recall) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        without_model(rerank="best")
    assert caught.value.response.status_code in (400, 422)
    assert "none, late, cross-encoder" in caught.value.response.text
