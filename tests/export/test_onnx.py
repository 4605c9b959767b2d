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
from jax import lax

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


UNARY = """abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor
    is_finite log log1p logistic neg rsqrt sign sin sinh sqrt square tan tanh""".split()
ROUNDINGS = (lax.RoundingMethod.TO_NEAREST_EVEN, lax.RoundingMethod.AWAY_FROM_ZERO)
VALUES = np.float32([[-2.5, -1.0, -0.5, -0.0], [0.3, 0.5, 1.0, 2.5]])


def entries(_, x):
    """Every elementwise primitive in its domain, and where it matters at its ends."""
    y = x[:, ::-1]
    domains = {"acosh": 1 + abs(x), "log": abs(x) + 0.1, "rsqrt": abs(x) + 0.1, "sqrt": abs(x)}
    domains |= dict.fromkeys(("acos", "asin", "atanh"), x / 3) | {"log1p": abs(x)}
    return [
        *(getattr(lax, name)(domains.get(name, x)) for name in UNARY),
        *(lax.round(x, method) for method in ROUNDINGS),
        *(op(x, y) for op in (lax.add, lax.sub, lax.mul, lax.max, lax.min, lax.rem)),
        *(op(x, y) for op in (lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge)),
        *(op(x > 0, y > 0) for op in (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)),
        (x > 0).astype(jnp.int32) ^ 5,
        ~(x > 0),
        x / (abs(y) + 1),
        (abs(x) + 0.1) ** y,
        *(lax.integer_pow(x, power) for power in (2, 3, 4, -1)),
        lax.clamp(-1.0, x, y.shape[-1] / 8),
        jnp.where(x > 0, x, 2.0),
        lax.is_finite(1 / jnp.maximum(x, 0.0)),
        x - np.float32([[1, 2, 3, 4]]),
        x.astype(jnp.int32),
        *(f(x) for f in (jax.nn.relu6, jax.nn.elu, jax.nn.softplus, jax.nn.leaky_relu)),
        *(f(x) for f in (jax.nn.hard_swish, jax.nn.log_softmax, jax.nn.selu)),
    ]


GRID = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2) % 7 - 3


def moves(kernel, x):
    """What moves, picks, joins and reduces along axes; also after a convolution, in its order."""
    image = lax.conv_general_dilated(
        x, kernel, (1, 1), [(0, 1), (1, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    batch = x.shape[0]
    return [
        out
        for y in (x, image)
        for out in (
            y[:, 1:3, ::2],
            y[:, 1, :, 0],
            y[:, ::3, 1:, 0],
            y[:, jnp.array([0, 0])],
            y[:, -1],
            y[:, ::-1],
            lax.rev(y, (1, 3)),
            y.swapaxes(1, 3).reshape(batch, -1),
            y.reshape(batch * 4, 6),
            y[:, None, :, :, 1:].sum((2, 4)),
            lax.squeeze(y[:, :1], (1,)) + y.max(1),
            jnp.concatenate([y, y[:, :2] * 2, jnp.ones_like(y)], 1),
            *jnp.split(y, (1, 3), 1),
            lax.pad(y, jnp.float32(7), ((0, 0, 0), (1, -1, 0), (0, 2, 0), (-1, 0, 0))),
            y.min((1, 2)),
            y.prod(3),
            y.mean((1, 2), keepdims=True) * y,
            y.argmax(1),
            jnp.argmin(y, -1),
            jnp.cumsum(y, 2),
            lax.cumsum(y, 1, reverse=True),
            jnp.take(y, np.int32([[1, 0], [2, 2]]), axis=1),
            jnp.take(y, np.int32([9, -1]), axis=2, mode="clip"),
            lax.dynamic_slice_in_dim(y, 3, 2, 1),
            jnp.broadcast_to(y[:, :1, :, :1], y.shape),
            jnp.broadcast_to(jnp.arange(3.0), (batch, 3)),
            jnp.einsum("bhwc,bhwd->bcd", y, 2 * y),
            jnp.einsum("bhwc,wcd->hbd", y, jnp.ones((3, 2, 5))),
            jnp.einsum("bhwc,bkwc->bhkw", y, y),
            jnp.einsum("c,bhwc->hwb", jnp.arange(2.0), y),
            lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 1, 2), (1, 1, 1, 1), "VALID"),
            lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 1, 1), "SAME"),
        )
    ]


@pytest.mark.parametrize(
    ("function", "variables", "x"),
    [(entries, (), VALUES), (moves, np.ones((2, 2, 2, 2), np.float32) / 3, GRID)],
    ids=["entries", "moves"],
)
def test_primitives(function, variables, x, tmp_path, runtime):
    path = tmp_path / "primitives.onnx"
    jaxsparse.save_onnx(path, function, variables, None, x, rtol=1e-5)
    theirs = jax.jit(function)(variables, x)
    results = zip(run(runtime, path, {"input": x}), theirs, strict=True)
    for number, (ours, expected) in enumerate(results):
        assert ours.dtype == expected.dtype, number
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6, err_msg=str(number))


def test_the_same_weights_in_two_orders_and_arrays_that_are_used_twice(tmp_path, runtime):
    tied = lambda w, x: jnp.tanh(x @ w) @ w.T + x
    path, w, x = tmp_path / "tied.onnx", drawn(4, 4), drawn(3, 4)
    jaxsparse.save_onnx(path, tied, {"w": w}["w"], None, x)
    (ours,) = run(runtime, path, {"input": x})
    check_alike(ours, tied(w, x))


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


REFUSED = {
    "the primitive sort": lambda w, x: jnp.sort(x),
    "the primitive scan": lambda w, x: lax.scan(lambda c, _: (c * w, None), x, length=2)[0],
    "transposed convolution": lambda w, x: lax.conv_transpose(
        x[:, :, None], jnp.ones((2, 1, 1)), (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "only fixed places": lambda w, x: lax.dynamic_slice_in_dim(x, jnp.argmax(x[0, :2]), 2, axis=1),
    "several axes at once": lambda w, x: x[jnp.arange(2)[:, None], jnp.arange(2)[None]],
    "between entries": lambda w, x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))),
}


@pytest.mark.parametrize("said", REFUSED)
def test_an_operation_without_a_node_is_named(said):
    """Without the package: it is needed for the file alone."""
    with pytest.raises(ValueError, match=said) as caught:
        translated(REFUSED[said], jnp.float32(2), jnp.ones((2, 4)), symbolic_batch=True)
    assert "\n" not in str(caught.value)


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
