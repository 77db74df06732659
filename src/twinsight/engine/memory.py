"""What is freed between two chunks stays at hand for the next."""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""glibc's names of what is set, from malloc.h."""
_LARGEST_THRESHOLD = 32 * 2**20
"""Of blocks that get pages of their own: where glibc's own adjustment ends once large tensors have come and gone."""
_lock = threading.Lock()
_inside = 0


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the C library hand out freed memory again within the block, of any size; afterwards it is given back.

    Feature maps of a chunk are large: glibc asks the system for pages for each of them and returns them when they are
    freed, and the system clears every page of the next chunk anew. On a virtual machine of two cores that took a tenth
    to a sixth of the time of whole chunks of ResNet-50. About as much memory is held as a chunk needs at its worst.

    Without effect where the C library is another one, or its allocator has been set up by the environment.

    >>> with keeping_freed_memory():
    ...     freed = bytearray(2**26).count(0)
    """
    global _inside
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                library.mallopt(_MMAP_MAX, 65536)
                library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
                library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
                library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library where it is glibc with an allocator as it comes; None elsewhere."""
    set_up = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or set_up:
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
