"""Runs the kernels under the sanitizers of addresses, undefined behaviour and threads.

    python tests/kernels/sanitize.py --seeds 3000

compiles `driver/driver.cc` for every level of instructions that this machine has, and runs it. The
driver calls the kernels on random shapes, in buffers that end where the tensors end, and compares
their results with plain loops. It has its own pool of threads, so neither XLA nor Python is in the
process.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxsparse.kernels import build, load

DRIVER = Path(__file__).parent / "driver"
SANITIZERS = ("address,undefined", "thread")
FLAGS = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
CHECKED = "-D_GLIBCXX_ASSERTIONS"
"""Makes the standard library check what its containers are asked for."""


def levels() -> list[str]:
    """Returns the levels of instructions that this machine has, the best first."""
    return [level for level, needed in load.LEVELS.items() if needed <= load.features()]


def why_not(sanitizer: str) -> str:
    """Returns why a sanitizer cannot run here, or ""."""
    if not levels():
        return "it is not known what this processor can do"
    try:
        compiler = build.compiler()
    except RuntimeError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "program")
        command = [*compiler, *_options(sanitizer), "-x", "c++", "-", "-o", program]
        empty = "int main() {}"
        done = subprocess.run(command, input=empty, capture_output=True, text=True, check=False)
    return done.stderr


def run(
    sanitizer: str,
    level: str,
    first: int,
    num: int,
    *,
    driver: str = "driver.cc",
    files: Sequence[Path] = (),
) -> str:
    """Compiles and runs the driver with `num` seeds from `first` on, and returns its output.

    Args:
      sanitizer: one of `SANITIZERS`, or "" for none; results are compared in both cases.
      level: of instructions.
      first: first seed.
      num: number of seeds.
      driver: the program; "engine_driver.cc" runs networks, and `num` damaged copies of them.
      files: more arguments.

    Raises:
      RuntimeError: there is no compiler or no such sanitizer, or it found something; has the
        output.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "driver"
        command = [
            *build.compiler(),
            *FLAGS,
            CHECKED,
            f"-march={level}",
            *_options(sanitizer),
            f"-I{DRIVER}",
            f"-I{build.SOURCE.parent}",
            os.fspath(DRIVER / driver),
            "-o",
            os.fspath(program),
        ]
        _said(command)
        return _said(
            [
                *_at_fixed_addresses(),
                os.fspath(program),
                str(first),
                str(num),
                *map(os.fspath, files),
            ]
        )


def _options(sanitizer: str) -> list[str]:
    return [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []


def _at_fixed_addresses() -> list[str]:
    """A command that turns off random addresses, which may collide with the thread sanitizer's."""
    prefix = ["setarch", "-R"]
    if shutil.which("setarch") and not subprocess.run([*prefix, "true"], check=False).returncode:
        return prefix
    return []


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    """Runs all sanitizers at all levels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=1000, help="random shapes (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    args = parser.parse_args()
    for sanitizer in SANITIZERS:
        if why := why_not(sanitizer):
            sys.exit(why)
        for level in levels():
            try:
                said = run(sanitizer, level, args.first, args.seeds)
            except RuntimeError as error:
                sys.exit(f"{sanitizer}, {level}: {str(error)[-5000:]}")
            print(f"{sanitizer}, {level}: clean, {said}", flush=True)


if __name__ == "__main__":
    main()
