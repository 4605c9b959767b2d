"""Keeps the memory of one step for the next, on CPUs. Nothing is set at import.

XLA takes the temporary memory of a step from malloc and frees it when the step ends. With glibc's
defaults it then goes back to the system, and the next step faults every page in again. These page
faults are a large part of the time of steps as short as sparse ones.
"""

import ctypes
from types import MappingProxyType

# By name: the number of the parameter in glibc's malloc.h, and its new value.
_SETTINGS = {
    "mmap_max": (-4, 0),  # large blocks come from the heap too
    "trim_threshold": (-1, -1),  # nothing of the heap is given back, however much is free
    "arena_max": (-8, 1),  # all threads share one heap
    "top_pad": (-2, 2**28),  # the heap grows by 256 MiB at a time
}

ENVIRONMENT = MappingProxyType(
    {
        "GLIBC_TUNABLES": ":".join(
            f"glibc.malloc.{name}={value % 2**64}" for name, (_, value) in _SETTINGS.items()
        )
    }
)
"""Environment variables that make any process start with the settings of `keep_memory`."""


def keep_memory() -> bool:
    """Makes the C library keep freed memory for the next allocations.

    Call it before the first computation; it does not change earlier allocations. It holds for the
    whole process and cannot be undone: the memory of the process never shrinks again. The same
    without a line of code, for any program:

        GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:\
glibc.malloc.arena_max=1:glibc.malloc.top_pad=268435456

    Returns:
      Whether it was done; False if the C library is not glibc. An allocator that replaces glibc's,
      such as jemalloc by LD_PRELOAD, ignores this and has settings of its own.
    """
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return False
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    done = [library.mallopt(number, value) for number, value in _SETTINGS.values()]
    return all(done)
