import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dakera_cluster.native import late, library, order, vectors, words
from tests.support.vector_rows import rows_of

SOURCES = Path(library.__file__).parent


def test_planes_hold_every_value() -> None:
    values = np.arange(-32_768, 32_768).astype(np.int16)
    high, low = vectors.split(values)
    assert np.array_equal(vectors.joined(high, low), values)
    assert np.array_equal(256 * high.view(np.int8).astype(int) + low, values)


@pytest.mark.parametrize("width", [384, 96, 50, 7])
def test_dot_products_are_those_of_numpy_wherever_a_row_lies(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = rng.integers(-32_767, 32_768, (200, width)).astype(np.int16)
    query = rng.standard_normal(width).astype(np.float32)
    slots = rng.permutation(200).astype(np.int64)
    kept, stored = rows_of(rows)
    expected = rows.astype(np.float64) @ query.astype(np.float64)
    dots = vectors.gather(stored, slots, query)
    np.testing.assert_allclose(dots, expected[slots], rtol=1e-5, atol=1e-6 * 32_767 * width)
    alone = [vectors.gather(stored, slots[at : at + 1], query)[0] for at in range(200)]
    assert dots.tolist() == alone
    assert len(kept) == 4


@pytest.mark.parametrize("width", [384, 1024, 33])
@pytest.mark.parametrize("wanted", [1, 17, 200, 500])
def test_the_nearest_are_the_best_chosen_rows_ties_by_slot(wanted: int, width: int) -> None:
    rng = np.random.default_rng(wanted)
    # Three of a kind, and neighbours that differ in the low byte alone: the high plane cannot tell them apart.
    rows = np.repeat(rng.integers(-32_000, 32_000, (100, width)), 3, axis=0).astype(np.int16)
    rows[::7] += rng.integers(-100, 100, rows[::7].shape).astype(np.int16)
    query = rng.standard_normal(width).astype(np.float32)
    query /= np.linalg.norm(query)
    present, allowed = rng.random(300) < 0.9, rng.random(250) < 0.5
    scales = (1 / np.linalg.norm(rows.astype(np.float64), axis=1)).astype(np.float32)
    _kept, stored = rows_of(rows, scales, present)
    for mask in (None, allowed):
        found, scores = vectors.nearest(stored, mask, query, wanted)
        chosen = np.flatnonzero(present if mask is None else present[:250] & mask)
        cosines = vectors.gather(stored, chosen, query) * scales[chosen]
        best = np.lexsort((chosen, -cosines))[:wanted]
        assert found.tolist() == chosen[best].tolist()
        assert np.array_equal(scores, cosines[best])


@pytest.mark.parametrize("width", [384, 4096])
def test_the_bounds_of_the_high_plane_hold_for_extreme_rows_and_queries(width: int) -> None:
    rng = np.random.default_rng(width)
    extremes = rng.choice(np.array([-32_767, -32_513, -1, 0, 255, 32_767], np.int16), (300, width))
    scales = (1 / np.maximum(1, np.linalg.norm(extremes.astype(np.float64), axis=1))).astype(np.float32)
    _kept, stored = rows_of(extremes, scales)
    for query in (np.ones(width), np.eye(1, width)[0], rng.choice([-1.0, 1.0], width), np.zeros(width)):
        unit = (query / max(1.0, float(np.linalg.norm(query)))).astype(np.float32)
        found, _ = vectors.nearest(stored, None, unit, 5)
        cosines = np.clip(vectors.gather(stored, np.arange(300), unit) * scales, -1, 1)
        assert found.tolist() == np.lexsort((np.arange(300), -cosines))[:5].tolist()


def test_rows_of_a_damaged_scale_are_found_like_others() -> None:
    rows = np.arange(5 * 32).reshape(5, 32).astype(np.int16)
    unit = np.full(32, 32**-0.5, np.float32)
    for scale in (-np.inf, np.inf, np.nan, -1.9e5):
        scales = np.array([scale, 1e-4, 1e-4, 1e-4, 1e-4], np.float32)
        _kept, stored = rows_of(rows, scales)
        slots, _ = vectors.nearest(stored, None, unit, 10)
        assert sorted(slots.tolist()) == [0, 1, 2, 3, 4]


def test_nothing_is_nearest_when_nothing_is_wanted() -> None:
    _kept, stored = rows_of(np.zeros((4, 32), np.int16))
    assert len(vectors.nearest(stored, None, np.ones(32, np.float32), 0)[0]) == 0


class LateCase:
    """Tokens of four memories, one in two runs, and those of a question whose largest component is the largest step."""

    def __init__(self, width: int, tokens: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.signs = rng.integers(0, 256, (60, width // 8), dtype=np.uint8)
        self.steps = rng.integers(-late.MAX_STEP, late.MAX_STEP + 1, (tokens, width)).astype(np.int16)
        self.steps[:, -1] = late.MAX_STEP
        self.runs = np.array([3, 20, 8, 40]), np.array([5, 9, 12, 20]), np.array([2, 2, 0, 1])
        self.weights = rng.random(tokens)
        self.cosines = np.linspace(1, -1, width + 1).astype(np.float32)
        self.best, self.first = np.zeros((tokens, 4), np.float32), np.zeros(4)

    @property
    def query(self) -> late.Query:
        return late.Query(self.steps.astype(np.float32), self.weights, late.Cosines(self.cosines))

    @property
    def stored(self) -> late.Stored:
        return late.Stored(self.signs, np.zeros(0, np.int64), np.zeros(0, np.int32))

    def matched(self, kernel: Any) -> tuple[np.ndarray, np.ndarray]:
        kernel(self.query, self.stored, self.runs, self.best, self.first)
        return self.best, self.first


@pytest.mark.parametrize(
    ("width", "tokens"), [(384, 9), (96, 3), (8, 1), (24, 16), (1024, 2), (40, 17), (768, 64), (64, 33)]
)
def test_exact_matches_are_maxsim_in_the_best_run(width: int, tokens: int) -> None:
    case = LateCase(width, tokens)
    best, first = case.matched(late.exact)
    assert np.array_equal(case.query.steps, case.steps)
    plus_minus = 2 * np.unpackbits(case.signs, axis=1).astype(np.int64) - 1
    dots = case.steps.astype(np.int64) @ plus_minus.T
    runs = []
    for begin, length, owner in zip(*case.runs, strict=True):
        similar = (dots[:, begin : begin + length].max(axis=1) * case.query.scales).astype(np.float32)
        runs.append((owner, similar, float((case.weights * similar).sum())))
    for owner in (0, 1, 2):
        own = [(similar, total) for who, similar, total in runs if who == owner]
        leading = max(own, key=lambda each: each[1])
        assert np.array_equal(best[:, owner], leading[0])
        assert first[owner] == pytest.approx(own[0][1], rel=1e-6)
    assert not best[:, 3].any()


@pytest.mark.parametrize("width", [384, 128, 96])
@pytest.mark.parametrize("tokens", [1, 6, 18])
def test_runs_of_any_length_find_their_greatest(width: int, tokens: int) -> None:
    """Tokens are matched many at once, whosever they are: runs that end within, at and beyond those."""
    case = LateCase(width, tokens)
    rng = np.random.default_rng(2)
    lengths = np.array([64, 1, 63, 0, 150, 20, 41, 1, 1, 0, 128, 7, *rng.integers(1, 40, 20)])
    case.signs = rng.integers(0, 256, (900, width // 8), dtype=np.uint8)
    case.runs = rng.integers(0, 900 - lengths), lengths, np.arange(len(lengths))
    # The greatest sums there can be, at the first and at the last place of a run.
    case.signs[case.runs[0][4]] = np.packbits(case.steps[0] > 0)
    case.signs[case.runs[0][10] + 127] = np.packbits(case.steps[-1] > 0)
    case.best, case.first = np.zeros((tokens, len(lengths)), np.float32), np.zeros(len(lengths))
    best, _ = case.matched(late.exact)
    plus_minus = 2 * np.unpackbits(case.signs, axis=1).astype(np.int64) - 1
    dots = case.steps.astype(np.int64) @ plus_minus.T
    least = -np.abs(case.steps.astype(np.int64)).sum(axis=1)
    for begin, length, owner in zip(*case.runs, strict=True):
        greatest = dots[:, begin : begin + length].max(axis=1, initial=least.min()) if length else least
        assert np.array_equal(best[:, owner], (greatest * case.query.scales).astype(np.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_steps_and_all_signs_alike_do_not_overflow(sign: int) -> None:
    case = LateCase(4096, 10)
    case.steps[:] = sign * late.MAX_STEP
    case.steps[3] = 0
    for signs, share in ((255, 1), (0, -1)):
        case.signs[:] = signs
        best, _ = case.matched(late.exact)
        expected = sign * share * 4096 * late.MAX_STEP * case.query.scales
        expected[3] = 0
        assert np.array_equal(best[:, 0], expected.astype(np.float32))


def test_a_run_without_tokens_matches_less_than_any_other() -> None:
    case = LateCase(128, 5)
    case.runs = np.array([3, 20]), np.array([0, 9]), np.array([0, 1])
    best, _ = case.matched(late.exact)
    least = (-np.abs(case.steps.astype(np.int64)).sum(axis=1) * case.query.scales).astype(np.float32)
    assert np.array_equal(best[:, 0], least)
    assert (best[:, 1] > least).all()


@pytest.mark.parametrize(("width", "tokens"), [(96, 4), (384, 9), (8, 1), (72, 17), (128, 64), (4096, 8)])
def test_estimated_matches_count_differing_signs(width: int, tokens: int) -> None:
    case = LateCase(width, tokens)
    best, _ = case.matched(late.estimated)
    differing = np.bitwise_count(case.query.signs[:, None, :] ^ case.signs[None, 8:20, :]).sum(axis=2)
    assert np.array_equal(best[:, 0], case.cosines[differing.min(axis=1)])


def test_neighbours_lend_their_best_and_only_from_inside() -> None:
    rng = np.random.default_rng(9)
    best, weights = rng.normal(size=(12, 5)).astype(np.float32), rng.random(5)
    places, inside = rng.integers(-1, 12, (7, 6)), rng.random((7, 6)) < 0.4
    cover = late.lent_cover(best, places, inside, 0.8, weights)
    for place in range(7):
        lenders = places[place][inside[place] & (places[place] >= 0)]
        lent = np.maximum(best[lenders].max(axis=0, initial=0), 0) * 0.8
        assert cover[place] == pytest.approx(float(weights @ np.maximum(best[place], lent)))
    with pytest.raises(ValueError, match="do not fit"):
        late.lent_cover(best, places, inside[:, :3].copy(), 0.8, weights)


def test_orders_put_what_is_no_number_last_and_break_ties_by_key() -> None:
    scores = np.array([1.0, math.nan, 3.0, 1.0, 3.0, -math.inf])
    keys = np.array([9, 1, 5, 2, 4, 0], np.uint64)
    assert order.best(scores, keys, 6).tolist() == [4, 2, 3, 0, 5, 1]
    rng = np.random.default_rng(4)
    scores, keys = rng.integers(0, 30, 500).astype(float), rng.integers(0, 2**63, 500).astype(np.uint64)
    for wanted in (0, 1, 50, 500, 900):
        assert order.best(scores, keys, wanted).tolist() == np.lexsort((keys, -scores))[:wanted].tolist()


def test_scaling_touches_wanted_rows_only() -> None:
    values = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [math.nan, 4.0, 2.0], [math.nan] * 3, [7.0, 8.0, 9.0]])
    order.scale_rows(values, np.array([True, True, True, True, False]))
    assert values.tolist() == [[0, 1, 0.5], [0, 0, 0], [0, 1, 0], [0, 0, 0], [7, 8, 9]]


def test_weighted_rows_leave_out_those_of_no_weight() -> None:
    values = np.array([[1.0, 2.0], [math.nan, math.inf], [3.0, -1.0]])
    assert order.weighted_rows(values, np.array([2.0, 0.0, 0.5])).tolist() == [3.5, 3.5]
    assert order.weighted_rows(values[:, :0].copy(), np.zeros(3)).tolist() == []
    with pytest.raises(ValueError, match="weights"):
        order.weighted_rows(values, np.zeros(2))


def test_ranks_count_what_is_greater() -> None:
    assert order.ranks(np.array([2.0, 5.0, 2.0, -math.inf, 9.0])).tolist() == [2, 1, 2, 4, 0]
    assert order.ranks(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_steps_are_those_of_numpy(dtype: type) -> None:
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(9, 72)).astype(dtype)
    vectors[2] = 0
    vectors[3, 5] = math.nan
    vectors[4, 7], vectors[5, :4] = -math.inf, (3e-8, -6e-5, 65_504, -0.0)
    vectors[6] *= 2.0**-14
    query = late.Query(vectors, np.ones(9), late.Cosines(np.ones(73, np.float32)))
    known = np.where(np.isnan(vectors), 0, vectors).astype(np.float32)
    peaks = np.maximum(np.abs(known).max(axis=1), np.finfo(np.float32).tiny).astype(np.float64)
    with np.errstate(invalid="ignore"):
        steps = np.nan_to_num(np.rint(known / peaks[:, None] * late.MAX_STEP))
    assert np.array_equal(query.steps, steps)
    assert np.array_equal(query.sums, steps.sum(axis=1))
    assert np.array_equal(query.scales, peaks / (late.MAX_STEP * math.sqrt(72)))
    assert np.array_equal(query.signs, np.packbits(known > 0, axis=1))


def test_each_float_of_sixteen_bits_is_read_as_numpy_reads_it() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for some in every[np.isfinite(every)].reshape(-1, 31, 1024):
        cosines = late.Cosines(np.ones(1025, np.float32))
        query, wide = (late.Query(each, np.ones(31), cosines) for each in (some, some.astype(np.float32)))
        assert np.array_equal(query.steps, wide.steps)
        assert np.array_equal(query.scales, wide.scales)
        assert np.array_equal(query.signs, wide.signs)


def test_a_tally_counts_repeats() -> None:
    counts = np.zeros(1 << 16, np.int32)
    words.tally(np.array([7, 7, 65_535], np.uint16), 1, counts)
    words.tally(np.array([7], np.uint16), -1, counts)
    assert (counts[7], counts[65_535], counts.sum()) == (1, 1, 2)
    with pytest.raises(ValueError, match="65536"):
        words.tally(np.array([7], np.uint16), 1, counts[:100].copy())


@pytest.mark.parametrize("count", [0, 1, 65_535, 65_536, 140_000])
def test_occurrences_are_counted_however_many(count: int) -> None:
    ids = np.full(count, 7, np.uint16)
    ids[: count // 3] = 65_535
    counts = late.occurrences(ids, np.array([7, 65_535, 3, 7], np.uint16))
    assert counts.tolist() == [count - count // 3, count // 3, 0, count - count // 3]


def test_what_c_would_not_notice_is_refused() -> None:
    _kept, stored = rows_of(np.zeros((4, 32), np.int16))
    with pytest.raises(TypeError, match="float32"):
        vectors.gather(stored, np.arange(4), np.zeros(32))
    with pytest.raises(TypeError, match="float32"):
        vectors.gather(stored, np.arange(4), np.zeros(32, ">f4"))
    with pytest.raises(ValueError, match="contiguous"):
        vectors.gather(stored, np.arange(8)[::2], np.zeros(32, np.float32))
    with pytest.raises(ValueError, match="31 components"):
        vectors.gather(stored, np.arange(4), np.zeros(31, np.float32))
    case = LateCase(96, 4)
    case.runs = np.array([50]), np.array([11]), np.array([0])
    with pytest.raises(ValueError, match="runs reach beyond"):
        case.matched(late.exact)
    with pytest.raises(ValueError, match="do not fit"):
        late.exact(LateCase(64, 4).query, case.stored, case.runs, case.best, case.first)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_every_processor_finds_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy for this processor against one without any of its extensions, hardly optimised."""
    built = tmp_path / "plain.so"
    files = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    flags = ["-O1", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-DONE_COPY", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, *files, "-o", str(built), "-lm"], check=True)
    rng = np.random.default_rng(11)
    rows = rng.integers(-32_767, 32_768, (300, 389)).astype(np.int16)
    query = rng.standard_normal(389).astype(np.float32)
    scales = (1 / np.linalg.norm(rows.astype(np.float64), axis=1)).astype(np.float32)
    unit = (query / np.linalg.norm(query)).astype(np.float32)
    _kept, stored = rows_of(rows, scales)
    # Rows of whole lanes, among them one of nothing, whose product is zero and not minus zero.
    narrow = rows[:, :384].copy()
    narrow[7] = 0
    _kept_too, even = rows_of(narrow)
    score, weight = rng.random((40, 30)).astype(np.float32), rng.random(40)

    def results() -> list[np.ndarray]:
        cases = [LateCase(384, 9), LateCase(40, 19), LateCase(128, 35), LateCase(96, 7)]
        matched = [part for case in cases for part in case.matched(late.exact)]
        return [
            vectors.gather(stored, np.arange(300), query),
            vectors.gather(even, np.arange(300), query[:384].copy()),
            *vectors.nearest(stored, None, unit, 90),
            *matched,
            *LateCase(392, 11).matched(late.estimated),
            late.weighted(score, weight),
        ]

    usual = results()
    plain = library.opened(built)
    for module in (late, vectors):
        monkeypatch.setattr(module, "kernels", plain)
    for fast, slow in zip(usual, results(), strict=True):
        assert fast.tobytes() == slow.tobytes()
