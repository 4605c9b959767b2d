"""How a density is shared out among layers: uniform, Erdos-Renyi, ERK, and per-layer overrides.

A distribution maps (shapes by path, density) to a density in [0, 1] for every leaf, in float64 on
the host. `jaxsparse.rounded_counts` makes integers of them.

A kernel counts as the matrix or convolution that it multiplies by, whatever its rank.

References:
  Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
  inspired by network science", Nature Communications 2018 (Erdos-Renyi).
  Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (ERK, section 3).
"""

import math
from collections.abc import Callable, Mapping

from jaxsparse.axes import AxesByPath, KeptAxes, axes_of, kept_axes, num_places
from jaxsparse.checks import check_in, check_whole
from jaxsparse.comparable import comparable
from jaxsparse.paths import first_matches
from jaxsparse.types import Distribution, Shapes


@comparable
def uniform() -> Distribution:
    """Gives every leaf the same density.

    RigL's uniform runs keep the first layer dense:
    `with_overrides(uniform(), {"Conv_0/kernel": 0.0})`.

    >>> uniform()({"a": (4, 4), "b": (4, 16)}, 0.5)
    {'a': 0.5, 'b': 0.5}
    """

    def distribution(shapes: Shapes, density: float) -> dict[str, float]:
        return {path: density for path in shapes}

    return distribution


@comparable
def erdos_renyi(*, axes: AxesByPath | None = None) -> Distribution:
    """Erdos-Renyi: density in proportion to (n_in + n_out) / (n_in * n_out), kernel sizes ignored.

    Args:
      axes: which axes of a leaf are its inputs and outputs, as in `erk`.

    >>> {p: round(d, 6) for p, d in erdos_renyi()({"a": (4, 4), "b": (4, 16)}, 0.5).items()}
    {'a': 0.714286, 'b': 0.446429}
    """
    return _proportional(lambda _, sides: sum(sides) / math.prod(sides), kept_axes(axes))


@comparable
def erk(power: float = 1.0, *, axes: AxesByPath | None = None) -> Distribution:
    """Erdos-Renyi-Kernel: density in proportion to (sum of dims / product of dims) ** power.

    The dims are inputs, outputs and taps: (768, 12, 64), the query of an attention, is a matrix of
    768 x 768. If `axes` says that layers or experts are a batch, each counts for itself.

    Solves for eps with RigL's iterative dense set: while eps times the largest raw value exceeds 1,
    all leaves that attain it become dense and the rest share what is left.

        eps = (d * sum_all n_l - sum_dense n_l) / sum_rest raw_l * n_l,    d_l = eps * raw_l

    Differs from the official code (RigL's) in: the densities are those of the formula, where the
    code rounds the zeros of every layer down on the way; `leaf_counts` rounds once.

    Args:
      power: 0 gives uniform, 1 is the published ERK.
      axes: by path, from `kernel_axes` or by hand. Leaves without an entry go by the rules of
        `jaxsparse.axes`; None is no entry for any leaf.

    Raises:
      ValueError: when called, axes that do not fit their leaf.

    >>> {p: round(d, 6) for p, d in erk()({"a": (4, 4), "b": (4, 16)}, 0.5).items()}
    {'a': 0.714286, 'b': 0.446429}
    >>> erk()({"a": (2, 2), "b": (8, 8)}, 0.5)  # eps 1.7 would give "a" more than 1
    {'a': 1.0, 'b': 0.46875}
    >>> as_heads = erk()({"attn/query/kernel": (768, 12, 64), "mlp/kernel": (768, 3072)}, 0.1)
    >>> as_matrix = erk()({"attn/query/kernel": (768, 768), "mlp/kernel": (768, 3072)}, 0.1)
    >>> as_heads == as_matrix
    True
    """
    raw = lambda taps, sides: (sum((*taps, *sides)) / math.prod((*taps, *sides))) ** power
    return _proportional(raw, kept_axes(axes))


@comparable
def with_overrides(distribution: Distribution, sparsities: Mapping[str, float]) -> Distribution:
    """Fixes the sparsity of some leaves; the others share the density among themselves.

    Overridden leaves are set aside, as in RigL's custom sparsity map: the density that is asked for
    holds for the others, and the overall density follows from both. An overridden leaf has its
    sparsity at every density, also at the start of a gradual schedule. Pruning over all layers
    together (scope "global") knows no layer's share: overrides then shape the initial masks only.
    Keep a layer dense with a `prunable` rule instead.

    Args:
      distribution: shares out the rest.
      sparsities: path regex to sparsity in [0, 1]; the first regex found in a path decides. 0.0
        keeps a layer dense from start to end.

    Raises:
      ValueError: a sparsity outside [0, 1]; when called, a regex that is nobody's first match.

    >>> keep_first = with_overrides(uniform(), {"conv1": 0.0})
    >>> keep_first({"conv1": (3, 3, 1, 6), "conv2": (5, 5, 6, 16)}, 0.1)
    {'conv1': 1.0, 'conv2': 0.1}
    """
    for pattern, sparsity in sparsities.items():
        check_in(f"override {pattern!r}: sparsity", sparsity, "[0, 1]")

    def overridden(shapes: Shapes, density: float) -> dict[str, float]:
        first = first_matches(list(sparsities), shapes, name="override")
        rest = {path: shape for path, shape in shapes.items() if first[path] is None}
        shared = distribution(rest, density) if rest else {}
        fixed = [1.0 - sparsity for sparsity in sparsities.values()]
        return {path: shared[path] if i is None else fixed[i] for path, i in first.items()}

    return overridden


