"""Mean activations: what every weight of a product reads, measured on inputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.tracing.equations import bound
from jaxsparse.tracing.jaxprs import CallAnalysis, called, inner_equations, walk
from jaxsparse.types import PyTree

_PRODUCTS = frozenset(("conv_general_dilated", "dot_general"))


def mean_activations(apply_fn: Callable[..., Any], variables: PyTree, *inputs: Any) -> PyTree:
    """Returns for every weight of a product the mean of |x| over all numbers x that it multiplies.

    Summed over the weights that read a channel, this is the criterion of the mean activation:

        channel_importance(groups, mean_activations(model.apply, variables, images), of="input")

    A channel is measured where the next layers read it, behind its norm and activation function.
    Means of several batches are averaged by the caller. The function may be compiled.

    Reference: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017, section 2.2. Deviation: the mean is of |x|, which is the same behind a
    ReLU; pixels that a convolution pads are not counted.

    Args:
      apply_fn: function of (variables, *inputs) at inference, such as `model.apply`.
      variables: pytree of arrays.
      *inputs: pytrees of arrays.

    Returns:
      A tree like the variables, in their dtypes; float32 for leaves of integers. A weight that
      several products read has the sum of their means. Leaves of no product, such as biases, and
      weights that a mask sets to 0 on the way have 0.

    Raises:
      ValueError: weights are read in a loop or branch, where numbers are not at hand, or by a
        convolution in groups of images; says which operation.

    >>> weights = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
    >>> mlp = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> mean_activations(mlp, weights, jnp.array([[1.0, -3.0], [3.0, 1.0]]))["up"].tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    closed = jax.make_jaxpr(apply_fn)(variables, *inputs)
    given = [_Value(x, True, False) for x in jax.tree.leaves(inputs)]

    def read(variables: PyTree) -> jax.Array:
        sums: list[jax.Array] = []
        weights = [_Value(x, False, True) for x in jax.tree.leaves(variables)]
        walk(closed, weights + given, _Reading(sums))
        return sum(sums, jnp.zeros(()))

    # The derivative by a weight of its product with the mean that it reads is that mean.
    means = jax.grad(read, allow_int=True)(variables)
    is_no_float = lambda x: x.dtype == jax.dtypes.float0
    return jax.tree.map(lambda x: jnp.zeros(x.shape) if is_no_float(x) else x, means)


class _Value(NamedTuple):
    array: Any
    is_data: bool  # depends on the inputs
    is_weight: bool  # depends on the variables and not on the inputs


class _Reading(CallAnalysis[_Value]):
    """Computes everything, and the sums of all weights times the means that they read.

    Attributes:
      sums: float32[] for each product of data and weights.
    """

    def __init__(self, sums: list[jax.Array]):
        self.sums = sums

    def constant(self, atom: Any, value: Any) -> _Value:
        del atom
        return _Value(value, False, False)

    def operation(self, eqn: Any, operands: list[_Value]) -> Sequence[_Value]:
        is_data = any(x.is_data for x in operands)
        is_weight = not is_data and any(x.is_weight for x in operands)
        if eqn.primitive.name in _PRODUCTS:
            for side in (0, 1):
                if operands[side].is_weight and operands[1 - side].is_data:
                    self.sums.append(_product_with_means(eqn, operands, side))
        elif called(eqn) is None and any(x.is_weight for x in operands):
            names = {inner.primitive.name for inner in inner_equations(eqn)}
            if is_data and names & _PRODUCTS:
                raise ValueError(f"weights are read inside a {eqn.primitive.name}, not measured")
        found = bound(eqn, [x.array for x in operands])
        return [_Value(x, is_data, is_weight) for x in found]


def _product_with_means(eqn: Any, operands: list[_Value], side: int) -> jax.Array:
    """Returns the sum of a kernel's weights, each times the mean of |x| that it reads."""
    kernel, data = operands[side].array, operands[1 - side].array
    find = _dot_means if eqn.primitive.name == "dot_general" else _convolution_means
    means = find(eqn, jnp.abs(data.astype(jnp.float32)), kernel.shape, side)
    return (kernel.astype(jnp.float32) * lax.stop_gradient(means)).sum()


def _dot_means(eqn: Any, x: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """Returns means in the axes of the kernel; of size 1 where it does not meet the data."""
    contracted, batch = eqn.params["dimension_numbers"]
    pairs = zip(
        [*contracted[side], *batch[side]], [*contracted[1 - side], *batch[1 - side]], strict=True
    )
    axes = sorted(pairs)  # of the kernel and of the data
    met = [axis for _, axis in axes]
    means = x.transpose([*met, *(axis for axis in range(x.ndim) if axis not in met)])
    means = means.reshape([*means.shape[: len(met)], -1]).mean(-1)
    return lax.expand_dims(means, sorted({*range(len(shape))} - {axis for axis, _ in axes}))


def _convolution_means(eqn: Any, x: jax.Array, shape: tuple[int, ...], side: int) -> jax.Array:
    """Returns means in the axes of the kernel; those of its window are of size 1."""
    if eqn.params["batch_group_count"] > 1 or side != 1:
        raise ValueError(
            "a convolution in groups of images, or with images as its kernel, reads weights"
        )
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    feature = numbers.lhs_spec[1]
    (out, in_, *_) = numbers.rhs_spec
    means = x.mean([axis for axis in range(x.ndim) if axis != feature]).reshape(groups, shape[in_])
    means = jnp.repeat(means, shape[out] // groups, axis=0)  # [out, in]
    means = means if out < in_ else means.T
    return lax.expand_dims(means, sorted({*range(len(shape))} - {out, in_}))
