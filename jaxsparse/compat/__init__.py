"""jaxpruner's calls on this library's methods: a script of jaxpruner's runs after one new import.

    from jaxsparse import compat as jaxpruner

    pruner = jaxpruner.create_updater_from_config(config)
    tx = pruner.wrap_optax(tx)
    ...
    params = pruner.post_gradient_update(params, opt_state)
    pruned_params, masks = pruner.instant_sparsify(params)

Every mask update is an event of one of the library's methods. `docs/from_jaxpruner.md` lists the
differences, and shows how to move on to the methods themselves, whose masks are not in the
optimizer's state, where they cost time. A configuration is a dict, or anything with items or
attributes, such as an `ml_collections.ConfigDict`. Straight-through estimators and packed masks are
not served.

Reference: Lee et al., "JaxPruner: A concise library for sparsity research", 2023.
"""

from typing import Any

from jaxsparse.compat.config import all_algorithm_names
from jaxsparse.compat.updater import (
    SparseState,
    Updater,
    create_updater_from_config,
    summarize_sparsity,
)

__all__ = [
    "SparseState",
    "Updater",
    "all_algorithm_names",
    "create_updater_from_config",
    "summarize_sparsity",
]

_CLASSES = {
    "NoPruning": "no_prune",
    "MagnitudePruning": "magnitude",
    "RandomPruning": "random",
    "SaliencyPruning": "saliency",
    "GlobalMagnitudePruning": "global_magnitude",
    "GlobalSaliencyPruning": "global_saliency",
    "StaticRandomSparse": "static_sparse",
    "SET": "set",
    "RigL": "rigl",
}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        instead = f"take create_updater_from_config with algorithm={_CLASSES[name]!r}"
    elif name.startswith("Ste"):
        instead = "straight-through estimators are not served"
    else:
        instead = f"it has {', '.join(__all__)}"
    raise AttributeError(f"jaxsparse.compat has no {name}; {instead}")
