"""Channels that sparse weights have made constant, as a part of the bias behind them.

A channel that no active weight makes is still a number if a bias or a norm adds one. What reads it
adds the same to its outputs for every input, so that number can move into the bias that follows:

    variables = fold_constants(groups, model.apply, variables, images)
    plan = compact(groups, model.apply, variables, images)  # nothing reads these channels now
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.paths import leaves_by_path, with_leaves
from jaxsparse.structured.comparing import check_unchanged
from jaxsparse.structured.groups import ChannelGroups, Member
from jaxsparse.structured.liveness import unmade
from jaxsparse.structured.probing import other_inputs, probe
from jaxsparse.types import PyTree

_TOLERANCE = 1e-4  # of sums over a batch and its positions in float32


def fold_constants(
    groups: ChannelGroups, apply_fn: Callable[..., Any], variables: PyTree, *inputs: Any
) -> PyTree:
    """Returns variables whose weights that read constant channels are 0; outputs stay as they are.

    A channel is constant if no weight that is not 0 makes it. What its readers add for it moves
    into a leaf that is added behind them: a bias, or the running mean of a batch norm, from which
    it is subtracted. Such a leaf has the shape of the kernel's output axes, and the gradient of the
    kernel's rows is its gradient times the constant: so it is found, and the constant with it. A
    convolution that pads with zeros adds something else at the border, and keeps its weights. So do
    readers without a bias or such a norm behind, and groups with notes. Channels that become
    constant thereby are folded too, until nothing changes.

    Args:
      groups: from `channel_groups` of the same function and variables.
      apply_fn: function of (variables, *inputs) at inference, differentiable.
      variables: with inactive weights at 0, kernels and biases in float32.
      *inputs: pytrees of arrays, such as a batch of images; normal numbers of their shapes are
        tried as well.

    Raises:
      ValueError: an output is not floating point; or one moves by more than 1e-5 of the largest.

    >>> import jax
    >>> from jaxsparse.structured import channel_groups
    >>> params = {"up": jnp.array([[1.0, 0.0]]), "shift": jnp.array([0.0, 3.0])}
    >>> params |= {"down": jnp.array([[1.0], [2.0]]), "bias": jnp.array([0.5])}
    >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"] + p["shift"]) @ p["down"] + p["bias"]
    >>> x = jnp.array([[1.0], [2.0]])
    >>> with jax.numpy_rank_promotion("allow"):
    ...     folded = fold_constants(channel_groups(mlp, params, x), mlp, params, x)
    >>> folded["down"].tolist(), folded["bias"].round(4).tolist()
    ([[1.0], [0.0]], [6.5])
    """
    probes = [probe(apply_fn, seed) for seed in range(2)]
    settings = (inputs, other_inputs(inputs))
    folded, changed = variables, True
    while changed:
        leaves = {path: np.array(x) for path, x in leaves_by_path(folded).items() if _is_float(x)}
        todo = list(_constant_rows(groups, leaves))
        grads = [leaves_by_path(grad(folded, *given)) for grad in probes for given in settings]
        changed = any([_fold(member, rows, leaves, grads) for member, rows in todo])
        if changed:
            folded = with_leaves(folded, {path: jnp.asarray(x) for path, x in leaves.items()})
    check_unchanged(apply_fn, variables, folded, settings, seemed="constant")
    return folded


def _constant_rows(
    groups: ChannelGroups, leaves: Mapping[str, np.ndarray]
) -> Iterator[tuple[Member, np.ndarray]]:
    """Yields members that read constant channels, and the indices of these, int[rows]."""
    alive = {path: leaf != 0 for path, leaf in leaves.items()}
    for group in groups:
        constant = unmade(group, alive) & (not group.notes)
        for member in group.members if constant.any() else ():
            rows = member.indices[constant].ravel()
            entries = np.moveaxis(alive[member.path], member.axis, 0)[rows]
            rows = rows[entries.reshape(len(rows), -1).any(axis=1)]
            if member.role == "input" and len(rows):
                yield member, rows


def _fold(
    member: Member,
    rows: np.ndarray,
    leaves: Mapping[str, np.ndarray],
    grads: Sequence[Mapping[str, Any]],
) -> bool:
    """Moves what rows of a kernel add into the leaf behind it, in place; returns whether it did."""
    moved = False
    for path in sorted(leaves, key=lambda path: -_num_common(path, member.path)):
        put = _outputs_last(leaves[member.path].shape, member.axis, leaves[path].shape)
        if put is None:
            continue
        kernel = put(leaves[member.path])  # [inputs, taps, ..., *outputs], a view
        outputs = kernel.ndim - leaves[path].ndim
        of_kernel = np.stack([put(np.asarray(grad[member.path]))[rows] for grad in grads])
        of_leaf = np.stack([np.asarray(grad[path]) for grad in grads])
        constants, is_sum = _ratios(of_kernel, of_leaf)
        if member.kind.startswith(
            "conv_general_dilated"
        ):  # one that pads has lower ratios at its edges
            is_sum &= _are_equal(constants)
        is_sum &= kernel[rows].any(axis=tuple(range(outputs, kernel.ndim)))
        if is_sum.any():
            shares = np.tensordot(np.where(is_sum, constants, 0), kernel[rows], outputs)
            leaves[path][...] += shares.astype(leaves[path].dtype)
            chosen = np.zeros(kernel.shape[:outputs], bool)
            chosen[rows] = is_sum
            kernel[chosen] = 0
            moved = True
    return moved


def _outputs_last(
    shape: tuple[int, ...], axis: int, of_bias: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns a transposition of a kernel: its input axis first, its outputs last.

    None if no axes behind the input axis, nor the first ones before it, are of a bias's shape.
    """
    num = len(of_bias)
    if not 0 < num < len(shape):
        return None
    if shape[max(axis + 1, len(shape) - num) :] == of_bias:
        return lambda x: np.moveaxis(x, axis, 0)
    if shape[: min(axis, num)] == of_bias:
        ends = [axis, *range(num)]
        return lambda x: np.moveaxis(x, ends, [0, *range(x.ndim - num, x.ndim)])
    return None


