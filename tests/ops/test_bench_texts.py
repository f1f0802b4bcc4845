"""The texts of the benchmark: many, different, the same for the same seed."""

from __future__ import annotations

from ops.bench.texts import facts


def test_facts_are_different_from_one_another_and_repeatable() -> None:
    made = facts(5_000, seed=1)
    assert made == facts(5_000, seed=1)
    assert made[:100] != facts(100, seed=2)
    assert len({fact.memory for fact in made}) == len({fact.question for fact in made}) == 5_000
    assert all("{" not in fact.memory + fact.question for fact in made)


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert facts(300, seed=1)[:100] == facts(100, seed=1)


def test_lengths_are_those_of_memories() -> None:
    words = [len(fact.memory.split()) for fact in facts(2_000, seed=3)]
    assert min(words) >= 6
    assert max(words) <= 70
    assert len(set(words)) > 25
