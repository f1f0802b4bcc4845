import random
from typing import Any

import numpy as np
import pytest

from dakera_cluster.model.memories import Field
from dakera_cluster.retrieval.engine import Ranking, prepare, rank
from dakera_cluster.retrieval.evidence import Evidence
from dakera_cluster.retrieval.features import NAMES
from dakera_cluster.retrieval.options import Fusion, Options, Rerank, Routing, Settings
from dakera_cluster.retrieval.order import SessionOrder
from ops.recall.local_view import LocalView
from tests.support.recall_rows import question, row

WORDS = (
    *("river", "bread", "violin", "garden", "window", "copper", "lantern", "harvest", "winter", "saddle", "marble"),
    *("pepper", "anchor", "candle", "meadow", "thunder", "basket", "feather", "cottage", "engine"),
)
SETTINGS = Settings()


def talk(seed: int, turns: int, tag: str = "m") -> dict[str, dict[str, Any]]:
    """A made-up talk of two in several sessions, with repeats so that scores tie."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(turns):
        said = " ".join(rng.choices(WORDS, k=rng.choice((2, 3, 5, 8))))
        if turn % 9 == 0:
            said = "the river bread was good"
        speaker = ("Ann", "Bob")[turn % 2]
        rows[f"{tag}{turn:04d}"] = row(
            f"{speaker}: {said}",
            session=f"s{turn // 25}",
            event_time=1_600_000_000.0 + 60 * (turn // 2),
            metadata={"speaker": speaker},
        )
    return rows


def view_of(rows: dict[str, dict[str, Any]], order: list[str] | None = None) -> LocalView:
    view = LocalView()
    for row_id in order or list(rows):
        view.put(row_id, rows[row_id])
    return view


def ids(view: LocalView, ranking: Ranking) -> list[str]:
    return [view.ids[slot] for slot in ranking.slots.tolist()]


ROWS = talk(1, 420)
QUESTIONS = (
    "What did Ann say about the river and the bread?",
    "violin in the cottage",
    "Where is Bob's copper lantern?",
)


def test_the_same_rows_rank_the_same_bit_for_bit_whatever_their_history() -> None:
    rows = talk(5, 150)
    rng = random.Random(11)
    stale = talk(6, 150)
    passing = talk(7, 40, tag="x")
    for row_id in passing:
        passing[row_id]["metadata"] = {"speaker": "Ann Marie"}
    expected = None
    for _ in range(100):
        view = LocalView()
        old = rng.sample(sorted(rows), 30)
        for row_id in old:
            view.put(row_id, stale[row_id])
        for row_id in rng.sample(sorted(passing), len(passing)):
            view.put(row_id, passing[row_id])
        for row_id in rng.sample(sorted(rows), len(rows)):
            view.put(row_id, rows[row_id])
        for row_id in passing:
            view.remove(row_id)
        found = [rank(view, question(text), Options(k=60), SETTINGS) for text in QUESTIONS]
        got = [(ids(view, each), each.relevance.tolist(), each.scores.tolist()) for each in found]
        expected = expected or got
        assert got == expected


def test_cuts_among_equal_memories_do_not_depend_on_the_order_of_arrival() -> None:
    same = row("the copper lantern of the cottage")
    rows = {f"e{n:04d}": same for n in range(700)}
    expected = None
    for seed in range(8):
        view = view_of(rows, random.Random(seed).sample(sorted(rows), len(rows)))
        got = ids(view, rank(view, question("copper lantern"), Options(k=150), SETTINGS))
        expected = expected or got
        assert got == expected


@pytest.mark.parametrize("text", QUESTIONS)
@pytest.mark.parametrize("options", [{}, {"rerank": Rerank.NONE}, {"fusion": Fusion.RRF}, {"routing": Routing.BM25}])
def test_ten_results_are_the_head_of_fifty(text: str, options: dict[str, Any]) -> None:
    view = view_of(ROWS)
    fifty = rank(view, question(text), Options(k=50, **options), SETTINGS)
    ten = rank(view, question(text), Options(k=10, **options), SETTINGS)
    assert ids(view, ten) == ids(view, fifty)[:10]
    assert ten.scores.tolist() == fifty.scores.tolist()[:10]


def test_results_are_distinct_and_scores_fall() -> None:
    view = view_of(ROWS)
    found = rank(view, question(QUESTIONS[0]), Options(k=400), SETTINGS)
    assert len(set(found.slots.tolist())) == len(found.slots) > 200
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_only_allowed_memories_are_returned() -> None:
    view = view_of(ROWS)
    allowed = np.zeros(len(view.ids), bool)
    allowed[::7] = True
    for options in (Options(k=50), Options(k=50, rerank=Rerank.NONE), Options(k=50, iterations=3)):
        found = rank(view, question(QUESTIONS[0]), options, SETTINGS, allowed)
        assert len(found.slots) > 10
        assert allowed[found.slots].all()


def test_the_memory_that_says_it_comes_first() -> None:
    rows = dict(ROWS)
    rows["gold"] = row("Bob: a zebra ate the copper lantern", session="s3", metadata={"speaker": "Bob"})
    view = view_of(rows)
    assert ids(view, rank(view, question("Which zebra ate a lantern?"), Options(k=3), SETTINGS))[0] == "gold"


def test_a_turn_borrows_the_words_of_the_turn_beside_it_only_if_it_is_said() -> None:
    def found(metadata: dict[str, str] | None) -> list[dict[str, float]]:
        rows = {
            f"n{place}": row(f"engine {WORDS[place]}", session="a", metadata=metadata, event_time=place)
            for place in range(15)
        }
        rows["asks"] = row("did the walrus sing", session="a", metadata=metadata, event_time=50.0)
        rows["answers"] = row("loudly, yes", session="a", metadata=metadata, event_time=51.0)
        view = view_of(rows)
        ranking = rank(view, question("walrus sing"), Options(k=20, explain=True), SETTINGS)
        assert ranking.features is not None
        return [ranking.features[ids(view, ranking).index(name)] for name in ("asks", "answers")]

    asks, answers = found({"speaker": "Ann"})
    assert asks["cover_turn"] == 1.0
    assert answers["cover_turn"] > 0.6
    assert answers["late"] < 0.3
    asks, answers = found(None)
    assert asks["cover_turn"] == 1.0
    assert answers["cover_turn"] < 0.3


def test_the_best_passage_of_a_long_memory_counts_and_it_comes_once() -> None:
    filler = [" ".join(WORDS[:12]), " ".join(WORDS[8:]), "a walrus sings in the harbour", " ".join(WORDS[::2])]
    rows = dict(ROWS)
    rows["long"] = row(" ".join(filler), passages=filler)
    view = view_of(rows)
    found = ids(view, rank(view, question("Where does the walrus sing?"), Options(k=200), SETTINGS))
    assert found[0] == "long"
    assert found.count("long") == 1


def test_explain_names_every_feature_of_every_ranked_result_and_the_time_of_every_step() -> None:
    view = view_of(ROWS)
    found = rank(view, question(QUESTIONS[0]), Options(k=10, explain=True), SETTINGS)
    assert found.features is not None
    assert all(set(NAMES) <= set(each) for each in found.features)
    assert {"classify", "words", "candidates", "rank", "answer"} == set(found.timings_us)
    shares = sum(value for name, value in found.features[0].items() if name.endswith(".weighted"))
    assert shares == pytest.approx(found.relevance[0], abs=1e-9)


@pytest.mark.parametrize("text", [*QUESTIONS, "violin"])
def test_a_turn_that_is_the_only_candidate_is_found(text: str) -> None:
    view = view_of(ROWS)
    only = np.arange(len(view.ids)) == 200
    for options in (Options(k=5), Options(k=5, routing=Routing.VECTOR), Options(k=5, routing=Routing.BM25)):
        assert set(rank(view, question(text), options, SETTINGS, only).slots.tolist()) <= {200}


@pytest.mark.parametrize("text", QUESTIONS)
def test_where_nobody_has_a_session_the_short_way_finds_the_same_features(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {row_id: {**fields, Field.SESSION: None} for row_id, fields in ROWS.items()}
    view = view_of(alone)
    assert view.evidence.order.is_empty
    short = prepare(view, question(text), SETTINGS).pool
    monkeypatch.setattr(SessionOrder, "is_empty", False)
    long = prepare(view, question(text), SETTINGS).pool
    assert short.slots.tolist() == long.slots.tolist()
    assert short.values.tobytes() == long.values.tobytes()


def test_importance_breaks_what_relevance_leaves_open_and_decays() -> None:
    rows = {
        name: row("the violin is in the cottage", importance=importance)
        for name, importance in (("a", 0.4), ("b", 0.9))
    }
    view = view_of(rows)
    assert ids(view, rank(view, question("violin"), Options(k=2), SETTINGS)) == ["b", "a"]
    rows["a"]["created"], rows["b"]["created"] = 1_700_000_000, 1_600_000_000
    decaying = Settings(half_life_s=86_400.0)
    view = view_of(rows)
    assert ids(view, rank(view, question("violin", now_s=1_700_000_000), Options(k=2), decaying)) == ["a", "b"]


def test_equal_memories_come_in_the_order_of_their_ids() -> None:
    rows = {f"e{n}": row("the violin is in the cottage") for n in random.Random(2).sample(range(10), 10)}
    view = view_of(rows)
    assert ids(view, rank(view, question("violin cottage"), Options(k=10), SETTINGS)) == sorted(rows)


def test_without_a_model_words_alone_rank() -> None:
    rows = {name: {**fields, "vector": None, "tokens": None} for name, fields in ROWS.items()}
    view = view_of(rows)
    bare = question("copper lantern")
    bare = type(bare)(bare.text, None, np.zeros((0, 0), np.float32), np.zeros(0, np.int32), 0.0)
    found = rank(view, bare, Options(k=5), SETTINGS)
    assert all("copper" in ROWS[row_id]["text"] or "lantern" in ROWS[row_id]["text"] for row_id in ids(view, found))


def test_routing_draws_from_one_list_only() -> None:
    view = view_of(ROWS)
    asked = question("copper lantern")
    words = rank(view, asked, Options(k=20, routing=Routing.BM25, rerank=Rerank.NONE), SETTINGS)
    assert (words.bm25 > 0).all()
    assert np.isnan(words.cosine).all()
    near = rank(view, asked, Options(k=20, routing=Routing.VECTOR, rerank=Rerank.NONE), SETTINGS)
    assert (np.diff(near.cosine) <= 1e-9).all()


def test_memories_that_came_with_ready_vectors_hold_their_place_beside_embedded_ones() -> None:
    texts = [
        f"{a} {b} near the {c}" for a, b, c in zip(WORDS, WORDS[3:] + WORDS[:3], WORDS[7:] + WORDS[:7], strict=True)
    ]
    ready = {f"v{n}": {k: v for k, v in row(text).items() if k != Field.TOKENS} for n, text in enumerate(texts)}
    others = {f"e{n}": row(f"{text} again, said somebody else") for n, text in enumerate(reversed(texts[:6]))}
    view = view_of(ready | others)
    first = [ids(view, rank(view, question(text), Options(k=3), SETTINGS))[0] for text in texts[6:]]
    assert first == [f"v{n}" for n in range(6, len(texts))]


def test_an_empty_namespace_answers_with_nothing() -> None:
    assert len(rank(LocalView(), question("anything"), Options(), SETTINGS).slots) == 0


def test_evidence_comes_back_whole_from_its_dump() -> None:
    filler = [" ".join(WORDS[:12]), "a walrus sings in the harbour"]
    rows = {**talk(9, 60), "long": row(" ".join(filler), passages=filler)}
    view = view_of(rows)
    view.remove("m0003")
    before = rank(view, question(QUESTIONS[0]), Options(k=40), SETTINGS)
    view.evidence = Evidence.load(view.evidence.dump())
    after = rank(view, question(QUESTIONS[0]), Options(k=40), SETTINGS)
    assert ids(view, before) == ids(view, after)
    assert before.relevance.tolist() == after.relevance.tolist()
