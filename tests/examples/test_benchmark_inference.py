"""The benchmark example times what it says, compares outputs, and refuses flags in a line."""

import sys
import types

import jax
import numpy as np
import pytest

from examples import benchmark_inference
from jaxsparse.kernels.build import engine_library

pytestmark = pytest.mark.skipif(engine_library() is None, reason="the engine was not built")
QUICK = ["--rounds=2", "--seconds=0.001"]


@pytest.fixture
def own(monkeypatch):
    """A module of the user's own: two dense layers, whose second has half of its weights."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    variables = {"first": draw(6, 8), "last": draw(8, 4)}
    masks = {"first": np.ones((6, 8), bool), "last": np.arange(32).reshape(8, 4) % 2 == 0}
    apply = lambda v, x: jax.nn.relu(x @ v["first"]) @ v["last"]
    network = lambda: (apply, variables, masks, draw(3, 6))
    module = types.SimpleNamespace(
        network=network, short=lambda: (apply, variables), number=lambda: 3
    )
    monkeypatch.setitem(sys.modules, "own_network", module)
    return module


def test_a_network_of_the_package(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    flags = ["--sparsity=0.9,0.99", "--batch=1,3", "--no_onnx", f"--plot={plot}", *QUICK]
    benchmark_inference.main(["lenet_300_100", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lenet_300_100: ms a call")
    assert lines[1].split() == "sparsity batch threads XLA engine XLA / engine".split()
    assert [line.split()[:4] for line in lines[2:6]] == [
        [share, "%", batch, "1"] for share in ("90", "99") for batch in ("1", "3")
    ]
    assert sum("% inactive" in line for line in lines) == 2
    assert sum(line.startswith("linear, relu") for line in lines) == 4
    assert plot.stat().st_size > 1000


def test_a_network_of_ones_own(own, capsys):
    """Its masks say 16 of 80 weights are inactive."""
    benchmark_inference.main(["own_network:network", "--batch=5", "--no_onnx", "--plot=", *QUICK])
    out = capsys.readouterr().out
    assert "own_network:network, 20 % inactive, 64 active weights" in out
    assert "\n    20 %      5        1" in out
    assert "plot" not in out


@pytest.mark.variants
def test_onnx_runtime_takes_part(own, capsys):
    pytest.importorskip("onnxruntime")
    benchmark_inference.main(["own_network:network", "--plot=", *QUICK])
    lines = capsys.readouterr().out.splitlines()
    assert "ONNX Runtime / engine" in lines[1]
    of_xla, of_onnx = (
        lines.index(f"dense, {x}") for x in ("XLA, all cores", "ONNX Runtime, one thread")
    )
    assert sum("f32[1,4]" in line or "f32[1,8]" in line for line in lines[of_xla:of_onnx]) >= 1
    layers = [line.split()[0] for line in lines[of_onnx + 2 : -1]]
    assert layers.count("Gemm") + layers.count("MatMul") + layers.count("FusedGemm") == 2


def test_without_layer_times_it_goes_on(own, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "layer_times", None)  # as if it did not lie there
    benchmark_inference.main(["own_network:network", "--no_onnx", "--plot=", *QUICK])
    out = capsys.readouterr().out
    assert "linear, relu" in out and "dense, XLA" not in out


def test_without_onnx_runtime_it_goes_on(own, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    flags = ["--threads=1,2", "--no_profile", "--plot=", *QUICK]
    benchmark_inference.main(["own_network:network", *flags])
    out, err = capsys.readouterr()
    assert "ONNX" not in out and err.count("without ONNX Runtime: ") == 1


def test_outputs_that_differ_end_it():
    runs = {"XLA": lambda: np.ones(3), "engine": lambda: np.array([1, 1, 1.01])}
    with pytest.raises(SystemExit, match="engine differs from XLA by 1.0e-02 of the largest"):
        benchmark_inference.compare(runs, "float32")
    benchmark_inference.compare(runs, "int8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnet9"], "MODEL=resnet9 is none of lenet_300_100, "),
        (["lenet5", "--sparsity=0.9,1"], "--sparsity=0.9,1 must be in [0, 1)"),
        (["lenet5", "--threads=0"], "--threads=0 must be whole numbers in [1, 256]"),
        (["lenet5", "--batch=two"], "--batch=two must be whole numbers of 1 or more"),
        (["lenet5", "--rounds=1,2"], "--rounds=1,2 must be one number"),
        (["lenet5", "--round=1"], "unrecognized arguments: --round=1"),
        (["own_network:network", "--sparsity=0.9"], "--sparsity: own_network:network has masks"),
        (["own_network:none"], "MODEL=own_network:none: "),
        (["own_network:short"], "MODEL=own_network:short returns 2 values, not apply_fn, "),
        (["own_network:number"], "MODEL=own_network:number returns a int, not apply_fn, "),
        (["lenet5", "--plot=plot.foo"], "--plot: plot.foo must end with .png, .pdf, .svg, in a"),
        (["lenet5", "--plot=none/plot.png"], "--plot: none/plot.png must end with .png"),
    ],
)
def test_what_is_wrong_is_one_line(own, flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark_inference.main(flags)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
