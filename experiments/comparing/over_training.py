"""Values over training: the records of runs, averaged over the seeds of each group."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.comparing.finished_runs import FinishedRun
from experiments.comparing.seeds import Group
from experiments.comparing.tables import Table
from experiments.options.cli import nearest
from experiments.records.curves import Curve, average
from experiments.records.figures import Series
from experiments.records.flow_series import FLOW, flow_series
from experiments.records.run_folder import read_metrics, series


def check_record(name: str, runs: Iterable[FinishedRun]) -> None:
    """Raises a ValueError, with the nearest name, if no run has records of that name."""
    names = {FLOW: None}
    for run in runs:
        if run.path.is_dir():
            for record in read_metrics(run.path):
                names |= {key: None for key, x in record.items() if not isinstance(x, list)}
    names.pop("step", None)
    nearest(name, names, kind="record")


def curves_of(tables: Iterable[Table], name: str) -> dict[str, dict[str, Curve]]:
    """Returns the curve of each group, by title of its table and by label, for `plot_curves`.

    Only folders of runs have records over training: the small result files of a sweep have none,
    and their runs are left out, as are those without the record asked for.

    Args:
      tables: the groups.
      name: of a record in metrics.jsonl, or "gradient_flow".

    Raises:
      ValueError: no run has such records.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for table in tables:
        for label, row in table.rows.items():
            for sparsity, group in row.items():
                if found := _of_group(group, name):
                    line = label if len(row) == 1 else f"{label} {sparsity:g}"
                    panels.setdefault(table.title, {})[line] = average(found)
    if not panels:
        because = " (--gradient_flow=True records it)" if name == FLOW else ""
        raise ValueError(
            f"--over_training={name}: no folder of a run has records of it{because}; result files "
            "hold none"
        )
    return panels


def _of_group(group: Group, name: str) -> list[Series]:
    """The records of each run that has them."""
    found = [_of_run(read_metrics(run.path), name) for run in group.runs if run.path.is_dir()]
    return [values for values in found if values[0]]


def _of_run(records: Iterable[Mapping[str, Any]], name: str) -> Series:
    return flow_series(records) if name == FLOW else series(records, name)
