"""The arm of C-SGD: filters of the trained network in clusters, trained to be equal, merged."""

import functools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from experiments.options.cli import flag_error
from experiments.structured import one_shot
from experiments.structured.setting import (
    Begun,
    Narrow,
    Reached,
    Setting,
    Stretch,
    traced,
)
from experiments.training.run import MASKS
from jaxsparse.nn import ResNet, narrow_module
from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.structured import (
    ChannelGroup,
    Clusters,
    CsgdPreflight,
    cluster,
    csgd,
    csgd_preflight,
    merge_inputs,
    merge_outputs,
    plan_of_units,
)
from jaxsparse.types import PyTree

CENTRIPETAL = 3e-3
"""The published epsilon of ResNet-56."""
_TRIED = tuple(float(f"{digit}e{power}") for power in range(-3, 1) for digit in (1, 2, 5))


def widths_of(setting: Setting) -> dict[str, int]:
    """Returns the width that every group shall have: all lose the same share, as published.

    Raises:
      ValueError: the smallest widths cost more than the target.
    """
    groups, _ = traced(setting.model, setting.image)
    same = {group.name: np.ones(group.width) for group in groups}
    found = one_shot.plan(setting, setting.model, same, target=setting.target, ranking="layer")
    return found.widths


def clusters_of(setting: Setting, reached: Reached) -> dict[str, np.ndarray]:
    """Returns the cluster of every unit, by group.

    The first kernel that makes a group's channels is the pacesetter: its filters are clustered by
    k-means, and layers whose outputs are added to its own follow.
    """
    groups, _ = traced(reached.model, setting.image)
    leaves, key = leaves_by_path(reached.state.variables), setting.base.key(MASKS)
    found = {}
    for number, (name, width) in enumerate(widths_of(setting).items()):
        first = groups[name].members[0]
        options = {"key": jax.random.fold_in(key, number), "axis": first.axis}
        found[name] = cluster(leaves[first.path], width, **options)
    return found


def labels_of(group: ChannelGroup, clusters: np.ndarray) -> dict[str, Clusters]:
    """Returns the clusters of all leaves of a group that are to become equal, by path in params."""
    return {
        member.path.removeprefix("params/"): Clusters(member.axis, clusters)
        for member in group.members
        if member.role != "input" and member.path.startswith("params/")
    }


def preflight_of(setting: Setting) -> CsgdPreflight:
    """Returns how far filters of a cluster come together, with the epsilon of the run."""
    return _preflight(setting, centripetal_of(setting))


def centripetal_of(setting: Setting) -> float:
    """Returns epsilon: as asked for, or the published one, or the smallest that is enough.

    Raises:
      ValueError: filters would not become equal.
    """
    asked, first = setting.centripetal, CENTRIPETAL
    found = _preflight(setting, first if asked is None else asked)
    if asked is None and not found.is_long_enough:
        # The exponent of vectors is the smaller one, and epsilon times a constant.
        least = first * math.log(1 / found.enough) / found.vectors
        tried = next((x for x in _TRIED if x >= least), _TRIED[-1])
        found, asked = _preflight(setting, tried), tried
    if not found.is_long_enough:
        raise ValueError(flag_error("centripetal", f"{asked:g}", f"is too small. {found}"))
    return first if asked is None else asked


def _preflight(setting: Setting, centripetal: float) -> CsgdPreflight:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an error follows in its place
        return csgd_preflight(
            setting.rate,
            centripetal=centripetal,
            decay=setting.recipe.weight_decay,
            momentum=setting.recipe.momentum,
            total_steps=setting.steps,
        )


def check(setting: Setting) -> list[str]:
    """Refuses what cannot work before anything is trained; returns a line on what will happen.

    Raises:
      ValueError: names the flag.
    """
    widths_of(setting)
    epsilon = centripetal_of(setting)
    return [f"csgd: epsilon {epsilon:g}", str(preflight_of(setting))]


def begin(setting: Setting, reached: Reached, stretch: Stretch) -> Begun:
    """Returns the training of the network at full width, its filters in clusters."""
    clusters = clusters_of(setting, reached)
    tx = optimizer(setting, reached.model, clusters)
    variables = reached.state.variables
    run, state = setting.going_on(reached.step, stretch.last, reached.model, variables, tx)
    return Begun(run, state, functools.partial(merged, setting, clusters))


def optimizer(
    setting: Setting, model: ResNet, clusters: Mapping[str, np.ndarray]
) -> optax.GradientTransformation:
    """Returns C-SGD for the leaves in clusters, and the SGD of all arms for the others."""
    groups, _ = traced(model, setting.image)
    labels: dict[str, Clusters] = {}
    for name, found in clusters.items():
        labels |= labels_of(groups[name], found)
    decay = setting.recipe.weight_decay

    def others(params: PyTree) -> PyTree:
        found: dict[str, Any] = {path: path not in labels for path in leaves_by_path(params)}
        return with_leaves(params, found)

    return optax.chain(
        csgd(labels, centripetal=centripetal_of(setting), decay=decay),
        optax.masked(optax.add_decayed_weights(decay), others),
        setting.sgd,
    )


def merged(setting: Setting, clusters: Mapping[str, np.ndarray], reached: Reached) -> Narrow:
    """Returns the network with one filter of every cluster, read with the weights of all of it."""
    groups, _ = traced(reached.model, setting.image)
    leaves = dict(leaves_by_path(reached.state.variables))
    apart = 0.0
    kept = {}
    for name, labels in clusters.items():
        _, kept[name] = np.unique(labels, return_index=True)
        for member in groups[name].members:
            leaf, axis = leaves[member.path], member.axis
            if member.role == "input":
                leaves[member.path] = merge_inputs(leaf, axis, labels)
            else:
                apart = max(apart, _apart(leaf, axis, labels))
                leaves[member.path] = merge_outputs(leaf, axis, labels)
    model = narrow_module(reached.model, plan_of_units(groups, kept))
    assert isinstance(model, ResNet)
    notes = {"centripetal": centripetal_of(setting), "largest_difference": apart}
    return Narrow(model, with_leaves(reached.state.variables, leaves), True, notes)


def _apart(leaf: jax.Array, axis: int, labels: np.ndarray) -> float:
    """The largest difference of an entry from that of the first filter of its cluster."""
    rows = np.moveaxis(np.asarray(leaf), axis, 0)
    _, first = np.unique(labels, return_index=True)
    largest = float(np.abs(rows - rows[first][labels]).max(initial=0.0))
    return largest if math.isfinite(largest) else math.nan
