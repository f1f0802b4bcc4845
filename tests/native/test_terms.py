import math

import numpy as np
import pytest

from dakera_cluster.native import terms
from tests.support.first_look import found_of

LENGTHS = np.array([3.0, 8.0, 0.0, 20.0])
DOCUMENTS = 4


def idf_of(holders: int, documents: int = DOCUMENTS) -> float:
    return math.log(1 + (documents - holders + 0.5) / (holders + 0.5))


def test_a_memory_sums_what_it_holds_in_the_order_of_the_terms() -> None:
    found = found_of([{3: 300, 0: 1}, {}, {0: 2}], LENGTHS, DOCUMENTS)
    idf = [idf_of(2), idf_of(0), idf_of(1)]
    assert found.idf.tolist() == idf
    assert found.places.tolist() == [2, 0, 0, 1]
    of_3 = idf[0] * 2.5 * 300 / (300 + (0.5 + 0.25 * 20))
    of_0 = idf[0] * 2.5 * 1 / (1 + (0.5 + 0.25 * 3)) + idf[2] * 2.5 * 2 / (2 + (0.5 + 0.25 * 3))
    assert found.bm25.tolist() == [0.0, of_3, of_0]
    total = idf[0] + idf[1] + idf[2]
    assert found.coverage.tolist() == [0.0, idf[0] / total, (idf[0] + idf[2]) / total]
    assert found.frequencies.tolist() == [[1, 0, 0, terms.MAX_FREQUENCY], [0, 0, 0, 0], [2, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 128, 129, 300])
def test_coverage_is_a_share_of_the_idf_as_numpy_adds_it(count: int) -> None:
    rng = np.random.default_rng(count)
    held = [dict.fromkeys([0, *rng.choice(np.arange(1, 900), rng.integers(1, 500)).tolist()], 1) for _ in range(count)]
    found = found_of(held, np.full(900, 9.0), 900)
    idf = np.array([idf_of(len(each), 900) for each in held])
    assert found.idf.tolist() == idf.tolist()
    total = 0.0
    for value in idf.tolist():
        total += value
    assert found.coverage[found.places[0]] == total / float(idf.sum())


def test_names_are_rare_while_few_hold_them() -> None:
    held = [{0: 1}, {0: 1, 1: 1}, {}, {0: 1, 1: 1, 3: 1}, {3: 2}]
    assert found_of(held, LENGTHS, DOCUMENTS, {0, 1, 2, 3}, 2.5).rare.tolist() == [0, 1]
    assert found_of(held, LENGTHS, DOCUMENTS, {3, 4}, 3.0).rare.tolist() == [3, 4]
    assert found_of(held, LENGTHS, DOCUMENTS).rare.tolist() == []


def test_nothing_is_found_without_terms_or_postings() -> None:
    for found in (found_of([], LENGTHS, DOCUMENTS), found_of([{}, {}], LENGTHS, DOCUMENTS)):
        assert found.bm25.tolist() == found.coverage.tolist() == [0.0]
        assert not found.places.any()
    assert found_of([{}], np.zeros(0), 0).idf.tolist() == [idf_of(0, 0)]


def test_a_memory_beyond_the_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the lengths"):
        found_of([{0: 1, 4: 1}], LENGTHS, DOCUMENTS)
