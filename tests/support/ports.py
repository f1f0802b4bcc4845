"""Ranges of loopback ports for whole stacks."""

from __future__ import annotations

import os
import socket

SPAN = 100
FIRST, LAST = 20_000, 32_000
"""Below the range from which the kernel takes ports for outgoing connections."""


def free_range() -> int:
    """The first of SPAN ports none of which was bound a moment ago; different processes begin their search apart."""
    ranges = (LAST - FIRST) // SPAN
    for step in range(ranges):
        base = FIRST + (os.getpid() * 7 + step) % ranges * SPAN
        if all(_free(port) for port in range(base, base + SPAN)):
            return base
    raise RuntimeError("no free range of ports")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
