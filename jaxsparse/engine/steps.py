"""A forward pass in steps: parts for the engine, and operations for XLA between them."""

import dataclasses
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.network import Network


@dataclasses.dataclass(frozen=True)
class Outside:
    """An array that XLA has, by its number.

    Attributes:
      number: of the array; the inputs of the forward pass come first.
      shape, dtype: of the array.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass
class Segment:
    """A part that the engine runs.

    Attributes:
      net: what it does.
      inputs, outputs: arrays of XLA that it takes and makes, in the order of the network's arrays.
      has_product: whether a convolution or a matrix product is in it.
      equations: numbers of its equations, in the order of the walk.
    """

    net: Network
    inputs: list[Outside]
    outputs: list[Outside]
    has_product: bool = False
    equations: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Equation:
    """An operation that XLA runs.

    Attributes:
      eqn: of the jaxpr.
      operands: arrays of XLA, or constants.
      outputs: arrays of XLA.
      reason: why the engine does not run it.
    """

    eqn: Any
    operands: list[Any]
    outputs: list[Outside]
    reason: str


def _is_number(x: Outside) -> bool:
    """Whether an array can be one of float32."""
    real = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    return x.dtype == np.bool_ or real


Step: TypeAlias = Segment | Equation


@dataclasses.dataclass
class Trace:
    """A forward pass in steps.

    Attributes:
      steps: in order.
      inputs: the arrays that it takes.
      outputs: arrays of XLA, or constants.
      dtypes: of the outputs. What the engine makes is float32 whatever the function makes there.
    """

    steps: list[Step]
    inputs: list[Outside]
    outputs: list[Any]
    dtypes: list[Any]

    @property
    def segment(self) -> Segment | None:
        """The only step, if it is the engine's and makes all outputs."""
        if len(self.steps) != 1 or not isinstance(self.steps[0], Segment):
            return None
        made = {x.number for x in self.steps[0].outputs}
        is_made = lambda x: isinstance(x, Outside) and x.number in made
        is_whole = all(map(is_made, self.outputs)) and all(map(_is_number, self.inputs))
        return self.steps[0] if is_whole else None
