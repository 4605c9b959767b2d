"""Records over training, of folders of runs and of result files, which hold none."""

import json

import pytest

from experiments.comparing.finished_runs import find_runs
from experiments.comparing.over_training import check_record, curves_of
from experiments.comparing.seeds import group_runs
from experiments.comparing.tables import make_tables
from tests.experiments.written_runs import write_result, write_run


def written(path, norms, **flags):
    write_run(path, **flags)
    records = [{"step": step, "grad_norm": x, "list": [1]} for step, x in norms.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def tables_of(path):
    return make_tables(group_runs(find_runs([path]).runs))


def test_curves_are_averages_over_seeds(tmp_path):
    written(tmp_path / "a", {0: 1.0, 5: 2.0}, seed=0)
    written(tmp_path / "b", {0: 3.0, 5: 4.0, 9: 1.0}, seed=1)
    written(tmp_path / "c", {0: 1.0}, schedule="static")
    write_result(tmp_path / "d.json", schedule="set")
    panels = curves_of(tables_of(tmp_path), "gradient_flow")
    assert list(panels) == ["sample, lenet5"]
    curves = panels["sample, lenet5"]
    assert list(curves) == ["static", "rigl"]
    assert curves["rigl"][:2] == ((0, 5), (5.0, 10.0)) and curves["rigl"].n == 2
    assert curves_of(tables_of(tmp_path), "grad_norm")["sample, lenet5"]["static"].means == (1.0,)


def test_several_sparsities_are_told_apart(tmp_path):
    for sparsity in (0.9, 0.95):
        written(tmp_path / f"{sparsity}", {0: 1.0}, sparsity=sparsity)
    assert list(curves_of(tables_of(tmp_path), "gradient_flow")["sample, lenet5"]) == [
        "rigl 0.9",
        "rigl 0.95",
    ]


def test_names_and_missing_records_are_refused(tmp_path):
    written(tmp_path / "a", {0: 1.0})
    runs = find_runs([tmp_path]).runs
    check_record("grad_norm", runs)
    with pytest.raises(ValueError, match="unknown record 'grad_nrm'; did you mean 'grad_norm'"):
        check_record("grad_nrm", runs)
    write_result(tmp_path / "only" / "b.json", seed=3)
    with pytest.raises(ValueError, match=r"gradient_flow: no folder .* \(--gradient_flow=True"):
        curves_of(tables_of(tmp_path / "only"), "gradient_flow")
