"""What surrounds the nodes and can be taken away from them: the bucket, Redis, the disk's space, the wall clock.

Each part says in ``skipped`` why it cannot be harmed on this machine, or None. Invariant: every harm has an end that restores
what was before, and `close` undoes all. Called by the cluster and the nemeses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaos.live.network import free_port

BUCKET_NAME = "dakera"
ACCESS_KEY = "dakera-chaos-key-001"
SECRET_KEY = "dakera-chaos-secret-of-40-characters-xyz"
DISK_BYTES = 256 * 1024**2
_START_S = 20.0
_NO_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


class Server:
    """A process that answers on a TCP port: stopped and continued, killed and started again."""

    def __init__(self, command: Sequence[str], host: str, port: int, log: Path, env: Mapping[str, str]) -> None:
        self._command = command
        self._address = (host, port)
        self._log = log
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self._process = process = self._spawn()
        for _ in range(int(_START_S / 0.05)):
            with contextlib.suppress(OSError):
                socket.create_connection(self._address, timeout=1).close()
                return
            if process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self._command[0]} does not start: {self._log.read_text(errors='replace')[-1000:]}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class DirectoryBucket:
    """A directory that all nodes share. In an outage nobody may enter it, nor may root overrule that."""

    skipped: str | None = None
    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                self.skipped = "root overrules the directory's mode, and there is no setpriv (util-linux) to prevent it"
            else:
                self.prefix = _NO_OVERRIDE

    async def start(self) -> None:
        """It is there."""

    def env(self) -> dict[str, str]:
        return {"DAKERA_BUCKET_PATH": str(self.path)}

    def take_away(self) -> None:
        self.path.chmod(0)

    def give_back(self) -> None:
        self.path.chmod(0o700)

    def close(self) -> None:
        self.give_back()


class S3Bucket:
    """MinIO where it is installed, else moto; in an outage the server is stopped, and answers nobody."""

    skipped: str | None = None
    prefix: tuple[str, ...] = ()

    def __init__(self, kind: str, host: str, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._endpoint = f"http://{host}:{(port := free_port())}"
        program = _program("minio" if kind == "minio" else "moto_server")
        if program is None:
            raise RuntimeError(f"{kind} is not installed")
        if kind == "minio":
            command = [program, "server", "--quiet", "--address", f"{host}:{port}", str(directory)]
            env = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
            env |= {"MINIO_UPDATE": "off"}
        else:
            command, env = [program, "-H", host, "-p", str(port)], {}
        self._server = Server(command, host, port, directory.parent / f"{kind}.log", env)

    async def start(self) -> None:
        await self._server.start()
        from aiobotocore.session import get_session

        for _ in range(int(_START_S / 0.5)):
            try:
                async with get_session().create_client(
                    "s3",
                    endpoint_url=self._endpoint,
                    region_name="us-east-1",
                    aws_access_key_id=ACCESS_KEY,
                    aws_secret_access_key=SECRET_KEY,
                ) as client:
                    await client.create_bucket(Bucket=BUCKET_NAME)
                    return
            except Exception:  # botocore's errors have no narrower common base
                await asyncio.sleep(0.5)
        raise RuntimeError(f"the bucket cannot be made at {self._endpoint}")

    def env(self) -> dict[str, str]:
        return {
            "DAKERA_STORAGE": "s3",
            "DAKERA_S3_ENDPOINT": self._endpoint,
            "DAKERA_S3_BUCKET": BUCKET_NAME,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def take_away(self) -> None:
        self._server.freeze()

    def give_back(self) -> None:
        self._server.thaw()

    def close(self) -> None:
        self._server.kill()


Bucket = DirectoryBucket | S3Bucket


class Redis:
    """A Redis that keeps nothing; it is killed, or frozen with its connections open."""

    def __init__(self, host: str, directory: Path) -> None:
        program = shutil.which("redis-server")
        self.skipped = None if program is not None else "redis-server is not installed"
        port = free_port()
        self._url = f"redis://{host}:{port}/0"
        options = ["--port", str(port), "--bind", host, "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        self._server = Server([program or "", *options], host, port, directory / "redis.log", {})

    async def start(self) -> None:
        if self.skipped is None:
            await self._server.start()

    def env(self) -> dict[str, str]:
        return {} if self.skipped is not None else {"DAKERA_REDIS_URL": self._url}

    def kill(self) -> None:
        self._server.kill()

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def close(self) -> None:
        self._server.kill()


class Disk:
    """A node's data directory as a small file system in memory that can be filled up; a plain directory without root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.skipped: str | None = "small file systems need root"
        if os.geteuid() == 0:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "dkchaos", str(path)],
                capture_output=True,
                text=True,
            )
            self.skipped = None if done.returncode == 0 else f"no file system can be mounted: {done.stderr.strip()}"
        self._ballast = path / ".ballast"

    def fill(self) -> None:
        """Leave no space."""
        with self._ballast.open("ab") as file:
            chunk = bytes(1024**2)
            with contextlib.suppress(OSError):
                while True:
                    file.write(chunk)
                    file.flush()

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def wipe(self) -> None:
        """A new, empty disk; the node must be stopped."""
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def close(self) -> None:
        if self.skipped is None:
            subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True)


class Clocks:
    """Wall clocks of the nodes, each behind a preloaded library that adds an offset (`clock.c`)."""

    def __init__(self, nodes: Sequence[str], directory: Path) -> None:
        directory.mkdir(parents=True)
        self._files = {node: directory / f"{node}.clock" for node in nodes}
        for node in nodes:
            self._files[node].write_bytes(bytes(8))
        self._library = directory / "clock.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.skipped = None if compiler is not None else "there is no C compiler for the clock library"
        if compiler is not None:
            source = Path(__file__).with_name("clock.c")
            command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(source), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                self.skipped = f"the clock library does not compile: {done.stderr.strip()[:200]}"

    def env(self, node: str) -> dict[str, str]:
        if self.skipped is not None:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._files[node])}

    def set(self, node: str, offset_ms: float) -> None:
        """Set the clock of a node ahead (or behind)."""
        # In place: the node has this very file mapped.
        with self._files[node].open("r+b") as file:
            file.write(round(offset_ms * 1e6).to_bytes(8, sys.byteorder, signed=True))


def _program(name: str) -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else shutil.which(name)
