"""A live cluster: its nodes, their network and their surroundings, brought up together and taken down together.

Invariant: leaving the context leaves no process, mount or namespace behind. Called by the runs and the measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from chaos.live.network import Cut, Network, make_network
from chaos.live.process import NodeFailedError, NodeProcess
from chaos.live.surroundings import Bucket, Clocks, DirectoryBucket, Disk, Redis, S3Bucket


class ClusterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``bucket``: dir, minio or moto. ``network``: auto, namespaces or relay. ``env`` is added to every node's settings."""

    nodes: int = 3
    bucket: str = "dir"
    network: str = "auto"
    redis: bool = False
    clocks: bool = False
    disks: bool = False
    env: dict[str, str] = {}


class LiveCluster:
    """``async with LiveCluster(options, directory) as cluster``: all nodes are ready then."""

    network: Network

    def __init__(self, options: ClusterOptions, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.names = [f"node-{number + 1}" for number in range(options.nodes)]
        self.nodes: dict[str, NodeProcess] = {}
        self.disks: dict[str, Disk] = {}
        self.bucket: Bucket
        self.redis: Redis | None = None
        self.clocks: Clocks | None = None
        self._secret = secrets.token_hex(16)
        self._stack = contextlib.AsyncExitStack()

    @property
    def urls(self) -> dict[str, str]:
        return {name: self.network.places[name].url for name in self.names}

    @property
    def quorum(self) -> int:
        return len(self.names) // 2 + 1

    async def __aenter__(self) -> LiveCluster:
        try:
            await self._set_up()
            await self.start_all()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _set_up(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.network = await make_network(self.names, self.directory, self.options.network)
        self._stack.push_async_callback(self.network.close)
        host: str = self.network.host_ip
        if self.options.bucket == "dir":
            self.bucket = DirectoryBucket(self.directory / "bucket")
        else:
            self.bucket = S3Bucket(self.options.bucket, host, self.directory / "bucket")
        self._stack.callback(self.bucket.close)
        await self.bucket.start()
        if self.options.redis:
            self.redis = Redis(host, self.directory)
            self._stack.callback(self.redis.close)
            await self.redis.start()
        if self.options.clocks:
            self.clocks = Clocks(self.names, self.directory / "clocks")
        for name in self.names:
            self._add_node(name)

    def _add_node(self, name: str) -> None:
        home = self.directory / "data" / name
        if self.options.disks:
            self.disks[name] = Disk(home)
            self._stack.callback(self.disks[name].close)
        node = NodeProcess(name, self.network.places[name], self._env(name, home), home, self.bucket.prefix)
        self._stack.callback(node.kill)
        self.nodes[name] = node

    def _env(self, name: str, home: Path) -> Mapping[str, str]:
        place = self.network.places[name]
        seeds = [self.network.places[other].gossip_advertise for other in self.names if other != name]
        return {
            "DAKERA_STORAGE": "filesystem",
            "DAKERA_STORAGE_PATH": str(home),
            "DAKERA_CLUSTER_MODE": "true",
            "DAKERA_NODE_ID": name,
            "DAKERA_HOST": place.host,
            "DAKERA_PORT": str(place.http_port),
            "DAKERA_API_ADVERTISE": place.url,
            "DAKERA_GOSSIP_BIND": place.gossip_bind,
            "DAKERA_GOSSIP_ADVERTISE": place.gossip_advertise,
            "DAKERA_CLUSTER_SEEDS": ",".join(seeds),
            "DAKERA_CLUSTER_SECRET": self._secret,
            "DAKERA_GRPC_ENABLED": "false",
            "DAKERA_DRAIN_SECS": "1",
            "RATE_LIMIT_RPS": "0",
            "RUST_LOG": "info,dakera_cluster.api.access=warn",
            **self.bucket.env(),
            **(self.redis.env() if self.redis is not None else {}),
            **(self.clocks.env(name) if self.clocks is not None else {}),
            **self.options.env,
        }

    async def cut(self, cuts: list[Cut]) -> None:
        await self.network.cut(cuts)

    def empty_disk(self, name: str) -> None:
        """Delete everything a node has on disk; it must not run."""
        assert not self.nodes[name].is_running
        if name in self.disks:
            self.disks[name].wipe()
        else:
            shutil.rmtree(self.nodes[name].directory, ignore_errors=True)

    async def start_all(self) -> None:
        """Start every node and wait until all are ready."""
        await asyncio.gather(*(self.restart(name) for name in self.names))

    async def restart(self, name: str) -> None:
        """Start a node that does not run, and wait until it is ready. Raises NodeFailedError."""
        await self._start(name)
        await self.nodes[name].ready()

    async def _start(self, name: str) -> None:
        self.nodes[name].start()
        await self.network.entered({node.name: node.pid for node in self.nodes.values() if node.is_running})

    async def restore(self) -> list[str]:
        """End every fault: heal the network, give back what was taken, start every node. Returns what went wrong."""
        problems: list[str] = []
        await self.cut([])
        self.bucket.give_back()
        for disk in self.disks.values():
            disk.free()
        if self.clocks is not None:
            for name in self.names:
                self.clocks.set(name, 0)
        for node in self.nodes.values():
            if node.is_paused:
                node.resume()
            if not node.is_running:
                await self._start(node.name)
        for node in self.nodes.values():
            try:
                await node.ready()
            except NodeFailedError as error:
                problems.append(str(error))
        return problems
