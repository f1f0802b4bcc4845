import numpy as np
import pytest

from dakera_cluster.retrieval.tokens import MIN_TOKENS_TO_PACK, TokenStore

RNG = np.random.default_rng(7)


def some(count: int, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 30_000, count).astype(np.uint16), RNG.integers(0, 256, (count, width), dtype=np.uint8)


def rows(store: TokenStore, slots: list[int]) -> np.ndarray:
    """The sign rows of ``slots``, one after another."""
    begins, lengths, _ = store.runs(np.array(slots))
    return np.concatenate([store.stored.arrays[0][at : at + count] for at, count in zip(begins, lengths, strict=True)])


def test_runs_point_to_each_slots_own_rows_in_the_order_asked() -> None:
    store = TokenStore()
    signs = {}
    for slot in (5, 0, 9):
        ids, signs[slot] = some(slot + 2)
        store.put(slot, [slot + 2], ids, signs[slot])
    assert np.array_equal(rows(store, [9, 5, 0]), np.concatenate([signs[9], signs[5], signs[0]]))
    assert store.runs(np.array([9, 5, 0]))[2].tolist() == [0, 1, 2]


def test_passages_of_a_long_memory_are_runs_of_their_own() -> None:
    store = TokenStore()
    store.put(0, [3], *some(3))
    store.put(1, [4, 2, 5], *some(11))
    store.put(2, [1], *some(1))
    begins, lengths, owners = store.passage_runs(np.array([2, 1, 0]))
    assert begins.tolist() == [14, 3, 7, 9, 0]
    assert lengths.tolist() == [1, 4, 2, 5, 3]
    assert owners.tolist() == [0, 1, 1, 1, 2]
    begins, lengths, owners = store.passage_runs(np.array([1, 2]), first_only=True)
    assert (begins.tolist(), lengths.tolist(), owners.tolist()) == ([3, 14], [4, 1], [0, 1])


def test_a_replaced_memory_has_only_its_new_tokens() -> None:
    store = TokenStore()
    store.put(0, [2, 2], *some(4))
    ids, signs = some(1)
    store.put(0, [1], ids, signs)
    assert store.tokens == 1
    assert np.array_equal(rows(store, [0]), signs)
    assert store.counts(np.array([0, 1, 77])).tolist() == [1, 0, 0]


def test_holes_are_packed_and_the_rest_survives() -> None:
    store = TokenStore()
    kept = {}
    for slot in range(400):
        ids, signs = some(20)
        store.put(slot, [20], ids, signs)
        kept[slot] = signs
    before = store.nbytes
    for slot in range(300):
        store.remove(slot)
    assert MIN_TOKENS_TO_PACK < 400 * 20
    assert store.tokens == 2000
    assert np.array_equal(rows(store, [399, 300]), np.concatenate([kept[399], kept[300]]))
    assert store.nbytes < before


def test_tokens_of_another_width_are_refused() -> None:
    store = TokenStore()
    assert store.put(0, [2], *some(2))
    assert not store.put(1, [2], *some(2, width=96))
    assert store.counts(np.array([1])).tolist() == [0]


def test_frequencies_forget_what_was_removed() -> None:
    store = TokenStore()
    store.put(0, [2], np.array([7, 8], np.uint16), some(2)[1])
    store.put(1, [1], np.array([7], np.uint16), some(1)[1])
    store.remove(0)
    assert store.document_frequencies(np.array([7, 8, 9], np.int32)) == [1, 0, 0]


def test_counted_and_kept_frequencies_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, counted = TokenStore(), TokenStore()
    monkeypatch.setattr("dakera_cluster.retrieval.tokens.COUNTED_FROM_TOKENS", 50)
    memories = [some(10) for _ in range(30)]
    for slot, (ids, signs) in enumerate(memories):
        kept.put(slot, [10], ids, signs)
    for slot in range(0, 30, 3):
        kept.remove(slot)
    monkeypatch.setattr("dakera_cluster.retrieval.tokens.COUNTED_FROM_TOKENS", 10**9)
    for slot, (ids, signs) in enumerate(memories):
        if slot % 3:
            counted.put(slot, [10], ids, signs)
    every = np.arange(30_000, dtype=np.int32)
    assert kept.document_frequencies(every) == counted.document_frequencies(every)


def test_a_dump_brings_everything_back() -> None:
    store = TokenStore()
    for slot in range(6):
        store.put(slot, [2, slot + 1], *some(slot + 3))
    store.remove(2)
    loaded = TokenStore.load(store.dump())
    alive = [0, 1, 3, 4, 5]
    assert np.array_equal(rows(loaded, alive), rows(store, alive))
    assert np.array_equal(loaded.passage_runs(np.array(alive))[1], store.passage_runs(np.array(alive))[1])
    assert loaded.tokens == store.tokens
