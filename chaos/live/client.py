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
PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 1.0
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
    """Requests round robin over the nodes; ``timeout_s`` bounds one attempt.

    With `watch_for_hangs` a node that accepts connections and answers nothing leaves the turn until it does, as any balancer
    would see to it: otherwise all clients soon wait for that one node, and the others are tested no more. A node that refuses
    connections stays, because what clients do then is what is tested.
    """

    def __init__(self, urls: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> None:
        self._urls = dict(urls)
        self._nodes: Sequence[str] = list(urls)
        self._turn = 0
        self.hanging: set[str] = set()
        """Nodes that accept connections and answer nothing."""
        self._probes: list[asyncio.Task[None]] = []
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(2.0, timeout_s)),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        )

    def watch_for_hangs(self) -> None:
        """Ask every node for its health all the time, until `close`."""
        self._probes = [asyncio.create_task(self._probe(node)) for node in self._nodes]

    async def _probe(self, node: str) -> None:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        while True:
            try:
                async with self._session.get(f"{self._urls[node]}/health", timeout=timeout):
                    self.hanging.discard(node)
            except TimeoutError:
                self.hanging.add(node)
            except (aiohttp.ClientError, OSError):
                self.hanging.discard(node)
            await asyncio.sleep(PROBE_EVERY_S)

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await self._session.close()

    def _next(self, after: str | None = None) -> str:
        """Whose turn it is; a node that hangs is passed over as long as another does not."""
        place = self._nodes.index(after) + 1 if after is not None else self._turn
        if after is None:
            self._turn += 1
        order = [self._nodes[(place + step) % len(self._nodes)] for step in range(len(self._nodes))]
        return next((node for node in order if node not in self.hanging), order[0])

    async def ask(self, request: Request, *, node: str | None = None, attempts: int = 2) -> Answer:
        """Send it to ``node`` (None: the next in turn), and once more to the one after when that did not answer well."""
        target = node if node is not None else self._next()
        made: list[Attempt] = []
        body: Any = None
        while len(made) < attempts:
            attempt, body = await self._once(request, target)
            made.append(attempt)
            target = self._next(after=target)
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
