import random
from typing import Any

import numpy as np
import pytest

from dakera_cluster.retrieval import talk
from dakera_cluster.retrieval.engine import prepare
from dakera_cluster.retrieval.features import NAMES
from dakera_cluster.retrieval.options import Settings
from ops.recall.local_view import LocalView
from tests.support.recall_rows import question, row

FILLER = ("river", "bread", "violin", "garden", "window", "copper", "lantern", "harvest", "winter", "saddle", "marble")
ANN = {"speaker": "Ann"}


def chat(said: list[str], metadata: dict[str, str] | None = ANN, session: str = "s") -> dict[str, dict[str, Any]]:
    return {
        f"{session}{place:03d}": row(text, session=session, event_time=float(place), metadata=metadata)
        for place, text in enumerate(said)
    }


def view_of(rows: dict[str, dict[str, Any]], order: list[str] | None = None) -> LocalView:
    view = LocalView()
    for row_id in order or list(rows):
        view.put(row_id, rows[row_id])
    return view


def features_of(view: LocalView, text: str) -> dict[str, dict[str, float]]:
    """Row id to feature to value."""
    found = prepare(view, question(text), Settings()).pool
    return {
        view.ids[slot]: dict(zip(NAMES, values, strict=True))
        for slot, values in zip(found.slots.tolist(), found.values.T.tolist(), strict=True)
    }


def filler(turns: int, words: int, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(FILLER, k=words)) for _ in range(turns)]


@pytest.mark.parametrize(
    ("between", "words", "metadata", "is_covered"),
    [(8, 10, ANN, True), (40, 10, ANN, True), (40, 40, ANN, False), (80, 1, ANN, False), (8, 10, None, False)],
    ids=["near", "within the words", "beyond the words", "beyond the turns", "nobody says it"],
)
def test_candidates_of_the_same_stretch_of_talk_cover_words_for_each_other(
    between: int, words: int, metadata: dict[str, str] | None, is_covered: bool
) -> None:
    said = ["the walrus was here", *filler(between, words), "it could sing"]
    view = view_of(chat(said, metadata) | chat(filler(20, 6, seed=9), session="t"))
    slots = np.array([0, len(said) - 1])
    prepared = prepare(view, question("did the walrus sing"), Settings())
    best = np.array([[0.9, 0.1], [0.1, 0.8]], np.float32)
    own = prepared.late.weights @ best
    found = talk.covered(prepared.late, best, slots, talk.stretch(view, slots))
    both = prepared.late.weights @ best.max(axis=1)
    assert found == pytest.approx([both, both] if is_covered else own, abs=1e-6)


def test_another_session_is_another_talk() -> None:
    view = view_of(chat(["the walrus was here"], session="a") | chat(["it could sing"], session="b"))
    late = prepare(view, question("did the walrus sing"), Settings()).late
    best = np.array([[0.9, 0.1], [0.1, 0.8]], np.float32)
    slots = np.array([0, 1])
    assert talk.covered(late, best, slots, talk.stretch(view, slots)) == pytest.approx(late.weights @ best, abs=1e-6)


def test_what_leads_up_to_a_memory_counts_by_its_words_and_what_follows_does_not() -> None:
    said = ["copper lantern", "violin in the cottage by the river", "yes", "a walrus sings", "bread"]
    view = view_of(chat(said))
    asked = question("does the walrus sing to the violin")
    assert view.vectors is not None
    slots = np.arange(len(said))
    cosine = view.vectors.scores(asked.vector, slots).astype(np.float64)
    words = np.array([2, 7, 1, 3, 1])
    expected = np.cumsum(words * cosine) / np.cumsum(words)
    following = np.array([1, 2, 3, 4, -1], np.int32)
    for known in (slots[:0], slots[[3, 1]], slots):
        given = known, np.where(known == 1, np.nan, cosine[known])
        lead, after = talk.cosines(view, asked, slots, cosine, talk.stretch(view, slots), following, given)
        assert lead == pytest.approx(expected, abs=1e-6)
        assert after.tolist() == [*cosine[1:].tolist(), 0.0]


def test_what_lies_further_back_than_the_words_of_a_lead_does_not_count() -> None:
    long_ago, middle = "walrus sings", " ".join(["bread"] * (talk.LEAD_WORDS - 1))
    view = view_of(chat([long_ago, middle, "violin"]))
    asked = question("walrus")
    assert view.vectors is not None
    cosine = view.vectors.scores(asked.vector, np.arange(3)).astype(np.float64)
    slots = np.array([2])
    nobody = np.array([-1], np.int32)
    [found], _ = talk.cosines(
        view, asked, slots, cosine[slots], talk.stretch(view, slots), nobody, (slots, cosine[slots])
    )
    assert found == pytest.approx((cosine[2] + (talk.LEAD_WORDS - 1) * cosine[1]) / talk.LEAD_WORDS, abs=1e-6)


