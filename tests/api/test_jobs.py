"""Background jobs: they wait their turn, say how they ended, and are bounded."""

from __future__ import annotations

import asyncio

import pytest

from dakera_cluster.api.jobs import MAX_JOBS, MAX_PENDING, MAX_RUNNING, Job, Jobs
from dakera_cluster.model.errors import InvalidRequestError, JobNotFoundError, OverloadedError


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(lambda: 1_000.0)


async def settled(job: Job) -> None:
    async with asyncio.timeout(5):
        while job.completed_at is None:
            await asyncio.sleep(0)


async def test_a_job_reports_its_progress_and_its_end(jobs: Jobs) -> None:
    gate = asyncio.Event()

    async def work(job: Job) -> None:
        job.progress = 40
        await gate.wait()

    job = jobs.start("compaction", work, namespace="n")
    await asyncio.sleep(0)
    assert (job.status, job.progress, job.started_at, job.metadata) == ("running", 40, 1_000, {"namespace": "n"})
    gate.set()
    await settled(job)
    assert (job.status, job.progress, job.completed_at) == ("completed", 100, 1_000)
    assert jobs.get(job.id) is job
    with pytest.raises(JobNotFoundError):
        jobs.get("absent")


@pytest.mark.parametrize(
    ("error", "message"),
    [(InvalidRequestError("no such thing"), "no such thing"), (ValueError("secret"), "internal error")],
)
async def test_a_failed_job_says_what_clients_may_know(jobs: Jobs, error: Exception, message: str) -> None:
    async def work(job: Job) -> None:
        raise error

    job = jobs.start("x", work)
    await settled(job)
    assert (job.status, job.message) == ("failed", message)


async def test_jobs_wait_their_turn_and_too_many_are_refused(jobs: Jobs) -> None:
    gate = asyncio.Event()

    async def work(job: Job) -> None:
        await gate.wait()

    started = [jobs.start("x", work, number=str(number)) for number in range(MAX_PENDING)]
    await asyncio.sleep(0)
    assert [job.status for job in started].count("running") == MAX_RUNNING
    with pytest.raises(OverloadedError):
        jobs.start("x", work, number="one too many")
    assert jobs.start("x", work, number=str(MAX_PENDING - 1)) is started[-1]
    gate.set()
    await asyncio.gather(*(settled(job) for job in started))
    assert jobs.active == 0


async def test_the_list_is_newest_first_and_bounded(jobs: Jobs) -> None:
    async def work(job: Job) -> None:
        return

    for number in range(MAX_JOBS + 5):
        await settled(jobs.start("x", work, number=str(number)))
    listed = jobs.list()
    assert len(listed) == MAX_JOBS
    assert listed[0].metadata == {"number": str(MAX_JOBS + 4)}


async def test_closing_ends_what_runs(jobs: Jobs) -> None:
    async def work(job: Job) -> None:
        await asyncio.Event().wait()

    job = jobs.start("x", work)
    await asyncio.sleep(0)
    await jobs.close()
    assert (job.status, jobs.active) == ("failed", 0)
