"""The floor of recall with the real model on short, unrelated facts: the questions are paraphrased, and most facts have a
near twin that is the wrong answer."""

from pathlib import Path
from statistics import fmean

import pytest

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.retrieval.engine import rank
from dakera_cluster.retrieval.options import Fusion, Options, Rerank, Routing, Settings
from ops.recall import metrics
from ops.recall.data import Asked, Conversation, Maker, Question, Session, Turn, load

FACTS = Path(__file__).parent / "facts.json"
PLAIN_RRF = Options(k=10, rerank=Rerank.NONE, fusion=Fusion.RRF)
PLAIN_SETTINGS = Settings(name_boost=0.0, entity_vector_search=False)
DENSE = Options(k=10, rerank=Rerank.NONE, routing=Routing.VECTOR)
DEFAULT = Options(k=10)


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker(TextEncoder(store.find("minilm", store.default_cache_dir())))


@pytest.fixture(scope="module")
def agents(maker: Maker) -> list[Asked]:
    return [maker.asked(conversation) for conversation in load(FACTS).conversations]


def gains(agents: list[Asked], options: Options, settings: Settings) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for asked in agents:
        for question, query in asked.questions:
            slots = rank(asked.view, query, options, settings).slots.tolist()
            found.setdefault(question.category, []).append(
                metrics.ndcg([asked.view.ids[s] for s in slots], question.evidence)
            )
    return found


def mean(found: dict[int, list[float]]) -> float:
    return fmean(gain for values in found.values() for gain in values)


def test_facts_are_found_better_than_by_plain_fusion_in_every_category(agents: list[Asked]) -> None:
    plain, ours = gains(agents, PLAIN_RRF, PLAIN_SETTINGS), gains(agents, DEFAULT, Settings())
    assert sum(map(len, ours.values())) >= 150
    assert mean(ours) >= mean(plain) + 0.05
    assert all(fmean(ours[category]) >= fmean(plain[category]) for category in plain)


def test_facts_are_found_no_worse_than_by_vectors_alone(agents: list[Asked]) -> None:
    assert mean(gains(agents, DEFAULT, Settings())) >= mean(gains(agents, DENSE, Settings())) - 0.005


def one_session(conversation: Conversation) -> Conversation:
    turns = [Turn(turn.id, turn.text, session=1) for turn in conversation.turns]
    sessions = [Session(1, "10:00 am on 3 March, 2025", "2025-03-03T10:00:00")]
    return Conversation(conversation.id, turns, conversation.questions, sessions)


def test_filing_unrelated_facts_under_one_session_does_not_hurt(maker: Maker, agents: list[Asked]) -> None:
    filed = [maker.asked(one_session(asked.conversation)) for asked in agents]
    assert mean(gains(filed, DEFAULT, Settings())) >= mean(gains(agents, DEFAULT, Settings())) - 0.01


@pytest.mark.parametrize("kind", ["own words", "other words"])
def test_a_fact_among_all_agents_facts(maker: Maker, kind: str) -> None:
    facts = load(FACTS).conversations
    everything = [turn for conversation in facts for turn in conversation.turns]
    questions = [question for conversation in facts for question in conversation.questions]
    if kind == "own words":
        questions = [Question(turn.id, 1, f"What about this: {turn.text}", [turn.id]) for turn in everything[::5]]
    together = [maker.asked(Conversation("all", everything, questions))]
    floor = {"own words": 0.99, "other words": 0.74}[kind]
    assert mean(gains(together, DEFAULT, Settings())) >= floor
