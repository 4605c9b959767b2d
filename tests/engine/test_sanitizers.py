"""Networks from files run clean under the sanitizers, and damaged ones do no harm."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsparse.engine.files import save_engine
from jaxsparse.engine.inference import compile_inference
from tests.engine.drawn import SHAPE, drawn
from tests.engine.test_chunks import CHANNELS, wide
from tests.engine.test_elementwise import FUNCTIONS
from tests.kernels import sanitize

SEEDS = range(4, 14)
"""Together they have all kinds of operations."""
WEIGHTS = ("float32", "bfloat16", "int8")


def written(folder: Path) -> list[Path]:
    """Writes small networks with weights of all kinds, and returns their files."""
    files, image = [], np.zeros((1, *SHAPE), np.float32)
    for seed in SEEDS:
        network = drawn(seed)
        engine = compile_inference(
            lambda _, x, network=network: network(x), {}, None, image, weights=WEIGHTS[seed % 3]
        )
        files.append(folder / f"{seed}.jse")
        save_engine(files[-1], engine)
    for f, shape in ((vectors, (1, 40)), (wide, (1, 4, 4, CHANNELS))):
        engine = compile_inference(lambda _, x, f=f: f(x), {}, None, np.zeros(shape, np.float32))
        assert engine.is_whole
        files.append(folder / f"{f.__name__}.jse")
        save_engine(files[-1], engine)
    return files


def vectors(x: jax.Array) -> tuple[jax.Array, ...]:
    """All functions, dense layers that read nearly all of their inputs, and a dead logit."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 9)) * (rng.random((40, 9)) < 0.7) * (np.arange(9) < 8)
    functions = [f for name, f in FUNCTIONS.items() if "softmax" not in name]
    return (*(f(x @ weights.astype(np.float32)) for f in functions), x)


@pytest.mark.processes
@pytest.mark.long  # it compiles the engine three times
@pytest.mark.parametrize(
    ("sanitizer", "level", "damaged"),
    [("address,undefined", 0, 5000), ("address,undefined", -1, 5000), ("thread", -1, 0)],
)
def test_clean(sanitizer, level, damaged, tmp_path):
    """Sanitizers see nothing of masked loads, and the lowest level has none of them."""
    if why := sanitize.why_not(sanitizer):
        pytest.skip(why)
    said = sanitize.run(
        sanitizer,
        sanitize.levels()[level],
        first=0,
        num=damaged,
        driver="engine_driver.cc",
        files=written(tmp_path),
    )
    assert said.startswith(f"{len(SEEDS) + 2} networks")
    assert not damaged or f"{damaged} damaged" in said
