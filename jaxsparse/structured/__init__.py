"""Structured pruning: channels that go for good, and networks that become narrower.

ResRep: `resrep_optimizer`, `choose_row_masks`, `lasso_preflight` and `merge_compactor`; the module
that it trains, and the whole recipe for our ResNets, are in `jaxsparse.nn`.
"""

from jaxsparse.structured.channel_costs import CostTable, Ruled, cost_table
from jaxsparse.structured.compactor_checks import check_compactor
from jaxsparse.structured.compactors import BatchNorm, Target, kept_rows, merge_compactor
from jaxsparse.structured.gradient_reset import compactor_sgd, reset_and_lasso, row_gradient
from jaxsparse.structured.lasso_budget import LassoPreflight, lasso_preflight
from jaxsparse.structured.resrep import resrep_optimizer, row_masks, row_norms, with_row_masks
from jaxsparse.structured.row_masks import check_target, choose_row_masks, is_mask_step

__all__ = [
    "BatchNorm",
    "CostTable",
    "LassoPreflight",
    "Ruled",
    "Target",
    "check_compactor",
    "check_target",
    "choose_row_masks",
    "compactor_sgd",
    "cost_table",
    "is_mask_step",
    "kept_rows",
    "lasso_preflight",
    "merge_compactor",
    "reset_and_lasso",
    "resrep_optimizer",
    "row_gradient",
    "row_masks",
    "row_norms",
    "with_row_masks",
]
