"""Every example runs without the repository: by its imports, and by how it finds its images."""

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import fashion_mnist

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
INSTALLED = {"flax", "jax", "jaxsparse", "numpy", "optax"}  # with the library
EXTRA = {
    "equinox_training": {"equinox"},
    "benchmark_inference": {"onnxruntime", "matplotlib"},
    "layer_times": {"onnxruntime"},
}
BESIDE = {"benchmark_inference": {"layer_times"}}
"""Other examples that one uses if they lie beside it."""
TRAINS = [path for path in EXAMPLES if "def fashion_mnist" in path.read_text()]


def load(path):
    spec = importlib.util.spec_from_file_location(f"alone_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_it_imports_is_installed_with_the_library(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    extra = EXTRA.get(path.stem, set())
    assert outside <= INSTALLED | extra | BESIDE.get(path.stem, set())
    assert all(re.search(f"pip install .*{name}", path.read_text()) for name in extra)


@pytest.mark.parametrize("path", TRAINS, ids=lambda path: path.stem)
def test_where_it_finds_its_images(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = fashion_mnist.load(None, val_fraction=0)
    module = load(path)
    for split, expected in (("train", data.train), ("t10k", data.test)):
        images, labels = module.fashion_mnist(split)
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)

    copy = tmp_path / "copied" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    module = load(copy)
    with pytest.raises(
        SystemExit, match="train-images-idx3-ubyte.gz is missing; set FASHION_MNIST"
    ):
        module.fashion_mnist("train")
    monkeypatch.setenv("FASHION_MNIST", str(fashion_mnist.SAMPLE_DIR))
    assert module.fashion_mnist("t10k")[0].shape == (1000, 28, 28, 1)


def test_all_read_alike():
    assert len({inspect.getsource(load(path).fashion_mnist) for path in TRAINS}) == 1
    assert len(TRAINS) == 6
