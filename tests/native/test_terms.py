import numpy as np
import pytest

from dakera_cluster.native import terms

LENGTHS = np.array([3.0, 8.0, 0.0, 20.0])


def found(postings: list[dict[int, int]], idf: list[float]) -> terms.Found:
    slots = np.array([slot for each in postings for slot in each], np.int32)
    counts = np.array([count for each in postings for count in each.values()], np.uint16)
    ends = np.cumsum([len(each) for each in postings], dtype=np.int64)
    return terms.found(slots, counts, ends, np.array(idf, np.float64), 1.5, (0.5, 0.25), LENGTHS)


def test_a_memory_sums_what_it_holds_in_the_order_of_the_terms() -> None:
    result = found([{3: 300, 0: 1}, {}, {0: 2}], [2.0, 5.0, 0.7])
    assert result.slots.tolist() == [3, 0]
    assert result.places.tolist() == [2, 0, 0, 1]
    of_3 = 2.0 * 2.5 * 300 / (300 + (0.5 + 0.25 * 20))
    of_0 = 2.0 * 2.5 * 1 / (1 + (0.5 + 0.25 * 3)) + 0.7 * 2.5 * 2 / (2 + (0.5 + 0.25 * 3))
    assert result.bm25.tolist() == [0.0, of_3, of_0]
    assert result.coverage.tolist() == [0.0, 2.0, 2.7]
    assert result.frequencies.tolist() == [[1, 0, 0, terms.MAX_FREQUENCY], [0, 0, 0, 0], [2, 0, 0, 0]]


def test_nothing_is_found_without_terms_or_postings() -> None:
    for result in (found([], []), found([{}, {}], [1.0, 1.0])):
        assert len(result.slots) == 0
        assert result.bm25.tolist() == result.coverage.tolist() == [0.0]
        assert not result.places.any()


def test_postings_that_do_not_fit_are_refused() -> None:
    one, count, end, idf = np.array([4], np.int32), np.array([1], np.uint16), np.array([1]), np.ones(1)
    for slots in (one, np.array([-1], np.int32)):
        with pytest.raises(ValueError, match="reach beyond"):
            terms.found(slots, count, end, idf, 1.0, (1.0, 1.0), LENGTHS)
    two = np.zeros(2, np.int32), np.ones(2, np.uint16)
    for ends in ([3, 2], [2, 1], [-1, 2], [1, 3]):
        with pytest.raises(ValueError, match="reach beyond"):
            terms.found(*two, np.array(ends), np.ones(2), 1.0, (1.0, 1.0), LENGTHS)
    with pytest.raises(ValueError, match="do not fit"):
        terms.found(one, two[1], end, idf, 1.0, (1.0, 1.0), LENGTHS)
