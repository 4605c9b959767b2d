"""A whole network as one call: compiled for inference by its active weights."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import check_whole
from jaxsparse.engine.arguments import masked_variables, shown
from jaxsparse.engine.in_xla import run_steps
from jaxsparse.engine.library import MOST_THREADS, Handle, library
from jaxsparse.engine.plans import Plan, Plans
from jaxsparse.engine.profile import MOST_REPEATS, Profile, profile_trace
from jaxsparse.engine.steps import Equation
from jaxsparse.types import OptionError, PyTree

Weights: TypeAlias = Literal["float32", "bfloat16", "int8"]
_BITS = {"float32": 32, "bfloat16": 16, "int8": 8}
_DEPENDS = ("the number of images", "it changes what the function does to an image")


class CompiledInference:
    """A network that is compiled for inference; call it with a batch of inputs.

    `compile_inference` makes one. NumPy arrays go through the engine without XLA, if the whole
    network is one program, and come back as such. JAX's arrays, and those of a function that is
    being traced, go through `jax.jit`.

    Attributes:
      threads: of the engine.
      reasons: why operations are left to XLA: (name, reason) and how often; empty if none is.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        example: PyTree,
        threads: int,
        weights: Weights,
    ) -> None:
        self.threads = threads
        leaves, self._structure = jax.tree.flatten(example)
        self._shapes = [(np.shape(x)[1:], jnp.result_type(x)) for x in leaves]
        shapes = ", ".join(str(np.shape(x)) for x in leaves) or "none"
        if not leaves or any(np.ndim(x) == 0 for x in leaves):
            raise ValueError(f"arrays of the example need images along their first axis: {shapes}")
        images = np.shape(leaves[0])[0]
        if any(np.shape(x)[0] != images for x in leaves):
            raise ValueError(f"arrays of the example have different numbers of images: {shapes}")
        self._plans = Plans(function, self._structure, self._shapes, _BITS[weights])
        self._arrays: dict[bytes, jax.Array] = {}
        self._handle: Handle | None = None
        plan, depends = self._plans.for_any_number(images)
        self._plan = plan or self._plans.of(images)
        self._segment = plan and plan.trace.segment
        segment, is_leaf = self._segment, jax.tree_util.treedef_is_leaf
        self._is_one_to_one = (
            segment is not None
            and len(segment.inputs) == len(segment.outputs) == 1
            and is_leaf(self._structure)
            and is_leaf(self._plan.outputs)
            and self._plan.trace.dtypes[0] == np.float32
        )
        equations = [step for step in self._plan.trace.steps if isinstance(step, Equation)]
        self.reasons = Counter((step.eqn.primitive.name, step.reason) for step in equations)
        self.reasons.update([_DEPENDS] if depends else [])
        self._jitted = jax.jit(self._in_jax)

    @property
    def is_whole(self) -> bool:
        """Whether the engine runs all of the network, for any number of images."""
        return self._segment is not None

    @property
    def programs(self) -> list[bytes]:
        """The parts that the engine runs, as `save_engine` writes them."""
        return list(self._plan.programs)

    def __call__(self, inputs: PyTree) -> PyTree:
        """Returns the outputs for a batch.

        Args:
          inputs: like the example, with any number of images.

        Returns:
          What the function returns; NumPy arrays for NumPy arrays.

        Raises:
          ValueError: the inputs are not like the example.
        """
        if type(inputs) is np.ndarray and self._takes_and_gives_one(inputs):
            (found,) = self._opened().run([inputs], len(inputs))
            return found
        leaves, batch = self._checked(inputs)
        segment = self._segment
        are_numpys = all(isinstance(x, np.ndarray) for x in leaves)
        if segment is None or not are_numpys:
            plan = self._plan_for(batch)
            outputs = self._jitted(inputs, [self._on_device(p) for p in plan.programs])
            return jax.tree.map(np.asarray, outputs) if are_numpys else outputs
        found = self._opened().run(self._for_engine(leaves), batch)
        dtypes = self._plan.trace.dtypes
        outputs = [np.asarray(x, dtype) for x, dtype in zip(found, dtypes, strict=True)]
        return jax.tree.unflatten(self._plan.outputs, outputs)

    def tune(self, inputs: PyTree) -> None:
        """Measures how a batch of this size goes through the engine fastest on this machine.

        A model of the costs decides otherwise: how many images go side by side from which step on,
        and which steps several threads share. Outputs may differ in their last digits from those
        before. It takes some hundred calls, or a few seconds.
        Calls with JAX's arrays, and files, are as before.

        Args:
          inputs: like the example, NumPy arrays.

        Raises:
          ValueError: the inputs are not like the example, or parts of the network are left to XLA.
        """
        leaves, batch = self._checked(inputs)
        if self._segment is None:
            raise ValueError(f"only a network that the engine runs as a whole is tuned: {self}")
        self._opened().tune(self._for_engine(leaves), batch)

    def profile(self, inputs: PyTree, *, repeats: int = 20) -> Profile:
        """Measures where the time goes: the steps of a call on one thread, in order.

        Args:
          inputs: like the example, with any number of images.
          repeats: 1 or more; times are medians.

        Raises:
          ValueError: the inputs are not like the example, or repeats are out of range.
        """
        repeats = check_whole("repeats", repeats, 1, MOST_REPEATS)
        leaves, batch = self._checked(inputs)
        plan = self._plan_for(batch)
        return profile_trace(plan.trace, plan.programs, leaves, batch, repeats)

    def __str__(self) -> str:
        """How much of the network the engine runs, and why not the rest."""
        plan = self._plan
        what = (
            "the whole network" if self.is_whole else f"{len(plan.programs)} parts of the network"
        )
        lines = [
            f"the engine runs {what}: {plan.num_steps:,} steps, {plan.num_weights:,} weights, "
            f"{sum(map(len, plan.programs)):,} bytes; threads: {self.threads}"
        ]
        for (name, reason), number in self.reasons.most_common():
            is_dependent = (name, reason) == _DEPENDS
            what = name if is_dependent else f"XLA runs {number} x {name}"
            lines.append(f"{what}: {reason}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The first line of `str`."""
        return f"<CompiledInference: {str(self).splitlines()[0]}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a CompiledInference cannot be pickled or copied; save_engine writes a file"
        )

    @staticmethod
    def _for_engine(leaves: Sequence[Any]) -> list[np.ndarray]:
        return [np.ascontiguousarray(x, np.float32) for x in leaves]

    def _plan_for(self, images: int) -> Plan:
        return self._plan if self._segment else self._plans.of(images)

    def _takes_and_gives_one(self, inputs: np.ndarray) -> bool:
        """Whether an array, as it is, is all that the engine needs; the common case, made fast."""
        return (
            self._is_one_to_one
            and inputs.ndim > 0
            and inputs.shape[1:] == self._shapes[0][0]
            and inputs.dtype == np.float32
            and inputs.flags.c_contiguous
        )

    def _opened(self) -> Handle:
        if self._handle is None:
            self._handle = Handle(self._plan.programs[0], self.threads)
        return self._handle

    def _checked(self, inputs: PyTree) -> tuple[list[Any], int]:
        leaves, structure = jax.tree.flatten(inputs)
        if structure != self._structure or not all(hasattr(x, "dtype") for x in leaves):
            like = jax.tree.unflatten(self._structure, [np.zeros(0)] * len(self._shapes))
            raise ValueError(f"inputs are {shown(inputs)}; the example is {shown(like)}")
        batch = np.shape(leaves[0])[0] if np.ndim(leaves[0]) else 0
        for x, name, (shape, dtype) in zip(leaves, self._names, self._shapes, strict=True):
            if np.shape(x) != (batch, *shape):
                images = "images" if x is leaves[0] else str(batch)
                wanted = ", ".join(map(str, (images, *shape)))
                raise ValueError(f"{name} has shape {np.shape(x)}; it must be ({wanted})")
            if jnp.issubdtype(dtype, jnp.floating) != jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(f"{name} has dtype {x.dtype}, the example {dtype}")
        return leaves, batch

    @property
    def _names(self) -> list[str]:
        """Names of the inputs, for errors."""
        paths = jax.tree_util.tree_flatten_with_path(
            jax.tree.unflatten(self._structure, self._shapes), is_leaf=lambda x: x in self._shapes
        )[0]
        return [f"the input{jax.tree_util.keystr(path)}" for path, _ in paths]

    def _on_device(self, program: bytes) -> jax.Array:
        """The bytes as an array that programs of XLA take, instead of each holding them."""
        if program not in self._arrays:
            with jax.ensure_compile_time_eval():
                self._arrays[program] = jnp.asarray(np.frombuffer(program, np.uint8))
        return self._arrays[program]

    def _in_jax(self, inputs: PyTree, programs: list[jax.Array]) -> PyTree:
        leaves = jax.tree.leaves(inputs)
        plan = self._plan_for(leaves[0].shape[0])
        return jax.tree.unflatten(plan.outputs, run_steps(plan, leaves, programs, self.threads))


