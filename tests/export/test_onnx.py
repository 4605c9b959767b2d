"""Masked networks as ONNX models: ONNX Runtime computes what JAX does, masked weights are 0."""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse
from jaxsparse.export.onnx_translation import translated
from jaxsparse.nn import LeNet5, cifar_resnet
from jaxsparse.paths import leaves_by_path
from tests.leaves import bits
from tests.transformers import network
from tests.trees import fill, map_prunable


class ThirdParty(nn.Module):
    """A small CNN with a norm, groups, strides, gaps, both poolings and a softmax."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        x = nn.Conv(8, (3, 3), strides=2, feature_group_count=2, kernel_dilation=2)(x)
        x = nn.avg_pool(nn.silu(x), (2, 2), padding="SAME")
        return nn.softmax(nn.Dense(10)(x.reshape(x.shape[0], -1)))


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.gelu(self.first(x))))


class Case(NamedTuple):
    """A function, its variables, masks that leave a tenth, what they leave, and five inputs."""

    apply_fn: Callable[[Any, Any], Any]
    variables: Any
    masks: Any
    sparse: Any
    inputs: Any


def masks_of(params):
    rng = np.random.default_rng(2)
    dense = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    return map_prunable(lambda mask: jnp.asarray(rng.random(mask.shape) < 0.1), dense)


def case_of(apply_fn, params, inputs):
    masks = masks_of(params)
    return Case(apply_fn, params, masks, jaxsparse.apply_masks(params, masks), inputs)


def drawn(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def of_linen(model, *shape):
    variables = fill(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, *shape))), seed=1)
    norms = {name: jax.tree.map(abs, variables[name]) for name in variables if name != "params"}
    masks = masks_of(variables["params"])
    sparse = {"params": jaxsparse.apply_masks(variables["params"], masks), **norms}
    return Case(model.apply, {**variables, **norms}, masks, sparse, drawn(5, *shape))


def of_nnx():
    graph, params, rest = nnx.split(Perceptron(nnx.Rngs(0)), nnx.Param, ...)
    return case_of(lambda params, x: nnx.merge(graph, params, rest)(x), params, drawn(5, 16))


def of_equinox():
    arrays, rest = eqx.partition(eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0)), eqx.is_array)
    return case_of(lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays, drawn(5, 16))


def of_transformer():
    net = network("linen gpt")
    ids = np.random.default_rng(4).integers(0, 8, (5, *net.inputs.shape[1:]), np.int32)
    return case_of(net.forward, net.params, ids)


CASES = {
    "third party": lambda: of_linen(ThirdParty(), 12, 12, 3),
    "resnet8": lambda: of_linen(cifar_resnet(8, width=4), 16, 16, 3),
    "transformer": of_transformer,
    "nnx": of_nnx,
    "lenet5": lambda: of_linen(LeNet5(), 28, 28, 1),
    "equinox": of_equinox,
}


@pytest.fixture
def runtime():
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def run(runtime, path, feed):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(path, options).run(None, feed)


def check_alike(ours, theirs, atol=2e-6):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_a_network(name, tmp_path, runtime):
    """Traced for any batch, and run with one and five rows."""
    case, path = CASES[name](), tmp_path / "network.onnx"
    report = jaxsparse.save_onnx(path, case.apply_fn, case.variables, case.masks, case.inputs[:4])
    assert report.file_bytes == path.stat().st_size and report.difference < 2e-6
    for batch in (1, 5):
        expected = jax.jit(case.apply_fn)(case.sparse, case.inputs[:batch])
        (outputs,) = run(runtime, path, {"input": case.inputs[:batch]})
        check_alike(outputs, expected)


def initializers(path):
    """The arrays of a file by name, sparse ones made dense by hand."""
    import onnx

    graph, read = onnx.load(path).graph, onnx.numpy_helper.to_array
    arrays = {tensor.name: read(tensor) for tensor in graph.initializer}
    for tensor in graph.sparse_initializer:
        flat = np.zeros(math.prod(tensor.dims), np.float32)
        flat[read(tensor.indices)] = read(tensor.values)
        arrays[tensor.values.name] = flat.reshape(tensor.dims)
    return arrays, {tensor.values.name for tensor in graph.sparse_initializer}


def test_weights_are_in_the_file_to_the_bit_and_masked_ones_are_0(tmp_path, runtime):
    case, outputs, sizes = of_linen(cifar_resnet(8, width=4), 16, 16, 3), [], []
    kernels = {
        f"params/{path}": np.asarray(leaf)
        for path, leaf in leaves_by_path(case.sparse["params"]).items()
        if leaf.ndim > 1
    }
    for sparse in (False, True):
        path = tmp_path / f"{sparse}.onnx"
        report = jaxsparse.save_onnx(
            path, case.apply_fn, case.variables, case.masks, case.inputs[:4], sparse=sparse
        )
        sizes.append(report.file_bytes)
        arrays, rare = initializers(path)
        assert (rare >= {*kernels} - {"params/conv1/kernel"}) if sparse else not rare
        for name, kernel in kernels.items():
            stored = kernel if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
            assert bits(arrays[name]) == bits(stored), name
        outputs.append(run(runtime, path, {"input": case.inputs}))
    num_active = sum(np.count_nonzero(kernel) for kernel in kernels.values())
    assert num_active == jaxsparse.num_active(case.masks)
    num_weights = sum(kernel.size for kernel in kernels.values())
    # 12 bytes for an active weight, 4 for any; names and sizes of 11 tensors.
    assert 0 < sizes[1] - (sizes[0] - 4 * num_weights + 12 * num_active) < 11 * 100
    assert bits(outputs[0][0]) == bits(outputs[1][0])


def test_masks_may_be_of_all_variables_and_a_norm_is_four_constants(tmp_path, runtime):
    model, x = ThirdParty(), drawn(2, 12, 12, 3)
    case = of_linen(model, 12, 12, 3)
    dense = jax.tree.map(lambda x: jnp.ones(x.shape, bool), case.variables)
    paths = [tmp_path / "all.onnx", tmp_path / "params.onnx"]
    for path, masks in zip(paths, ({**dense, "params": case.masks}, case.masks), strict=True):
        jaxsparse.save_onnx(path, model.apply, case.variables, masks, x)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    names = {name for name in initializers(paths[0])[0] if "BatchNorm" in name}
    assert names == {
        "batch_stats/BatchNorm_0/mean/negative",
        "params/BatchNorm_0/bias",
    }


def test_trees_of_inputs_and_outputs_and_a_fixed_batch(tmp_path, runtime):
    def apply_fn(scale, inputs):
        total = inputs["a"].sum() * scale  # of the whole batch
        return {"sum": total, "rows": (inputs["b"], len(inputs["a"]) * inputs["a"])}

    path, example = tmp_path / "trees.onnx", {"a": drawn(3, 2), "b": np.arange(3, dtype=np.int32)}
    with pytest.raises(
        ValueError, match=r"the size of the batch .*write x.shape\[0\] for len\(x\)"
    ):
        jaxsparse.save_onnx(path, apply_fn, jnp.float32(2), None, example)
    report = jaxsparse.save_onnx(
        path, apply_fn, jnp.float32(2), None, example, symbolic_batch=False
    )
    assert report.difference < 1e-6
    session = runtime.InferenceSession(path)
    assert [x.name for x in session.get_inputs()] == ["input/a", "input/b"]
    names = ["output/rows/0", "output/rows/1", "output/sum"]
    assert [x.name for x in session.get_outputs()] == names
    ids, rows, total = session.run(None, {"input/a": example["a"], "input/b": example["b"]})
    np.testing.assert_array_equal(ids, example["b"])
    check_alike(rows, 3 * example["a"])
    check_alike(total, 2 * example["a"].sum())


def test_a_file_that_is_refused_leaves_the_one_before(tmp_path, runtime):
    case, path = of_nnx(), tmp_path / "network.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"network.onnx: ONNX Runtime's outputs differ .* rtol 0;"):
        arguments = (case.apply_fn, case.variables, case.masks, case.inputs)
        jaxsparse.save_onnx(path, *arguments, rtol=0)
    half = lambda w, x: jnp.dot(x.astype(jnp.bfloat16), w)
    with pytest.raises(ValueError, match=r"ONNX Runtime refuses the model: .*MatMul"):
        jaxsparse.save_onnx(path, half, jnp.ones((4, 2), jnp.bfloat16), None, drawn(2, 4))
    with pytest.raises(ValueError, match=r"rtol nan must be 0 or more"):
        jaxsparse.save_onnx(path, *arguments, rtol=float("nan"))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_without_onnx_runtime_nothing_is_compared(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "layer.onnx"
    report = jaxsparse.save_onnx(path, lambda w, x: x @ w, jnp.ones((2, 2)), None, jnp.ones((1, 2)))
    assert report.difference is None and path.exists()


def test_without_onnx_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxsparse\[onnx\]'"):
        jaxsparse.save_onnx(tmp_path / "x.onnx", jnp.dot, jnp.ones((2, 2)), None, jnp.ones((1, 2)))
    assert not list(tmp_path.iterdir())


def test_masks_that_do_not_fit_are_named(tmp_path):
    """Before the package is needed."""
    variables = {"params": {"conv": {"kernel": jnp.ones((2, 2))}}, "batch_stats": {"mean": 1.0}}
    save = lambda masks: jaxsparse.save_onnx(tmp_path / "x", jnp.dot, variables, masks, jnp.ones(2))
    with pytest.raises(ValueError, match=r"masks has no leaf conv/kernel"):
        save({"other": jnp.ones((2, 2), bool)})
    with pytest.raises(ValueError, match=r"masks at conv/kernel has shape \(3, 2\)"):
        save({"conv": {"kernel": jnp.ones((3, 2), bool)}})
    with pytest.raises(ValueError, match=r"masks at conv/kernel has dtype float32"):
        save({"conv": {"kernel": jnp.ones((2, 2))}})


def test_a_translation_needs_no_package_and_computes_what_is_fixed():
    """The norm's factor is a constant, and nothing is moved between the layers of a ResNet."""
    case = of_linen(cifar_resnet(8, width=4), 16, 16, 3)
    graph = translated(case.apply_fn, case.sparse, case.inputs, symbolic_batch=True)
    count = lambda op: sum(node.op == op for node in graph.nodes)
    assert (count("Conv"), count("Mul"), count("Relu"), count("Transpose")) == (9, 9, 7, 1)
    assert count("Add") == 2 * 9 + 3 + 1  # norms, shortcuts, classifier's bias
    assert {node.op for node in graph.nodes} == {
        *("Add", "Conv", "Div", "Identity", "MatMul", "Mul", "ReduceSum", "Relu", "Transpose")
    }
