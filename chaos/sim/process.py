"""One simulated process: timers that die with it, messages over the world's network, calls with replies, pauses.

Invariant: nothing of an earlier life of the process runs in a later one; a paused process does nothing, and on resuming does
everything that has come due, in order. Peer connections behave like TCP: a lost packet costs a retransmission, a few in a row
or a partition cost the connection. Base of ``chaos.sim.node``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chaos.sim.clocks import Clock
from chaos.sim.disks import Disk
from chaos.sim.messages import Reply, Request, Response

if TYPE_CHECKING:
    from chaos.sim.world import World

CALL_TIMEOUT_MS = 1_000.0
RETRANSMIT_MS = 150.0
RETRANSMITS = 4


class Process:
    """Life, time and wires of one node."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = world.fork_rng()
        self.clock = Clock(self.rng)
        self.disk = Disk(world.timeline, world.fork_rng())
        self.is_up = False
        self.is_paused = False
        self.life = 0
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._calls: dict[int, Callable[[Reply | None], None]] = {}
        self._next_call = 0

    @property
    def now_ms(self) -> float:
        return self.clock.mono_ms(self.world.timeline.now_ms)

    @property
    def wall_ms(self) -> int:
        return self.clock.wall_ms(self.world.timeline.now_ms)

    def trace(self, text: str) -> None:
        self.world.trace(self.name, text)

    # -- life

    def begin_life(self) -> None:
        self.life += 1
        self.is_up = True
        self.is_paused = False
        self._inbox.clear()
        self._calls.clear()
        self.world.net.attach(self.name, self._arrived)

    def end_life(self) -> None:
        self.life += 1
        self.is_up = False
        self.world.net.detach(self.name)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        waiting, self._inbox = self._inbox, []
        for act, args in waiting:
            if self.is_paused or not self.is_up:
                return
            act(*args)

    def guard(self, act: Callable[..., None]) -> Callable[..., None]:
        """``act``, run only in this life and not while paused."""
        life = self.life

        def guarded(*args: Any) -> None:
            self._run(life, act, args)

        return guarded

    def after(self, delay_ms: float, act: Callable[..., None], *args: Any) -> None:
        self.world.timeline.after(delay_ms, self._run, self.life, act, args)

    def _run(self, life: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life != self.life or not self.is_up:
            return
        if self.is_paused:
            self._inbox.append((act, args))
        else:
            act(*args)

    # -- wires

    def call(
        self,
        target: str,
        body: Any,
        done: Callable[[Reply | None], None],
        *,
        timeout_ms: float = CALL_TIMEOUT_MS,
    ) -> None:
        """Ask ``target``; ``done`` gets the reply, or None when none came in time."""
        self._next_call += 1
        number = self._next_call
        self._calls[number] = done
        self.after(timeout_ms, self._call_over, number, None)
        self._transmit(target, Request(number, body))

    def _call_over(self, number: int, reply: Reply | None) -> None:
        done = self._calls.pop(number, None)
        if done is not None:
            done(reply)

    def _transmit(self, target: str, payload: Any) -> None:
        if target == self.name:
            self.after(0.0, self._arrived, target, payload)
            return
        profile, rng = self.world.net.profile, self.rng
        delay_ms = profile.delay_min_ms + rng.random() * (profile.delay_max_ms - profile.delay_min_ms)
        late_ms = self.world.slow_sources.get(self.name)
        if late_ms is not None:
            delay_ms += rng.random() * late_ms
        for _ in range(RETRANSMITS):
            if rng.random() >= profile.loss:
                break
            delay_ms += RETRANSMIT_MS
        else:
            return
        copies = 2 if profile.duplicate and rng.random() < profile.duplicate else 1
        for _ in range(copies):
            self.world.timeline.after(delay_ms, self.world.deliver, self.name, target, payload)

    def _arrived(self, source: str, payload: Any) -> None:
        if self.is_paused:
            self._inbox.append((self._arrived, (source, payload)))
            return
        if isinstance(payload, Response):
            self._call_over(payload.number, payload.reply)
        elif isinstance(payload, Request):
            life, number = self.life, payload.number

            def reply(answer: Reply) -> None:
                if self.life == life and self.is_up:
                    self._transmit(source, Response(number, answer))

            self.serve(source, payload.body, reply)
        else:
            self.hear(source, payload)

    def serve(self, source: str, body: Any, reply: Callable[[Reply], None]) -> None:
        """A request has arrived."""
        raise NotImplementedError

    def hear(self, source: str, packet: Any) -> None:
        """A gossip packet has arrived."""
        raise NotImplementedError
