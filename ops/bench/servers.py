"""The two servers under measurement, as processes on loopback: start, wait until they answer, weigh, stop.

Both get a fresh directory and the same machine. The node stores with fsync before it acknowledges; chromadb runs with its
defaults. Process figures are the kernel's (/proc), children included.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.01


class Server:
    """One server process. ``start`` returns the seconds until it answered with 200."""

    name = ""
    """What the tables call it."""
    engine = ""
    """Whose clients it serves."""
    ready_path = "/"

    def __init__(self, home: Path, log: Path) -> None:
        self.home = home
        self.port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    @property
    def ports(self) -> list[int]:
        """Where clients connect, each to one, in turn."""
        return [self.port]

    def start(self) -> float:
        began = time.perf_counter()
        self.spawn()
        self.wait(began)
        return time.perf_counter() - began

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv(),
                env=dict(self.environment()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
            )

    def wait(self, began: float) -> None:
        """Wait until it answers. ``began``: when it was started, by the performance counter."""
        assert self._process is not None
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; see {self._log}")
            if time.perf_counter() - began > START_TIMEOUT_S:
                self.stop()
                raise RuntimeError(f"{self.name} did not answer within {START_TIMEOUT_S:.0f} s; see {self._log}")
            time.sleep(_POLL_S)

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        self.terminate()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def discard(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def resident_bytes(self) -> int:
        return sum(_resident_bytes(pid) for pid in self._pids())

    def cpu_s(self) -> float:
        """Processor seconds used so far, user and system."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.home.rglob("*") if path.is_file())

    def _pids(self) -> list[int]:
        if self._process is None:
            return []
        pids = [self._process.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids.extend(int(child) for child in children.read_text().split())
        return pids

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", self.ready_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Node(Server):
    name = engine = "dakera"
    ready_path = "/health/ready"

    def argv(self) -> list[str]:
        return [sys.executable, "-m", "node", "serve"]

    def environment(self) -> Mapping[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("DAKERA_")},
            **({"DAKERA_MODEL_CACHE": os.environ["DAKERA_MODEL_CACHE"]} if "DAKERA_MODEL_CACHE" in os.environ else {}),
            "DAKERA_HOST": "127.0.0.1",
            "DAKERA_PORT": str(self.port),
            "DAKERA_GRPC_PORT": str(free_port()),
            "DAKERA_GOSSIP_PORT": str(free_port()),
            "DAKERA_STORAGE": "filesystem",
            "DAKERA_STORAGE_PATH": "data",
            "RATE_LIMIT_RPS": "0",
            "RUST_LOG": "warn",
        }


class Chroma(Server):
    name = engine = "chromadb"
    ready_path = "/api/v2/heartbeat"

    def argv(self) -> list[str]:
        command = Path(sys.executable).parent / "chroma"
        return [str(command), "run", "--path", "data", "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "ANONYMIZED_TELEMETRY": "False", "RUST_LOG": "error"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine_busy_s() -> float:
    """Processor seconds that this machine has worked since it started, whoever it was for."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _, _, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
