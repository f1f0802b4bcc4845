import random

import numpy as np

from dakera_cluster.native.words import neighbours
from dakera_cluster.retrieval.order import NOBODY, SessionOrder


def chain(order: SessionOrder, start: int) -> list[int]:
    found = [start]
    while (following := int(order.next[found[-1]])) != NOBODY:
        found.append(following)
    return found


def test_neighbours_follow_time_then_id_whatever_the_order_of_arrival() -> None:
    rows = [(slot, "s", float(slot // 3), f"m{(slot * 7) % 30:02d}") for slot in range(30)]
    expected = [slot for slot, *_ in sorted(rows, key=lambda row: row[2:])]
    for seed in range(20):
        order = SessionOrder()
        for row in random.Random(seed).sample(rows, len(rows)):
            order.put(*row)
        assert chain(order, expected[0]) == expected
        assert [order.previous[slot] for slot in expected] == [NOBODY, *expected[:-1]]


def test_a_removed_memory_closes_the_gap() -> None:
    order = SessionOrder()
    for slot in range(4):
        order.put(slot, "s", slot, f"m{slot}")
    order.remove(1)
    assert chain(order, 0) == [0, 2, 3]
    assert int(order.previous[2]) == 0
    assert int(order.next[1]) == NOBODY


def test_a_memory_whose_time_changes_moves() -> None:
    order = SessionOrder()
    for slot in range(3):
        order.put(slot, "s", slot, f"m{slot}")
    order.put(0, "s", 9.0, "m0")
    assert chain(order, 1) == [1, 2, 0]
    order.put(0, "other", 9.0, "m0")
    assert chain(order, 1) == [1, 2]
    assert chain(order, 0) == [0]


def windows(order: SessionOrder, slots: list[int], reach: int) -> list[list[int]]:
    """The neighbours of ``slots``, each of one word and said by somebody: the ones before, then the ones after."""
    said = np.zeros(1000, np.int32)
    found, words = neighbours(order.previous, order.next, said.astype(np.uint16), said, np.array(slots), reach)
    assert ((found == NOBODY) == (words > 1000)).all()
    return found.tolist()


def test_windows_stop_at_the_ends_of_a_session() -> None:
    order = SessionOrder()
    for slot in range(3):
        order.put(slot, "a", slot, f"m{slot}")
    order.put(3, "b", 0.0, "m3")
    assert windows(order, [0, 1, 3, 500], 3) == [
        [-1, -1, -1, 1, 2, -1],
        [0, -1, -1, 2, -1, -1],
        [-1, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1],
    ]


def test_without_a_session_nobody_is_near() -> None:
    order = SessionOrder()
    order.put(0, None, 0.0, "a")
    order.put(1, None, 1.0, "b")
    assert windows(order, [0], 1) == [[NOBODY, NOBODY]]
    assert order.codes(np.array([0, 1])).tolist() == [NOBODY, NOBODY]


def test_codes_tell_sessions_apart_and_nobody_from_all() -> None:
    order = SessionOrder()
    for slot, session in enumerate(["a", "b", "a", None]):
        order.put(slot, session, slot, f"m{slot}")
    first, other, again, none, unknown = order.codes(np.array([0, 1, 2, 3, 99])).tolist()
    assert first == again != other
    assert none == unknown == NOBODY
    order.put(0, "b", 0.0, "m0")
    assert order.codes(np.array([0])).tolist() == [other]
    order.remove(0)
    assert order.codes(np.array([0])).tolist() == [NOBODY]
