import random

import numpy as np

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
        assert order.session_of(4) == expected


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


def test_windows_stop_at_the_ends_of_a_session() -> None:
    order = SessionOrder()
    for slot in range(3):
        order.put(slot, "a", slot, f"m{slot}")
    order.put(3, "b", 0.0, "m3")
    before, after = order.windows(np.array([0, 1, 3, 500]), 3)
    assert before.tolist() == [[-1, -1, -1], [0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert after.tolist() == [[1, 2, -1], [2, -1, -1], [-1, -1, -1], [-1, -1, -1]]


def test_without_a_session_nobody_is_near() -> None:
    order = SessionOrder()
    order.put(0, None, 0.0, "a")
    order.put(1, None, 1.0, "b")
    assert order.windows(np.array([0]), 1)[1].tolist() == [[NOBODY]]
    assert order.session_of(0) == [0]
