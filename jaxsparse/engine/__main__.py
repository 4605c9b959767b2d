"""Prints where the engine's header and library are, and how a C program is compiled.

    python -m jaxsparse.engine                  # all of it
    python -m jaxsparse.engine --include        # the folder of the header alone
    python -m jaxsparse.engine --library        # the library alone
    python -m jaxsparse.engine --copy=FOLDER    # copies both there

In a shell: `cc run_network.c -I$(python -m jaxsparse.engine --include) ...`. Copies have names
without a hash, `jaxsparse_engine.h` and `libjaxsparse_engine.so`. The library is all that another
machine needs to run the files of `save_engine`, if its system and kind of processor are the same.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxsparse.engine.paths import engine_paths


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what is asked for."""
    parser = _Parser(
        prog="python -m jaxsparse.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--include", action="store_true", help="the folder of the header alone")
    one.add_argument("--library", action="store_true", help="the library alone")
    one.add_argument("--copy", metavar="FOLDER", help="copies header and library to a folder")
    args = parser.parse_args(argv)
    try:
        paths = engine_paths()
        if args.copy is not None:
            paths = paths.copy_to(args.copy)
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    if args.include or args.library:
        sys.stdout.write(f"{paths.include if args.include else paths.library}\n")
    else:
        sys.stdout.write(f"{paths}\n")


if __name__ == "__main__":
    main()
