"""The networks that `inference` times, and what runs them."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from benchmarks.quiet import Run
from jaxsparse.nn import LeNet5, LeNet300100, choose_forms, cifar_resnet, resnet, sparse_execution
from jaxsparse.sparse import (
    CompiledInference,
    compile_inference,
    compress_leaves,
    count_active,
    find_positions,
)

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)


class SmallMLP(nn.Module):
    """Two hidden layers of 64."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float[images, 10] from float[images, features]."""
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet8": (cifar_resnet(8), CIFAR),
    "resnet20": (cifar_resnet(20), CIFAR),
    "resnet34": (resnet(34, stem="cifar", num_classes=10), CIFAR),
    "lenet_300_100": (LeNet300100(), MNIST),
    "lenet5": (LeNet5(), MNIST),
    "mlp": (SmallMLP(), (64,)),
}


class Network(NamedTuple):
    """A network with masks, its statistics and biases made up.

    Attributes:
      model: linen.
      variables: inactive weights are 0.
      masks: of the params.
      shape: of an image.
    """

    model: Any
    variables: Any
    masks: Any
    shape: tuple[int, ...]

    def images(self, batch: int) -> np.ndarray:
        """Normal numbers."""
        return np.random.default_rng(0).normal(size=(batch, *self.shape)).astype(np.float32)


def network(name: str, sparsity: float, masks: str = "erk") -> Network:
    """Returns a network of `MODELS`; the norms' statistics differ from channel to channel.

    Args:
      name: one of `MODELS`.
      sparsity: at least 0, below 1.
      masks: "erk", at random, so that many weights of very sparse networks are on no path from
        image to logit, and the engine leaves them out; or "synflow", whose weights are on paths.
    """
    model, shape = MODELS[name]
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, *shape)))
    rng = np.random.default_rng(2)
    noisy = lambda x: x + 0.1 * rng.random(x.shape, np.float32) if x.ndim == 1 else x
    params = jax.tree.map(noisy, variables["params"])
    if masks == "synflow":
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        apply = lambda params, x: model.apply({"params": params, **rest}, x)
        found = jaxsparse.synflow_masks(apply, params, (1, *shape), sparsity=sparsity)
    else:
        method = jaxsparse.static(sparsity=sparsity, total_steps=1)
        found = method.init(jax.random.key(3), params)
    kept = {name: jax.tree.map(noisy, tree) for name, tree in variables.items() if name != "params"}
    return Network(model, kept | {"params": jaxsparse.apply_masks(params, found)}, found, shape)


def xla(net: Network, images: np.ndarray) -> Callable[[], np.ndarray]:
    """Masked dense kernels."""
    apply, given = jax.jit(net.model.apply), jnp.asarray(images)
    return lambda: np.asarray(apply(net.variables, given))


def active_form(net: Network, images: np.ndarray) -> Callable[[], np.ndarray]:
    """Inference by active weights in XLA's programs, with the forms that `choose_forms` chooses."""
    given, active = jnp.asarray(images), count_active(net.masks)
    forms = choose_forms(net.model, given, active, train=False, exact=True)
    positions = find_positions(net.masks, capacity=forms.capacity)
    params = jax.jit(compress_leaves)(net.variables["params"], positions)

    @jax.jit
    def infer(variables: Any, images: jax.Array, positions: Any) -> jax.Array:
        with sparse_execution(positions):
            return jnp.asarray(forms.model.apply(variables, images))

    variables = net.variables | {"params": params}
    return lambda: np.asarray(infer(variables, given, positions))


def engine(net: Network, threads: int, weights: Any = "float32") -> CompiledInference:
    """The network in the engine."""
    return compile_inference(
        net.model.apply, net.variables, None, net.images(1), threads=threads, weights=weights
    )


@functools.cache
def onnx_bytes(name: str) -> bytes:
    """The dense network as an ONNX model; ONNX Runtime is as fast whatever its weights are."""
    net = network(name, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        jaxsparse.save_onnx(path, net.model.apply, net.variables, None, net.images(1))
        return path.read_bytes()


def onnx_runtime(model: bytes, images: np.ndarray, threads: int) -> Run:
    """ONNX Runtime at its best: all optimisations, spinning threads, arrays bound beforehand."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3  # errors
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    outputs = np.empty_like(session.run([target], {source: images})[0])
    bound = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images))
    binding = session.io_binding()
    binding.bind_ortvalue_input(source, bound)
    binding.bind_output(target, "cpu", 0, outputs.dtype.type, outputs.shape, outputs.ctypes.data)
    kept = (bound, outputs)  # what is bound has to live

    def run(kept: Any = kept) -> Any:
        session.run_with_iobinding(binding)
        return kept[1]

    return run


def best_rate(rounds: int) -> float:
    """Multiply-adds a second of the engine on one core, where all data are in the cache."""
    from benchmarks import quiet

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 8, 16)).astype(np.float32)
    kernel *= rng.random(kernel.shape) < 0.9
    window = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

    def layers(kernel: jax.Array, images: jax.Array) -> jax.Array:
        out = images
        for _ in range(20):
            out = jax.lax.conv_general_dilated(
                out[..., :8], kernel, (1, 1), "SAME", dimension_numbers=window
            )
        return out

    images = rng.normal(size=(1, 32, 32, 8)).astype(np.float32)
    run = compile_inference(layers, kernel, None, images, threads=1)
    samples = quiet.in_turn({"engine": lambda: run(images)}, rounds=rounds)
    # Channels that nothing reads are not computed: 8 of 16, but for the last layer.
    weights = 19 * np.count_nonzero(kernel[..., :8]) + np.count_nonzero(kernel)
    return weights * 32 * 32 / (quiet.milliseconds(samples["engine"]).median / 1e3)
