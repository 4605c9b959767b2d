"""Fetches a data set into a folder.

Usage: python experiments/data/prepare.py fashion_mnist --data_dir=DIR
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder only

from experiments.data import fashion_mnist

PREPARE = {"fashion_mnist": fashion_mnist.prepare}


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; an error is one line on stderr.

    Args:
      argv: the arguments, without the program's name; None takes them from `sys.argv`.

    Returns:
      Exit code: 0 done, 2 an error, 130 interrupted.

    Raises:
      SystemExit: with code 2, the arguments are not understood; with code 0, after `--help`.
    """
    parser = _OneLineParser(prog="prepare.py", description="Fetches a data set into a folder.")
    parser.add_argument("name", help=f"data set: {', '.join(PREPARE)}")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder for data sets")
    args = parser.parse_args(argv)
    if args.name not in PREPARE:
        nearest = difflib.get_close_matches(args.name, PREPARE, n=1, cutoff=0.0)
        parser.error(f"no data set {args.name!r}, did you mean {nearest[0]!r}?")
    try:
        PREPARE[args.name](args.data_dir)
    except (OSError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
