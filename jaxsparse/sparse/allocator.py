"""Memory of one step that is kept for the next, on CPUs; to be asked for, never at import.

XLA takes the temporary memory of a step from malloc and frees it when the step ends. With glibc's
defaults it then goes back to the system, and the next step faults every page in again. On steps as
short as sparse ones that is a large part of the time.
"""

import ctypes
from types import MappingProxyType

# glibc's malloc.h: the number of the parameter, and what it is set to.
_SETTINGS = {
    "mmap_max": (-4, 0),  # large blocks come from the heap too
    "trim_threshold": (-1, -1),  # of which nothing is given back, however much is free
    "arena_max": (-8, 1),  # and of which there is one for all threads
    "top_pad": (-2, 2**28),  # that grows by 256 MiB
}

ENVIRONMENT = MappingProxyType(
    {
        "GLIBC_TUNABLES": ":".join(
            f"glibc.malloc.{name}={value % 2**64}" for name, (_, value) in _SETTINGS.items()
        )
    }
)
"""The environment in which a process of any kind starts with what `keep_memory` sets."""


def keep_memory() -> bool:
    """Makes the C library keep freed memory for what is allocated next.

    Call it before the first computation: what was allocated before stays as it was. It is about
    the whole process, whose memory then never shrinks below the most that it ever used, and it
    cannot be undone. The same without a line of code, for any program:

        GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:\
glibc.malloc.arena_max=1:glibc.malloc.top_pad=268435456

    Returns:
      Whether it could; False where the C library is not glibc. An allocator that was put in place
      of glibc's, such as jemalloc by LD_PRELOAD, does not listen, and has settings of its own.
    """
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return False
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    done = [library.mallopt(number, value) for number, value in _SETTINGS.values()]
    return all(done)
