"""Every knob of the membership protocol, with its unit, its default and the formula it enters.

Invariant: two nodes of one cluster may run different values; only speed and traffic change, never what is believed.
Read by all modules of the membership core; built by the node's settings.

Formulas (N = present members, this node included; h = local health score; T = ``probe_interval_ms``):

* probe period and time-outs are multiplied by (h + 1)                            [Lifeguard, eq. 1 and 2]
* retransmissions of one update: ``retransmit_multiplier * ceil(log10(N + 1))``   [SWIM 4.1; memberlist]
* shortest suspicion: ``suspicion_multiplier * max(1, log10 N) * T``              [memberlist]
* longest suspicion: shortest * ``suspicion_max_multiplier``
* suspicion after c of k confirmations: ``max - (max - min) * log(c+1)/log(k+1)`` [Lifeguard, eq. 3]
* expected confirmations k: ``suspicion_multiplier - 2``, but 0 when N - 2 < k. Of N nodes neither the accused nor this
  one can confirm, so below that size waiting for others only delays the verdict: with N = 3 the shortest time holds
"""

from __future__ import annotations

import enum
import math

import msgspec

PACKET_MAX_BYTES = 1200
"""Below the IPv6 minimum MTU (1,280) less IP and UDP headers: a packet is never fragmented."""


class Feature(enum.Flag):
    """What this implementation adds to SWIM. Operators run ``FULL``; the others exist to measure what each step buys."""

    LOCAL_HEALTH = enum.auto()
    """Slow down when our own probes fail or others have to tell us that we look dead (LHA-Probe, with nacks)."""
    CONFIRMATIONS = enum.auto()
    """Suspicion starts long and shrinks as independent members confirm it (LHA-Suspicion)."""
    BUDDY = enum.auto()
    """Whatever we hold against a node is the first thing any packet tells it."""
    DOUBT_DEATHS = enum.auto()
    """A death reported by another member is a strong suspicion here, not a fact."""
    STOLEN_TIME = enum.auto()
    """Time during which our own event loop did not run is not counted against anybody."""
    STREAM_PROBE = enum.auto()
    """Ask over TCP, next to the indirect probes, before suspecting."""
    LAST_WORD = enum.auto()
    """Ask a suspect directly before it is believed dead: its refutation may have missed just us."""

    SWIM = 0
    LIFEGUARD = LOCAL_HEALTH | CONFIRMATIONS | BUDDY
    FULL = LIFEGUARD | DOUBT_DEATHS | STOLEN_TIME | STREAM_PROBE | LAST_WORD


class SwimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Timing and bounds. Times in milliseconds of the injected clock."""

    features: Feature = Feature.FULL

    probe_interval_ms: float = 500.0
    """Protocol period T: one member is probed in each."""
    probe_timeout_ms: float = 250.0
    """Wait for a direct ack before asking others; the rest of the period is theirs."""
    indirect_probes: int = 3
    """Members asked to probe in our place."""
    relays_max: int = 512
    """Indirect probes served at once for others; more are dropped and counted."""

    suspicion_multiplier: int = 4
    suspicion_max_multiplier: int = 6
    last_words: int = 2
    """Questions to a suspect before its death is believed, ``probe_timeout_ms`` apart."""
    last_words_crowd: int = 32
    """With this many suspects at once no more questions are asked."""
    health_max: int = 8
    """Worst local health: periods stretch to (health_max + 1) * T."""

    retransmit_multiplier: int = 4
    gossip_interval_ms: float = 200.0
    """Least time between two bursts; none is sent while there is nothing to tell."""
    gossip_fanout: int = 3
    gossip_to_dead_ms: float = 30_000.0
    """How long bursts still go to a dead member as well: one that is not dead learns of it, and objects."""

    push_pull_interval_ms: float = 30_000.0
    """Full exchange with one random member; stretched by 1 + log2(N / 32) above 32 members."""
    newcomer_push_pull_ms: float = 1_000.0
    """The same right after a start, doubling each time until it reaches the interval above."""
    reap_ms: float = 600_000.0
    """How long dead and left members are remembered, so that late news of their life is recognised as old."""

    members_max: int = 4096
    """Members remembered, graves included; further ones are refused and counted."""

    redial_min_ms: float = 500.0
    redial_max_ms: float = 5_000.0
    """Back-off of re-dialling seeds and the dead, doubling from min to max, for ever. The upper bound is multiplied by
    max(1, N / 8), so that the cluster as a whole calls a dead address a few times a second whatever its size."""
    redial_lost_max: int = 64
    """Dead members kept for re-dialling after they were reaped; the longest dead is forgotten first."""

    lag_tolerated_ms: float = 200.0
    """Event-loop lag that costs one point of local health, each time it is reached."""
    stranger_interval_ms: float = 1_000.0
    """At most one exchange of state in this time because an unknown node spoke to us."""
    leave_timeout_ms: float = 3_000.0
    """Longest wait for our own leave to have been told often enough."""
    conflict_report_ms: float = 10_000.0
    """At most one conflict report per node id in this time."""

    def __post_init__(self) -> None:
        if not 0 < self.probe_timeout_ms < self.probe_interval_ms:
            raise ValueError("probe_timeout_ms must lie between 0 and probe_interval_ms")
        if self.suspicion_multiplier < 1 or self.suspicion_max_multiplier < 1:
            raise ValueError("suspicion multipliers must be at least 1")
        if self.redial_min_ms <= 0 or self.redial_max_ms < self.redial_min_ms:
            raise ValueError("redial_max_ms must be at least redial_min_ms, and both positive")
        if self.gossip_interval_ms <= 0 or self.push_pull_interval_ms <= 0 or self.lag_tolerated_ms <= 0:
            raise ValueError("intervals must be positive")

    def has(self, feature: Feature) -> bool:
        return feature in self.features

    def retransmit_limit(self, n: int) -> int:
        """How often this node tells one update, in a cluster of ``n``."""
        return self.retransmit_multiplier * math.ceil(math.log10(n + 1))

    def suspicion_min_ms(self, n: int) -> float:
        return self.suspicion_multiplier * max(1.0, math.log10(max(1, n))) * self.probe_interval_ms

    def suspicion_max_ms(self, n: int) -> float:
        return self.suspicion_max_multiplier * self.suspicion_min_ms(n)

    def expected_confirmations(self, n: int) -> int:
        """How many members besides the first accuser a suspicion waits for."""
        wanted = self.suspicion_multiplier - 2
        if not self.has(Feature.CONFIRMATIONS) or wanted <= 0 or n - 2 < wanted:
            return 0
        return wanted

    def push_pull_ms(self, n: int) -> float:
        if n <= 32:
            return self.push_pull_interval_ms
        return self.push_pull_interval_ms * (1.0 + math.log2(n / 32))

    def redial_cap_ms(self, n: int) -> float:
        return self.redial_max_ms * max(1.0, n / 8)
