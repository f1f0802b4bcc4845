"""A real node in a process of its own: started on a free port, waited for by its readiness, stopped by its process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
ROOT_KEY = "test-root-key"
DEFAULTS = {
    "DAKERA_HOST": "127.0.0.1",
    "DAKERA_ROOT_API_KEY": ROOT_KEY,
    "DAKERA_STORAGE": "memory",
    "DAKERA_GRPC_ENABLED": "false",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "DAKERA_LOG_LEVEL": "warn",
}


class NodeProcess:
    """Settings are environment variables on top of `DEFAULTS`; the log is kept for the failure message."""

    def __init__(self, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ROOT_KEY
        self._log = log
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DAKERA_", "RATE_LIMIT_"))}
        self._env = {**clean, **DEFAULTS, **(env or {}), "DAKERA_PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> NodeProcess:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "node"], cwd=ROOT, env=self._env, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"the node exited with {self._process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(POLL_S)
        self.stop()
        raise AssertionError(f"the node was not ready within {START_TIMEOUT_S} s:\n{self.log()}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL, at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(STOP_TIMEOUT_S)

    def wait(self) -> int:
        """The exit status, once the process has ended by itself."""
        assert self._process is not None
        return self._process.wait(STOP_TIMEOUT_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""
