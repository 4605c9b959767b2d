"""Compiles the kernels into the folder `lib` beside this file, with the standard library alone.

    python -m jaxsparse.sparse.build

does by hand what installing the package does where a C++ compiler is at hand. The headers are those
that jaxlib ships.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "csrc" / "ffi.cc"
FOLDER = Path(__file__).parent / "lib"
# By machine: the sets of instructions that kernels are made for.
LEVELS = {
    "x86_64": ("x86-64-v2", "x86-64-v3", "x86-64-v4"),
    "aarch64": ("armv8-a",),
    "arm64": ("armv8-a",),
}
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra")


def build(folder: Path = FOLDER) -> list[Path]:
    """Compiles all levels for this machine and returns the libraries.

    Each is written whole or not at all, so that a process that uses the old one goes on with it.

    Raises:
      RuntimeError: there is no compiler, no header or no level for this machine, or it does not
        compile; says which, with what the compiler said.
    """
    levels = LEVELS.get(platform.machine())
    if levels is None or sys.platform == "win32":
        raise RuntimeError(f"no kernels for {sys.platform} on {platform.machine()}")
    command = [_compiler(), *FLAGS, "-isystem", os.fspath(_headers())]
    folder.mkdir(parents=True, exist_ok=True)
    libraries = []
    for level in levels:
        library = folder / f"kernels-{level}.so"
        temporary = folder / f".{library.name}.{os.getpid()}"
        wide = ["-mprefer-vector-width=512"] if level == "x86-64-v4" else []
        options = [f"-march={level}", *wide, os.fspath(SOURCE), "-o", os.fspath(temporary)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            temporary.unlink(missing_ok=True)
            raise RuntimeError(f"{command[0]} cannot compile {SOURCE} for {level}: {done.stderr}")
        os.replace(temporary, library)
        libraries.append(library)
    return libraries


def _compiler() -> str:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return found
    raise RuntimeError(f"there is no C++ compiler, none of {', '.join(candidates)}")


def _headers() -> Path:
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "include" / "xla" / "ffi" / "api" / "ffi.h").exists():
            return Path(place) / "include"
    raise RuntimeError("jaxlib with its headers is not installed")


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{library}\n" for library in build())
    except RuntimeError as error:
        sys.exit(f"error: {error}")
