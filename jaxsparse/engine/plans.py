"""Plans: forward passes in steps, for a number of images or for any number."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import Linear
from jaxsparse.engine.program import to_bytes
from jaxsparse.engine.steps import Segment, Trace
from jaxsparse.engine.tracing import trace
from jaxsparse.types import PyTree

_TRACED = 2
"""Images of the trace that serves any number: with two, what differs between images shows."""


class Plan(NamedTuple):
    """A forward pass for one number of images; for any, if it is one segment.

    Attributes:
      trace: in steps; the networks of its segments are gone, since the programs have them.
      programs: bytes of each segment, in the order of the steps.
      outputs: structure of the outputs.
      num_steps, num_weights: of the programs.
    """

    trace: Trace
    programs: list[bytes]
    outputs: Any
    num_steps: int
    num_weights: int


class Plans:
    """The plans of a function, each made when it is needed.

    Args:
      function: of inputs.
      structure: of the inputs.
      shapes: (shape of an image, dtype) of each of them.
      weight_bits: as in `to_bytes`.
    """

    def __init__(
        self,
        function: Callable[[PyTree], PyTree],
        structure: Any,
        shapes: Sequence[tuple[tuple[int, ...], Any]],
        weight_bits: int,
    ) -> None:
        self.function, self.structure, self.shapes = function, structure, shapes
        self.weight_bits = weight_bits
        self.made: dict[int, Plan] = {}
        self.programs: dict[bytes, bytes] = {}  # plans of several numbers share them

    def of(self, images: int) -> Plan:
        """Returns the plan for a number of images."""
        if images in self.made:
            return self.made[images]
        avals = [jax.ShapeDtypeStruct((images, *shape), dtype) for shape, dtype in self.shapes]
        outputs: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            found, tree = jax.tree.flatten(
                self.function(jax.tree.unflatten(self.structure, leaves))
            )
            outputs.append(tree)
            return found

        made = trace(flat, avals)
        segments = [step for step in made.steps if isinstance(step, Segment)]
        programs = []
        operations = [op for segment in segments for op in segment.net.operations]
        for segment in segments:
            program = to_bytes(segment.net, self.weight_bits)
            programs.append(self.programs.setdefault(program, program))
            segment.net = Network()
        num_weights = sum(len(op.weights) for op in operations if isinstance(op, Linear))
        self.made[images] = Plan(made, programs, outputs[-1], len(operations), num_weights)
        return self.made[images]

    def for_any_number(self, images: int) -> tuple[Plan | None, bool]:
        """Returns the plan that serves any number of images, if there is one.

        A plan for one number may be a single segment, and wrong for others: say if the function
        divides by the number. So two are compared, one of them for the given number.

        Returns:
          The plan or None, and whether plans differ by more than the length of axes.
        """
        try:
            one = self.of(_TRACED)
            if one.trace.segment is None:
                return None, False
            other = self.of(images if images > _TRACED else _TRACED + 1)
        except Exception:  # the function takes its own number alone, or fails with that too
            return None, True
        is_same = other.trace.segment is not None and other.programs == one.programs
        return (one, False) if is_same else (None, True)
