"""Counters of every decision of the membership core; exported by the driver as metrics, read by tests and simulations.

Invariant: each only grows. A slots class instead of a mapping because several are counted per packet. Called by the core.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class SwimStats:
    """One counter per decision, since the process started."""

    packets_received: int = 0
    packets_sent: int = 0
    packets_from_self: int = 0
    packets_stale_boot: int = 0
    """From an earlier life of a member; answered with who lives now."""
    packets_misaddressed: int = 0
    """Pings meant for another node: it lived at our address before, or somebody forwards wrongly."""

    probes_sent: int = 0
    probes_acked: int = 0
    probes_acked_late: int = 0
    """Acks that match no running probe."""
    probes_acked_indirectly: int = 0
    probes_acked_by_stream: int = 0
    """UDP lost, TCP answered: look for packet loss or a firewall."""
    probes_failed: int = 0
    indirect_requests_sent: int = 0
    indirect_requests_served: int = 0
    indirect_requests_refused: int = 0
    nacks_sent: int = 0
    nacks_received: int = 0
    nacks_missed: int = 0

    updates_sent: int = 0
    updates_received: int = 0
    updates_adopted: int = 0
    updates_ignored: int = 0
    updates_refused: int = 0
    """Metadata over its bound, or a member more than the table holds."""
    gossip_bursts: int = 0

    suspicions_started: int = 0
    suspicions_confirmed: int = 0
    suspicions_condemned: int = 0
    """Shortened by a death that another member reported."""
    suspicions_refuted: int = 0
    suspicions_expired: int = 0
    last_words_asked: int = 0
    deaths_doubted: int = 0
    refutations: int = 0
    """Accusations against this node that it had to answer with a new incarnation."""
    reassertions: int = 0

    members_joined: int = 0
    members_died: int = 0
    members_left: int = 0
    members_revived: int = 0
    members_reaped: int = 0
    conflicts: int = 0

    push_pulls_started: int = 0
    push_pulls_succeeded: int = 0
    push_pulls_failed: int = 0
    push_pulls_received: int = 0
    redials: int = 0
    strangers_met: int = 0
    """Packets from nodes we do not know; an exchange of state follows."""
    states_advanced: int = 0

    loop_lags: int = 0
    loop_lag_stolen_ms: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)
