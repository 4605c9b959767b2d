"""Counting FLOPs from a function alone: what each parameter leaf costs in one forward pass.

The function is traced and its jaxpr walked: every matrix product and convolution between data and a
value made from parameters is charged to a leaf (the largest, if the value was made from several),
once per use, so that a kernel that is used twice counts twice. 2 FLOPs per multiply-add; nothing
else counts (no norm, activation, pooling or loss), as in the tables of the sparse-training papers.

These are theoretical: masked training on dense kernels saves none of them in time.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from jaxsparse.jaxprs import called, opened
from jaxsparse.paths import leaf_paths
from jaxsparse.types import PyTree

OTHER = "other"
"""Where products of data with data go, such as attention scores: sparsity does not change them."""

# What a value depends on: None for data, else the size and path of the largest parameter in it.
_Origin = tuple[int, str] | None
_CONSTANT = (0, OTHER)
_PRODUCTS = ("dot_general", "conv_general_dilated")


def layer_flops(forward: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, int]:
    """Returns the dense forward FLOPs of every parameter leaf that takes part in a product.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params}, x)`. It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; give batch 1 for FLOPs per example.

    Returns:
      FLOPs by path, and under "other" those of products of data with data.

    Raises:
      ValueError: a product where it is not known how often it is done: in a `while_loop`, in a
        Pallas kernel, or in a `shard_map` over a mesh axis that splits nothing. Other kernels of
        one's own have no jaxpr to look into: give the plain function.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((784, 300)), "bias": jnp.ones(300)}
    >>> layer_flops(lambda p, x: x @ p["kernel"] + p["bias"][None], params, jnp.ones((1, 784)))
    {'kernel': 470400}
    """
    closed = jax.make_jaxpr(forward)(params, *inputs)
    num_data = len(closed.jaxpr.invars) - len(jax.tree.leaves(params))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    origins = list(zip(sizes, leaf_paths(params), strict=True))
    flops: Counter[str] = Counter()
    _walk(closed.jaxpr, [*origins, *[None] * num_data], flops, 1)
    return dict(flops)


def sparse_flops(dense: Mapping[str, int], densities: Mapping[str, float]) -> float:
    """Returns sum_l d_l f_l, the forward FLOPs at the given densities; other leaves count fully.

    Args:
      dense: what `layer_flops` returned.
      densities: density in [0, 1] by path.

    >>> sparse_flops({"a": 100, "b": 50}, {"a": 0.1})
    60.0
    """
    return float(sum(densities.get(path, 1.0) * flops for path, flops in dense.items()))


def _walk(jaxpr: core.Jaxpr, origins: list[_Origin], flops: Counter, times: int) -> list[_Origin]:
    """Adds the products of a jaxpr, `times` over, and returns where its outputs come from."""
    origin: dict[core.Var, _Origin] = dict(zip(jaxpr.invars, origins, strict=True))

    def of(atom: Any) -> _Origin:
        return _CONSTANT if isinstance(atom, core.Literal) else origin.get(atom, _CONSTANT)

    for eqn in jaxpr.eqns:
        inputs = [of(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name == "scan":
            outputs = _walk_scan(eqn, inputs, flops, times)
        elif name == "cond":
            outputs = _walk_cond(eqn, inputs, flops, times)
        elif name == "shard_map":
            devices = _num_devices(eqn)
            outputs = _walk(opened(eqn.params["jaxpr"]), inputs, flops, times * devices)
        elif (closed := called(eqn)) is not None:
            inner = closed.jaxpr
            outputs = _walk(inner, inputs[-len(inner.invars) :], flops, times)
        else:
            if name in _PRODUCTS and None in inputs:
                flops[_charged(inputs[0], inputs[1])] += times * _product_flops(eqn)
            elif name not in _PRODUCTS and _holds_products(eqn):
                raise ValueError(
                    f"{name} holds products, and it is not known how often it does them, so its "
                    "FLOPs cannot be counted"
                )
            outputs = [_joined(inputs)] * len(eqn.outvars)
        origin.update(zip(eqn.outvars, outputs, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _walk_scan(eqn: Any, inputs: list[_Origin], flops: Counter, times: int) -> list[_Origin]:
    body = opened(eqn.params["jaxpr"])
    # Inputs are constants, carry and slices; outputs carry and slices. Slices have one axis less
    # inside than outside (JAX's versions name these numbers differently, the shapes agree).
    carry = _num_whole(eqn.outvars, body.outvars)
    first = _num_whole(eqn.invars, body.invars) - carry
    # A carry that becomes data in the first turn is data in the others: find out, then count.
    outputs = _walk(body, inputs, Counter(), times)
    inputs = [
        _joined([x, outputs[i - first]]) if first <= i < first + carry else x
        for i, x in enumerate(inputs)
    ]
    return _walk(body, inputs, flops, times * eqn.params["length"])


def _num_whole(outer: list[Any], inner: list[Any]) -> int:
    return sum(len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outer, inner, strict=True))


def _walk_cond(eqn: Any, inputs: list[_Origin], flops: Counter, times: int) -> list[_Origin]:
    """The dearest branch counts."""
    counts, outputs = [], []
    for branch in eqn.params["branches"]:
        counts.append(Counter())
        outputs.append(_walk(opened(branch), inputs[1:], counts[-1], times))
    flops.update(max(counts, key=lambda count: sum(count.values())))
    return [_joined(list(choices)) for choices in zip(*outputs, strict=True)]


def _num_devices(eqn: Any) -> int:
    """How many devices share what a `shard_map` does; its body shows the part of one of them."""
    params = eqn.params
    axes = params["newly_manual_axes"]
    named = jax.tree.leaves([tuple(spec) for spec in (*params["in_specs"], *params["out_specs"])])
    idle = sorted(axis for axis in axes.difference(named) if params["mesh"].shape[axis] > 1)
    if idle and _holds_products(eqn):
        # Their devices may repeat the products or share them out by `axis_index`.
        raise ValueError(
            f"shard_map holds products, and its mesh axis {idle[0]} splits no input or output; "
            "leave it out of axis_names, or count the function without shard_map"
        )
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _holds_products(eqn: Any) -> bool:
    """Whether any function that belongs to the equation, however deep, holds a product."""
    values = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
    return any(
        inner.primitive.name in _PRODUCTS or _holds_products(inner)
        for jaxpr in filter(_is_jaxpr, values)
        for inner in opened(jaxpr).eqns
    )


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _joined(origins: list[_Origin]) -> _Origin:
    """Data if any is data, else the largest parameter."""
    known = [origin for origin in origins if origin is not None]
    return None if len(known) < len(origins) else max(known, default=_CONSTANT)


def _charged(left: _Origin, right: _Origin) -> str:
    weight = right if left is None else left
    return OTHER if weight is None else weight[1]


def _product_flops(eqn: Any) -> int:
    out = math.prod(eqn.outvars[0].aval.shape)
    left, right = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    # The kernel's input dimension is already that of one group.
    out_features = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * out * math.prod(right) // max(out_features, 1)
