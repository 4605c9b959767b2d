"""The paths of the engine's header and library, for programs that are not in Python."""

import os
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from jaxsparse.engine.library import NOT_BUILT
from jaxsparse.kernels.build import ENGINE, engine_library
from jaxsparse.whole_files import written_whole

HEADER = "jaxsparse_engine.h"
LIBRARY = "libjaxsparse_engine.so"


class EnginePaths(NamedTuple):
    """The engine's files, in the installed package. `print` shows them, and how to compile.

    Attributes:
      include: folder of `jaxsparse_engine.h`.
      library: the shared library. It needs neither Python nor JAX.
    """

    include: Path
    library: Path

    def compile_line(self, source: str = "run_network.c") -> str:
        """A command that compiles a C program against the library, where it is."""
        made = os.path.splitext(source)[0]
        command = ["cc", "-std=c99", "-O2", source, f"-I{self.include}", os.fspath(self.library)]
        return shlex.join([*command, "-o", made])

    def copy_to(self, folder: str | os.PathLike) -> "EnginePaths":
        """Copies header and library under names without a hash, to be taken to another machine.

        Args:
          folder: made if it does not exist; the two files are replaced.

        Returns:
          The copies. A program that lies beside them compiles with
          `cc program.c -I. -L. -ljaxsparse_engine -Wl,-rpath,'$ORIGIN'`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.include / HEADER, folder / HEADER)
        with written_whole(folder / LIBRARY) as beside:  # who has loaded the old one keeps it
            shutil.copy(self.library, beside)
        return EnginePaths(folder, folder / LIBRARY)

    def __str__(self) -> str:
        """Three lines."""
        return f"include: {self.include}\nlibrary: {self.library}\ncompile: {self.compile_line()}"


def engine_paths() -> EnginePaths:
    """Returns where the engine's header and library are.

    `python -m jaxsparse.engine` prints them.

    Raises:
      RuntimeError: the engine was not built.

    >>> engine_paths().include.joinpath("jaxsparse_engine.h").exists()
    True
    """
    library = engine_library()
    if library is None:
        raise RuntimeError(NOT_BUILT)
    return EnginePaths(ENGINE.parent, library)
