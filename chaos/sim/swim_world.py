"""A simulated cluster of membership cores: the code of ``protocols/swim.py`` unchanged, under virtual time.

The world plays the driver: ticks, packets, streams, and the pauses of a process (a stopped or overloaded event loop).
A paused process hears nothing; what arrives waits in a bounded socket buffer. When it goes on, the driver with
``STOLEN_TIME`` does what ``cluster/gossip.py`` does (lag first, then the socket, then timers); without it timers run
first, as uvloop orders them.

A stream succeeds when four datagrams in a row get through (handshake, request, reply): a retransmission would come too
late for the period it is needed in. Same seed, same trace. Used by the tests, and by ``ops/swim_tables.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from random import Random

from chaos.sim.net import LinkProfile, Network, Timeline
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import ALIVE, Address, Member, Meta, NodeState
from dakera_cluster.protocols.packets import Packet, PacketCodec, PacketFault
from dakera_cluster.protocols.swim import Swim
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import (
    Effect,
    Event,
    LeaveComplete,
    LoopLag,
    MemberEvent,
    PacketReceived,
    PushPull,
    PushPullResult,
    SendPacket,
    StreamProbe,
    StreamProbeResult,
    SyncReceived,
    Tick,
)

GOSSIP_PORT = 7946
SOCKET_BUFFER_PACKETS = 3000
STREAM_TIMEOUT_MS = 1000.0
HEARTBEAT_MS = 50.0
_STREAM_DATAGRAMS = 4

Watcher = Callable[[float, NodeId, Effect], None]
"""Called with (time, who, effect) for every effect that is not a packet or a stream."""
PacketTap = Callable[[float, NodeId, Address, Packet], None]
"""Called with (time, sender, receiver's address, packet) for every packet sent."""


def address_of(index: int) -> Address:
    return Address(f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", GOSSIP_PORT)


class Process:
    """One running node: its core, and whether it runs, is paused, or is gone."""

    __slots__ = ("addr", "core", "inbox", "is_running", "left", "node", "paused_at_ms", "wake_ms")

    def __init__(self, core: Swim) -> None:
        self.core = core
        self.node = core.me.node
        self.addr = core.me.addr
        self.is_running = True
        self.left = False
        self.paused_at_ms: float | None = None
        self.inbox: list[Event] = []
        self.wake_ms = float("inf")


class SwimWorld:
    """N members on one simulated network."""

    def __init__(
        self, config: SwimConfig, *, seed: int, profile: LinkProfile | None = None, encodes_packets: bool = False
    ) -> None:
        """``encodes_packets``: pass every packet through the byte codec, as the real driver does (slower)."""
        self.timeline = Timeline()
        self.rng = Random(seed)
        self.net: Network[Address] = Network(self.timeline, self.rng, profile or LinkProfile())
        self.processes: dict[NodeId, Process] = {}
        self.watchers: list[Watcher] = []
        self.packet_taps: list[PacketTap] = []
        self.packets_sent = 0
        self._config = config
        self._by_addr: dict[Address, Process] = {}
        self._codec = PacketCodec("sim", (), bytes(16)) if encodes_packets else None
        self._trace = None if not encodes_packets else hashlib.sha256()

    @property
    def now_ms(self) -> float:
        return self.timeline.now_ms

    def trace_digest(self) -> str:
        """Digest of every packet sent so far, when and to whom; needs ``encodes_packets``."""
        assert self._trace is not None
        return self._trace.hexdigest()

    # -- building

    def settle(self, n: int) -> list[NodeId]:
        """``n`` members that already know each other, as after a long quiet time."""
        names = [NodeId(f"n{index}") for index in range(n)]
        known = [Member(name, BootId(1), 0, ALIVE, address_of(index), {}) for index, name in enumerate(names)]
        for index, name in enumerate(names):
            self._run(name, BootId(1), address_of(index), {}, (), known)
        return names

    def start(
        self, name: str, index: int, *, boot: int = 1, seeds: Iterable[int] = (), meta: Meta | None = None
    ) -> Process:
        """A fresh process at address ``index`` that knows only the addresses of its ``seeds``."""
        addresses = tuple(address_of(seed) for seed in seeds)
        return self._run(NodeId(name), BootId(boot), address_of(index), meta or {}, addresses, ())

    def _run(
        self, node: NodeId, boot: BootId, addr: Address, meta: Meta, seeds: Iterable[Address], known: Iterable[Member]
    ) -> Process:
        core = Swim(
            self._config,
            node=node,
            boot=boot,
            addr=addr,
            meta=meta,
            seeds=seeds,
            rng=Random(self.rng.getrandbits(64)),
            now_ms=self.now_ms,
            known=known,
        )
        process = Process(core)
        self.processes[node] = process
        self._by_addr[addr] = process
        self.net.attach(addr, lambda source, packet: self.feed(process, PacketReceived(source, packet)))
        self._schedule(process)
        return process

    # -- faults

    def crash(self, name: NodeId) -> None:
        """kill -9: no word, no more packets."""
        process = self.processes[name]
        process.is_running = False
        if self._by_addr.get(process.addr) is process:
            self.net.detach(process.addr)
            del self._by_addr[process.addr]

    def pause(self, name: NodeId) -> None:
        """SIGSTOP, or a blocked event loop."""
        process = self.processes[name]
        if process.paused_at_ms is None:
            process.paused_at_ms = self.now_ms

    def resume(self, name: NodeId) -> None:
        process = self.processes[name]
        if process.paused_at_ms is None or not process.is_running:
            return
        paused_ms = self.now_ms - process.paused_at_ms
        process.paused_at_ms = None
        waiting, process.inbox = process.inbox, []
        events: list[Event] = [Tick(), *waiting]
        if self._config.has(Feature.STOLEN_TIME):
            events = [LoopLag(max(0.0, paused_ms - HEARTBEAT_MS)), *waiting, Tick()]
        for event in events:
            self.feed(process, event)

    # -- running

    def run_for(self, duration_ms: float) -> None:
        self.timeline.run_until(self.now_ms + duration_ms)

    def run_until(self, condition: Callable[[], bool], limit_ms: float, step_ms: float = 100.0) -> bool:
        """Run until the condition holds, looked at every ``step_ms``; False when it did not within ``limit_ms``."""
        end_ms = self.now_ms + limit_ms
        while not condition():
            if self.now_ms >= end_ms:
                return False
            self.run_for(step_ms)
        return True

    def believes(self, observer: NodeId, about: NodeId) -> NodeState | None:
        member = self.processes[observer].core.member(about)
        return None if member is None else member.state

    def running(self) -> list[Process]:
        return [process for process in self.processes.values() if process.is_running]

    def feed(self, process: Process, event: Event) -> None:
        """One event for one core: now, or when its process goes on."""
        if not process.is_running:
            return
        if process.paused_at_ms is not None:
            if len(process.inbox) < SOCKET_BUFFER_PACKETS:
                process.inbox.append(event)
            return
        for effect in process.core.handle(event, self.now_ms):
            if isinstance(effect, SendPacket):
                self._send(process, effect)
            elif isinstance(effect, PushPull):
                self._push_pull(process, effect)
            elif isinstance(effect, StreamProbe):
                self._probe_stream(process, effect)
            else:
                if isinstance(effect, LeaveComplete):
                    process.left = True
                for watcher in self.watchers:
                    watcher(self.now_ms, process.node, effect)
        self._schedule(process)

    def _schedule(self, process: Process) -> None:
        deadline_ms = process.core.next_deadline_ms()
        if deadline_ms < process.wake_ms:
            process.wake_ms = deadline_ms
            self.timeline.at(deadline_ms, self._wake, process, deadline_ms)

    def _wake(self, process: Process, wake_ms: float) -> None:
        if process.wake_ms != wake_ms:
            return
        process.wake_ms = float("inf")
        if not process.is_running or process.paused_at_ms is not None:
            return
        if process.core.next_deadline_ms() <= self.now_ms:
            self.feed(process, Tick())
        else:
            self._schedule(process)

    # -- packets and streams

    def _send(self, process: Process, effect: SendPacket) -> None:
        self.packets_sent += 1
        for tap in self.packet_taps:
            tap(self.now_ms, process.node, effect.addr, effect.packet)
        packet = effect.packet
        if self._codec is not None:
            data = self._codec.encode(packet)
            assert self._trace is not None
            self._trace.update(f"{self.now_ms:.6f} {process.node} {effect.addr} ".encode() + data)
            decoded = self._codec.decode(data)
            assert not isinstance(decoded, PacketFault), decoded
            packet = decoded
        self.net.send(process.addr, effect.addr, packet)

    def _peer(self, process: Process, addr: Address) -> Process | None:
        """Who answers a stream to ``addr``, were it opened now."""
        peer = self._by_addr.get(addr)
        if peer is None or not peer.is_running or peer.paused_at_ms is not None:
            return None
        open_both_ways = self.net.reaches(process.addr, addr) and self.net.reaches(addr, process.addr)
        return peer if open_both_ways and self.net.profile.survives(self.rng, _STREAM_DATAGRAMS) else None

    def _push_pull(self, process: Process, effect: PushPull) -> None:
        peer = self._peer(process, effect.addr)
        if peer is None:
            self.timeline.after(STREAM_TIMEOUT_MS, self.feed, process, PushPullResult(effect.addr, None))
        else:
            self.timeline.after(2 * self.net.delay_ms(), self._exchange, process, peer, effect.addr)

    def _exchange(self, process: Process, peer: Process, addr: Address) -> None:
        mine = process.core.sync()
        if peer is not process:
            self.feed(peer, SyncReceived(mine))
        theirs = peer.core.sync()
        self.timeline.after(2 * self.net.delay_ms(), self.feed, process, PushPullResult(addr, theirs))

    def _probe_stream(self, process: Process, effect: StreamProbe) -> None:
        peer = self._peer(process, effect.addr)
        answered = peer is not None and peer.node == effect.node
        delay_ms = 4 * self.net.delay_ms() if answered else STREAM_TIMEOUT_MS
        self.timeline.after(delay_ms, self.feed, process, StreamProbeResult(effect.seq, answered))


def count_changes(world: SwimWorld, counts: dict[str, int], is_counted: Callable[[NodeId, MemberEvent], bool]) -> None:
    """Count member events by kind from now on, those that ``is_counted(observer, event)``."""

    def watch(_: float, observer: NodeId, effect: Effect) -> None:
        if isinstance(effect, MemberEvent) and is_counted(observer, effect):
            counts[effect.change.value] = counts.get(effect.change.value, 0) + 1

    world.watchers.append(watch)
