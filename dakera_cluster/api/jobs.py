"""Background jobs that an operator started: a bounded list of what runs and what ran.

Kept in memory: a job belongs to the process that runs it. Called by the ops handlers.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dakera_cluster.model.errors import DakeraError, JobNotFoundError, OverloadedError

log = logging.getLogger(__name__)
MAX_JOBS = 256
MAX_RUNNING = 2
MAX_PENDING = 64
RETRY_S = 5
PENDING = "pending"
RUNNING = "running"
COMPLETED = "completed"
FAILED = "failed"


class Job(msgspec.Struct):
    """Times are Unix seconds, ``progress`` percent."""

    id: str
    job_type: str
    status: str
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    progress: int = 0
    message: str | None = None
    metadata: dict[str, str] = {}


class Jobs:
    def __init__(self, clock: Callable[[], float], announce: Callable[[Job], None] = lambda job: None) -> None:
        """``announce`` is told of every change of a job's status."""
        self._clock = clock
        self._announce = announce
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(MAX_RUNNING)

    def list(self) -> list[Job]:
        """Newest first."""
        return list(reversed(self._jobs.values()))

    def get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise JobNotFoundError(f"no job {job_id}")
        return job

    @property
    def active(self) -> int:
        return len(self._tasks)

    def start(self, job_type: str, work: Callable[[Job], Awaitable[Any]], **metadata: str) -> Job:
        """Run ``work`` in the background when its turn comes; it may set the job's progress and message. A job of the
        same kind that still waits is returned instead of a second one. Raises OverloadedError when too many wait."""
        for waiting in self._jobs.values():
            if waiting.status == PENDING and (waiting.job_type, waiting.metadata) == (job_type, metadata):
                return waiting
        if len(self._tasks) >= MAX_PENDING:
            raise OverloadedError(f"{len(self._tasks)} jobs wait; retry when some have ended", retry_after_s=RETRY_S)
        job = Job(f"job_{uuid.uuid4().hex}", job_type, PENDING, int(self._clock()), metadata=metadata)
        self._jobs[job.id] = job
        self._announce(job)
        while len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)
        self._tasks[job.id] = asyncio.create_task(self._run(job, work), name=job.id)
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[Any]]) -> None:
        try:
            async with self._turn:
                job.status, job.started_at = RUNNING, int(self._clock())
                self._announce(job)
                await work(job)
            job.status, job.progress = COMPLETED, 100
        except DakeraError as error:
            job.status, job.message = FAILED, error.message
        except asyncio.CancelledError:
            job.status, job.message = FAILED, "the node stopped"
            raise
        except Exception:
            log.exception("job %s failed", job.id)
            job.status, job.message = FAILED, "internal error"
        finally:
            job.completed_at = int(self._clock())
            del self._tasks[job.id]
            self._announce(job)

    async def close(self) -> None:
        """Cancel what runs and wait for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
