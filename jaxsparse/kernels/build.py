"""Compiles the kernels into the folder `lib` beside this file, with the standard library alone.

    python -m jaxsparse.kernels.build

does the same as the installation of the package. Run it on a checkout after the sources have
changed. It needs a C++ compiler, GCC 11, Clang 12 or later. The headers come with jaxlib. Kernels
that are compiled with one jaxlib run with later ones, and not with earlier ones.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "csrc" / "ffi.cc"
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
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra")


def build(folder: Path = FOLDER) -> list[Path]:
    """Compiles the kernels for all levels of this machine, and returns the libraries.

    They replace the old libraries. Each is moved into place when it is complete, and a process that
    has loaded the old one keeps it.

    Raises:
      RuntimeError: there is no compiler, no header or no level for this machine, or the compiler
        fails; has the compiler's message.
    """
    levels = LEVELS.get(platform.machine())
    if levels is None or sys.platform == "win32":
        raise RuntimeError(f"no kernels for {sys.platform} on {platform.machine()}")
    command = [*compiler(), *FLAGS, "-isystem", os.fspath(_headers()), os.fspath(SOURCE)]
    folder.mkdir(parents=True, exist_ok=True)
    libraries = []
    for level, options in levels.items():
        temporary = folder / f".{level}.{os.getpid()}"
        done = subprocess.run(
            [*command, *options, "-o", os.fspath(temporary)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            temporary.unlink(missing_ok=True)
            raise RuntimeError(f"{command[0]} cannot compile {SOURCE} for {level}: {done.stderr}")
        library = folder / f"{level}-{_stamp(temporary)}.so"
        os.replace(temporary, library)
        for old in set(libraries_of(level, folder)) - {library}:
            old.unlink(missing_ok=True)
        libraries.append(library)
    return libraries


def libraries_of(level: str, folder: Path = FOLDER) -> list[Path]:
    """Returns the libraries for a level in a folder, of these sources or of others."""
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
    for path in (*sorted(SOURCE.parent.glob("*.h")), SOURCE, library):
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
