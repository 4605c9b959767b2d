"""The compiled kernels: which of them this machine can run, and why not, if it can run none.

They are shared libraries in the folder `lib`, one for each set of instructions, made when the
package is installed where a C++ compiler is at hand. Nothing here fails: what calls them does the
same in JAX where there are none.
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
)
# The best first: what the compiler was told, and what /proc/cpuinfo says of a machine that has it.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"},
    "x86-64-v2": {"sse4_1", "sse4_2", "ssse3", "popcnt", "cx16"},
    "armv8-a": {"asimd"},
}
_MAKE = "`python -m jaxsparse.kernels.build` makes them"


class Backend(NamedTuple):
    """What sparse execution runs on, and on one CPU selection.

    Attributes:
      name: "compiled" or "jax".
      why: which kernels, or why none.
    """

    name: str
    why: str


def backend() -> Backend:
    """Returns what sparse execution runs on, and why; starts JAX, as a computation does.

    JAXSPARSE_KERNELS in the environment, read at the first call, may name a level such as
    x86-64-v3, or say "off".
    """
    return _load()


def on_device(compiled: Callable[..., Result], plain: Callable[..., Result], *args: Any) -> Result:
    """Calls one of two functions that do the same: the compiled one on CPUs, where it is there."""
    if backend().name != "compiled":
        return plain(*args)
    return lax.platform_dependent(*args, cpu=compiled, default=plain)


def choose(wanted: str, able: set[str], folder: Path) -> tuple[str, Path] | str:
    """Returns the best level that was built and that a machine has, and its library; or why none.

    Args:
      wanted: a level, "off", or "" for the best.
      able: features of the machine.
      folder: where the libraries are.
    """
    # Not above: `python -m jaxsparse.kernels.build` warns of a module that is imported already.
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
    """Returns what this processor can do, in the words of /proc/cpuinfo; nothing where unknown."""
    if platform.machine() in ("aarch64", "arm64"):
        return {"asimd"}  # all of them
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
        # A kernel that JAX refuses, as one of a later jaxlib, keeps it from starting, where it has
        # not started yet, and is only an error of ours where it has.
        jax.local_devices(backend="cpu")
        functions = ctypes.cdll.LoadLibrary(os.fspath(library))
        for target in TARGETS:
            call = jax.ffi.pycapsule(getattr(functions, f"jaxsparse_{target}"))
            jax.ffi.register_ffi_target(f"jaxsparse_{target}", call, platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return Backend("jax", f"the kernels cannot be loaded, {error}; {_MAKE}")
    return Backend("compiled", level)
