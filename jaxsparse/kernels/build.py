"""Compiles the kernels into the folder `lib` beside this file, with the standard library alone.

    python -m jaxsparse.kernels.build

does the same as the installation of the package. Run it on a checkout after the sources have
changed. It needs a C++ compiler, GCC 11, Clang 12 or later. The headers come with jaxlib. Kernels
that are compiled with one jaxlib run with later ones, and not with earlier ones.

There are two kinds of library. The kernels that XLA calls are one library for each level of
instructions. The engine, which runs whole networks and needs neither Python nor XLA, is one library
that holds all levels.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "csrc" / "ffi.cc"
ENGINE = Path(__file__).parent / "csrc" / "engine" / "engine.cc"
ENGINE_LEVEL = ENGINE.with_name("level.cc")
FOLDER = Path(__file__).parent / "lib"
# By machine: the instruction sets that kernels are compiled for, and the compiler's options.
_ARM = {"armv8-a": ("-march=armv8-a",)}
LEVELS = {
    "x86_64": {
        "x86-64-v2": ("-march=x86-64-v2",),
        "x86-64-v3": ("-march=x86-64-v3",),
        "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    },
    "aarch64": _ARM,
    "arm64": _ARM,
}
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
SHARED = ("-shared",)


def build(folder: Path = FOLDER) -> list[Path]:
    """Compiles the kernels for all levels of this machine, and the engine; returns the libraries.

    They replace the old libraries. Each is moved into place when it is complete, and a process that
    has loaded the old one keeps it.

    Raises:
      RuntimeError: there is no compiler, no header or no level for this machine, or the compiler
        fails; has the compiler's message.
    """
    levels = LEVELS.get(platform.machine())
    if levels is None or sys.platform == "win32":
        raise RuntimeError(f"no kernels for {sys.platform} on {platform.machine()}")
    command, headers = [*compiler(), *FLAGS], ["-isystem", os.fspath(_headers())]
    folder.mkdir(parents=True, exist_ok=True)
    libraries = []
    for level, options in levels.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            made = Path(scratch) / "library"
            _compile([*command, *SHARED, *headers, *options], SOURCE, made, level)
            libraries.append(_replace(made, level, folder))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        libraries.append(_replace(_build_engine(command, levels, Path(scratch)), "engine", folder))
    return libraries


def _build_engine(command: list[str], levels: dict[str, Any], scratch: Path) -> Path:
    """Compiles the kernels of the engine at every level, and links them."""
    parts = []
    for level, options in levels.items():
        name = "jaxsparse_kernels_" + level.rpartition("-")[2]  # v4 of x86-64-v4
        parts.append(scratch / f"{level}.o")
        given = [*options, f"-DJAXSPARSE_LEVEL={name}", "-c"]
        _compile([*command, *given], ENGINE_LEVEL, parts[-1], level)
    made = scratch / "library"
    _compile([*command, *SHARED, "-pthread", *map(os.fspath, parts)], ENGINE, made, "all levels")
    return made


def _compile(command: list[str], source: Path, to: Path, what: str) -> None:
    done = subprocess.run(
        [*command, os.fspath(source), "-o", os.fspath(to)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} cannot compile {source} for {what}: {done.stderr}")


def _replace(made: Path, name: str, folder: Path) -> Path:
    """Moves a library into its place, and removes the old ones of that name."""
    library = folder / f"{name}-{_stamp(made)}.so"
    os.replace(made, library)
    for old in set(libraries_of(name, folder)) - {library}:
        old.unlink(missing_ok=True)
    return library


def engine_library(folder: Path = FOLDER) -> Path | None:
    """Returns the engine's library, or None if it was not built from the present sources."""
    return next(filter(is_of_these_sources, libraries_of("engine", folder)), None)


def libraries_of(level: str, folder: Path = FOLDER) -> list[Path]:
    """Returns the libraries for a level, or "engine", of these sources or of others."""
    return sorted(folder.glob(f"{level}-*.so"))


def is_of_these_sources(library: Path) -> bool:
    """Returns whether a library is complete and was compiled from the present sources.

    After an update of a checkout the old libraries are still there, and their calls may take other
    arguments. A library that is cut off, say by a full disk, would crash the process.

    Raises:
      OSError: the library cannot be read.
    """
    return library.stem.endswith(f"-{_stamp(library)}")


def compiler() -> list[str]:
    """Returns the C++ compiler, with the options in CXX if it is set.

    Raises:
      RuntimeError: there is none.
    """
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        program, *options = shlex.split(candidate)
        if found := shutil.which(program):
            return [found, *options]
    raise RuntimeError(f"there is no C++ compiler, none of {', '.join(candidates)}")


def _stamp(library: Path) -> str:
    """A hash of the sources, the compiler's options and the library itself."""
    digest = hashlib.sha256(repr((FLAGS, LEVELS)).encode())
    for path in (*sorted(SOURCE.parent.glob("**/*.h")), SOURCE, ENGINE, ENGINE_LEVEL, library):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _headers() -> Path:
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "include" / "xla" / "ffi" / "api" / "ffi.h").exists():
            return Path(place) / "include"
    raise RuntimeError("jaxlib with its headers is not installed")


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{library}\n" for library in build())
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
