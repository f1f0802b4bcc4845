from pathlib import Path

import numpy as np
import pytest

from dakera_cluster.model.memories import Field
from dakera_cluster.retrieval.features import NAMES
from ops.fit_recall import held_out, of_form
from ops.recall.data import documents, load, run_together
from ops.recall.learning import FITTED, PRIOR, Pool, fitted

FACTS = Path(__file__).parents[1] / "retrieval" / "facts.json"


def pools(
    seed: int, feature: str, group: str, count: int = 30, *, share: float = 1.0, altered: bool = False
) -> list[Pool]:
    """Questions whose evidence is what has most of ``feature``."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        values = rng.random((20, len(NAMES)))
        gold = np.zeros(20, bool)
        gold[values[:, list(NAMES).index(feature)].argmax()] = True
        found.append(Pool(values, gold, 1, group, share, altered))
    return found


def test_what_tells_evidence_gets_the_weight() -> None:
    weights = fitted([pools(1, "passage", "a")])
    assert max(weights, key=lambda name: weights[name]) == "passage"
    assert weights["passage"] > 5 * abs(weights["date_day"])


def test_kinds_count_alike_whatever_their_size_and_questions_by_their_share() -> None:
    few, many = pools(2, "passage", "a", 10), pools(3, "cover_turn", "b", 200)
    weights = fitted([few, many])
    assert weights["passage"] == pytest.approx(weights["cover_turn"], rel=0.4)
    light = fitted([[*few, *pools(4, "number", "c", 10, share=0.02, altered=True)]])
    heavy = fitted([[*few, *pools(4, "number", "c", 10, share=50.0, altered=True)]])
    assert light["number"] < light["passage"]
    assert heavy["number"] > heavy["passage"]


def test_what_the_data_do_not_say_stays_with_the_prior() -> None:
    silent = [
        Pool(pool.values * (np.array(list(NAMES)) != "assistant"), pool.gold, 1, "a")
        for pool in pools(5, "passage", "a")
    ]
    assert fitted([silent])["assistant"] == pytest.approx(PRIOR["assistant"], abs=1e-6)
    assert set(fitted([silent])) == set(FITTED)


def test_altered_stores_are_learned_from_and_measured_apart() -> None:
    kind = [pool for group in "abc" for pool in pools(ord(group), "passage", group, 5)]
    kind += [pool for group in "abc" for pool in pools(ord(group), "passage", group, 3, share=0.25, altered=True)]
    assert len(of_form(kind)) == len(held_out([kind])[0]) == 15
    assert len(held_out([kind], is_altered=True)[0]) == 9


def test_a_conversation_run_together_is_one_talk_in_its_order() -> None:
    rows = documents(load(FACTS).conversations[0])
    together = run_together(rows)
    assert [row_id for row_id, _ in together] == [row_id for row_id, _ in rows]
    assert len({fields[Field.SESSION] for _, fields in together}) == 1
    assert (np.diff([fields[Field.EVENT_TIME] for _, fields in together]) > 0).all()
    assert all(Field.EVENT_TIME not in fields for _, fields in rows)
