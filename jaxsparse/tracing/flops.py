"""Counting FLOPs from a function alone: what each parameter leaf costs in one forward pass.

The function is traced and its jaxpr walked. Every matrix product and convolution is charged to the
leaves that its kernel is made from, each by its part of the entries (see
`jaxsparse.tracing.owners`), once per use: a kernel that is used twice counts twice. A multiply-add
is 2 FLOPs. Nothing else counts (no norm, activation, pooling or loss, no factorization or Fourier
transform), as in the tables of the sparse-training papers. `jaxsparse.tracing.products` says what
counts in a convolution.

Both factors of a product may be made from parameters, such as those of an adapter of low rank, or
learned queries and their kernel. It is charged to the factor made from more parameters, or evenly
if both are made from equally many. It is done once a pass, not once an example: count it with the
batch in use, or leave it out before the FLOPs are multiplied by the batch size.

These are theoretical: masked training on dense kernels saves none of them in time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import jax

from jaxsparse.paths import leaves_by_path
from jaxsparse.tracing.jaxprs import Analysis, inner_equations, walk
from jaxsparse.tracing.owner_operations import of_equation
from jaxsparse.tracing.owners import Owners, averaged, broadcast, constant, joined, leaf, mixed
from jaxsparse.tracing.primitives import SEPARATE, is_foreign, may_multiply
from jaxsparse.tracing.products import PRODUCTS
from jaxsparse.types import PyTree

OTHER = "other"
"""The path of products that no leaf takes part in: of data with data, such as attention scores, or
with constants. Sparsity does not change them."""

# The leaves that a value is made from; None for data, which depend on the input.
_Origin: TypeAlias = Owners | None
_Flops: TypeAlias = dict[str | None, Fraction]  # by path; None for products of no leaf


def layer_flops(forward: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, int]:
    """Returns the dense forward FLOPs of every parameter leaf that takes part in a product.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params}, x)`. It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; give batch 1 for FLOPs per example. A
        kernel that is multiplied with an input or chosen by one counts as data. If the input is a
        mask, let `forward` close over it instead.

    Returns:
      FLOPs by path, and under "other" those of products that no leaf takes part in, which include
      the constant part of a kernel, such as padding. Shares are rounded to whole numbers whose sum
      is exact.

    Raises:
      ValueError: it is not known how often a product is done: in a `while_loop`, in a Pallas
        kernel, or in a `shard_map` over a mesh axis that splits nothing. Or an operation cannot be
        looked into, such as an FFI call, a callback or a sparse matrix product of
        `jax.experimental.sparse`: give the plain function. Or two leaves have one path, or one has
        the path "other" and there are products of no leaf.

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
    walk(closed, [*origins, *[None] * num_data], _Counting(flops, 1))
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


class _Counting(Analysis[_Origin]):
    """Adds the products that it meets to a record of FLOPs, each `times` over.

    Attributes:
      flops: the record.
      times: how often the function is run: once a turn of a loop, once a device of a `shard_map`.
    """

    def __init__(self, flops: _Flops, times: int):
        self.flops, self.times = flops, times

    def constant(self, atom: Any, value: Any) -> _Origin:
        del value
        return constant(getattr(atom.aval, "shape", ()))  # a token has none

    def operation(self, eqn: Any, operands: list[_Origin]) -> Sequence[_Origin]:
        name = eqn.primitive.name
        if name in SEPARATE:
            return operands
        if name in PRODUCTS:
            _charge(self.flops, operands[:2], self.times * PRODUCTS[name](eqn))
        else:
            _check_known(eqn, operands)
        known = [x for x in operands if x is not None]
        is_data = len(known) < len(operands)
        return [None] * len(eqn.outvars) if is_data else of_equation(eqn, known)

    def either(self, choices: Sequence[_Origin]) -> _Origin:
        known = [x for x in choices if x is not None]
        return joined(known, known[0].shape) if len(known) == len(choices) else None

    def enters(self, eqn: Any, operands: list[_Origin]) -> bool:
        del operands
        return eqn.primitive.name != "while"  # nobody knows how often it turns

    def inside(self, eqn: Any) -> "_Counting":
        if eqn.primitive.name == "cond":  # only one branch is charged
            return _Counting({}, self.times)
        is_scan = eqn.primitive.name == "scan"
        times = eqn.params["length"] if is_scan else _num_devices(eqn)
        return _Counting(self.flops, self.times * times)

    def on_trial(self) -> "_Counting":
        return _Counting({}, self.times)

    def chose(self, branches: Sequence[Analysis[_Origin]]) -> None:
        """Charges the dearest branch."""
        counts = [branch.flops for branch in branches if isinstance(branch, _Counting)]
        _add(self.flops, max(counts, key=lambda count: sum(count.values())))

    def slice(self, x: _Origin) -> _Origin:
        return x and averaged(x, [0])

    def stacked(self, x: _Origin, shape: tuple[int, ...]) -> _Origin:
        return x and broadcast(x, shape, range(1, len(shape)))

    def part(self, x: _Origin, shape: tuple[int, ...]) -> _Origin:
        """A part of a value has the shares of the whole."""
        return x and joined([x], shape)

    def is_settled(self, before: list[_Origin], after: list[_Origin]) -> bool:
        """A carry that becomes data in one turn is data in the next, and may make others data."""
        return [x is None for x in before] == [x is None for x in after]

    def left(self, always: _Origin, last: _Origin) -> _Origin:
        del always
        return last


def _charge(flops: _Flops, operands: list[_Origin], count: int) -> None:
    """Adds a product to the leaves of its kernel, and the rest of its FLOPs to no leaf."""
    kernels = [x for x in operands if x is not None]
    share: dict[str | None, Fraction] = {**mixed(joined(kernels, ()))} if kernels else {}
    rest = 1 - sum(share.values(), Fraction(0))
    _add(flops, {path: count * part for path, part in share.items()})
    if rest:
        _add(flops, {None: count * rest})


def _add(flops: _Flops, more: _Flops) -> None:
    for path, count in more.items():
        flops[path] = flops.get(path, Fraction(0)) + count


def _num_devices(eqn: Any) -> int:
    """How many devices share what a `shard_map` does; its body shows the part of one of them."""
    params = eqn.params
    axes = params["newly_manual_axes"]
    named = jax.tree.leaves([tuple(spec) for spec in (*params["in_specs"], *params["out_specs"])])
    idle = sorted(axis for axis in axes.difference(named) if params["mesh"].shape[axis] > 1)
    if idle and _holds_products(eqn):
        # Devices along it may repeat the products, or share them out by `axis_index`.
        raise ValueError(
            f"shard_map holds products, and its mesh axis {idle[0]} splits no input or output; "
            "leave it out of axis_names, or count the function without shard_map"
        )
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _holds_products(eqn: Any) -> bool:
    """Whether any function that belongs to the equation, however deep, holds or may hold one."""
    return any(
        inner.primitive.name in PRODUCTS or is_foreign(inner) for inner in inner_equations(eqn)
    )


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
    """Rounds to whole numbers with the same sum: down, then up where rounding down lost most."""
    found = {path: int(count) for path, count in flops.items()}
    missing = int(sum(flops.values())) - sum(found.values())
    for path in sorted(flops, key=lambda path: found[path] - flops[path])[:missing]:
        found[path] += 1
    return found
