"""The vector view against brute force: any history, any filter, any size, on every path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dakera_cluster.index import vectors as module
from dakera_cluster.index.ann import Approximate
from dakera_cluster.index.flat import CHUNK_ROWS, Metric
from dakera_cluster.index.vectors import IndexType, VectorIndex
from dakera_cluster.model.errors import (
    CorruptionError,
    DimensionMismatchError,
    EmptyVectorError,
    InvalidRequestError,
)

DIMENSION = 6


def reference(query: np.ndarray, vector: np.ndarray, metric: Metric) -> float:
    query, vector = query.astype(np.float64), vector.astype(np.float64)
    if metric is Metric.DOT_PRODUCT:
        return float(query @ vector)
    if metric is Metric.EUCLIDEAN:
        return float(1 / (1 + np.linalg.norm(query - vector)))
    lengths = np.linalg.norm(query) * np.linalg.norm(vector)
    return float(query @ vector / lengths) if lengths else 0.0


def settle(index: VectorIndex, limit: int = 10_000) -> int:
    """Run maintenance until idle; the steps it took."""
    for steps in range(limit):
        if not index.maintenance():
            return steps
    raise AssertionError("maintenance never ends")


def clustered(rows: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows around rows/40 centres, and 100 queries from the same distribution."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, rows // 40), dimension)).astype(np.float32)

    def draw(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, dimension)).astype(np.float32)
        return np.asarray(centres[rng.integers(0, len(centres), count)] + 0.7 * noise)

    return draw(rows), draw(100)


class VectorMachine(RuleBasedStateMachine):
    """Random histories over few slots, with an index so eager that HNSW, rebuilds and shrinking all take part."""

    metric = Metric.COSINE
    index_type = IndexType.AUTO

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.index = VectorIndex(DIMENSION, self.metric, self.index_type, flat_threshold=20)
        self.model: dict[int, np.ndarray] = {}

    def draw(self, count: int) -> np.ndarray:
        # A coarse grid: exact duplicates and ties are common.
        return self.rng.integers(-2, 3, size=(count, DIMENSION)).astype(np.float32) * np.float32(1.5)

    @rule(slots=st.lists(st.integers(0, 120), min_size=1, max_size=60))
    def add(self, slots: list[int]) -> None:
        vectors = self.draw(len(slots))
        self.index.add(np.array(slots), vectors)
        self.model.update(zip(slots, vectors, strict=True))

    @rule(slots=st.lists(st.integers(0, 130), max_size=30))
    def remove(self, slots: list[int]) -> None:
        self.index.remove(np.array(slots, dtype=np.int64))
        for slot in slots:
            self.model.pop(slot, None)

    @rule(steps=st.integers(1, 12))
    def maintain(self, steps: int) -> None:
        for _ in range(steps):
            self.index.maintenance()

    @rule()
    def reload(self) -> None:
        self.index = VectorIndex.load(self.index.dump(), flat_threshold=20)

    @rule(k=st.integers(1, 30), share=st.sampled_from([None, 0.0, 0.1, 0.5, 0.9]), exact=st.booleans())
    def search(self, k: int, share: float | None, exact: bool) -> None:
        query = self.draw(1)[0]
        allowed = None if share is None else self.rng.random(100) < share
        matching = {
            slot: vector
            for slot, vector in self.model.items()
            if allowed is None or (slot < len(allowed) and allowed[slot])
        }
        slots, scores = self.index.search(query, k, allowed, exact=exact)
        assert len(slots) == min(k, len(matching))
        assert set(slots.tolist()) <= set(matching)
        assert len(set(slots.tolist())) == len(slots)
        truth = {slot: reference(query, vector, self.metric) for slot, vector in matching.items()}
        # Fixed point in 16 bits moves a cosine by less than this.
        np.testing.assert_allclose(scores, [truth[slot] for slot in slots.tolist()], atol=2e-4)
        assert [(-score, slot) for slot, score in zip(slots, scores, strict=True)] == sorted(
            (-score, slot) for slot, score in zip(slots, scores, strict=True)
        )
        if exact or self.index.stats().serving == "flat":
            worst = min(scores, default=0)
            left_out = [score for slot, score in truth.items() if slot not in set(slots.tolist())]
            assert max(left_out, default=-np.inf) <= worst + 4e-4
        np.testing.assert_array_equal(self.index.scores(query, slots), scores)

    @invariant()
    def holds_the_model(self) -> None:
        if not hasattr(self, "index"):
            return
        assert len(self.index) == len(self.model)
        slots = np.arange(131)
        assert self.index.contains(slots).tolist() == [slot in self.model for slot in slots]
        kept = np.array(sorted(self.model), dtype=np.int64)
        if len(kept):
            truth = np.array([self.model[slot] for slot in kept.tolist()])
            np.testing.assert_allclose(self.index.vectors(kept), truth, atol=2e-4)


class DotMachine(VectorMachine):
    metric = Metric.DOT_PRODUCT


class EuclideanMachine(VectorMachine):
    metric = Metric.EUCLIDEAN


class IvfMachine(VectorMachine):
    index_type = IndexType.IVF


for machine in (VectorMachine, DotMachine, EuclideanMachine, IvfMachine):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.fixture(scope="class")
def eager_graph() -> Iterator[None]:
    """Even a handful of rows, filtered or not, is asked of the graph, which grows a few rows a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT_FILTER_ROWS", 3)
        patch.setattr(module, "EXACT_FILTER_SHARE", 0.02)
        patch.setattr(module, "STEP_ROWS", 8)
        yield


