"""Counting FLOPs from a function alone: what each parameter leaf costs in one forward pass.

The function is traced and its jaxpr walked: every matrix product and convolution is charged to the
leaves that its kernel is made from, each by its part of the entries (see
`jaxsparse.tracing.owners`), once per use, so that a kernel that is used twice counts twice. 2 FLOPs
per multiply-add; nothing else counts (no norm, activation, pooling or loss, no factorization or
Fourier transform), as in the tables of the sparse-training papers. What counts in a convolution is
in `jaxsparse.tracing.products`.

A product of two values that are both made from parameters, such as the factors of an adapter of low
rank or learned queries and their kernel, is charged to the value made from more parameters, evenly
if both are made from equally many. It is done once a pass, not once an example: count it with the
batch in use, or leave it out before the FLOPs are multiplied by the batch size.

These are theoretical: masked training on dense kernels saves none of them in time.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import jax
from jax.extend import core

from jaxsparse.paths import leaves_by_path
from jaxsparse.tracing.jaxprs import (
    SEPARATE,
    branches,
    is_foreign,
    may_multiply,
    opened,
    scan_parts,
    settled,
    walk,
)
from jaxsparse.tracing.owner_operations import of_equation
from jaxsparse.tracing.owners import (
    Owners,
    averaged,
    broadcast,
    constant,
    joined,
    leaf,
    mixed,
)
from jaxsparse.tracing.products import PRODUCTS
from jaxsparse.types import PyTree

OTHER = "other"
"""Where products go that no leaf takes part in, of data with data, such as attention scores, or
with constants: sparsity does not change them."""

# What a value is made from: None for data, which depend on the input.
_Origin: TypeAlias = Owners | None
_Flops: TypeAlias = dict[str | None, Fraction]  # by path; by None those of no leaf


def layer_flops(forward: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, int]:
    """Returns the dense forward FLOPs of every parameter leaf that takes part in a product.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params}, x)`. It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; give batch 1 for FLOPs per example. A
        kernel that is multiplied with an input, a mask say, or chosen by one is data: let `forward`
        close over such a mask.

    Returns:
      FLOPs by path, and under "other" those of products that no leaf takes part in. The constant
      part of a kernel, such as padding, counts there too. Shares are rounded to whole numbers
      whose sum is exact.

    Raises:
      ValueError: a product where it is not known how often it is done: in a `while_loop`, in a
        Pallas kernel, or in a `shard_map` over a mesh axis that splits nothing. An operation that
        cannot be looked into, such as an FFI call, a callback or a sparse matrix product of
        `jax.experimental.sparse`: give the plain function. Two leaves with one path, or one at
        "other" beside products of no leaf.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((784, 300)), "bias": jnp.ones(300)}
    >>> layer_flops(lambda p, x: x @ p["kernel"] + p["bias"][None], params, jnp.ones((1, 784)))
    {'kernel': 470400}
    >>> params = {"q": jnp.ones((8, 4)), "k": jnp.ones((8, 12))}
    >>> qk = lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], 1)
    >>> layer_flops(qk, params, jnp.ones((1, 8)))
    {'q': 64, 'k': 192}
    """
    closed = jax.make_jaxpr(forward)(params, *inputs)
    leaves = leaves_by_path(params)
    origins = [leaf(path, x.shape) for path, x in leaves.items()]
    num_data = len(closed.jaxpr.invars) - len(leaves)
    flops: _Flops = {}
    _walk(closed.jaxpr, [*origins, *[None] * num_data], flops, 1)
    if None in flops and OTHER in leaves:
        raise ValueError(f"params has a leaf {OTHER!r}, the name of products of no leaf; rename it")
    return _rounded({OTHER if path is None else path: count for path, count in flops.items()})


def sparse_flops(dense: Mapping[str, int], densities: Mapping[str, float]) -> float:
    """Returns sum_l d_l f_l, the forward FLOPs at the given densities; other leaves count fully.

    Args:
      dense: what `layer_flops` returned.
      densities: density in [0, 1] by path.

    >>> sparse_flops({"a": 100, "b": 50}, {"a": 0.1})
    60.0
    """
    return float(sum(densities.get(path, 1.0) * flops for path, flops in dense.items()))


def _walk(jaxpr: core.Jaxpr, origins: list[_Origin], flops: _Flops, times: int) -> list[_Origin]:
    """Adds the products of a jaxpr, `times` over, and returns where its outputs come from."""
    operation = functools.partial(_operation, flops, times)
    # A token has no shape.
    return walk(jaxpr, origins, operation, lambda x, _: constant(getattr(x.aval, "shape", ())))


def _operation(flops: _Flops, times: int, eqn: Any, inputs: list[_Origin]) -> Sequence[_Origin]:
    name = eqn.primitive.name
    if name in _CONTROL:
        return _CONTROL[name](eqn, inputs, flops, times)
    if name in SEPARATE:
        return inputs
    if name in PRODUCTS:
        _charge(flops, inputs[:2], times * PRODUCTS[name](eqn))
    else:
        _check_known(eqn, inputs)
    known = [x for x in inputs if x is not None]
    is_data = len(known) < len(inputs)
    return [None] * len(eqn.outvars) if is_data else of_equation(eqn, known)


def _charge(flops: _Flops, operands: list[_Origin], count: int) -> None:
    """Adds a product to the leaves of its kernel; what is left are constants, or data with data."""
    kernels = [x for x in operands if x is not None]
    share: dict[str | None, Fraction] = {**mixed(joined(kernels, ()))} if kernels else {}
    rest = 1 - sum(share.values(), Fraction(0))
    _add(flops, {path: count * part for path, part in share.items()})
    if rest:
        _add(flops, {None: count * rest})


def _add(flops: _Flops, more: _Flops) -> None:
    for path, count in more.items():
        flops[path] = flops.get(path, Fraction(0)) + count


def _walk_scan(eqn: Any, inputs: list[_Origin], flops: _Flops, times: int) -> list[_Origin]:
    body = opened(eqn.params["jaxpr"])
    first, carry = scan_parts(eqn)  # constants, then the carry, then slices
    last = first + carry
    before, carried = inputs[:first], inputs[first:last]
    after = [x and averaged(x, [0]) for x in inputs[last:]]
    turn = lambda carried: _walk(body, [*before, *carried, *after], {}, times)[:carry]
    # A carry that becomes data in one turn is data in the next, and may make others data there.
    is_data = lambda origins: [x is None for x in origins]
    carried = settled(carried, turn, _either, lambda a, b: is_data(a) == is_data(b))
    outputs = _walk(body, [*before, *carried, *after], flops, times * eqn.params["length"])
    stacked = [
        x and broadcast(x, var.aval.shape, range(1, len(var.aval.shape)))
        for x, var in zip(outputs[carry:], eqn.outvars[carry:], strict=True)
    ]
    return outputs[:carry] + stacked


def _walk_cond(eqn: Any, inputs: list[_Origin], flops: _Flops, times: int) -> list[_Origin]:
    """The dearest branch counts."""
    counts: list[_Flops] = []

    def run(branch: core.Jaxpr, operands: list[_Origin]) -> list[_Origin]:
        counts.append({})
        return _walk(branch, operands, counts[-1], times)

    outputs = branches(eqn, inputs, run, _either)
    _add(flops, max(counts, key=lambda count: sum(count.values())))
    return outputs


def _either(origins: Sequence[_Origin]) -> _Origin:
    """The origin of a value that is one of several of the same shape; data if any of them is."""
    known = [x for x in origins if x is not None]
    return joined(known, known[0].shape) if len(known) == len(origins) else None


def _walk_shards(eqn: Any, inputs: list[_Origin], flops: _Flops, times: int) -> list[_Origin]:
    """Counts the part of one device for all; a part of a value has the shares of the whole."""
    body = opened(eqn.params["jaxpr"])
    resized = lambda origins, variables: [
        x and joined([x], var.aval.shape) for x, var in zip(origins, variables, strict=True)
    ]
    outputs = _walk(body, resized(inputs, body.invars), flops, times * _num_devices(eqn))
    return resized(outputs, eqn.outvars)


_CONTROL = {"scan": _walk_scan, "cond": _walk_cond, "shard_map": _walk_shards}


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
    """Whether any function that belongs to the equation, however deep, holds or may hold one."""
    values = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
    return any(
        inner.primitive.name in PRODUCTS or is_foreign(inner) or _holds_products(inner)
        for jaxpr in filter(_is_jaxpr, values)
        for inner in opened(jaxpr).eqns
    )


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _check_known(eqn: Any, inputs: list[_Origin]) -> None:
    """Refuses an operation whose products cannot be counted."""
    name = eqn.primitive.name
    if _holds_products(eqn):
        raise ValueError(
            f"{name} holds products, and it is not known how often it does them, so its FLOPs "
            "cannot be counted"
        )
    if may_multiply(eqn, sum(x is None or bool(x.entries and x.lengths) for x in inputs)):
        target = f" {eqn.params['target_name']}" if "target_name" in eqn.params else ""
        raise ValueError(
            f"{name}{target} cannot be looked into, so its FLOPs cannot be counted; give the plain "
            "function"
        )


def _rounded(flops: dict[str, Fraction]) -> dict[str, int]:
    """Whole numbers with the same sum; what is cut off goes to those that lose most."""
    found = {path: int(count) for path, count in flops.items()}
    missing = int(sum(flops.values())) - sum(found.values())
    for path in sorted(flops, key=lambda path: found[path] - flops[path])[:missing]:
        found[path] += 1
    return found
