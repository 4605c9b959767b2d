"""Loads the compiled kernels that this machine can run, or says why there are none.

The kernels are shared libraries in the folder `lib`, one for each instruction set. The installation
of the package compiles them if there is a C++ compiler. A missing kernel is no error: its callers
do the same in JAX.
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

TARGETS = (
    "conv_forward",
    "conv_backward",
    "conv_norm",
    "norm_forward",
    "norm_backward",
    "lines_forward",
    "lines_backward",
    "select",
    "network",
)
# Levels of instructions, the best first, and the features in /proc/cpuinfo that each needs.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"},
    "x86-64-v2": {"sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"},
    "armv8-a": {"asimd"},
}
_MAKE = "`python -m jaxsparse.kernels.build` makes them"


class Backend(NamedTuple):
    """The implementation of sparse execution, and of selection on one CPU.

    Attributes:
      name: "compiled" or "jax".
      why: the level of the kernels, or why there are none.
    """

    name: str
    why: str


def backend() -> Backend:
    """Returns the implementation of sparse execution. It starts JAX, as a computation does.

    The environment variable JAXSPARSE_KERNELS may name a level such as x86-64-v3, or be "off". It
    is read at the first call.
    """
    return _load()


def on_device(compiled: Callable[..., Result], plain: Callable[..., Result], *args: Any) -> Result:
    """Calls one of two equal functions: `compiled` on CPUs if there are kernels, else `plain`."""
    if backend().name != "compiled":
        return plain(*args)
    return lax.platform_dependent(*args, cpu=compiled, default=plain)


def choose(wanted: str, able: set[str], folder: Path) -> tuple[str, Path] | str:
    """Returns the best level that was built and that a machine can run, with its library.

    Args:
      wanted: a level, "off", or "" for the best level.
      able: features of the machine, as in /proc/cpuinfo.
      folder: of the libraries.

    Returns:
      The level and the library, or why there is none.
    """
    # Imported here, since `python -m jaxsparse.kernels.build` warns if its module is imported
    # first.
    from jaxsparse.kernels.build import is_of_these_sources, libraries_of

    if wanted == "off":
        return "JAXSPARSE_KERNELS=off"
    if wanted and wanted not in LEVELS:
        return f"JAXSPARSE_KERNELS={wanted} is none of {', '.join(LEVELS)}, off"
    built = {level: found for level in LEVELS if (found := libraries_of(level, folder))}
    if not built:
        return f"no kernels were built into {folder}; {_MAKE}"
    asked = [level for level in built if wanted in ("", level)]
    if not asked:
        return f"JAXSPARSE_KERNELS={wanted}, but built were {', '.join(built)}"
    for level in asked:
        if LEVELS[level] <= able:
            whole = [library for library in built[level] if is_of_these_sources(library)]
            if whole:
                return level, whole[0]
            return f"the kernels in {folder} were made from other sources, or are damaged; {_MAKE}"
    return f"this machine cannot run {', '.join(asked)}, the kernels that were built"


def features() -> set[str]:
    """Returns the features of this processor as in /proc/cpuinfo; the empty set if unknown."""
    if platform.machine() in ("aarch64", "arm64"):
        return {"asimd"}  # all of these processors have it
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    named = [line.partition(":")[2] for line in lines if line.startswith("flags")]
    return set(named[0].split()) if named else set()


@functools.cache
def _load() -> Backend:
    from jaxsparse.kernels.build import FOLDER  # see `choose`

    try:
        chosen = choose(os.environ.get("JAXSPARSE_KERNELS", ""), features(), FOLDER)
        if isinstance(chosen, str):
            return Backend("jax", chosen)
        level, library = chosen
        # JAX must start before the targets are registered. If it refuses a target, say of a later
        # jaxlib, this is then an error that is caught here; otherwise JAX itself could not start.
        jax.local_devices(backend="cpu")
        functions = ctypes.cdll.LoadLibrary(os.fspath(library))
        for target in TARGETS:
            call = jax.ffi.pycapsule(getattr(functions, f"jaxsparse_{target}"))
            jax.ffi.register_ffi_target(f"jaxsparse_{target}", call, platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return Backend("jax", f"the kernels cannot be loaded, {error}; {_MAKE}")
    return Backend("compiled", level)
