"""The folder of one run: its configuration, its metrics over steps, its checkpoints, its summary.

config.json     the flags of the run, written first
metrics.jsonl   one record per logged step: {"step": 100, "loss": 0.51, ...}
tensorboard/    the same scalars for TensorBoard, without lists (one number a layer)
checkpoints/    STEP/ holds the state after that step: the last two during the run, and at its end
                only the last, which is the trained model (`progress.py` writes them)
plot.png        accuracy and density over steps, density per layer
summary.json    the results, written last: a folder that has it holds a finished run
.lock           held by the process that trains here

In the folder of an unfinished run, the same command goes on from the newest checkpoint.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from experiments.options.defaults import FREE_FLAGS, LOOSE_FLAGS, without_defaults
from experiments.records.tensorboard import ScalarWriter


class RunFolder:
    """Writes one run; use it as a context manager, which closes the files.

    Leaving the context does not finish the run: without `finish` the folder counts as unfinished.

    Attributes:
      path: the folder.
      warned: warnings that this process has printed, so that each is printed once.
    """

    def __init__(self, path: Path, lock: int):
        self.path = path
        self.warned: set[str] = set()
        self._lock = lock
        self._tensorboard = ScalarWriter(path / "tensorboard")
        for record in read_metrics(path) if (path / "metrics.jsonl").exists() else []:
            self._tensorboard.write(record.pop("step"), record)
        self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8")

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], *, after: int | None = None, start: int = 0
    ) -> "RunFolder":
        """Starts a run in a new folder, or goes on in the folder of an unfinished run.

        Args:
          path: the folder, created if missing; files of others stay.
          config: what `config.json` says: nested dicts and lists of numbers, strings and paths.
          after: keep the metrics of an unfinished run up to this step, that of the checkpoint from
            which it goes on, so that no step appears twice. None: start over, with none of them.
          start: the step that the run started with.

        Returns:
          The folder, open for `log`.

        Raises:
          ValueError: as `check_folder`, records that the run cannot go on from, or another process
            that is writing there.
        """
        check_folder(path, config)
        path.mkdir(parents=True, exist_ok=True)
        lock = locked(path)
        try:
            kept = [] if after is None else _records_until(path / "metrics.jsonl", after, start)
            write_json(path / "config.json", config)
            _write_text(path / "metrics.jsonl", "".join(kept))
            return cls(path, lock)
        except BaseException:
            os.close(lock)
            raise

    def log(self, step: int, **values: float | Sequence[float]) -> None:
        """Appends one record; it is in the file when this returns.

        Args:
          step: optimizer step, not negative.
          **values: numbers or arrays of one element, by name, and short lists of numbers, which go
            to the record only. NaN and infinity become null, as JSON has neither.

        Raises:
          ValueError: the folder is closed.
        """
        record = _plain({"step": int(step), **values})
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics.flush()
        del record["step"]
        self._tensorboard.write(int(step), record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the records logged so far, see the function `read_metrics`."""
        return read_metrics(self.path)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, whole or not at all, and closes the folder.

        Args:
          summary: nested dicts and lists of numbers, strings and paths; NaN and infinity become
            null.
        """
        self._tensorboard.flush()
        write_json(self.path / "summary.json", summary)
        self.close()

    def close(self) -> None:
        """Closes the files; closing twice does nothing."""
        with contextlib.suppress(OSError):  # `log` has flushed all that it could write
            self._metrics.close()
        self._tensorboard.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_folder(path: Path, config: Mapping[str, Any]) -> None:
    """Checks that a run may start or go on in this folder; changes nothing.

    Args:
      path: the folder, which may be missing.
      config: the flags of the run.

    Raises:
      ValueError: `path` is a file; or it holds a finished run, or an unfinished run with other
        flags (the first that differs is named) or with a config.json that cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a folder; pass another --out")
    finished = (path / "summary.json").exists()
    if not (path / "config.json").exists():
        if finished:
            raise ValueError(f"{path} holds a finished run (summary.json); pass another --out")
        if (path / "checkpoints").exists():  # they may be those of another run
            raise ValueError(
                f"{path} has checkpoints but no config.json, so their flags are unknown; pass "
                f"another --out, or delete the folder"
            )
        return
    check_flags(path, config)
    if finished:
        raise ValueError(
            f"{path} holds a finished run (summary.json) with the same flags; pass another --out"
        )


