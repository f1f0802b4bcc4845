"""Loopback ports for servers of tests: single ones, and ranges for whole stacks."""

from __future__ import annotations

import os
import random
import socket

SPAN = 100
FIRST, LAST = 20_000, 32_000
"""Below the range from which the kernel takes ports for outgoing connections."""
SINGLE_FIRST, SINGLE_LAST = 10_240, 19_999
_SINGLES = random.Random(os.getpid())


def free_range() -> int:
    """The first of SPAN ports none of which was bound a moment ago; different processes begin their search apart."""
    ranges = (LAST - FIRST) // SPAN
    for step in range(ranges):
        base = FIRST + (os.getpid() * 7 + step) % ranges * SPAN
        if all(_free(port) for port in range(base, base + SPAN)):
            return base
    raise RuntimeError("no free range of ports")


def free_port() -> int:
    """A port free for TCP and UDP. A port of the kernel's own range could be taken by an outgoing connection, of any
    process, before the server that it was found for binds it."""
    for _ in range(SPAN):
        port = _SINGLES.randrange(SINGLE_FIRST, SINGLE_LAST)
        if _free(port) and _free(port, socket.SOCK_DGRAM):
            return port
    raise RuntimeError("no free port")


def _free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
