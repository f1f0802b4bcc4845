"""Giving memory back to the system after bulk work.

Loading, rebuilding or merging a large view passes through arrays of tens of megabytes. glibc keeps what is freed for the
next time, which for a node means for ever: it looks as if the view were that much larger. Called by `shard.host` between
rounds of housekeeping; elsewhere than on glibc it does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None


def trim() -> None:
    """Return unused pages of the heap. Takes milliseconds and does not hold the interpreter: for a worker thread."""
    release = _malloc_trim()
    if release is not None:
        release(0)
