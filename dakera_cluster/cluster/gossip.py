"""The UDP driver of the membership core: real socket, real clock, one timer.

Duties: decode datagrams and feed them; tick the core when it wants; carry
out its effects in order; measure how late the event loop runs and tell the core *before* anything else, because a loop
that was blocked must not take its own deafness for the death of others. Streams (full state exchange, TCP probe) belong
to the peer transport and come in as two callables; the other side of an exchange is ``answer_push_pull``.

Invariant: the core is only ever called from the event loop's thread, with a clock that never goes back; a datagram that is
refused changes nothing but a counter. Called by the node's wiring; listeners hear every change of belief.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import logging
import math
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from dakera_cluster.cluster.datagrams import DatagramSocket, is_ip
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address, Meta, NodeState
from dakera_cluster.protocols.packets import ClusterState, PacketCodec, PacketFault, decode_sync, encode_sync
from dakera_cluster.protocols.sealing import SESSION_BYTES
from dakera_cluster.protocols.swim import Swim
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.swim_events import (
    Conflict,
    Effect,
    Event,
    Leave,
    LeaveComplete,
    LoopLag,
    MemberEvent,
    PacketReceived,
    PublishState,
    PushPull,
    PushPullResult,
    SendPacket,
    StateAdvanced,
    StreamProbe,
    StreamProbeResult,
    SyncReceived,
    Tick,
    UpdateMeta,
)

logger = logging.getLogger(__name__)

HEARTBEAT_MS = 50.0
"""How often the loop proves that it runs."""
LAG_REPORTED_MS = 50.0
"""Lateness from which the core is told."""
SETTLE_MS = 5.0
"""After a stall the socket is read for this long before the core's timers run."""
EXCHANGES_MAX = 8
"""Streams open at once; a further exchange fails at once and is tried again later."""
PUSH_PULL_TIMEOUT_MS = 5_000.0

PushPullCall = Callable[[Address, bytes], Awaitable[bytes]]
"""Send our state to the peer at this address, return its state. Any exception means: not reached."""
StreamProbeCall = Callable[[Address, NodeId], Awaitable[bool]]
"""Whether that node answers at that address over TCP. Any exception means: no."""
Listener = Callable[[MemberEvent | StateAdvanced | Conflict], None]


class MemberView(msgspec.Struct, frozen=True):
    """What this node believes of a member, and how old the belief is."""

    node: NodeId
    boot: BootId
    incarnation: int
    state: NodeState
    addr: Address
    meta: Meta
    is_self: bool
    state_age_ms: float
    """Since when this state is believed."""
    heard_age_ms: float | None
    """Since the member last spoke to us itself; None when it never did; 0 for this node."""


