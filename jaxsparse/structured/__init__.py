"""Structured pruning: channels that go for good, and networks that become narrower.

`channel_groups` traces a network and ties the indices of its leaves' axes by the relations between
operations. A walk fills in a `record` of joined and frozen `units`. The `relations` of operations
are in `moves`, `reshapes`, `products`, `lookups` and `along`. Then `splits` chooses among the
factors of reshaped axes, and `gathering` makes the `groups`.

Narrowing: `channel_importance` ranks the units of groups, `group_costs` counts what widths cost,
`plan_widths` chooses the units that stay, and `check_narrow` compares outputs. The plan slices any
tree of the network; `jaxsparse.nn.narrow_module` makes a linen model of its widths. `compact` is
the plan without the channels that sparse weights have made dead.

ResRep: `resrep_optimizer`, `choose_row_masks`, `lasso_preflight` and `merge_compactor`; the module
that it trains, and the whole recipe for our ResNets, are in `jaxsparse.nn`.

C-SGD: `cluster`, `csgd`, `csgd_preflight`, and `merge_outputs` with `merge_inputs`.

Activation gradients that are pruned in simulation: `jaxsparse.structured.activation_gradients`.
"""

from jaxsparse.structured.activations import mean_activations
from jaxsparse.structured.channel_costs import CostTable, Ruled, cost_table, group_costs
from jaxsparse.structured.channel_groups import channel_groups
from jaxsparse.structured.clusters import cluster
from jaxsparse.structured.compacting import compact
from jaxsparse.structured.compactor_checks import check_compactor
from jaxsparse.structured.compactors import BatchNorm, Target, kept_rows, merge_compactor
from jaxsparse.structured.comparing import check_narrow
from jaxsparse.structured.constants import fold_constants
from jaxsparse.structured.csgd import (
    Clusters,
    CsgdPreflight,
    csgd,
    csgd_preflight,
    merge_inputs,
    merge_outputs,
)
from jaxsparse.structured.gradient_reset import compactor_sgd, reset_and_lasso, row_gradient
from jaxsparse.structured.groups import ChannelGroup, ChannelGroups, FrozenAxis, Member
from jaxsparse.structured.importance import (
    activation_importance,
    channel_importance,
    random_importance,
)
from jaxsparse.structured.lasso_budget import LassoPreflight, lasso_preflight
from jaxsparse.structured.mask_choice import check_target, choose_row_masks, is_mask_step
from jaxsparse.structured.narrowing import WidthPlan, plan_of_units, plan_widths
from jaxsparse.structured.resrep import (
    resrep_optimizer,
    row_masks,
    row_norms,
    unsettled_rows,
    with_row_masks,
)

__all__ = [
    "BatchNorm",
    "ChannelGroup",
    "ChannelGroups",
    "Clusters",
    "CostTable",
    "CsgdPreflight",
    "FrozenAxis",
    "LassoPreflight",
    "Member",
    "Ruled",
    "Target",
    "WidthPlan",
    "activation_importance",
    "channel_groups",
    "channel_importance",
    "check_compactor",
    "check_narrow",
    "check_target",
    "choose_row_masks",
    "cluster",
    "compact",
    "compactor_sgd",
    "cost_table",
    "csgd",
    "csgd_preflight",
    "fold_constants",
    "group_costs",
    "is_mask_step",
    "kept_rows",
    "lasso_preflight",
    "mean_activations",
    "merge_compactor",
    "merge_inputs",
    "merge_outputs",
    "plan_of_units",
    "plan_widths",
    "random_importance",
    "reset_and_lasso",
    "resrep_optimizer",
    "row_gradient",
    "row_masks",
    "row_norms",
    "unsettled_rows",
    "with_row_masks",
]