def test_a_memory_outside_a_talk_has_its_own_meaning_only() -> None:
    view = view_of(chat(filler(20, 6), None))
    found = features_of(view, "violin in the garden")
    assert all(each["cosine_lead"] == each["cosine"] for each in found.values())


def lengths(rows: dict[str, dict[str, Any]], *row_ids: str) -> list[float]:
    view = view_of(rows)
    place = {row_id: slot for slot, row_id in enumerate(view.ids)}
    return talk.length(talk.stretch(view, np.array([place[row_id] for row_id in row_ids]))).tolist()


def test_only_long_talks_count_as_long_and_the_longer_the_more() -> None:
    rows = {}
    for session, turns in (("a", talk.SHORT_TALK_TURNS), ("b", 2 * talk.SHORT_TALK_TURNS), ("c", 400)):
        rows |= chat(filler(turns, 3), session=session)
    rows |= chat(filler(100, 3), None, session="notes") | {"alone": row("copper lantern", metadata=ANN)}
    short, middle, long, notes, alone = lengths(rows, "a016", "b032", "c200", "notes050", "alone")
    assert short == notes == alone == 0
    assert 0 < middle < 0.5
    assert long == 1


def test_a_pause_ends_a_talk_in_the_midst_of_a_session() -> None:
    rows = chat(["the walrus was here", *filler(70, 2), "it could sing", *filler(70, 2)])
    assert lengths(rows, "s071") == [1.0]
    for row_id in list(rows)[71:]:
        rows[row_id]["event_time"] += talk.PAUSE_S + 1
    after, before = lengths(rows, "s071", "s070")
    assert (
        after
        == before
        == pytest.approx((1 + talk.REACH - talk.SHORT_TALK_TURNS) / (1 + 2 * talk.REACH - talk.SHORT_TALK_TURNS))
    )
    view = view_of(rows)
    late = prepare(view, question("did the walrus sing"), Settings()).late
    best = np.array([[0.9, 0.1], [0.1, 0.8]], np.float32)
    for slots, covers in (([60, 71], False), ([60, 70], True)):
        expected = late.weights @ (best.max(axis=1, keepdims=True) if covers else best) * np.ones(2)
        around = talk.stretch(view, np.array(slots))
        assert talk.covered(late, best, np.array(slots), around) == pytest.approx(expected, abs=1e-6)


def test_a_stretch_is_the_same_bit_for_bit_whatever_the_order_of_arrival() -> None:
    rows = chat(filler(150, 5)) | chat(filler(60, 7, seed=4), session="t")
    expected = None
    for seed in range(10):
        order = random.Random(seed).sample(sorted(rows), len(rows))
        found = features_of(view_of(rows, order), "violin in the winter garden")
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert any(each["late_long"] > 0 for each in expected.values())


def test_the_best_window_ranks_first_and_equals_share_their_rank() -> None:
    rows = {f"e{n}": row("the violin is in the cottage") for n in range(3)} | {"f": row("a violin")}
    found = features_of(view_of(rows), "violin cottage")
    assert [found[f"e{n}"]["window_rank"] for n in range(3)] == [1.0, 1.0, 1.0]
    assert found["f"]["window_rank"] == pytest.approx(5 / 8)


def test_what_nobody_said_ends_a_talk_bit_for_bit_whatever_the_order_of_arrival() -> None:
    rows = chat(filler(150, 3))
    rows["s050"]["metadata"] = None
    expected = None
    for seed in range(10):
        order = random.Random(seed).sample(sorted(rows), len(rows))
        view = view_of(rows, order)
        slots = np.array([order.index(row_id) for row_id in ("s049", "s051", "s060")])
        around = talk.stretch(view, slots)
        found = [[view.ids[slot] if slot >= 0 else None for slot in line] for line in around.slots.tolist()]
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert [sum(row_id is not None for row_id in line) for line in expected] == [49, talk.REACH, 9 + talk.REACH]


def test_what_a_named_speaker_stands_among_is_told_apart() -> None:
    said = ["the walrus sings", "loudly, yes", "a violin", "bread"]
    rows = chat(said[:2]) | chat(said[2:], {"speaker": "Bob"}, session="t")
    found = features_of(view_of(rows), "what did Ann say of the walrus and the violin")
    assert found["s000"]["cover_said"] == found["s000"]["cover_turn"] > 0
    assert found["t000"]["cover_turn"] > 0 == found["t000"]["cover_said"]
