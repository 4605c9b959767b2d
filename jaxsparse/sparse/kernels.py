"""The compiled kernels: which of them this machine can run, and why not, if it can run none.

They are shared libraries beside this file, one for each set of instructions, made when the package
is installed where a C++ compiler is at hand. Nothing here fails: without them `loop.py` does the
same.
"""

import ctypes
import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax

Result = TypeVar("Result")

FOLDER = Path(__file__).parent / "lib"
TARGETS = ("conv_forward", "conv_backward", "norm_forward", "norm_backward")
# The best first: what the compiler was told, and what /proc/cpuinfo says of a machine that has it.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"},
    "x86-64-v2": {"sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"},
    "armv8-a": {"asimd"},
}


class Backend(NamedTuple):
    """What sparse execution runs on.

    Attributes:
      name: "compiled" or "jax".
      why: which kernels, or why none.
    """

    name: str
    why: str


def backend() -> Backend:
    """Returns what sparse execution runs on, and why.

    JAXSPARSE_KERNELS in the environment, read at the first call, may name a level such as
    x86-64-v3, or say "off".
    """
    return _load()


def on_device(compiled: Callable[..., Result], plain: Callable[..., Result], *args: Any) -> Result:
    """Calls one of two functions that do the same: the compiled one on CPUs, where it is there."""
    if backend().name != "compiled":
        return plain(*args)
    return lax.platform_dependent(*args, cpu=compiled, default=plain)


@functools.cache
def _load() -> Backend:
    wanted = os.environ.get("JAXSPARSE_KERNELS", "")
    if wanted == "off":
        return Backend("jax", "JAXSPARSE_KERNELS=off")
    if wanted and wanted not in LEVELS:
        return Backend("jax", f"JAXSPARSE_KERNELS={wanted} is none of {', '.join(LEVELS)}, off")
    built = [level for level in LEVELS if _library(level).exists()]
    if not built:
        return Backend("jax", f"no kernels were built into {FOLDER}")
    able = [level for level in built if LEVELS[level] <= _features() and wanted in ("", level)]
    if not able:
        what = wanted or platform.machine()
        return Backend("jax", f"{what} has none of the kernels that were built: {', '.join(built)}")
    try:
        library = ctypes.cdll.LoadLibrary(os.fspath(_library(able[0])))
        for target in TARGETS:
            call = jax.ffi.pycapsule(getattr(library, f"jaxsparse_{target}"))
            jax.ffi.register_ffi_target(f"jaxsparse_{target}", call, platform="cpu")
    except (OSError, AttributeError) as error:
        return Backend("jax", f"{_library(able[0])} cannot be loaded: {error}")
    return Backend("compiled", able[0])


def _library(level: str) -> Path:
    return FOLDER / f"kernels-{level}.so"


def _features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    named = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return set(named[0].split()) if named else set()
