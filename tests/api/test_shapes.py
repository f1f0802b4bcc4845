"""Answers about memories: one object, seen flat and under ``memory``, and the scores that are known."""

from __future__ import annotations

import msgspec

from dakera_cluster.api import shapes
from dakera_cluster.memory.services import BatchRecalled, Recalled
from dakera_cluster.model.memories import Memory, ScoredMemory

MEMORY = Memory(
    "m", 'says "tea"', "ann", "_dakera_agent_ann", tags=["x"], metadata={"memory": {"score": 2}}, created_at=7
)
FIELDS = list(Memory.__struct_fields__)


def sent(answer: object) -> dict:
    return msgspec.json.decode(msgspec.json.encode(answer))


def test_a_found_memory_has_its_fields_flat_and_again_under_memory_and_then_its_scores() -> None:
    found = ScoredMemory(MEMORY, 0.5, 0.5, 0.5, 0.25, 3.0, explain={"bm25": 1.0})
    (memory,) = sent(shapes.recalled(Recalled([found], 1)))["memories"]
    scores = ["score", "weighted_score", "smart_score", "vector_score", "text_score", "explain"]
    assert list(memory) == [*FIELDS, "memory", *scores]
    assert memory["memory"] == sent(MEMORY) == {name: memory[name] for name in FIELDS}
    assert [memory[name] for name in scores] == [0.5, 0.5, 0.5, 0.25, 3.0, {"bm25": 1.0}]


def test_a_score_that_is_not_known_is_left_out_and_fields_without_value_are_null() -> None:
    (memory,) = sent(shapes.recalled(Recalled([ScoredMemory(MEMORY, 0.0, vector_score=0.0)], 1)))["memories"]
    assert list(memory) == [*FIELDS, "memory", "score", "vector_score"]
    assert memory["session_id"] is None and memory["memory"]["session_id"] is None


def test_a_listed_memory_has_a_score_of_one() -> None:
    page = sent(shapes.memory_page(BatchRecalled([MEMORY], 9, 1)))
    assert [(memory["score"], memory["memory"]["id"]) for memory in page["memories"]] == [(shapes.LISTED_SCORE, "m")]
    assert page["total_found"] == 1 and page["total"] == 9
