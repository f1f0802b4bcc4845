"""Bounds and times of peer connections. Every queue between two nodes has its limit here. Called by the node's wiring."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec


class PeerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The limits on message size and calls in flight are told to the peer in the handshake (`Endpoint`)."""

    message_bytes: int = 64 * 1024**2
    """Longest request, answer or chunk."""
    queue_bytes: int = 64 * 1024**2
    """Unsent bytes of a connection above which senders wait. A peer that takes nothing while twice as much (and one longest
    message) has piled up is cut off."""
    inflight: int = 1024
    """Calls of one connection worked on at once; callers beyond wait, calls beyond are refused."""
    waiting: int = 4096
    """Callers of one connection that may wait for their turn; more fail at once."""
    inflight_total: int = 4096
    """Calls of all connections worked on at once."""
    inflight_bytes: int = 512 * 1024**2
    """Payloads of calls worked on at once, all connections together."""
    streams: int = 64
    """Streams of one connection served at once."""
    window_bytes: int = 1024**2
    """What a stream's reader buffers; the sender waits for it beyond that."""

    call_timeout_ms: int = 5_000
    """Of calls that name none."""
    stream_idle_timeout_ms: int = 30_000
    """A stream that does not move for this long fails, on both sides."""
    connect_timeout_ms: int = 2_000
    """TCP, TLS and handshake together; also how long an accepted stranger may take."""
    backoff_min_ms: int = 50
    backoff_max_ms: int = 5_000
    """Between two dials of one peer, doubled each time; calls in between fail at once. The time is drawn from its upper half,
    so that nodes do not dial in step."""
    ping_interval_ms: int = 5_000
    """Silence after which the dialler asks whether the other side is there."""
    silence_timeout_ms: int = 15_000
    """Silence after which the connection counts as broken."""
    idle_close_ms: int = 300_000
    """A connection without calls for this long is closed."""
    drain_timeout_ms: int = 5_000
    """How long a server that stops waits for what runs."""
    connections: int = 4096
    """Accepted at once."""
    strangers: int = 128
    """Accepted connections that have not proved anything yet."""


def peer_tls(cert: Path, key: Path, authority: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's) TLS 1.3 contexts in which each side demands a certificate signed by ``authority``. Host names are
    not compared: nodes are known by id and dialled by changing addresses, so the authority must sign nodes only.

    Raises OSError and ssl.SSLError (an OSError) when a file is missing or wrong.
    """
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(authority)
        context.load_cert_chain(cert, key)
    return contexts
