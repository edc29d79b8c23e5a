"""Memory that was freed, kept for its next use instead of given back to the system.

KV blocks pass through a process as buffers of up to 1 MiB, several of them for each. glibc gives
such a buffer back as soon as it is free, and the next one is new pages, each with a fault: together
more than the copies, the checksums and protobuf.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 64 << 20
MAPPED_BYTES = 16 << 20
"""Buffers from this size on are mapped and given back one by one all the same."""


def keep_freed_memory() -> None:
    """For this process, from now on. Without effect where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
