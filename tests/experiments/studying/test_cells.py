"""The file of finished cells: a torn line goes, a line that is no cell is refused."""

import math

import pytest

from experiments.studying.cells import append_cell, read_cells
from jaxsparse.studies import Cell, Plasticity

CELL = Plasticity(Cell(10, 0.5, "layer", True, "frozen"), 0.9, 0.6, 0.88, math.nan)


def test_a_torn_line_is_removed(tmp_path):
    path = tmp_path / "cells.jsonl"
    assert read_cells(path) == []
    append_cell(path, CELL)
    with open(path, "a") as file:
        file.write('{"checkpoint": 1')
    (found,) = read_cells(path)
    assert str(found) == str(CELL) and math.isnan(found.control_after)
    append_cell(path, CELL._replace(acc_pre=0.8))
    assert [cell.acc_pre for cell in read_cells(path)] == [0.9, 0.8]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"cells.jsonl cannot be read: .* delete it"):
        read_cells(path)
