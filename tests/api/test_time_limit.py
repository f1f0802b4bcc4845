"""The time limit tells its own cancellation from anybody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dakera_cluster.api.time_limit import TimeLimits

LONG_S = 60.0


async def limited(seconds: float, work: Any) -> str:
    ours = False
    limit = TimeLimits(seconds).begin()
    try:
        try:
            return await work
        finally:
            ours = limit.end()
    except asyncio.CancelledError:
        if not ours:
            raise
        return "the time is up"


async def test_work_that_ends_in_time_is_not_disturbed() -> None:
    assert await limited(0.02, asyncio.sleep(0, "done")) == "done"
    await asyncio.sleep(0.05)  # the clock was stopped with the work


async def test_work_that_takes_too_long_is_cancelled_and_the_task_goes_on() -> None:
    assert await limited(0.01, asyncio.sleep(LONG_S)) == "the time is up"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_cancellation_from_outside_goes_on_as_it_came() -> None:
    task = asyncio.create_task(limited(LONG_S, asyncio.sleep(LONG_S)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_both_at_once_the_one_from_outside_wins() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            outside.cancel()
            raise

    outside = asyncio.create_task(limited(0.01, stubborn()))
    with pytest.raises(asyncio.CancelledError):
        await outside


async def test_an_error_of_the_work_passes_whatever_the_clock_says() -> None:
    async def late_error() -> None:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            raise KeyError("broken") from None

    with pytest.raises(KeyError):
        await limited(0.01, late_error())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
