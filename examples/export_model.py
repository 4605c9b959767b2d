"""Exports a sparse model: as safetensors files, and as programs that need only JAX.

    python examples/export_model.py

Trains LeNet-300-100 on the Fashion-MNIST sample with GraNet-ST at 95 %, writes it in four files,
reads each one back, and compares their sizes and what they compute. Needs
`pip install 'jaxsparse[export]'`.
"""

import functools
import gzip
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from jaxsparse.nn import LeNet300100
from jaxsparse.text_table import text_table

STEPS, BATCH = 500, 128

# The sample of the repository; a copy of this script elsewhere reads the folder $FASHION_MNIST.
SAMPLE = Path(__file__).resolve().parent.parent / "experiments" / "data" / "sample"


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads uint8[n, 28, 28, 1] images and int32[n] labels; the splits are "train" and "t10k"."""
    folder = Path(os.environ.get("FASHION_MNIST", SAMPLE))
    paths = [folder / f"{split}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    if missing := [path for path in paths if not path.exists()]:
        hint = "set FASHION_MNIST to a folder like experiments/data/sample of the repository"
        sys.exit(f"{missing[0]} is missing; {hint}")
    images, labels = (np.frombuffer(gzip.decompress(p.read_bytes()), np.uint8) for p in paths)
    return images[16:].reshape(-1, 28, 28, 1), labels[8:].astype(np.int32)  # without IDX headers


def forward(params: Any, images: Any) -> Any:
    """Maps uint8[batch, 28, 28, 1] images to logits; it is exported with its scaling."""
    return LeNet300100().apply({"params": params}, images / 255.0)


def train(images: np.ndarray, labels: np.ndarray, steps: int) -> jaxsparse.TrainState:
    """Returns the state after a short sparse run."""
    method = jaxsparse.granet_st(sparsity=0.95, total_steps=steps, update_interval=steps // 20)
    state = jaxsparse.TrainState.create(
        apply_fn=forward,
        params=LeNet300100().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"],
        tx=optax.adam(1e-3),
        method=method,
        key=jax.random.key(1),
    )

    @functools.partial(jax.jit, static_argnames="event", donate_argnames="state")
    def step(state, images, labels, event):
        def loss(params):
            logits = forward(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params), event=event)

    order = np.random.default_rng(0)
    for n in range(1, steps + 1):
        batch = order.integers(len(labels), size=BATCH)
        state = step(state, images[batch], labels[batch], event=method.is_due(n))
    return state


def write(folder: Path, state: jaxsparse.TrainState, images: np.ndarray) -> None:
    """Writes the model in four files."""
    params, masks = state.params, state.masks
    # 1. Weights for any program that reads safetensors; inactive ones are zeros.
    jaxsparse.save_safetensors(folder / "dense.safetensors", params)
    # 2. Active weights and their positions, to serve or to train on; prints the sizes.
    print(jaxsparse.save_safetensors(folder / "sparse.safetensors", params, masks))
    # 3. The whole model as one program, which contains its active weights.
    exported = jaxsparse.export_forward(forward, params, images)
    (folder / "model.bin").write_bytes(exported.serialize())
    # 4. A program without weights, which takes those of file 1 or 2: plain JAX.
    (batch,) = jax.export.symbolic_shape("batch")
    specs = (
        jax.eval_shape(lambda p: p, params),
        jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype),
    )
    exported = jax.export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))(*specs)
    (folder / "program.bin").write_bytes(exported.serialize())


def read(folder: Path, images: np.ndarray) -> dict[str, jax.Array]:
    """Returns the logits that each file gives; only the first two need `forward`."""

    def call(name):
        return jax.jit(jax.export.deserialize(bytearray((folder / name).read_bytes())).call)

    dense, _ = jaxsparse.load_safetensors(folder / "dense.safetensors")
    sparse, _ = jaxsparse.load_safetensors(folder / "sparse.safetensors")
    return {
        "dense.safetensors": jax.jit(forward)(dense, images),
        "sparse.safetensors": jax.jit(forward)(sparse, images),
        "model.bin": call("model.bin")(images),
        "program.bin": call("program.bin")(sparse, images),
    }


def main(folder: Path = Path("runs/export_model"), steps: int = STEPS) -> dict[str, int]:
    """Trains, writes and reads back; prints and returns the size of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    state = train(*fashion_mnist("train"), steps)
    images, labels = fashion_mnist("t10k")
    write(folder, state, images)
    _, masks = jaxsparse.load_safetensors(folder / "sparse.safetensors", like=state.params)
    # Masks include weights that have just grown, which are 0.
    jax.tree.map(np.testing.assert_array_equal, masks, state.masks)

    expected = jax.jit(forward)(state.params, images)
    sizes = {}
    table = [["file", "bytes", "accuracy", "largest difference"]]
    for name, logits in read(folder, images).items():
        sizes[name] = (folder / name).stat().st_size
        accuracy = float((jnp.argmax(logits, -1) == labels).mean())
        difference = float(jnp.abs(logits - expected).max())
        table.append([name, f"{sizes[name]:,}", f"{accuracy:.4f}", f"{difference:.1e}"])
    print("", *text_table(table), sep="\n")
    return sizes


if __name__ == "__main__":
    main()
