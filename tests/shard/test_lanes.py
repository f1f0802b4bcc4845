"""Lanes: order, results, errors, cancellation, the bound, and the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from dakera_cluster.model.errors import OverloadedError
from dakera_cluster.shard.lanes import Lanes


def ask(lanes: Lanes, call, *, must: bool = False) -> asyncio.Task:
    return asyncio.create_task(lanes.run("space", call, must=must))


async def held(lanes: Lanes) -> tuple[threading.Event, asyncio.Task]:
    """A call that holds the lane until the event is set."""
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        go_on.wait(10)
        return "held"

    task = ask(lanes, hold)
    await asyncio.to_thread(entered.wait, 10)
    return go_on, task


async def test_calls_run_in_order_on_one_thread_and_answer_each_its_caller() -> None:
    lanes = Lanes()
    ran: list[tuple[int, int]] = []

    def call(number: int) -> int:
        ran.append((number, threading.get_ident()))
        return number * number

    answers = await asyncio.gather(*(ask(lanes, lambda n=number: call(n)) for number in range(200)))
    assert answers == [number * number for number in range(200)]
    assert [number for number, _ in ran] == list(range(200))
    assert {thread for _, thread in ran} != {threading.get_ident()}
    assert len({thread for _, thread in ran}) == 1
    assert lanes.waiting == 0
    lanes.close()


async def test_an_error_reaches_its_caller_and_the_lane_goes_on() -> None:
    lanes = Lanes()

    def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await lanes.run("space", fail)
    assert await lanes.run("space", lambda: 7) == 7
    lanes.close()


async def test_a_cancelled_call_does_not_run_and_those_behind_it_do() -> None:
    lanes = Lanes()
    go_on, first = await held(lanes)
    ran: list[str] = []
    gone, stays = ask(lanes, lambda: ran.append("gone")), ask(lanes, lambda: ran.append("stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    assert lanes.waiting == 2
    go_on.set()
    assert await first == "held"
    await stays
    assert ran == ["stays"]
    lanes.close()


async def test_a_caller_that_goes_away_while_its_call_runs_disturbs_nobody() -> None:
    lanes = Lanes()
    go_on, first = await held(lanes)
    first.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await lanes.run("space", lambda: "next") == "next"
    assert first.cancelled()
    assert lanes.waiting == 0
    lanes.close()


async def test_over_the_bound_a_call_is_refused_unless_it_must_run() -> None:
    lanes = Lanes(queued_calls=2)
    go_on, first = await held(lanes)
    second = ask(lanes, lambda: 2)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await lanes.run("space", lambda: 3)
    must = ask(lanes, lambda: 4, must=True)
    await asyncio.sleep(0)
    go_on.set()
    assert [await first, await second, await must] == ["held", 2, 4]
    lanes.close()


async def test_closing_finishes_what_is_queued_and_refuses_what_comes_later() -> None:
    lanes = Lanes(2)
    ran: list[int] = []
    calls = [ask(lanes, lambda n=number: ran.append(n)) for number in range(5)]
    await asyncio.sleep(0)
    lanes.close()
    await asyncio.gather(*calls)
    assert ran == list(range(5))
    with pytest.raises(RuntimeError):
        await lanes.run("space", lambda: None)


async def test_an_idle_lane_keeps_nothing_of_its_last_call() -> None:
    class Big:
        pass

    lanes = Lanes()
    big = Big()
    seen = weakref.ref(big)
    await lanes.run("space", lambda held=big: None)
    del big
    for _ in range(200):  # the lane lets go just after it has answered
        gc.collect()
        if seen() is None:
            break
        await asyncio.sleep(0.01)
    assert seen() is None
    lanes.close()
