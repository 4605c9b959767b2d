"""Gets a data set into a folder, in the form that TFDS keeps, without TensorFlow.

    python experiments/data/prepare.py cifar10 --data_dir=DIR
    python experiments/data/prepare.py cifar100 --data_dir=DIR --from=cifar-100-python.tar.gz

Without --from the data set is fetched from where it is published; --from takes an official copy.
DIR/NAME/VERSION appears only when all of it is written. If the command is killed, start it again.
"""

import argparse
import contextlib
import difflib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder only

from experiments.data import cifar10, cifar100, fashion_mnist, records


class Source(NamedTuple):
    """A data set, and the two ways to get it."""

    name: str  # in TFDS
    version: str  # in TFDS
    read_copy: Callable[[Path], records.Content]  # reads and checks an official copy
    fetch: Callable[[Path], records.Content]  # downloads into the folder, and reads


DATA_SETS = {
    module.NAME: Source(module.NAME, module.VERSION, module.read_copy, module.fetch)
    for module in (fashion_mnist, cifar10, cifar100)
}


@contextlib.contextmanager
def workspace(home: Path) -> Iterator[Path]:
    """Makes an empty folder for unfinished files inside `home`, so that a rename moves them out.

    It is removed when the context is left; after a kill, when the next one is entered.

    Args:
      home: folder of one data set, created if missing.

    Raises:
      ValueError: another process is preparing there.
      OSError: `home` cannot be written.
    """
    home.mkdir(parents=True, exist_ok=True)
    # The file is open for writing, as a network file system locks no other.
    lock = os.open(home / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    work = home / ".prepare"
    try:
        _lock(lock, home)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(lock: int, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is preparing in {home}; wait for it") from None
    except OSError:
        pass  # this file system has no locks: it goes on without one


def prepare(source: Source, data_dir: Path, copy: Path | None = None) -> None:
    """Gets one data set into `data_dir/NAME/VERSION`, unless all of it is there already.

    Official files in `data_dir/NAME` are used before anything is fetched. It prints what it does,
    with bars.

    Args:
      source: the data set.
      data_dir: folder for data sets, created if missing.
      copy: file or folder of an official copy; None to fetch one.

    Raises:
      ConnectionError: the data set could not be fetched; the line says what to do by hand.
      FileNotFoundError: `copy` does not exist, or lacks files.
      ValueError: `copy` is no official one, another process is preparing there, the files there
        have another format, or TFDS is not installed.
      OSError: `data_dir` cannot be written.
    """
    records.import_tfds()  # before anything is fetched
    folder = records.folder_of(source.name, source.version, data_dir)
    with workspace(folder.parent) as work:
        if folder.exists():
            try:
                records.decode(source.name, source.version, data_dir)
            except records.DamagedError as error:
                print(f"preparing again, as a file is damaged: {error}")
            else:
                print(f"{source.name} is complete in {folder}")
                return
        content = source.read_copy(copy) if copy else _local_or_fetched(source, folder.parent, work)
        records.write(source.name, content, work)
        if folder.exists():
            os.rename(folder, work / "damaged")
        os.rename(records.folder_of(source.name, source.version, work), folder)
    print(f"{source.name} is complete in {folder}")


def _local_or_fetched(source: Source, home: Path, work: Path) -> records.Content:
    try:
        content = source.read_copy(home)
    except FileNotFoundError:
        return source.fetch(work)
    except ValueError as error:
        print(f"fetching, as a file is not the official one: {error}")
        return source.fetch(work)
    print(f"taking the official files in {home}")
    return content


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
      SystemExit: with code 2 if the arguments are wrong; with code 0 after `--help`.
    """
    parser = _OneLineParser(prog="prepare.py", description="Gets a data set into a folder.")
    parser.add_argument("name", help=f"data set: {', '.join(DATA_SETS)}")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder for data sets")
    parser.add_argument(
        "--from",
        dest="copy",
        type=Path,
        help="official copy to use instead of fetching one: archive or folder",
    )
    args = parser.parse_args(argv)
    if args.name not in DATA_SETS:
        nearest = difflib.get_close_matches(args.name, DATA_SETS, n=1, cutoff=0.0)
        parser.error(f"no data set {args.name!r}, did you mean {nearest[0]!r}?")
    try:
        prepare(DATA_SETS[args.name], args.data_dir, args.copy)
    except (OSError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
