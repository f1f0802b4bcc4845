"""One node as a process: started, killed, paused, resumed, started again with the same data; stopped by its process id only.

Invariant: when `stop_now` has returned the process is gone, whatever state it was in. Called by the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from chaos.live.network import Place

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.1


class NodeFailedError(RuntimeError):
    """A node ended by itself, or did not get ready."""


class NodeProcess:
    """A node under one name; ``boots`` counts its starts."""

    def __init__(
        self, name: str, place: Place, env: Mapping[str, str], directory: Path, prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.place = place
        self.directory = directory
        self.log = directory.parent.parent / f"{name}.log"
        self.boots = 0
        self.is_paused = False
        self._is_wanted = False
        self._env = env
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def has_crashed(self) -> bool:
        """Whether it ended although nobody ended it."""
        return self._is_wanted and not self.is_running

    @property
    def exit_status(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; it is ready some seconds later."""
        assert not self.is_running
        self.boots += 1
        self._is_wanted = True
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DAKERA_", "RATE_LIMIT_"))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.place.command, *self._prefix, sys.executable, "-m", "node"],
                cwd=ROOT,
                env={**clean, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: a Ctrl-C at the terminal is the harness's to handle.
                start_new_session=True,
            )
        self.is_paused = False

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it serves. Raises NodeFailedError when it ends, or takes longer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while loop.time() < deadline:
                if not self.is_running:
                    raise NodeFailedError(f"{self.name} exited with {self.exit_status}:\n{self.last_lines()}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(f"{self.place.url}/health/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(_POLL_S)
        raise NodeFailedError(f"{self.name} was not ready within {timeout_s:g} s:\n{self.last_lines()}")

    def signal_kill(self) -> None:
        """SIGKILL without waiting: several nodes die at the same instant."""
        self._is_wanted = False
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL, also when it is paused; returns when the process is gone."""
        self.signal_kill()
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
        self.is_paused = False

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_paused = False

    async def stop(self) -> None:
        """SIGTERM and wait for an orderly end; SIGKILL when it takes too long. Raises NodeFailedError then."""
        self._is_wanted = False
        self.resume()
        self._signal(signal.SIGTERM)
        for _ in range(int(STOP_TIMEOUT_S / _POLL_S)):
            if not self.is_running:
                return
            await asyncio.sleep(_POLL_S)
        self.kill()
        raise NodeFailedError(f"{self.name} did not stop within {STOP_TIMEOUT_S:g} s:\n{self.last_lines()}")

    def last_lines(self, count: int = 12) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except FileNotFoundError:
            return ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
