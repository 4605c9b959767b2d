"""Masked networks as ONNX models, for runtimes that have no sparse execution."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.export.onnx_file import packaged, serialized
from jaxsparse.export.onnx_graph import Graph
from jaxsparse.export.onnx_translation import translated
from jaxsparse.masks import apply_masks
from jaxsparse.paths import leaf_paths
from jaxsparse.types import PyTree
from jaxsparse.whole_files import written_whole


class OnnxReport(NamedTuple):
    """A file of `save_onnx`.

    Attributes:
      file_bytes: size of the file.
      num_nodes: number of nodes.
      difference: the largest difference between ONNX Runtime's outputs and JAX's, relative to the
        largest entry of the output; None if ONNX Runtime is not installed.
    """

    file_bytes: int
    num_nodes: int
    difference: float | None


def save_onnx(
    path: str | os.PathLike,
    apply_fn: Callable[[PyTree, Any], Any],
    variables: PyTree,
    masks: PyTree | None,
    example: Any,
    *,
    sparse: bool = False,
    symbolic_batch: bool = True,
    rtol: float = 1e-4,
) -> OnnxReport:
    """Writes a masked network as an ordinary ONNX model, and compares ONNX Runtime with JAX.

        report = save_onnx("model.onnx", model.apply, variables, masks, images)

        session = onnxruntime.InferenceSession("model.onnx")
        (logits,) = session.run(None, {"input": images})

    In the model inactive weights are exactly 0, and its nodes are dense: it is no faster than the
    dense network. The variables are initializers under the paths of their leaves, such as
    "params/fc/kernel", in the layout of ONNX. Two things are written in another form. A constant
    that several variables make, such as the factor of a norm, scale / sqrt(variance + epsilon), is
    one initializer. A subtracted variable is stored negated, under its path and "/negative".

    The function is read from its jaxpr, so linen, NNX, Equinox and plain functions are alike. It
    should be the network in inference. Convolutions, products, pooling by maximum or mean,
    embeddings, reductions and elementwise operations are known; sorting, loops, branches,
    transposed convolutions and compiled kernels are not. An index outside of an embedding is an
    error of the runtime. On CPU, ONNX Runtime has no layers in bfloat16: give the network
    `dtype=float32`.

    The file is opset 18. It is written completely or not at all, replaces an existing one, and is
    compared before it does.

    Args:
      path: the file; its folder must exist.
      apply_fn: function of (variables, inputs); its outputs may be any pytree of arrays.
      variables: any pytree of arrays: of linen, `nnx.State`, or the arrays of an Equinox module.
      masks: bool, the structure and shapes of `variables`, or of its "params". None if the weights
        are masked already.
      example: inputs for the comparison, any pytree of arrays. One array is named "input", others
        "input/" and their path; outputs likewise.
      sparse: whether weights are sparse initializers (12 bytes for each active float32) if that is
        smaller. ONNX Runtime makes them dense when it loads the file; other runtimes may refuse it.
      symbolic_batch: whether the first axis of every input is a batch of any size, the same for
        all. The comparison then has one more row than the example. If False, shapes are as given.
      rtol: the largest difference that is accepted, as in `OnnxReport`.

    Returns:
      The report. Nothing is compared if the package onnxruntime is not installed.

    Raises:
      ImportError: the package onnx is not installed.
      ValueError: masks do not fit; the function has an operation without a node, or needs to know
        the size of the batch; ONNX Runtime refuses the model, or its outputs differ by more than
        rtol. The file is not written.

    >>> import tempfile
    >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    >>> masks = {"kernel": jnp.eye(4, 2) > 0, "bias": jnp.ones(2, bool)}
    >>> layer = lambda params, x: jax.nn.relu(jnp.dot(x, params["kernel"]) + params["bias"][None])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = save_onnx(f"{folder}/layer.onnx", layer, params, masks, jnp.ones((3, 4)))
    >>> report.num_nodes, report.difference
    (4, 0.0)
    """
    if not rtol >= 0:
        raise ValueError(f"rtol {rtol!r} must be 0 or more")
    variables = _masked(variables, masks)
    packaged()  # before the work
    graph = translated(apply_fn, variables, example, symbolic_batch=symbolic_batch)
    data = serialized(graph, sparse=sparse, name=getattr(apply_fn, "__name__", "network"))
    with written_whole(path) as beside:
        beside.write_bytes(data)
        inputs = _longer(example) if symbolic_batch else example
        run = lambda x: jax.jit(apply_fn)(variables, x)
        difference = _difference(beside, graph, run, inputs)
        if difference is not None and not difference <= rtol:
            raise ValueError(
                f"{path}: ONNX Runtime's outputs differ from JAX's by {difference:.1e}, which is "
                f"more than rtol {rtol:g}; the file was not written"
            )
    return OnnxReport(len(data), len(graph.nodes), difference)


def _masked(variables: PyTree, masks: PyTree | None) -> PyTree:
    """The variables with inactive weights 0; masks may be those of a collection of linen."""
    if masks is None:
        return variables
    collections = isinstance(variables, Mapping) and "params" in variables
    if not collections or leaf_paths(masks) == leaf_paths(variables):
        return apply_masks(variables, masks)
    return {**variables, "params": apply_masks(variables["params"], masks)}


def _longer(example: Any) -> Any:
    """The example with its first row once more at its end."""
    return jax.tree.map(lambda x: jnp.concatenate([jnp.asarray(x), jnp.asarray(x)[:1]]), example)


def _difference(
    path: Path, graph: Graph, function: Callable[[Any], Any], inputs: Any
) -> float | None:
    """The relative difference of ONNX Runtime's outputs; None if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    leaves = zip(graph.inputs, jax.tree.leaves(inputs), strict=True)
    feed = {name: np.asarray(leaf, x.dtype) for (name, x), leaf in leaves}
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # none: what is wrong is raised
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = session.run([name for name, _ in graph.outputs], feed)
    except Exception as error:  # its classes have no common base but this one
        said = str(error).partition("\n")[0].replace(str(path), "the file")
        raise ValueError(f"ONNX Runtime refuses the model: {said}") from error
    expected = jax.tree.leaves(function(inputs))
    pairs = zip(outputs, expected, strict=True)
    # NumPy's maximum, unlike Python's, is NaN if any is.
    return float(np.max([_relative(ours, theirs) for ours, theirs in pairs], initial=0.0))


def _relative(ours: Any, theirs: jax.Array) -> float:
    x, y = (np.asarray(z).astype(np.float64) for z in (ours, theirs))
    if x.shape != y.shape:
        raise ValueError(f"ONNX Runtime's output has shape {x.shape}, JAX's {y.shape}")
    differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if not differs.any():
        return 0.0
    largest = np.abs(y[np.isfinite(y)]).max(initial=np.finfo(np.float32).tiny)
    return float(np.abs(x[differs] - y[differs]).max() / largest)