class GossipNode:
    """One endpoint. ``start`` binds and joins; ``leave`` says good-bye; ``close`` just stops."""

    def __init__(
        self,
        config: SwimConfig,
        *,
        cluster_id: str,
        node: NodeId,
        boot: BootId,
        bind: Address,
        advertise: Address | None,
        meta: Meta,
        seeds: Iterable[Address],
        push_pull: PushPullCall,
        stream_probe: StreamProbeCall,
        keys: Sequence[bytes] = (),
        rng: random.Random | None = None,
    ) -> None:
        """``advertise``: where others reach this node; the bound address when None; port 0 means the bound port. Must be
        an IP address, as a lookup of names would block the loop. Raises ValueError on bad keys."""
        self._config = config
        self._cluster_id = cluster_id
        self._node = node
        self._boot = boot
        self._bind = bind
        self._advertise = advertise
        self._meta = meta
        self._seeds = tuple(seeds)
        self._push_pull = push_pull
        self._stream_probe = stream_probe
        self._rng = rng or random.Random(secrets.randbits(64))
        self._codec = PacketCodec(cluster_id, keys, secrets.token_bytes(SESSION_BYTES))
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults = dict.fromkeys(PacketFault, 0)
        self._lag_max_ms = 0.0
        self._socket = DatagramSocket(self._measure_lag, self._receive)
        self._open = False
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._timer_ms = 0.0
        self._settled_ms = 0.0
        self._running_ms = 0.0
        self._left: asyncio.Event = asyncio.Event()
        self._core: Swim | None = None

    # -- life

    async def start(self) -> None:
        """Bind the socket and begin to probe and to join. Raises OSError when the address cannot be bound, ValueError
        when identity, metadata or the advertised address break their bounds."""
        self._loop = asyncio.get_running_loop()
        await self._socket.bind(self._bind)
        bound = self._socket.addr
        advertise = self._advertise or bound
        addr = Address(advertise.host, advertise.port or bound.port)
        try:
            if not is_ip(addr.host) or ipaddress.ip_address(addr.host).is_unspecified:
                raise ValueError(f"gossip must advertise an IP address that others reach, not {addr.host!r}")
            self._running_ms = self._now_ms()
            self._core = Swim(
                self._config,
                node=self._node,
                boot=self._boot,
                addr=addr,
                meta=self._meta,
                seeds=self._seeds,
                rng=self._rng,
                now_ms=self._running_ms,
            )
        except ValueError:
            await self._socket.close()
            raise
        self._open = True
        self._beat()
        self._feed(Tick())

    async def leave(self) -> None:
        """Tell the others that this node goes on purpose, then stop. Takes at most ``leave_timeout_ms``."""
        if self._open:
            self._feed(Leave())
            await self._left.wait()
        await self.close()

    async def close(self) -> None:
        """Stop at once, without a word: to the others it looks like a crash. The port is free afterwards."""
        for handle in (self._timer, self._heartbeat):
            if handle is not None:
                handle.cancel()
        self._open = False
        await self._socket.close()
        # A listener may close us from within an exchange, which must not wait for itself.
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what the node asks and tells

    @property
    def addr(self) -> Address:
        """The advertised address."""
        return self._swim.me.addr

    @property
    def cluster_state(self) -> ClusterState:
        return self._swim.cluster_state

    @property
    def health_score(self) -> int:
        """0 is healthy; see ``LocalHealth``."""
        return self._swim.health_score

    def members(self) -> list[MemberView]:
        """This node first, then everybody it remembers."""
        now_ms = self._now_ms()
        core = self._swim
        views: list[MemberView] = []
        for member in core.members():
            is_self = member.node == self._node
            heard_ms = now_ms if is_self else core.heard_ms.get(member.node)
            views.append(
                MemberView(
                    node=member.node,
                    boot=member.boot,
                    incarnation=member.incarnation,
                    state=member.state,
                    addr=member.addr,
                    meta=member.meta,
                    is_self=is_self,
                    state_age_ms=now_ms - member.since_ms,
                    heard_age_ms=None if heard_ms is None else now_ms - heard_ms,
                )
            )
        return views

    def subscribe(self, listener: Listener) -> None:
        """``listener`` is called on the loop for every change, in order. It must be quick and may call back."""
        self._listeners.append(listener)

    def update_meta(self, meta: Meta) -> None:
        """Replace what this node says about itself. Raises ValueError when it is too large."""
        if meta != self._swim.me.meta:
            self._feed(UpdateMeta(meta))

    def publish_state(self, state: ClusterState) -> None:
        """Spread a newer version of the bucket's decisions; older ones are ignored."""
        self._feed(PublishState(state))

    def rotate_keys(self, keys: Sequence[bytes]) -> None:
        """Seal with the first key, accept all. Roll a new key out as [old, new], [new, old], [new] on all nodes in turn."""
        self._codec.rotate(keys)

    def answer_push_pull(self, payload: bytes) -> bytes:
        """The other side of an exchange that a peer started. Raises ValueError when its state is not acceptable."""
        sync = decode_sync(self._cluster_id, payload)
        self._feed(SyncReceived(sync))
        return encode_sync(self._cluster_id, self._swim.sync())

    def metrics(self) -> dict[str, float]:
        """Counters of the core, ``dropped_<reason>`` for datagrams, and gauges of the driver."""
        core = self._swim
        figures = core.stats.as_dict()
        figures.update({f"dropped_{fault.value}": count for fault, count in self._faults.items()})
        figures.update({f"dropped_{reason}": count for reason, count in self._socket.drops.items()})
        counts = collections.Counter(member.state for member in core.members())
        figures.update({f"members_{state.name.lower()}": counts[state] for state in NodeState if state.is_present})
        figures["members_remembered_dead"] = counts[NodeState.DEAD]
        figures["members_remembered_left"] = counts[NodeState.LEFT]
        figures["health_score"] = core.health_score
        figures["updates_waiting"] = core.updates_waiting
        figures["inbox_waiting"] = self._socket.waiting
        figures["bytes_sent"] = self._socket.bytes_sent
        figures["bytes_received"] = self._socket.bytes_received
        figures["loop_lag_max_ms"] = self._lag_max_ms
        return figures

    # -- clock

    def _now_ms(self) -> float:
        return self._loop.time() * 1000.0

    def _beat(self) -> None:
        self._measure_lag()
        self._heartbeat = self._loop.call_later(HEARTBEAT_MS / 1000.0, self._beat)

    def _measure_lag(self) -> bool:
        """Every callback passes here first; a gap much longer than a heartbeat is time in which we were deaf. True when
        the core was told of one; the timer is then armed past the settling time."""
        now_ms = self._now_ms()
        lag_ms = now_ms - self._running_ms - HEARTBEAT_MS
        self._running_ms = now_ms
        if lag_ms < LAG_REPORTED_MS:
            return False
        self._lag_max_ms = max(self._lag_max_ms, lag_ms)
        self._settled_ms = now_ms + SETTLE_MS
        self._feed(LoopLag(lag_ms))
        return True

    def _on_timer(self) -> None:
        self._timer = None
        # After a stall, what arrived meanwhile may answer the very question whose time ran out: read before ticking.
        if not self._measure_lag():
            self._feed(Tick())

    def _arm(self, deadline_ms: float) -> None:
        """Let the timer run no later than ``deadline_ms``; one that runs early asks again."""
        if deadline_ms == math.inf:
            return
        if self._timer is not None:
            if self._timer_ms <= deadline_ms:
                return
            self._timer.cancel()
        self._timer_ms = deadline_ms
        self._timer = self._loop.call_at(deadline_ms / 1000.0, self._on_timer)

    # -- events in, effects out

    @property
    def _swim(self) -> Swim:
        assert self._core is not None, "start() comes first"
        return self._core

    def _feed(self, event: Event) -> None:
        core = self._swim
        if not self._open:
            return
        for effect in core.handle(event, self._now_ms()):
            self._carry_out(effect)
        if self._open:  # a listener may have closed this endpoint
            self._arm(max(core.next_deadline_ms(), self._settled_ms))

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, SendPacket):
            self._socket.send(self._codec.encode(effect.packet), effect.addr)
        elif isinstance(effect, PushPull):
            self._spawn(self._exchange(effect.addr), PushPullResult(effect.addr, None))
        elif isinstance(effect, StreamProbe):
            self._spawn(self._probe_stream(effect), StreamProbeResult(effect.seq, False))
        elif isinstance(effect, LeaveComplete):
            self._left.set()
        else:
            for listener in self._listeners:
                try:
                    listener(effect)
                except Exception:
                    logger.exception("a membership listener failed")

    def _spawn(self, work: Awaitable[Event], failure: Event) -> None:
        """Run a stream effect; exactly one result is fed, whatever happens."""
        if len(self._tasks) >= EXCHANGES_MAX:
            if asyncio.iscoroutine(work):
                work.close()
            self._loop.call_soon(self._feed, failure)
            return

        async def run() -> None:
            try:
                result = await work
            except Exception as error:  # any failure of a stream is the same news: not reached
                logger.debug("gossip stream failed: %r", error)
                result = failure
            self._feed(result)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, addr: Address) -> Event:
        state = encode_sync(self._cluster_id, self._swim.sync())
        async with asyncio.timeout(PUSH_PULL_TIMEOUT_MS / 1000.0):
            answer = await self._push_pull(addr, state)
        return PushPullResult(addr, decode_sync(self._cluster_id, answer))

    async def _probe_stream(self, effect: StreamProbe) -> Event:
        stretch = self._swim.health_score + 1
        async with asyncio.timeout(self._config.probe_interval_ms * stretch / 1000.0):
            return StreamProbeResult(effect.seq, await self._stream_probe(effect.addr, effect.node))

    def _receive(self, data: bytes, source: Address) -> None:
        packet = self._codec.decode(data)
        if isinstance(packet, PacketFault):
            self._faults[packet] += 1
        else:
            self._feed(PacketReceived(source, packet))
