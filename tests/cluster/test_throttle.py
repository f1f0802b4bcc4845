"""Work that can wait leaves room for users, and takes what is there when nobody asks."""

from __future__ import annotations

import pytest

from dakera_cluster.cluster.throttle import LEAST_PER_S, LOOK_S, Demand, Pace


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Asked:
    count = 0

    def __call__(self) -> int:
        return self.count


def test_demand_is_high_while_requests_come_and_low_when_they_have_stopped() -> None:
    clock, asked = Clock(), Asked()
    demand = Demand(asked, clock)
    assert not demand.is_high()
    for _ in range(5):
        asked.count += 10
        clock.now_s += LOOK_S
        assert demand.is_high()
    clock.now_s += LOOK_S
    assert not demand.is_high()


def test_a_request_now_and_then_is_no_demand() -> None:
    clock, asked = Clock(), Asked()
    demand = Demand(asked, clock)
    for _ in range(20):
        asked.count += 1
        clock.now_s += 2 / LEAST_PER_S
        assert not demand.is_high()


def test_demand_is_judged_over_a_while_and_not_from_one_look_to_the_next() -> None:
    clock, asked = Clock(), Asked()
    demand = Demand(asked, clock)
    asked.count, clock.now_s = 50, clock.now_s + LOOK_S
    assert demand.is_high()
    clock.now_s += LOOK_S / 10
    assert demand.is_high()


@pytest.mark.parametrize(
    ("share", "at_once", "processors", "rest_s"),
    [(0.1, 1, 1, 9.0), (0.1, 2, 1, 19.0), (0.1, 2, 4, 4.0), (0.25, 1, 2, 1.0), (0.5, 1, 4, 0.0)],
)
def test_all_pieces_together_take_the_share(share: float, at_once: int, processors: int, rest_s: float) -> None:
    assert Pace(share, at_once, processors).rest_s(1.0) == pytest.approx(rest_s)
