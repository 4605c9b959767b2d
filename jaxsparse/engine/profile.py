"""The profile of a network: the steps of a call, each with its time."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.evaluation import is_key
from jaxsparse.engine.library import Handle
from jaxsparse.engine.steps import Outside, Segment, Trace
from jaxsparse.text_table import text_table
from jaxsparse.tracing.equations import bound

MOST_REPEATS = 10_000
_HEADING = ("step", "planes", "pixels", "weights", "multiply-adds", "us", "share", "per ns")


class ProfileStep(NamedTuple):
    """A step of a call; numbers are of one image but for the time.

    Attributes:
      kind: "linear" for a convolution or a dense layer with all that became part of it, "max pool",
        "copy" and so on. "read inputs", "interleave" (16 images are put side by side) and "write
        outputs" are the ends of the engine's part. "XLA: " and a name for what is left to XLA.
      function: the activation at its end, such as "relu"; "" if there is none.
      planes: channels that it makes; 0 if it makes none in the engine.
      height, width: of a channel.
      weights: active weights.
      multiply_adds: weights times pixels.
      microseconds: of the batch, median over the repeats; NaN for what XLA runs.
    """

    kind: str
    function: str
    planes: int
    height: int
    width: int
    weights: int
    multiply_adds: int
    microseconds: float


class Profile(NamedTuple):
    """The steps of a call in order, on one thread. `print` shows a table.

    Attributes:
      batch: images of the call.
      steps: in order.
    """

    batch: int
    steps: tuple[ProfileStep, ...]

    @property
    def microseconds(self) -> float:
        """The sum of the times that the engine takes."""
        return math.fsum(s.microseconds for s in self.steps if not math.isnan(s.microseconds))

    def __str__(self) -> str:
        """The table; `share` is of the engine's time, `per ns` are multiply-adds a nanosecond."""
        total = self.microseconds
        shown = [s for s in self.steps if s.kind != "interleave" or s.microseconds > 0]
        rows = [_row(step, self.batch, total) for step in shown]
        added = [sum(getattr(s, name) for s in shown) for name in ("weights", "multiply_adds")]
        last = ("in all", "", "", *(f"{number:,}" for number in added), f"{total:.1f}", "", "")
        images = "1 image" if self.batch == 1 else f"{self.batch:,} images"
        heading = f"{images}, one thread; planes to multiply-adds are of one image"
        return "\n".join([heading, *text_table([_HEADING, *rows, last])])


def profile_trace(
    trace: Trace, programs: Sequence[bytes], leaves: Sequence[Any], batch: int, repeats: int
) -> Profile:
    """Profiles a forward pass; operations that are left to XLA run once and are not timed.

    Args:
      trace: in steps.
      programs: bytes of its segments.
      leaves: the inputs, [batch, ...].
      batch: number of images.
      repeats: of each segment, 1 or more; the times are medians.
    """
    arrays: dict[int, Any] = {x.number: y for x, y in zip(trace.inputs, leaves, strict=True)}
    read = lambda x: arrays[x.number] if isinstance(x, Outside) else x
    found: list[ProfileStep] = []
    remaining = iter(programs)
    for step in trace.steps:
        if isinstance(step, Segment):
            given = [np.ascontiguousarray(read(x), np.float32) for x in step.inputs]
            made, steps = profile_handle(Handle(next(remaining), 1), given, batch, repeats)
            found += steps
        else:
            dtypes = [var.aval.dtype for var in step.eqn.invars]  # the engine's are float32
            pairs = zip(map(read, step.operands), dtypes, strict=True)
            made = bound(step.eqn, [x if is_key(x) else jnp.asarray(x, d) for x, d in pairs])
            name = f"XLA: {step.eqn.primitive.name}"
            found.append(ProfileStep(name, "", 0, 0, 0, 0, 0, math.nan))
        arrays.update((x.number, y) for x, y in zip(step.outputs, made, strict=True))
    return Profile(batch, tuple(found))


def profile_handle(
    handle: Handle, inputs: Sequence[np.ndarray], batch: int, repeats: int
) -> tuple[list[np.ndarray], list[ProfileStep]]:
    """Returns the outputs of a network and its steps."""
    outputs, seconds = handle.profile(inputs, batch, repeats)
    times = (1e6 * seconds).tolist()
    steps = [ProfileStep._make((*s, t)) for s, t in zip(handle.steps(), times, strict=True)]
    return outputs, steps


def _row(step: ProfileStep, batch: int, total: float) -> tuple[str, ...]:
    name = f"{step.kind}, {step.function}" if step.function else step.kind
    count = lambda number: f"{number:,}" if number else ""
    pixels = f"{step.height} x {step.width}" if step.planes else ""
    numbers = count(step.planes), pixels, count(step.weights), count(step.multiply_adds)
    time = step.microseconds
    if math.isnan(time):
        return (name, *numbers, "-", "-", "")
    share = f"{100 * time / total:.1f} %" if total else ""
    rate = f"{step.multiply_adds * batch / time / 1e3:.2f}" if step.multiply_adds and time else ""
    return (name, *numbers, f"{time:.1f}", share, rate)
