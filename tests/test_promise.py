"""Promises: waiters go on inside the callback that settles, and everything else is as with any future."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dakera_cluster.promise import Promise


def promise() -> Promise[Any]:
    return Promise(loop=asyncio.get_running_loop())


async def in_a_callback(call: Callable[[], object]) -> None:
    """Run ``call`` in a callback of the loop, and nothing after it in the same turn."""
    asyncio.get_running_loop().call_soon(call)
    await asyncio.sleep(0)


async def waiting(work: Any) -> asyncio.Task[Any]:
    """A task that has come as far as it can."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_a_waiter_goes_on_before_settle_returns() -> None:
    made, seen = promise(), []

    async def wait() -> None:
        seen.append(await made)

    task = await waiting(wait())

    def settle() -> None:
        made.settle(7)
        seen.append("settled")

    await in_a_callback(settle)
    assert seen == [7, "settled"]
    assert task.done()


async def test_all_waiters_go_on_in_the_order_in_which_they_came() -> None:
    made, seen = promise(), []

    async def wait(number: int) -> None:
        seen.append((number, await asyncio.shield(made) if number == 1 else await made))

    tasks = [await waiting(wait(number)) for number in range(4)]
    await in_a_callback(lambda: made.settle("x"))
    # A shield stands between promise and task, and tells its task in the next turn.
    assert seen == [(0, "x"), (2, "x"), (3, "x")]
    await asyncio.gather(*tasks)
    assert seen[-1] == (1, "x")


@pytest.mark.parametrize("end", [lambda made: made.settle(1), lambda made: made.fail(KeyError())])
async def test_who_was_told_at_once_is_not_told_again(end: Callable[[Promise[Any]], None]) -> None:
    made, told = promise(), []
    made.add_done_callback(told.append)
    await in_a_callback(lambda: end(made))
    assert told == [made]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == [made]
    made.exception()


async def test_an_error_is_raised_in_the_waiter_at_once() -> None:
    made, seen = promise(), []

    async def wait() -> None:
        try:
            await made
        except KeyError as error:
            seen.append(error.args)

    await waiting(wait())
    await in_a_callback(lambda: (made.fail(KeyError("gone")), seen.append("failed")))
    assert seen == [("gone",), "failed"]


async def test_settled_in_a_task_the_waiter_goes_on_in_a_later_turn() -> None:
    made, seen = promise(), []

    async def wait() -> None:
        seen.append(await made)
        assert asyncio.current_task() is task

    task = await waiting(wait())
    made.settle(1)
    seen.append("settled")
    await task
    assert seen == ["settled", 1]


async def test_settled_before_anybody_waits_it_answers_without_waiting() -> None:
    settled, failed = promise(), promise()
    await in_a_callback(lambda: (settled.settle(3), failed.fail(ValueError("no"))))
    assert await settled == 3
    with pytest.raises(ValueError, match="no"):
        await failed


async def test_only_the_first_settling_counts() -> None:
    made = promise()
    await in_a_callback(lambda: (made.settle(1), made.settle(2), made.fail(ValueError())))
    assert await made == 1


async def test_a_cancelled_waiter_hears_of_its_cancellation_alone() -> None:
    made = promise()

    async def wait() -> Any:
        return await made

    task = await waiting(wait())
    task.cancel()
    await in_a_callback(lambda: made.settle(1))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.cancelled()


async def test_a_timeout_ends_the_wait_and_a_later_result_harms_nothing() -> None:
    made = promise()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await made
    await in_a_callback(lambda: made.settle(1))
    assert made.cancelled()


async def test_a_result_in_time_is_not_overtaken_by_a_timeout() -> None:
    made = promise()

    async def wait() -> Any:
        async with asyncio.timeout(10):
            return await made

    task = await waiting(wait())
    await in_a_callback(lambda: made.settle(1))
    assert await task == 1
    assert not task.cancelling()


async def test_each_waiter_goes_on_in_its_own_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody")
    made, seen = promise(), []

    async def wait(name: str) -> None:
        variable.set(name)
        await made
        seen.append(variable.get())
        variable.set("changed")

    def settle() -> None:
        variable.set("settler")
        made.settle(None)
        seen.append(variable.get())

    for name in ("a", "b"):
        await waiting(wait(name))
    await in_a_callback(settle)
    assert seen == ["a", "b", "settler"]
    assert variable.get() == "nobody"


async def test_a_waiter_that_settles_another_promise_does_not_run_inside_another_task() -> None:
    first, second = promise(), promise()
    seen: list[str] = []

    async def wait_first() -> None:
        await first
        second.settle(None)
        seen.append("first")

    async def wait_second() -> None:
        await second
        seen.append("second")

    await waiting(wait_first())
    task = await waiting(wait_second())
    await in_a_callback(lambda: first.settle(None))
    await task
    assert seen == ["first", "second"]


async def test_a_callback_that_fails_is_reported_and_the_next_is_called() -> None:
    made, seen, reported = promise(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    made.add_done_callback(lambda _: 1 / 0)
    made.add_done_callback(lambda done: seen.append(done.result()))
    await in_a_callback(lambda: made.settle(5))
    assert seen == [5]
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_a_removed_callback_is_not_called() -> None:
    made, seen = promise(), []
    made.add_done_callback(seen.append)
    made.remove_done_callback(seen.append)
    await in_a_callback(lambda: made.settle(5))
    assert seen == []


async def test_several_waits_for_promises_work_together() -> None:
    made = [promise() for _ in range(3)]
    gathered = asyncio.gather(*made, return_exceptions=True)
    await in_a_callback(lambda: (made[0].settle(0), made[1].fail(KeyError("one")), made[2].settle(2)))
    first, error, last = await gathered
    assert (first, repr(error), last) == (0, "KeyError('one')", 2)


async def test_results_of_a_thread_wake_their_waiter() -> None:
    made = promise()
    loop = asyncio.get_running_loop()
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(made.settle, "from afar"))
    thread.start()
    async with asyncio.timeout(10):
        assert await made == "from afar"
    thread.join()


def test_an_interrupt_in_one_waiter_leaves_no_other_waiting() -> None:
    seen: list[str] = []

    async def interrupted(made: Promise[None]) -> None:
        await made
        raise KeyboardInterrupt

    async def other(made: Promise[None]) -> None:
        try:
            await made
            seen.append("told")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        made: Promise[None] = promise()
        tasks = [await waiting(interrupted(made)), await waiting(other(made))]
        tasks[0].add_done_callback(lambda task: task.exception())
        asyncio.get_running_loop().call_soon(made.settle, None)
        await asyncio.wait(tasks, timeout=10)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert len(seen) == 1