@pytest.mark.usefixtures("eager_graph")
class TestVectorMachine(VectorMachine.TestCase):  # type: ignore[misc, name-defined]
    """Cosine."""


@pytest.mark.usefixtures("eager_graph")
class TestDotMachine(DotMachine.TestCase):  # type: ignore[misc, name-defined]
    """Dot product."""


@pytest.mark.usefixtures("eager_graph")
class TestEuclideanMachine(EuclideanMachine.TestCase):  # type: ignore[misc, name-defined]
    """Euclidean distance."""


@pytest.mark.usefixtures("eager_graph")
class TestIvfMachine(IvfMachine.TestCase):  # type: ignore[misc, name-defined]
    """Cosine over an inverted file."""


@pytest.fixture(scope="module")
def large() -> tuple[VectorIndex, np.ndarray, np.ndarray]:
    rows, queries = clustered(20_000, 48, seed=11)
    index = VectorIndex(48, flat_threshold=10_000)
    index.add(np.arange(len(rows)), rows)
    settle(index)
    return index, rows, queries


def recall(index: VectorIndex, queries: np.ndarray, allowed: np.ndarray | None = None) -> float:
    found = 0
    for query in queries:
        approximate, _ = index.search(query, 10, allowed)
        exact, _ = index.search(query, 10, allowed, exact=True)
        found += len(set(approximate.tolist()) & set(exact.tolist()))
    return found / (10 * len(queries))


def test_large_namespace_is_served_by_hnsw_with_high_recall(large: Any) -> None:
    index, rows, queries = large
    stats = index.stats()
    assert (stats.serving, stats.is_built, stats.indexed, stats.build_progress) == ("hnsw", True, 20_000, 1.0)
    assert recall(index, queries) >= 0.97
    truth = rows / np.linalg.norm(rows, axis=1)[:, None] @ (queries[0] / np.linalg.norm(queries[0]))
    slots, scores = index.search(queries[0], 10, exact=True)
    assert set(slots.tolist()) == set(np.argsort(-truth)[:10].tolist())
    np.testing.assert_allclose(scores, np.sort(truth)[::-1][:10], atol=1e-5)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.12, 0.01, 0.0005])
def test_filtered_search_keeps_recall_and_is_never_short(large: Any, share: float) -> None:
    index, rows, queries = large
    allowed = np.random.default_rng(3).random(len(rows)) < share
    assert recall(index, queries[:30], allowed) >= 0.95
    for query in queries[:10]:
        for k in (10, 100):
            slots, _ = index.search(query, k, allowed)
            assert len(slots) == min(k, allowed.sum())
            assert allowed[slots].all()


