"""Background processes that are found again by a file, and are stopped only when they are certainly ours.

A pid alone is not an identity: after a reboot or a crash another program may have it. The file therefore also holds the
process's start time as the kernel counts it, and both must match before anything is signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TERM_WAIT_S = 30.0
_POLL_S = 0.05


class Identity(NamedTuple):
    pid: int
    started: str
    """Field 22 of /proc/PID/stat, clock ticks since boot."""


class Background:
    """One named process: ``run/NAME.pid``, ``run/NAME.log``."""

    def __init__(self, name: str, run_dir: Path) -> None:
        self.name = name
        self.log = run_dir / f"{name}.log"
        self._pid_file = run_dir / f"{name}.pid"

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it detached from the terminal; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pid_file.write_text(f"{process.pid} {_started(process.pid)}\n")

    @property
    def pid(self) -> int | None:
        """The process's id while it lives."""
        try:
            pid_text, _, started = self._pid_file.read_text().strip().partition(" ")
        except FileNotFoundError:
            return None
        pid = int(pid_text)
        _reap(pid)
        return pid if _alive(Identity(pid, started)) else None

    def terminate(self) -> None:
        """Ask it to end, without waiting: several processes then end at the same time."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a power switch would, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        self._gone_within(TERM_WAIT_S)

    def stop(self, wait_s: float = TERM_WAIT_S) -> bool:
        """Ask it to end, then make it. True when it ended by itself or was not running."""
        self.terminate()
        orderly = self._gone_within(wait_s)
        if not orderly:
            self.kill()
        self._pid_file.unlink(missing_ok=True)
        return orderly

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _gone_within(self, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def last_lines(self, count: int) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except FileNotFoundError:
            return ""


def _started(pid: int) -> str:
    """When it started; empty for a process that is gone or, as a zombie, only waits for its parent to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _alive(identity: Identity) -> bool:
    try:
        os.kill(identity.pid, 0)
    except OSError:
        return False
    return identity.started != "" and _started(identity.pid) == identity.started


def _reap(pid: int) -> None:
    """A child of this very process stays a zombie until it is waited for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:
        return
