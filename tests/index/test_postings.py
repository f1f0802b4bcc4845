"""Postings at their real bounds: how much they weigh and how many segments a search looks into."""

from __future__ import annotations

import numpy as np

from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.postings import MAX_SEGMENTS, Postings


def test_memory_per_document_is_small() -> None:
    rng = np.random.default_rng(0)
    lexicon = [f"word{number}" for number in range(5_000)]
    index = FullTextIndex()
    weights = 1 / np.arange(1, 5_001)
    for slot, chosen in enumerate(rng.choice(5_000, size=(3_000, 30), p=weights / weights.sum())):
        index.add(slot, " ".join(lexicon[word] for word in chosen))
    assert index.memory_bytes < 3_000 * 300
    index.compact()
    assert index.memory_bytes < 3_000 * 150
    assert FullTextIndex().memory_bytes == 0


def test_segments_stay_few_without_any_maintenance() -> None:
    postings = Postings()
    rng = np.random.default_rng(1)
    most = 0
    for slot, chosen in enumerate(rng.integers(0, 2_000, size=(6_000, 25))):
        postings.add(slot, {f"t{term}": 1 for term in chosen.tolist()}, 25)
        most = max(most, postings.segments)
    assert most <= MAX_SEGMENTS // 2
    steps = 0
    while (plan := postings.compaction()) is not None:
        assert postings.install(plan.run())
        steps += 1
    assert steps <= 10 and postings.segments <= 12
    assert postings.documents == 6_000 and postings.unique_terms() == 2_000


def test_compaction_that_lost_its_inputs_is_refused() -> None:
    postings = Postings()
    for slot in range(600):
        postings.add(slot, {f"t{slot % 50}": 1, f"u{slot}": 2, "all": 1}, 4)
        if slot % 200 == 199:
            postings.seal()
    for slot in range(150):
        postings.remove(slot)
    plan = postings.compaction()
    assert plan is not None
    postings.compact()
    assert not postings.install(plan.run())
    assert postings.documents == 450 and postings.segments == 1
