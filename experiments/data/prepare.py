"""Gets a data set into a folder, in the form that TFDS keeps, without TensorFlow.

    python experiments/data/prepare.py mnist --data_dir=DIR
    python experiments/data/prepare.py cifar10 --data_dir=DIR
    python experiments/data/prepare.py cifar100 --data_dir=DIR --from=cifar-100-python.tar.gz
    python experiments/data/prepare.py imagenet2012 --data_dir=DIR --from=FOLDER

Without --from the data set is fetched from where it is published; --from takes an official copy.
ImageNet cannot be fetched: FOLDER holds its tars. DIR/NAME/VERSION appears only when all of it is
written. If the command is killed, start it again: ImageNet then keeps the files that are written.
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
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder only

from experiments.data import (
    cifar10,
    cifar100,
    fashion_mnist,
    imagenet_shards,
    imagenet_tars,
    mnist,
    records,
)


class Source(NamedTuple):
    """A data set, and how to get it.

    Attributes:
      name: its name in TFDS.
      version: its version in TFDS.
      check: raises a DamagedError if a file of the data set in this folder of data is damaged.
      write: gets the data set into a folder for unfinished files (the second one), from a file or
        folder if that is not None, else from official files in the first folder, else fetched.
      goes_on: whether `write` uses what a call before it, which was killed, has written.
    """

    name: str
    version: str
    check: Callable[[Path], None]
    write: Callable[[Path | None, Path, Path], None]
    goes_on: bool = False


def small_images(module: Any) -> Source:
    """Returns the source of a data set that fits into memory: MNIST, Fashion-MNIST or CIFAR.

    Args:
      module: the module of the data set.
    """

    def check(data_dir: Path) -> None:
        records.decode(module.NAME, module.VERSION, data_dir)

    def write(copy: Path | None, home: Path, work: Path) -> None:
        content = module.read_copy(copy) if copy else _local_or_fetched(module, home, work)
        records.write(module.NAME, content, work)

    return Source(module.NAME, module.VERSION, check, write)


def imagenet(*, subset: bool = False) -> Source:
    """Returns the source of ImageNet.

    Args:
      subset: accept fewer images or classes than were published.
    """

    def write(copy: Path | None, home: Path, work: Path) -> None:
        indices = imagenet_tars.read_copy(copy or home, subset=subset)
        imagenet_shards.write(indices, work)

    name, version = imagenet_shards.NAME, imagenet_shards.VERSION
    return Source(name, version, imagenet_shards.check, write, goes_on=True)


DATA_SETS = {
    source.name: source
    for source in (*map(small_images, (mnist, fashion_mnist, cifar10, cifar100)), imagenet())
}


@contextlib.contextmanager
def workspace(home: Path, *, goes_on: bool = False) -> Iterator[Path]:
    """Makes an empty folder for unfinished files inside `home`, so that a rename moves them out.

    It is removed when the context is left; after a kill, when the next one is entered.

    Args:
      home: folder of one data set, created if missing.
      goes_on: keep the files in it after a kill and after an error, for the next context.

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
        if not goes_on:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except BaseException:
            if not (goes_on and any(work.iterdir())):
                shutil.rmtree(work, ignore_errors=True)
            raise
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
    with workspace(folder.parent, goes_on=source.goes_on) as work:
        if folder.exists():
            try:
                source.check(data_dir)
            except records.DamagedError as error:
                print(f"preparing again, as a file is damaged: {error}")
            else:
                print(f"{source.name} is complete in {folder}")
                return
        source.write(copy, folder.parent, work)
        if folder.exists():
            os.rename(folder, work / "damaged")
        os.rename(records.folder_of(source.name, source.version, work), folder)
    print(f"{source.name} is complete in {folder}")


def _local_or_fetched(source: Any, home: Path, work: Path) -> records.Content:
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
    parser.add_argument(
        "--subset",
        action="store_true",
        help="imagenet2012 only: accept fewer images or classes than were published",
    )
    args = parser.parse_args(argv)
    if args.name not in DATA_SETS:
        nearest = difflib.get_close_matches(args.name, DATA_SETS, n=1, cutoff=0.0)
        parser.error(f"no data set {args.name!r}, did you mean {nearest[0]!r}?")
    if args.subset and args.name != imagenet_shards.NAME:
        parser.error(f"--subset is for {imagenet_shards.NAME}, not for {args.name}")
    source = imagenet(subset=True) if args.subset else DATA_SETS[args.name]
    try:
        prepare(source, args.data_dir, args.copy)
    except (OSError, ValueError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