@comparable
def stacked(distribution: Distribution, axes: Mapping[str, int]) -> Distribution:
    r"""Counts a leaf that holds many layers (`flax.linen.scan`, `jax.vmap`) as that many layers.

    A stacked kernel has the shape (layers, ..., in, out), and Erdos-Renyi-Kernel would take its
    first axis for one of a convolution, unless its `axes` are known. This function gives a stack
    the density that its layers would have as leaves of their own. It stays one leaf with one count:
    an event ranks its weights together, so that its layers compete with each other, and the random
    initial masks share the count only on average.

    Args:
      distribution: shares out the density; it sees the k-th layer of a stack as the path with "[k]"
        appended. Overrides go inside, `stacked(with_overrides(...), ...)`: then they reach a whole
        stack ("^up") as well as one layer of it (r"^up\[0\]").
      axes: path regex to the number of leading axes that count layers, at least 1; the first regex
        found in a path decides, and a leaf without one is a layer as it is.

    Raises:
      ValueError: a number of axes below 1; when called, one that leaves a layer without an axis, or
        a regex that is nobody's first match.

    >>> unrolled = erk()({"up0": (8, 32), "up1": (8, 32), "head": (8, 10)}, 0.4)
    >>> unrolled["up0"] == unrolled["up1"]
    True
    >>> scanned = stacked(erk(), {"up": 1})({"up": (2, 8, 32), "head": (8, 10)}, 0.4)
    >>> scanned == {"up": unrolled["up0"], "head": unrolled["head"]}
    True
    """
    for pattern, num in axes.items():
        check_whole(f"stack {pattern!r}:", num, 1, of="leading axes")

    def unstacked(shapes: Shapes, density: float) -> dict[str, float]:
        first = first_matches(list(axes), shapes, name="stack")
        layers: dict[str, list[str]] = {}
        each: dict[str, tuple[int, ...]] = {}
        for path, i in first.items():
            num = 0 if i is None else list(axes.values())[i]
            shape = shapes[path]
            if num and num >= len(shape):
                raise ValueError(
                    f"stack at {path}: {num} of the axes of {shape} count layers, none is left; "
                    f"at most {len(shape) - 1}"
                )
            copies = [f"{path}[{k}]" for k in range(math.prod(shape[:num]))]
            layers[path] = copies if num else [path]
            each |= dict.fromkeys(layers[path], shape[num:])
        densities = distribution(each, density) if each else {}
        # All layers of a stack have one shape; an empty stack is dense, like an empty leaf.
        return {
            path: math.fsum(densities[name] for name in names) / len(names) if names else 1.0
            for path, names in layers.items()
        }

    return unstacked


def _proportional(
    raw_of: Callable[[tuple[int, ...], tuple[int, ...]], float], axes: KeptAxes
) -> Distribution:
    """Densities in proportion to `raw_of(taps, (inputs, outputs))` of each leaf."""

    def raw_of_leaf(path: str, shape: tuple[int, ...]) -> float:
        found = axes_of(path, shape, axes)
        sides = [num_places(shape, side) for side in (found.inputs, found.outputs) if side]
        return raw_of(tuple(shape[axis] for axis in found.window), tuple(sides) or (1,))

    def distribution(shapes: Shapes, density: float) -> dict[str, float]:
        if density >= 1.0:  # the loop below would rely on eps * max(raw) == 1.0 in floats
            return {path: 1.0 for path in shapes}
        size = {path: math.prod(shape) for path, shape in shapes.items()}
        raw = {p: raw_of_leaf(p, shape) if size[p] else 0.0 for p, shape in shapes.items()}
        dense: set[str] = {path for path in shapes if size[path] == 0}
        while True:
            rest = [path for path in shapes if path not in dense]
            if not rest:  # every leaf is empty, or the density is 1 but for rounding
                return {path: 1.0 for path in shapes}
            budget = density * sum(size.values()) - sum(size[path] for path in dense)
            eps = budget / sum(raw[path] * size[path] for path in rest)
            largest = max(raw[path] for path in rest)
            if eps * largest <= 1.0:
                return {path: 1.0 if path in dense else eps * raw[path] for path in shapes}
            dense |= {path for path in rest if raw[path] == largest}

    return distribution
