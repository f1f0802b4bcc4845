"""S3 servers on loopback for tests: moto (right conditions, nothing durable), MinIO (the real one, where it is installed)
and ``rclone serve s3`` (durable, and ignores conditions: what a boot probe must refuse).

Each is a context manager that yields the settings of a bucket and ends its process by its id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from dakera_cluster.storage.s3 import S3Settings

ACCESS_KEY = "dakera-test-key-0001"
"""20 characters: what rclone wants."""
SECRET_KEY = "dakera-test-secret-key-of-40-characters-"
START_TIMEOUT_S = 30.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str) -> str | None:
    """Path of a program beside this interpreter, in a Go bin directory or on PATH."""
    places = [Path(sys.executable).parent / name, Path.home() / "go" / "bin" / name]
    return next((str(place) for place in places if place.exists()), shutil.which(name))


@contextlib.contextmanager
def serving(
    command: Sequence[str], port: int, *, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers HTTP on ``port``; terminate it afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode} while starting")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer on port {port}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def settings_for(port: int) -> S3Settings:
    return S3Settings(
        bucket="dakera-test", endpoint_url=f"http://127.0.0.1:{port}", access_key=ACCESS_KEY, secret_key=SECRET_KEY
    )


@contextlib.contextmanager
def moto() -> Iterator[S3Settings]:
    port = free_port()
    program = find_program("moto_server")
    assert program is not None, "moto_server is missing: install the test requirements"
    with serving([program, "-H", "127.0.0.1", "-p", str(port)], port):
        yield settings_for(port)


@contextlib.contextmanager
def rclone(directory: Path) -> Iterator[S3Settings]:
    port = free_port()
    program = find_program("rclone")
    assert program is not None, "rclone is missing: install the test requirements"
    (directory / "dakera-test").mkdir(parents=True)
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", "/dev/null"]
    with serving([program, "serve", "s3", *options, str(directory)], port):
        yield settings_for(port)


@contextlib.contextmanager
def minio(directory: Path) -> Iterator[S3Settings]:
    """Ask ``find_program("minio")`` first: it is not to be had as a package everywhere."""
    program = find_program("minio")
    assert program is not None, "minio is not installed"
    port = free_port()
    env = os.environ | {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    env |= {"MINIO_UPDATE": "off", "CI": "on"}
    with serving([program, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(directory)], port, env=env):
        yield settings_for(port)
