"""The examples that run a file without JAX give what JAX gives: in C, and in Python by ctypes."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsparse.kernels.build import engine_library
from jaxsparse.sparse import compile_inference, engine_paths, save_engine

pytestmark = pytest.mark.skipif(engine_library() is None, reason="the engine was not built")
EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = EXAMPLES / "inference_in_c" / "run_network.c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network of a convolution and a dense layer, three images, their logits."""
    folder, rng = tmp_path_factory.mktemp("network"), np.random.default_rng(0)
    draw = lambda *shape: (rng.normal(size=shape) * (rng.random(shape) < 0.4)).astype(np.float32)
    weights = {"conv": draw(3, 3, 2, 8), "dense": draw(200, 7)}
    images = rng.normal(size=(3, 5, 5, 2)).astype(np.float32)

    def apply(weights, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, weights["conv"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return jax.nn.relu(x).reshape(len(x), -1) @ weights["dense"]

    engine = compile_inference(apply, weights, None, images, threads=1)
    save_engine(folder / "network.jse", engine)
    images.tofile(folder / "images.f32")
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", jax.jit(apply)(weights, images))
    np.save(folder / "engine.npy", engine(images))
    return folder


def check(printed, folder):
    """All digits are printed, so the numbers are those of the engine to the bit."""
    found = np.array([line.split() for line in printed.splitlines()], np.float32)
    np.testing.assert_array_equal(found, np.load(folder / "engine.npy"))
    np.testing.assert_allclose(found, np.load(folder / "logits.npy"), rtol=1e-4, atol=1e-5)


def run(*command, cwd):
    return subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def program(folder):
    """The C example, compiled by the line that `engine_paths` gives."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    shutil.copy(SOURCE, folder)
    line = engine_paths().compile_line()
    done = run(*shlex.split(line), "-Wall", "-Wextra", "-pedantic", "-Werror", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run_network"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_c_program_gives_the_networks_outputs(program, folder, threads):
    flags = "--input=images.f32", f"--threads={threads}", "--repeats=3", "--profile"
    done = run(program, "network.jse", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    check(done.stdout, folder)
    first, *steps = done.stderr.splitlines()
    assert first.startswith(f"batch 3, threads {threads}, median of 3 calls: ")
    assert steps[0].startswith("read inputs") and steps[-1].startswith("write outputs")
    assert sum("linear" in step for step in steps) == 2


def test_the_c_program_beside_copies_of_the_library(program, folder):
    """By the line in its comment, as on another machine."""
    there = folder / "there"
    engine_paths().copy_to(there)
    for name in ("run_network.c", "network.jse", "images.f32"):
        shutil.copy(folder / name, there)
    (line,) = [x[3:].strip() for x in SOURCE.read_text().splitlines() if "-ljaxsparse" in x]
    assert run(*shlex.split(line), cwd=there).returncode == 0
    moved = there.rename(folder / "moved")
    done = run("./run_network", "network.jse", "--input=images.f32", cwd=moved)
    check(done.stdout, folder)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.jse"], 1, "none.jse cannot be opened"),
        (["images.f32"], 1, "this is no network"),
        (["network.jse", "--input=none"], 1, "cannot read none"),
        (["network.jse", "--input=network.jse"], 1, "in network.jse|of floats: network.jse"),
        (
            ["network.jse", "--threads=257"],
            2,
            r"--threads=257 must be a whole number in \[1, 256\]",
        ),
        (["network.jse", "--batch=0"], 2, r"--batch=0 must be a whole number in \[1, 1000000\]"),
        (["network.jse", "--bacth=1"], 2, "there is no argument of the form --bacth=1"),
        (["network.jse", "--batch=1", "--input=images.f32"], 2, "--batch and --input exclude"),
        ([], 2, "which network?"),
    ],
)
def test_the_c_program_says_what_is_wrong(program, folder, arguments, status, message):
    done = run(program, *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: .*{message}", line)


def test_python_without_jax(folder):
    """In a process of its own, which must not import JAX on the way."""
    script = EXAMPLES / "run_network_with_ctypes.py"
    library = f"--library={engine_paths().library}"
    code = (
        "import runpy, sys; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'jax', 'jaxsparse'} & {*sys.modules}"
    )
    code = f"import sys; sys.argv = sys.argv[1:]; {code}"
    flags = library, "--input=images.npy", "--repeats=2", "--threads=2"
    done = run(sys.executable, "-c", code, script, "network.jse", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    check(done.stdout, folder)
    assert done.stderr.startswith("batch 3, threads 2: ")
    done = run(sys.executable, script, "images.f32", library, cwd=folder)
    assert (done.returncode, done.stderr) == (1, "error: this is no network of jaxsparse\n")
    done = run(sys.executable, script, "network.jse", library, "--repeats=0", cwd=folder)
    assert (done.returncode, done.stderr) == (2, "error: --repeats=0 must be 1 or more\n")
