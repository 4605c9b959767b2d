"""Structured pruning: channels that go for good, and networks that become narrower.

ResRep: `resrep_optimizer`, `choose_row_masks`, `lasso_preflight` and `merge_compactor`; the module
that it trains, and the whole recipe for our ResNets, are in `jaxsparse.nn`.

C-SGD: `cluster`, `csgd`, `csgd_preflight`, and `merge_outputs` with `merge_inputs`.

Activation gradients that are pruned in simulation: `jaxsparse.structured.activation_gradients`.
"""

from jaxsparse.structured.channel_costs import CostTable, Ruled, cost_table
from jaxsparse.structured.clusters import cluster
from jaxsparse.structured.compactor_checks import check_compactor
from jaxsparse.structured.compactors import BatchNorm, Target, kept_rows, merge_compactor
from jaxsparse.structured.csgd import (
    Clusters,
    CsgdPreflight,
    csgd,
    csgd_preflight,
    merge_inputs,
    merge_outputs,
)
from jaxsparse.structured.gradient_reset import compactor_sgd, reset_and_lasso, row_gradient
from jaxsparse.structured.lasso_budget import LassoPreflight, lasso_preflight
from jaxsparse.structured.mask_choice import check_target, choose_row_masks, is_mask_step
from jaxsparse.structured.resrep import (
    resrep_optimizer,
    row_masks,
    row_norms,
    unsettled_rows,
    with_row_masks,
)

__all__ = [
    "BatchNorm",
    "Clusters",
    "CostTable",
    "CsgdPreflight",
    "LassoPreflight",
    "Ruled",
    "Target",
    "check_compactor",
    "check_target",
    "choose_row_masks",
    "cluster",
    "compactor_sgd",
    "cost_table",
    "csgd",
    "csgd_preflight",
    "is_mask_step",
    "kept_rows",
    "lasso_preflight",
    "merge_compactor",
    "merge_inputs",
    "merge_outputs",
    "reset_and_lasso",
    "resrep_optimizer",
    "row_gradient",
    "row_masks",
    "row_norms",
    "unsettled_rows",
    "with_row_masks",
]
