"""jaxsparse: sparse training for JAX, with masks as pytrees and mask updates as pure functions."""

from jaxsparse.age import scale_by_age
from jaxsparse.at_init import (
    balanced_indices,
    cross_entropy,
    grasp_masks,
    grasp_scores,
    random_masks,
    snip_masks,
    snip_scores,
    synflow_masks,
    synflow_scores,
)
from jaxsparse.axes import axes_by_rules
from jaxsparse.csr import Csr, from_csr, from_csr_tree, to_csr, to_csr_tree
from jaxsparse.cycles import with_cycles
from jaxsparse.distributions import (
    erdos_renyi,
    erk,
    stacked,
    uniform,
    with_overrides,
)
from jaxsparse.export import (
    export_forward,
    load_safetensors,
    masks_from_torch,
    masks_to_torch,
    params_from_torch,
    params_to_torch,
    save_onnx,
    save_safetensors,
)
from jaxsparse.fingerprints import check_replicas, fingerprint
from jaxsparse.frozen import frozen_paths, leave_out
from jaxsparse.gradient_flow import GradientFlow, gradient_flow
from jaxsparse.gsm import gsm, gsm_preflight
from jaxsparse.invariants import check
from jaxsparse.lottery import prune_survivors
from jaxsparse.mask_history import churn, exploration_rate, explore, overlap
from jaxsparse.masks import (
    apply_mask,
    apply_masks,
    dense_masks,
    masks_from_params,
    num_active,
    sparsity,
)
from jaxsparse.method import Method, compose
from jaxsparse.methods import (
    dense,
    east,
    gmp,
    granet,
    granet_st,
    rigl,
    rigl_itop,
    set_,
    set_itop,
    snfs,
    static,
)
from jaxsparse.metrics import dead_channels, summary
from jaxsparse.one_shot import magnitude_masks, masks_from_scores, pattern_masks
from jaxsparse.paths import prunable_paths
from jaxsparse.pattern_rules import check_pattern
from jaxsparse.patterns import Pattern, block, channels, n_of_m
from jaxsparse.redistribution import redistribute
from jaxsparse.rewinding import rewound
from jaxsparse.rounded_counts import leaf_counts
from jaxsparse.selection.top_k import top_k, top_k_mask
from jaxsparse.shuffle import shuffle_masks
from jaxsparse.sparse_init import sparse_init
from jaxsparse.sparse_optimizer import SparseOptimizer, SparseState, sparse_optimizer
from jaxsparse.stages import exchange, grow, prune
from jaxsparse.survivors import Survivors, survivor_counts
from jaxsparse.timetable import make_timetable
from jaxsparse.tracing.connectivity import count_live, live_weights, where_paths_end
from jaxsparse.tracing.flops import layer_flops, sparse_flops
from jaxsparse.tracing.kernel_axes import kernel_axes
from jaxsparse.tracing.training_flops import training_flops
from jaxsparse.train_state import TrainState, with_masks
from jaxsparse.transforms import apply_event, masked
from jaxsparse.types import Event, EventMetrics, KernelAxes
from jaxsparse.variants import starting_from, with_pattern

__version__ = "0.1.0"

__all__ = [
    "Csr",
    "Event",
    "EventMetrics",
    "GradientFlow",
    "KernelAxes",
    "Method",
    "Pattern",
    "SparseOptimizer",
    "SparseState",
    "Survivors",
    "TrainState",
    "apply_event",
    "apply_mask",
    "apply_masks",
    "axes_by_rules",
    "balanced_indices",
    "block",
    "channels",
    "check",
    "check_pattern",
    "check_replicas",
    "churn",
    "compose",
    "count_live",
    "cross_entropy",
    "dead_channels",
    "dense",
    "dense_masks",
    "east",
    "erdos_renyi",
    "erk",
    "exchange",
    "exploration_rate",
    "explore",
    "export_forward",
    "fingerprint",
    "from_csr",
    "from_csr_tree",
    "frozen_paths",
    "gmp",
    "gradient_flow",
    "granet",
    "granet_st",
    "grasp_masks",
    "grasp_scores",
    "grow",
    "gsm",
    "gsm_preflight",
    "kernel_axes",
    "layer_flops",
    "leaf_counts",
    "leave_out",
    "live_weights",
    "load_safetensors",
    "magnitude_masks",
    "make_timetable",
    "masked",
    "masks_from_params",
    "masks_from_scores",
    "masks_from_torch",
    "masks_to_torch",
    "n_of_m",
    "num_active",
    "overlap",
    "params_from_torch",
    "params_to_torch",
    "pattern_masks",
    "prunable_paths",
    "prune",
    "prune_survivors",
    "random_masks",
    "redistribute",
    "rewound",
    "rigl",
    "rigl_itop",
    "save_onnx",
    "save_safetensors",
    "scale_by_age",
    "set_",
    "set_itop",
    "shuffle_masks",
    "snfs",
    "snip_masks",
    "snip_scores",
    "sparse_flops",
    "sparse_init",
    "sparse_optimizer",
    "sparsity",
    "stacked",
    "starting_from",
    "static",
    "summary",
    "survivor_counts",
    "synflow_masks",
    "synflow_scores",
    "to_csr",
    "to_csr_tree",
    "top_k",
    "top_k_mask",
    "training_flops",
    "uniform",
    "where_paths_end",
    "with_cycles",
    "with_masks",
    "with_overrides",
    "with_pattern",
]
