"""A stretch of training in a folder of its own: trained, gone on with, or read if it has ended."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import loop
from experiments.records.progress import Progress
from experiments.records.run_folder import check_folder, locked, naming, write_json
from experiments.training.run import Run, RunState
from jaxsparse.checkpoint import restore_checkpoint


class Stretch(NamedTuple):
    """A stretch that has ended.

    Attributes:
      state: at its end.
      summary: as in its `summary.json`.
    """

    state: RunState
    summary: dict[str, Any]


def train(
    run: Run,
    out: Path,
    config: dict[str, Any],
    state: RunState,
    *,
    title: str,
    ending: Callable[[Progress], dict[str, Any]] = lambda reached: {},
    **more: Any,
) -> Stretch:
    """Trains from a state to the end of the run; called again, it goes on or reads what it left.

    Args:
      run: what to train.
      out: the folder of the stretch.
      config: its flags, for `config.json`.
      state: to start with, at any step of the run; copied.
      title: of the progress bar and the plot.
      ending: called when training has ended; what it returns goes to the summary.
      **more: goes to the summary too.

    Raises:
      ValueError: as `loop.train`, but for a stretch that has ended.
      OSError: the folder cannot be read or written.
    """
    if (out / "summary.json").exists():
        return Stretch(_end(out, state), json.loads((out / "summary.json").read_text("utf-8")))
    with loop.opened(run, out, config, state=state) as (folder, begun):
        reached = loop.fit(begun, folder, title=title)
        # The file says what the caller gets, also after the folder was closed.
        more |= ending(reached)
        loop.finish(run, folder, reached, config, title, **more)
    return Stretch(reached.state, json.loads((out / "summary.json").read_text("utf-8")))


def _end(out: Path, like: RunState) -> RunState:
    restored = restore_checkpoint(out / "checkpoints", {"state": like, "best": like.variables})
    if restored is None:
        raise ValueError(f"{out} has a summary.json but no checkpoint; delete the folder")
    return restored.state["state"]


@contextlib.contextmanager
def opened(out: Path, config: dict[str, Any]) -> Iterator[None]:
    """Opens the folder that holds those of many stretches, and locks it.

    Raises:
      ValueError: it holds a finished driver, one with other flags, or another process works there.
    """
    check_folder(out, config)
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = locked(out)
        try:
            write_json(out / "config.json", config)
            yield
        finally:
            os.close(lock)