def check_flags(path: Path, config: Mapping[str, Any]) -> None:
    """Checks that the run in a folder, finished or not, has these flags.

    Args:
      path: the folder; it has a config.json.
      config: the flags of the run.

    Raises:
      ValueError: a flag differs, of which the first is named; or config.json cannot be read.
    """
    finished = (path / "summary.json").exists()
    started = _read_config(path / "config.json")
    asked = json.loads(json.dumps(_plain(config), allow_nan=False))
    apart = [without_defaults(config) for config in (asked, started)]
    for flag in [*asked, *(flag for flag in started if flag not in asked)]:
        ours, theirs = asked.get(flag), started.get(flag)
        loose = FREE_FLAGS if finished else (*FREE_FLAGS, *LOOSE_FLAGS)
        if apart[0].get(flag) != apart[1].get(flag) and flag not in loose:
            kind = "a finished" if finished else "an unfinished"
            raise ValueError(
                f"{path} holds {kind} run {difference(flag, theirs, ours)}; pass another "
                f"--out, or delete the folder"
            )


def difference(flag: str, theirs: Any, ours: Any) -> str:
    """Says how a flag of a run differs from the one given; None means that it was left out.

    >>> difference("steps", 10, 20), difference("steps", None, 20), difference("steps", 10, None)
    ('with --steps=10, not 20', 'without --steps, not with 20', 'with --steps=10, not without it')
    """
    if theirs is None:
        return f"without --{flag}, not with {ours}"
    return f"with --{flag}={theirs}, not {'without it' if ours is None else ours}"


def locked(path: Path, doing: str = "training") -> int:
    """Locks a folder until the returned descriptor is closed or the process ends.

    Args:
      path: an existing folder.
      doing: what this process does there, for the error that another process gets.

    Raises:
      ValueError: another process holds the lock.
    """
    # The file is open for writing, as a network file system locks no other.
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(
            f"another process is {doing} in {path}; wait for it, or pass another --out"
        ) from None
    except OSError:
        pass  # this file system has no locks: the run goes on without one
    return lock


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the folder in an error of the system that names no file, as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a run, finished or not.

    Args:
      path: the folder of the run.

    Returns:
      One dict per record, in the order of logging: "step" and the values, None for a null.

    Raises:
      FileNotFoundError: the folder holds no `metrics.jsonl`.
    """
    with open(path / "metrics.jsonl", encoding="utf-8") as file:
        # A crash can cut the last line short; a whole record ends with its newline.
        return [json.loads(line) for line in file if line.endswith("\n")]


def series(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Picks one scalar out of the records, for a plot.

    Args:
      records: what `read_metrics` returns.
      name: name of the scalar.

    Returns:
      Steps and values of the records that have it, NaN for a null; both empty if none has.

    >>> series([{"step": 1, "loss": 0.5}, {"step": 2}, {"step": 3, "loss": None}], "loss")
    ([1, 3], [0.5, nan])
    """
    having = [record for record in records if name in record]
    values = [math.nan if record[name] is None else record[name] for record in having]
    return [record["step"] for record in having], values


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(
            f"{path} cannot be read: {error}; pass another --out, or delete the folder"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration; pass another --out, or delete the folder")
    return config


def _records_until(path: Path, step: int, start: int) -> list[str]:
    """Returns the lines up to this step, without one cut short; the summary needs the first."""
    lines = path.read_text("utf-8").splitlines(True) if path.exists() else []
    try:
        steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {error}; pass another --out, or delete the folder"
        ) from None
    if start not in steps:
        raise ValueError(
            f"{path} has no record of step {start}, without which the run cannot go on from step "
            f"{step}; pass another --out, or delete the folder"
        )
    return [line for line, of in zip(lines, steps, strict=False) if of <= step]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file, whole or not at all; NaN and infinity become null."""
    _write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