def compile_inference(
    apply_fn: Callable[[PyTree, PyTree], PyTree],
    variables: PyTree,
    masks: PyTree | None,
    example: PyTree,
    *,
    threads: int | None = None,
    weights: Weights = "float32",
) -> CompiledInference:
    """Compiles a network for inference by its active weights, as one call.

    The forward pass is traced. Norms, biases, shortcuts and ReLUs become part of the layer before
    them, inactive weights and channels that nothing reads are left out, all memory is planned, and
    the engine runs the whole. Operations that it does not know, such as the product of two arrays
    that depend on the inputs, are left to XLA, with the longest possible parts of the engine's in
    between; `print` of the result says which.

    Args:
      apply_fn: function of (variables, inputs) at inference, such as `model.apply`; its arrays have
        images along their first axes, and no image changes another one's outputs.
      variables: float leaves of any dtype; the engine computes in float32.
      masks: for the leaf "params" of the variables if they have one, else for all of them; leaves
        without a mask are dense. None if inactive weights are 0 already.
      example: inputs, of which shapes (but for the number of images) and dtypes count.
      threads: of the engine, 1 to 256; default one a core. One image uses several where a layer is
        large enough, more images use all.
      weights: how programs and files store them: "bfloat16" in 2 bytes, "int8" in 1 and a scale
        for each output channel. In memory they are float32, and so is what is computed.

    Returns:
      A function of inputs for any number of images.

    Raises:
      ValueError: an option is out of range, or masks do not fit; names the leaf.
      RuntimeError: the engine was not built.

    >>> import numpy as np
    >>> W = np.array([[1.0, -2.0], [0.0, 4.0]], np.float32)
    >>> engine = compile_inference(lambda w, x: jax.nn.relu(x @ w), W, W != 0, np.ones((1, 2)))
    >>> engine(np.array([[1.0, 1.0], [3.0, 0.0]], np.float32))
    array([[1., 2.],
           [3., 0.]], dtype=float32)
    """
    if weights not in _BITS:
        raise OptionError("weights", weights, f"must be one of {', '.join(get_args(Weights))}")
    threads = default_threads() if threads is None else threads
    threads = check_whole("threads", threads, 1, MOST_THREADS)
    library()
    if masks is not None:
        variables = masked_variables(variables, masks)
    return CompiledInference(functools.partial(apply_fn, variables), example, threads, weights)


def default_threads() -> int:
    """One a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_THREADS)