def test_filter_that_hides_the_neighbourhood_still_returns_k(large: Any) -> None:
    index, rows, queries = large
    nearest, _ = index.search(queries[0], 5_000, exact=True)
    allowed = np.ones(len(rows), dtype=bool)
    allowed[nearest] = False
    slots, _ = index.search(queries[0], 50, allowed)
    assert len(slots) == 50 and allowed[slots].all()


def test_graph_that_proposes_too_few_is_not_believed(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index, rows, queries = large
    allowed = np.random.default_rng(4).random(len(rows)) < 0.5
    expected = index.search(queries[0], 10, allowed, exact=True)
    propose = Approximate.candidates
    monkeypatch.setattr(Approximate, "candidates", lambda *given: propose(*given)[:9])
    for one, other in zip(index.search(queries[0], 10, allowed), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_narrow_filters_are_exact(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index, rows, queries = large
    monkeypatch.setattr(Approximate, "candidates", lambda *_: pytest.fail("the graph was asked"))
    for share in (0.2, 0.01):
        allowed = np.random.default_rng(5).random(len(rows)) < share
        assert len(index.search(queries[0], 10, allowed)[0]) == 10


def test_rows_past_the_end_of_a_mask_are_not_allowed_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_FILTER_ROWS", 3)
    rows, _ = clustered(400, 8, seed=7)
    index = VectorIndex(8, flat_threshold=100)
    index.add(np.arange(200), rows[:200])
    settle(index)
    index.add(np.arange(200, 400), rows[200:])
    for length in (150, 300):
        for slot in (190, 250, 350):
            slots, _ = index.search(rows[slot], 5, np.ones(length, dtype=bool))
            assert len(slots) == 5 and slots.max() < length


def test_large_k_is_not_cut(large: Any) -> None:
    index, rows, queries = large
    assert len(index.search(queries[0], len(rows) + 5)[0]) == len(rows)
    assert len(index.search(queries[0], 9_000)[0]) == 9_000


def test_scores_do_not_depend_on_the_path(large: Any) -> None:
    index, rows, queries = large
    only = np.zeros(len(rows), dtype=bool)
    for query in queries[:10]:
        slots, scores = index.search(query, 10)
        np.testing.assert_array_equal(index.scores(query, slots), scores)
        for slot, score in zip(slots, scores, strict=True):
            only[:] = False
            only[slot] = True
            assert index.search(query, 1, only)[1][0] == score


def test_exact_duplicates_tie_bit_for_bit_and_come_in_slot_order() -> None:
    index = VectorIndex(37)
    vector = np.random.default_rng(0).standard_normal(37)
    noise = np.random.default_rng(1).standard_normal((3_000, 37))
    index.add(np.arange(3_000), noise)
    copies = np.arange(7, 3_000, 61)
    index.add(copies, np.tile(vector, (len(copies), 1)))
    slots, scores = index.search(vector + 0.1, 20)
    assert slots.tolist() == copies[:20].tolist()
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize("index_type", [IndexType.HNSW, IndexType.IVF, IndexType.SPFRESH])
def test_requested_structures_are_built_early_and_serve(index_type: IndexType) -> None:
    rows, queries = clustered(3_000, 16, seed=2)
    index = VectorIndex(16, index_type=index_type)
    index.add(np.arange(len(rows)), rows)
    assert not index.stats().is_built
    settle(index)
    assert index.stats().serving == ("hnsw" if index_type is IndexType.HNSW else "ivf")
    assert recall(index, queries) >= 0.95


def test_flat_is_never_replaced() -> None:
    rows, _ = clustered(1_500, 8, seed=2)
    index = VectorIndex(8, index_type=IndexType.FLAT, flat_threshold=100)
    index.add(np.arange(len(rows)), rows)
    assert not index.maintenance()
    assert index.stats().serving == "flat" and index.stats().is_built


def test_rows_are_findable_before_during_and_after_the_build() -> None:
    rows, _ = clustered(700, 16, seed=4)
    index = VectorIndex(16, flat_threshold=200)
    progress = []
    for start in range(0, 700, 7):
        slots = np.arange(start, start + 7)
        index.add(slots, rows[slots])
        for slot in slots:
            assert index.search(rows[slot], 1)[0][0] == slot
        index.maintenance()
        progress.append(index.stats().build_progress)
    settle(index)
    assert index.stats().indexed == 700
    assert min(progress[40:]) >= 0 and progress[-1] == 1.0


def test_replaced_and_removed_rows_vanish_from_the_graph_and_cause_a_rebuild() -> None:
    rows, queries = clustered(2_000, 16, seed=5)
    index = VectorIndex(16, flat_threshold=200)
    index.add(np.arange(2_000), rows)
    settle(index)
    before = index.memory_bytes
    index.remove(np.arange(0, 2_000, 3))
    index.add(np.arange(1, 2_000, 3), -rows[1::3])
    for slot in (1, 4, 700):
        assert index.search(-rows[slot], 1)[0][0] == slot
    assert recall(index, queries) >= 0.95
    assert settle(index) > 10
    assert index.stats().indexed == len(index) == 2_000 - 667
    assert index.memory_bytes < before
    assert recall(index, queries) >= 0.97


def test_shrunken_namespace_goes_back_to_flat_without_flapping() -> None:
    rows, _ = clustered(300, 8, seed=6)
    index = VectorIndex(8, flat_threshold=260)
    index.add(np.arange(300), rows)
    settle(index)
    index.remove(np.arange(80))
    assert settle(index) == 0 and index.stats().serving == "hnsw"
    index.remove(np.arange(80, 180))
    settle(index)
    assert index.stats().serving == "flat"


def test_writes_while_a_step_is_under_way_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = clustered(260, 8, seed=7)
    index = VectorIndex(8, flat_threshold=100)
    index.add(np.arange(260), rows)
    insert = Approximate.insert
    raced = []

    def racing(self: Approximate, vectors: np.ndarray) -> None:
        insert(self, vectors)
        if not raced:
            raced.append(True)
            index.add(np.array([0]), -rows[:1])
            index.remove(np.array([1]))

    monkeypatch.setattr(Approximate, "insert", racing)
    settle(index)
    assert raced and index.stats().serving == "hnsw"
    assert index.search(-rows[0], 1)[0].tolist() == [0]
    assert 1 not in index.search(rows[1], 250)[0]
    assert len(index.search(rows[1], 1_000)[0]) == 259


def test_search_between_the_halves_of_a_step_sees_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = clustered(400, 8, seed=7)
    rows[0] = rows[300]
    index = VectorIndex(8, flat_threshold=100)
    index.add(np.arange(300), rows[:300])
    settle(index)
    index.add(np.arange(300, 400), rows[300:])
    insert = Approximate.insert
    searched = []

    def searching(self: Approximate, vectors: np.ndarray) -> None:
        insert(self, vectors)
        for slot in (5, 300, 310, 399):
            for one, other in zip(index.search(rows[slot], 10), index.search(rows[slot], 10, exact=True), strict=True):
                np.testing.assert_array_equal(one, other)
            searched.append(slot)

    monkeypatch.setattr(Approximate, "insert", searching)
    settle(index)
    assert len(searched) >= 8


def test_search_write_and_maintenance_may_run_on_different_threads() -> None:
    rows, queries = clustered(1_500, 16, seed=8)
    index = VectorIndex(16, flat_threshold=100)
    index.add(np.arange(500), rows[:500])
    failures: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: Any) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    def search() -> None:
        for query in queries[:20]:
            slots, scores = index.search(query, 10)
            assert len(slots) == 10 and (np.diff(scores) <= 0).all()

    workers = [
        threading.Thread(target=guarded, args=(search,)),
        threading.Thread(target=guarded, args=(index.maintenance,)),
    ]
    for worker in workers:
        worker.start()
    for start in range(500, 1_500, 10):
        index.add(np.arange(start, start + 10), rows[start : start + 10])
        index.remove(np.array([start - 500]))
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []
    settle(index)
    assert len(index) == 1_400
    assert index.search(rows[1_499], 1)[0].tolist() == [1_499]


def test_dump_restores_every_answer_and_the_graph(large: Any) -> None:
    index, _, queries = large
    loaded = VectorIndex.load(index.dump(), flat_threshold=10_000)
    # Spare capacity is not dumped.
    assert msgspec.structs.replace(loaded.stats(), memory_bytes=index.memory_bytes) == index.stats()
    assert not loaded.maintenance()
    for query in queries[:20]:
        for one, other in zip(index.search(query, 10), loaded.search(query, 10), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_small_dumps_round_trip(metric: Metric, rows: int) -> None:
    index = VectorIndex(5, metric)
    index.add(np.arange(0, 3 * rows, 3), np.random.default_rng(0).standard_normal((rows, 5)) * 10)
    loaded = VectorIndex.load(index.dump())
    assert loaded.dump() == index.dump()
    loaded.add(np.array([1]), np.ones((1, 5)))
    assert len(loaded) == rows + 1


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_dump_is_refused_or_harmless(data: st.DataObject) -> None:
    index = VectorIndex(4)
    index.add(np.arange(5), np.random.default_rng(0).standard_normal((5, 4)))
    blob = bytearray(index.dump())
    damage = data.draw(st.sampled_from(["cut", "longer", "flip"]))
    if damage == "cut":
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    elif damage == "longer":
        blob += b"\0"
    else:
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        loaded = VectorIndex.load(bytes(blob))
    except CorruptionError:
        return
    assert damage == "flip", "only a flip may pass: finding it is the business of the owner's checksum"
    slots, _ = loaded.search(np.ones(loaded.dimension), 10)
    assert len(slots) == min(10, len(loaded))


def test_parts_of_a_dump_do_not_follow_later_writes() -> None:
    index = VectorIndex(4, flat_threshold=10)
    index.add(np.arange(30), np.random.default_rng(0).standard_normal((30, 4)))
    settle(index)
    before = index.dump()
    parts = index.dump_parts()
    index.remove(np.arange(10))
    index.add(np.arange(20, 40), np.ones((20, 4)))
    assert b"".join(parts) == before


def test_dump_of_another_view_or_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = VectorIndex(4).dump()
    monkeypatch.setattr(module, "DUMP_VERSION", 2)
    with pytest.raises(CorruptionError, match="v2"):
        VectorIndex.load(blob)


def test_metric_can_be_chosen_per_query() -> None:
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((200, 12)) * rng.uniform(0.1, 5, (200, 1))
    query = rng.standard_normal(12)
    for stored in Metric:
        index = VectorIndex(12, stored)
        index.add(np.arange(200), rows)
        for asked in Metric:
            slots, scores = index.search(query, 5, metric=asked)
            truth = np.array([reference(query, row, asked) for row in rows])
            np.testing.assert_allclose(scores, np.sort(truth)[::-1][:5], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(truth[slots], scores, rtol=1e-4, atol=1e-4)


def test_euclidean_score_is_one_for_the_vector_itself_and_falls_with_distance() -> None:
    index = VectorIndex(2, Metric.EUCLIDEAN)
    index.add(np.array([0, 1]), np.array([[1e6, 0], [1e6, 3]]))
    slots, scores = index.search(np.array([1e6, 0]), 2)
    assert slots.tolist() == [0, 1] and scores.tolist() == [1.0, 0.25]


def test_zero_vectors_score_zero_and_do_not_divide() -> None:
    index = VectorIndex(3)
    index.add(np.array([0, 1]), np.array([[0, 0, 0], [1, 0, 0]]))
    assert index.search(np.array([1, 0, 0]), 2)[1].tolist() == [1.0, 0.0]
    assert index.search(np.zeros(3), 2)[1].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(index.vectors(np.array([0])), np.zeros((1, 3)))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e14])
def test_magnitude_of_a_cosine_row_survives(scale: float) -> None:
    row = np.array([[0.3, -2.0, 0.001]]) * scale
    index = VectorIndex(3)
    index.add(np.array([4]), row)
    np.testing.assert_allclose(index.vectors(np.array([4])), row, rtol=1e-3, atol=scale * 1e-4)
    assert index.search(row[0], 1)[1][0] == pytest.approx(1, abs=1e-6)


def test_unknown_slots_read_as_nan() -> None:
    index = VectorIndex(2)
    index.add(np.array([3]), np.ones((1, 2)))
    slots = np.array([3, 0, 99, -1])
    assert np.isnan(index.scores(np.ones(2), slots)).tolist() == [False, True, True, True]
    assert np.isnan(index.vectors(slots)).any(axis=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (np.ones((1, 3)), DimensionMismatchError),
        (np.ones((1, 0)), EmptyVectorError),
        (np.array([[1, np.nan]]), InvalidRequestError),
        (np.array([[1, np.inf]]), InvalidRequestError),
        (np.array([[1, 1e300]]), InvalidRequestError),
        (np.ones((2, 2)), InvalidRequestError),
        (np.ones(2), InvalidRequestError),
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_stored(vectors: np.ndarray, error: type[Exception]) -> None:
    index = VectorIndex(2)
    with pytest.raises(error):
        index.add(np.array([0]), vectors)
    assert len(index) == 0
    with pytest.raises(InvalidRequestError):
        index.search(np.array([np.nan, 1]), 1)


def test_names_of_metrics_and_types() -> None:
    assert Metric.of(None) is Metric.COSINE and Metric.of("dot") is Metric.of("dot_product") is Metric.DOT_PRODUCT
    assert IndexType.of(None) is IndexType.AUTO and IndexType.of("HNSW") is IndexType.HNSW
    with pytest.raises(InvalidRequestError, match="cosine, euclidean, dot_product"):
        Metric.of("manhattan")
    with pytest.raises(InvalidRequestError, match="flat, hnsw, ivf, spfresh"):
        IndexType.of("annoy", "type")


def test_small_namespaces_cost_little() -> None:
    assert VectorIndex(384).memory_bytes == 0
    index = VectorIndex(384)
    for slot in range(100):
        index.add(np.array([slot]), np.ones((1, 384)))
    assert index.memory_bytes < 100 * 384 * 2 * 1.5


def test_slots_far_apart_do_not_allocate_the_gap() -> None:
    index = VectorIndex(64)
    index.add(np.array([0, 40 * CHUNK_ROWS]), np.eye(2, 64))
    assert index.memory_bytes < 3 * CHUNK_ROWS * 64 * 2 + 60 * CHUNK_ROWS * 10
    index.remove(np.array([40 * CHUNK_ROWS]))
    assert index.search(np.ones(64), 5)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("metric", "index_type"),
    [(Metric.COSINE, IndexType.FLAT), (Metric.COSINE, IndexType.HNSW), (Metric.DOT_PRODUCT, IndexType.FLAT)],
)
def test_a_survey_finds_both_lists_and_the_others_on_every_path(metric: Metric, index_type: IndexType) -> None:
    rows, queries = clustered(1_500, 16, 7)
    rows[1::2] = rows[::2]
    index = VectorIndex(16, metric, index_type, flat_threshold=100)
    index.add(np.arange(1_500), rows)
    settle(index)
    rng = np.random.default_rng(8)
    keys, allowed = rng.permutation(1_600).astype(np.uint64), rng.random(1_400) < 0.7
    held, others = rng.choice(1_600, 200, replace=False), np.array([9, 1_499, 1_550])
    every = np.arange(1_500)
    for query in queries[:10]:
        scores = index.scores(query, every)
        chosen = np.flatnonzero(allowed)
        near = chosen[np.lexsort((keys[chosen], -scores[chosen]))][:31]
        named = np.intersect1d(chosen, held)
        named = named[np.lexsort((keys[named], -scores[named]))][:11]
        slots, found = index.survey(query, keys, 31, allowed, held, 11, others)
        expected = np.unique(np.concatenate([near, named, others]))
        if index_type is IndexType.FLAT:
            assert slots.tolist() == expected.tolist()
        assert {*named.tolist(), *others.tolist()} <= set(slots.tolist())
        assert len(np.intersect1d(slots, expected)) >= 0.9 * len(expected)
        known = slots < 1_500
        assert np.array_equal(found[known], scores[slots[known]].astype(np.float64))
        assert np.isnan(found[~known]).all()
