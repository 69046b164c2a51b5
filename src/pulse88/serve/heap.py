"""Where large blocks of memory come from.

States of 7 to 23 MB come and go. glibc maps such blocks each by itself at first, but takes them from its heap once it
has seen some go, and what lies free there between those that stay is kept: some more every minute of a flood.
"""

from __future__ import annotations

import ctypes
import sys

MAP_FROM = -3  # glibc's M_MMAP_THRESHOLD
LARGE = 2**20  # bytes


def map_large_blocks() -> None:
    """From now on large blocks go back to the system when they are freed. Nothing where the C library isn't glibc."""
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tell is not None:
        tell(MAP_FROM, LARGE)
