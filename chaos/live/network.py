"""The network between the nodes, and how it is broken: one way, both ways, or partly.

Two ways to do it, with the same verbs. As root every node gets a network namespace of its own, joined by a bridge, and its
kernel drops what comes from whom it shall not hear: real partitions, silent as in life, of UDP and of TCP. Otherwise a relay
process stands in front of every gossip port (`chaos.live.relay`). Clients reach the nodes in both, whatever is cut.

Invariant: `close` leaves nothing behind; namespaces of runs that died are swept by the next. Called by the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

HTTP_PORT = 3000
GOSSIP_PORT = 7946
_PREFIX = "dkchaos"
_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_S = 10.0


class Place(NamedTuple):
    """Where a node lives: what it binds, what it tells others, what clients dial, and how its process is entered."""

    host: str
    http_port: int
    gossip_bind: str
    gossip_advertise: str
    command: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"


class Cut(NamedTuple):
    """``listener`` hears nothing from ``speaker``, or loses ``percent`` of it."""

    speaker: str
    listener: str
    percent: int = 100


class Network(Protocol):
    """Places of the nodes and cuts between them."""

    kind: str
    host_ip: str
    """Where the nodes reach servers outside."""
    places: dict[str, Place]

    async def cut(self, cuts: Iterable[Cut]) -> None:
        """These cuts and no others; none heals everything."""
        ...

    async def entered(self, pids: dict[str, int]) -> None:
        """These processes run the nodes now."""
        ...

    async def close(self) -> None: ...


def both_ways(some: Iterable[str], others: Iterable[str]) -> list[Cut]:
    """Cuts that separate two groups entirely."""
    others = list(others)
    return [cut for a in some for b in others for cut in (Cut(a, b), Cut(b, a))]


def free_port() -> int:
    """A loopback port that was free a moment ago, for TCP and for UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def namespaces_work() -> bool:
    """Whether this machine lets us make namespaces: root, iproute2, nftables and nsenter."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "nft", "nsenter")):
        return False
    name = f"{_PREFIX}{os.getpid()}probe"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "exec", name, "nft", "list", "ruleset")
        return True
    except (subprocess.CalledProcessError, OSError):
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


async def make_network(nodes: Sequence[str], directory: Path, kind: str = "auto") -> Network:
    """``kind``: namespaces, relay, or auto (namespaces where they work)."""
    if kind == "namespaces" or (kind == "auto" and namespaces_work()):
        return NamespaceNetwork(nodes)
    relay = RelayNetwork(nodes, directory)
    await relay.start()
    return relay


class NamespaceNetwork:
    """A namespace a node, a veth pair each, one bridge; the bridge's own address is the clients' and the servers' side."""

    kind = "namespaces"

    def __init__(self, nodes: Sequence[str]) -> None:
        _sweep()
        tag = os.getpid() % 0xFFFF
        self._bridge = f"dkbr{tag:x}"
        self._names = {node: f"{_PREFIX}{os.getpid()}n{index}" for index, node in enumerate(nodes)}
        subnet = _free_subnet()
        self.host_ip = f"{subnet}.254"
        self._ips = {node: f"{subnet}.{index + 1}" for index, node in enumerate(nodes)}
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.host_ip}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for index, node in enumerate(nodes):
            self._join(node, f"dkv{tag:x}n{index}")
        self.places = {
            node: Place(ip, HTTP_PORT, f"{ip}:{GOSSIP_PORT}", f"{ip}:{GOSSIP_PORT}", self._enter(node))
            for node, ip in self._ips.items()
        }

    def _join(self, node: str, veth: str) -> None:
        name, ip = self._names[node], self._ips[node]
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", veth, "master", self._bridge)
        _run("ip", "link", "set", veth, "up")
        _run("ip", "-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "eth0", "up")

    def _enter(self, node: str) -> tuple[str, ...]:
        # nsenter, not `ip netns exec`: that one also makes a mount namespace, and mounts made later would not be seen.
        return ("nsenter", f"--net=/run/netns/{self._names[node]}", "--")

    async def cut(self, cuts: Iterable[Cut]) -> None:
        by_listener: dict[str, list[str]] = {node: [] for node in self._ips}
        for speaker, listener, percent in cuts:
            chance = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
            by_listener[listener].append(f"ip saddr {self._ips[speaker]} {chance}drop")
        await asyncio.gather(*(asyncio.to_thread(self._rules, node, rules) for node, rules in by_listener.items()))

    def _rules(self, node: str, rules: list[str]) -> None:
        body = "".join(f"    {rule}\n" for rule in rules)
        text = (
            "table inet chaos {}\nflush table inet chaos\ntable inet chaos {\n  chain heard {\n"
            f"    type filter hook input priority 0; policy accept;\n{body}  }}\n}}\n"
        )
        _run("ip", "netns", "exec", self._names[node], "nft", "-f", "-", text=text)

    async def entered(self, pids: dict[str, int]) -> None:
        """A namespace knows its processes."""

    async def close(self) -> None:
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)


class RelayNetwork:
    """Nodes on loopback ports; what they tell each other goes through a relay process that may drop it."""

    kind = "relay"
    host_ip = "127.0.0.1"

    def __init__(self, nodes: Sequence[str], directory: Path) -> None:
        self._log = directory / "relay.log"
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._fronts: dict[str, int] = {}
        self._backs: dict[str, int] = {}
        taken: set[int] = set()
        ports: list[int] = []
        while len(ports) < 3 * len(nodes):
            port = free_port()
            if port not in taken:
                taken.add(port)
                ports.append(port)
        self.places = {}
        for index, node in enumerate(nodes):
            http, back, front = ports[3 * index : 3 * index + 3]
            self._fronts[node], self._backs[node] = front, back
            self.places[node] = Place("127.0.0.1", http, f"127.0.0.1:{back}", f"127.0.0.1:{front}")

    async def start(self) -> None:
        spec = {node: [self._fronts[node], self._backs[node]] for node in self.places}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "chaos.live.relay",
                json.dumps(spec),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=_ROOT,
            )
        await self._answered()

    async def cut(self, cuts: Iterable[Cut]) -> None:
        await self._order({"cuts": list(cuts)})

    async def entered(self, pids: dict[str, int]) -> None:
        await self._order({"pids": pids})

    async def _order(self, order: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
            await self._answered()

    async def _answered(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_S):
            if not await self._process.stdout.readline():
                raise RuntimeError(f"the relay ended: {self._log.read_text(errors='replace')[-2000:]}")

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False, timeout=_ANSWER_S)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr.strip())
    return done.stdout


def _free_subnet() -> str:
    """The first three numbers of a private network that no interface has."""
    used = _run("ip", "-4", "-o", "addr")
    start = os.getpid()
    for step in range(4096):
        number = (start + step) % 4096
        subnet = f"10.{208 + number // 256}.{number % 256}"
        if f"{subnet}." not in used:
            return subnet
    raise RuntimeError("no free network")


def _sweep() -> None:
    """Remove namespaces and bridges of runs whose process is gone."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split(" ")[0]
        pid = name.removeprefix(_PREFIX).split("n")[0] if name.startswith(_PREFIX) else ""
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", f"dkbr{int(pid) % 0xFFFF:x}"], capture_output=True)
