"""What waits for the model: the requests, and the queue that deals their texts out in turn.

Invariants: a job's texts are taken once each, shortest first; no job waits for another's last text, because every job gives
one text in turn; the queue's counts are those of its untaken texts.

Used by the service alone, which guards the queues with its lock.
"""

from __future__ import annotations

import asyncio
from collections import deque

from dakera_cluster.inference.encoding import EncodedText
from dakera_cluster.inference.models import TextKind
from dakera_cluster.promise import Promise

CHARS_PER_TOKEN = 4
"""A guess good enough to size a slice before it is tokenised."""


class Job:
    """The texts of one request that have to be computed. Filled by the inference thread, read by the loop when done."""

    __slots__ = (
        "chars",
        "done",
        "dropped",
        "found",
        "given",
        "kind",
        "left",
        "loop",
        "pending",
        "texts",
        "tokens",
    )

    def __init__(self, texts: list[str], kind: TextKind, tokens: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: Promise[None] = Promise(loop=self.loop)
        self.texts = texts
        self.kind = kind
        self.tokens = tokens
        self.found: list[EncodedText | None] = [None] * len(texts)
        self.chars = sum(map(len, texts))
        self.left = len(texts)
        self.dropped = False
        self.given = False  # filled from what another node computed
        # In order of length, so that what is taken together pads little; the longest first, to be popped from the end.
        self.pending = sorted(range(len(texts)), key=lambda index: -len(texts[index])) if len(texts) > 1 else [0]

    def settle(self, error: Exception | None = None) -> None:
        """Ends the wait. On the event loop."""
        if error is None:
            self.done.settle(None)
        else:
            self.done.fail(error)


class JobQueue:
    """Jobs of one kind, taken from in turn. Guarded by the service's lock."""

    def __init__(self, max_texts: int, max_chars: int) -> None:
        self._jobs: deque[Job] = deque()
        self._max_texts = max_texts
        self._max_chars = max_chars
        self.texts = 0
        self._chars = 0

    def offer(self, job: Job) -> bool:
        """False when the job would overfill the queue; an empty queue takes any job, or the largest could never run."""
        over = self.texts + len(job.texts) > self._max_texts or self._chars + job.chars > self._max_chars
        if over and self.texts:
            return False
        self._jobs.append(job)
        self.texts += len(job.texts)
        self._chars += job.chars
        return True

    def take(self, tokens: int) -> list[tuple[Job, int]]:
        """Texts worth about `tokens` tokens (one text at least), one of each job in turn, as (job, index of its text)."""
        taken: list[tuple[Job, int]] = []
        budget = tokens * CHARS_PER_TOKEN
        while self._jobs and (not taken or budget > 0):
            job = self._jobs.popleft()
            index = job.pending.pop()
            taken.append((job, index))
            chars = len(job.texts[index])
            budget -= chars + CHARS_PER_TOKEN
            self.texts -= 1
            self._chars -= chars
            if job.pending:
                self._jobs.append(job)
        return taken

    def drop(self, job: Job) -> None:
        """Forgets what is left of a job."""
        self.texts -= len(job.pending)
        self._chars -= sum(len(job.texts[index]) for index in job.pending)
        if job.pending:
            self._jobs.remove(job)
        job.pending = []

    def clear(self) -> list[Job]:
        jobs = list(self._jobs)
        for job in jobs:
            self.drop(job)
        return jobs
