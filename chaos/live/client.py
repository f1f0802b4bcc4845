"""One request to a node and what it came to; and a client that, like the official ones, retries once at the next node.

Invariant: a write counts as failed only when it certainly had no effect: refused before it was begun, by the connection or by
the cluster's own word. Whatever else went wrong is unsure. Called by the workload and the measurements.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec

from chaos.live.history import Attempt, Outcome, overall

TIMEOUT_S = 6.0
"""Of one attempt: longer than a coordinator waits for a quorum, so that the cluster says itself what happened."""
_CERTAIN_STATUSES = frozenset({400, 401, 403, 404, 405, 409, 413, 415, 422, 429})


class Request(NamedTuple):
    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: Mapping[str, str] = {}
    is_write: bool = False


class Answer(NamedTuple):
    outcome: Outcome
    attempts: list[Attempt]
    body: Any
    """The decoded answer of the last attempt; None without one."""

    @property
    def status(self) -> int:
        return self.attempts[-1].status


class Client:
    """Requests round robin over the nodes, as a balancer would send them; ``timeout_s`` bounds one attempt."""

    def __init__(self, urls: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> None:
        self._urls = dict(urls)
        self._nodes: Sequence[str] = list(urls)
        self._turn = 0
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(2.0, timeout_s)),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, request: Request, *, node: str | None = None, attempts: int = 2) -> Answer:
        """Send it to ``node`` (None: the next in turn), and once more to the one after when that did not answer well."""
        if node is None:
            node = self._nodes[self._turn % len(self._nodes)]
            self._turn += 1
        place = self._nodes.index(node)
        made: list[Attempt] = []
        body: Any = None
        for step in range(attempts):
            attempt, body = await self._once(request, self._nodes[(place + step) % len(self._nodes)])
            made.append(attempt)
            if attempt.outcome is Outcome.OK or attempt.status in _CERTAIN_STATUSES - {429}:
                break
        outcome = overall(made)
        if made[-1].status == 404 and not request.is_write:
            outcome = Outcome.OK
        return Answer(outcome, made, body)

    async def _once(self, request: Request, node: str) -> tuple[Attempt, Any]:
        start = time.monotonic() * 1e3
        status, code, body = 0, "", None
        try:
            async with self._session.request(
                request.method, self._urls[node] + request.path, json=request.body, headers=request.headers
            ) as response:
                status = response.status
                body = msgspec.json.decode(await response.read())
                code = body.get("code", "") if isinstance(body, dict) and status >= 400 else ""
                outcome = _outcome_of(request, status, body)
        except aiohttp.ClientConnectorError as error:
            outcome, code = Outcome.FAILED, type(error).__name__
        except TimeoutError as error:
            outcome, code = Outcome.TIMEOUT if request.is_write else Outcome.FAILED, type(error).__name__
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            outcome, code = Outcome.AMBIGUOUS if request.is_write else Outcome.FAILED, type(error).__name__
        return Attempt(node, start, time.monotonic() * 1e3, outcome, status, code), body


def _outcome_of(request: Request, status: int, body: Any) -> Outcome:
    if 200 <= status < 300:
        return Outcome.OK
    if not request.is_write or status in _CERTAIN_STATUSES:
        return Outcome.FAILED
    if status == 503:
        unsure = isinstance(body, dict) and body.get("ambiguous", False)
        return Outcome.AMBIGUOUS if unsure else Outcome.FAILED
    return Outcome.AMBIGUOUS


async def pause_until(deadline: float) -> None:
    """Sleep until a time of the monotonic clock, in seconds."""
    left = deadline - time.monotonic()
    if left > 0:
        await asyncio.sleep(left)
