import numpy as np
import pytest

from dakera_cluster.retrieval.late import LateQuery, glance, late_query, match, weighted
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.tokens import TokenStore

RNG = np.random.default_rng(3)
WIDTH = 96


def asked(tokens: int = 5) -> QueryFeatures:
    vectors = RNG.normal(size=(tokens, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return QueryFeatures("", None, vectors, np.arange(tokens, dtype=np.int32), 0.0)


def filled(sizes: list[list[int]]) -> tuple[TokenStore, list[list[np.ndarray]]]:
    store, states = TokenStore(), []
    for slot, passages in enumerate(sizes):
        parts = [RNG.normal(size=(count, WIDTH)) for count in passages]
        signs = np.packbits(np.concatenate(parts) > 0, axis=1)
        ids = RNG.integers(0, 50, len(signs)).astype(np.uint16)
        store.put(slot, passages, ids, signs)
        states.append(parts)
    return store, states


def by_hand(query: QueryFeatures, ready: LateQuery, passages: list[np.ndarray]) -> tuple[np.ndarray, float]:
    sims = [(query.token_vectors @ np.sign(part).T / np.sqrt(WIDTH)).max(axis=1) for part in passages]
    totals = [float(ready.weights @ each) for each in sims]
    return sims[int(np.argmax(totals))], totals[0]


def test_matches_are_maxsim_in_the_best_passage() -> None:
    query = asked()
    store, states = filled([[4], [3, 7, 2], [1], [6, 6]])
    ready = late_query(query, store, 4)
    got = match(ready, store, np.arange(4))
    for slot, passages in enumerate(states):
        best, first = by_hand(query, ready, passages)
        assert got.best[:, slot] == pytest.approx(best, abs=2e-3)
        assert got.first[slot] == pytest.approx(first, abs=2e-3)


def test_a_match_does_not_depend_on_what_is_matched_with_it() -> None:
    query = asked(7)
    store, _ = filled([[int(n)] for n in RNG.integers(1, 40, 300)])
    ready = late_query(query, store, 300)
    together = weighted(ready, match(ready, store, np.arange(300)).best)
    alone = [weighted(ready, match(ready, store, np.array([slot])).best)[0] for slot in range(300)]
    assert together.tolist() == alone


def test_rare_words_weigh_more_and_weights_sum_to_one() -> None:
    store = TokenStore()
    for slot in range(20):
        ids = np.array([1, 2 if slot == 3 else 1], np.uint16)
        store.put(slot, [2], ids, RNG.integers(0, 256, (2, WIDTH // 8), dtype=np.uint8))
    vectors = np.eye(2, WIDTH, dtype=np.float32)
    ready = late_query(QueryFeatures("", None, vectors, np.array([1, 2], np.int32), 0.0), store, 20)
    assert ready.weights.sum() == pytest.approx(1.0)
    assert ready.weights[1] > 5 * ready.weights[0]


def test_the_budget_keeps_the_likeliest_and_cuts_the_rest_to_their_first_passage() -> None:
    store, states = filled([[50], [20, 60], [30]])
    query = asked()
    ready = late_query(query, store, 3)
    got = match(ready, store, np.arange(3), max_tokens=60)
    assert got.best[:, 0] == pytest.approx(by_hand(query, ready, states[0])[0], abs=2e-3)
    assert got.best[:, 1] == pytest.approx(by_hand(query, ready, states[1][:1])[0], abs=2e-3)


def test_a_glance_estimates_the_same_similarity() -> None:
    query = asked(8)
    store, states = filled([[30] for _ in range(40)])
    ready = late_query(query, store, 40)
    exact, quick = match(ready, store, np.arange(40)).best, glance(ready, store, np.arange(40))
    assert quick.shape == exact.shape
    assert abs(float((quick - exact).mean())) < 0.08
    own = QueryFeatures(
        "",
        None,
        (states[3][0][:4] / np.linalg.norm(states[3][0][:4], axis=1, keepdims=True)).astype(np.float32),
        np.arange(4, dtype=np.int32),
        0.0,
    )
    ready = late_query(own, store, 40)
    assert int(np.argmax(weighted(ready, glance(ready, store, np.arange(40))))) == 3


def test_memories_without_tokens_match_nothing() -> None:
    store, _ = filled([[3]])
    ready = late_query(asked(), store, 2)
    got = match(ready, store, np.array([0, 9]))
    assert got.seen.tolist() == [True, False]
    assert got.bare.tolist() == [False, True]
    assert not got.best[:, 1].any()
    empty = QueryFeatures("", None, np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int32), 0.0)
    assert match(late_query(empty, store, 2), store, np.array([0])).best.shape == (0, 1)
