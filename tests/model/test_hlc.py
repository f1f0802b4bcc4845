from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.model.hlc import LOGICAL_MASK, MAX_SKEW_MS, NEVER, FarFutureError, HybridClock, Stamp


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=50))
def test_stamps_grow_strictly_even_when_the_wall_clock_jumps_back(times: list[int]) -> None:
    clock = HybridClock(7)
    made = [clock.tick(now) for now in times]
    assert all(earlier < later for earlier, later in itertools.pairwise(made))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 1_000)), min_size=1, max_size=60))
def test_a_stamp_made_after_another_was_observed_is_larger(steps: list[tuple[bool, int, int]]) -> None:
    clocks = [HybridClock(node) for node in range(4)]
    heard: list[Stamp] = [NEVER] * 4
    last = NEVER
    for observe, node, now in steps:
        if observe:
            clocks[node].observe(last.time, now + MAX_SKEW_MS)
            heard[node] = max(heard[node], last)
        else:
            last = clocks[node].tick(now)
            assert last > heard[node]
            heard[node] = last


def test_a_stamp_shows_the_physical_time_it_was_made_at() -> None:
    assert HybridClock(1).tick(1_700_000_000_123).wall_ms == 1_700_000_000_123


def test_a_far_future_stamp_is_refused_and_changes_nothing() -> None:
    clock = HybridClock(1, max_skew_ms=1_000)
    clock.observe((5_000 << 16) | LOGICAL_MASK, 4_000)
    before = clock.last_time
    with pytest.raises(FarFutureError, match="1001 ms ahead"):
        clock.observe(5_001 << 16, 4_000)
    assert clock.last_time == before


def test_a_clock_restarted_with_its_last_time_never_repeats_a_stamp() -> None:
    clock = HybridClock(1)
    last = clock.tick(9_000)
    assert HybridClock(1, last_time=clock.last_time).tick(1_000) > last


def test_equal_times_of_two_nodes_are_ordered_by_node() -> None:
    assert HybridClock(1).tick(5) < HybridClock(2).tick(5)
