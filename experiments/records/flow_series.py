"""The gradient flow of a run over its steps, from the norms that its records hold."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.records.run_folder import series

FLOW = "gradient_flow"
"""Name of the series on figures; records hold its square root, "grad_norm"."""


def flow_series(records: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Returns steps and gradient flow, ||m * grad L||^2, of the records that have a norm.

    >>> flow_series([{"step": 1}, {"step": 2, "grad_norm": 3.0}])
    ([2], [9.0])
    """
    steps, norms = series(records, "grad_norm")
    return steps, [norm**2 for norm in norms]