def _ratios(of_kernel: np.ndarray, of_leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns gradients of kernels over those of a bias, and whether all outputs have the same.

    Args:
      of_kernel: float[probes, rows, taps, ..., *outputs].
      of_leaf: float[probes, *outputs].

    Returns:
      Both of the shape [rows, taps, ...].
    """
    num = of_leaf.ndim - 1
    rows = of_kernel.shape[1 : of_kernel.ndim - num]
    of_leaf = of_leaf.reshape(-1).astype(np.float64)
    flat = of_kernel.reshape(len(of_kernel), -1, of_leaf.size // len(of_kernel))
    flat = np.moveaxis(flat, 0, 1).reshape(-1, of_leaf.size).astype(np.float64)
    ratios = flat @ of_leaf / max(of_leaf @ of_leaf, np.finfo(np.float64).tiny)
    errors = np.abs(flat - ratios[:, None] * of_leaf).max(axis=1)
    largest = np.abs(flat).max(axis=1)
    return ratios.reshape(rows), ((errors <= _TOLERANCE * largest) & (largest > 0)).reshape(rows)


def _are_equal(ratios: np.ndarray) -> np.ndarray:
    """Returns whether the taps of a row have one ratio, bool[rows, 1, ...]."""
    taps = tuple(range(1, ratios.ndim))
    spread = np.ptp(ratios, axis=taps, keepdims=True)
    return np.asarray(spread <= _TOLERANCE * np.abs(ratios).max(axis=taps, keepdims=True))


def _num_common(path: str, other: str) -> int:
    """How many characters two paths begin with alike: leaves of one layer share its name."""
    pairs = zip(path, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(path), len(other)))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
