"""Accuracy and size of a trained network whose weights the engine stores in 16 or 8 bits.

    python -m benchmarks.inference_weights runs/east --data_dir=data

Each folder is one of a finished run of `experiments/cifar.py` or `fashion_mnist.py`; its last
network is taken. The table
has the accuracy on all test images, and the largest difference of a logit from XLA's, as a share of
the largest logit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.compact import trained
from jaxsparse.engine.inference import Weights
from jaxsparse.sparse import compile_inference


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--data_dir", type=Path, help="where the images are")
    args = parser.parse_args(argv)
    print(timing.machine())
    print("| run | weights | bytes | test accuracy, % | logits differ by |\n|---|---|---|---|---|")
    for folder in args.runs:
        run, network = trained(folder, args.data_dir)
        images = np.asarray(run.normalise(jnp.asarray(run.dataset.test.images)), np.float32)
        labels = np.asarray(run.dataset.test.labels)
        apply = jax.jit(network.model.apply)
        wanted = np.concatenate(
            [apply(network.variables, part) for part in np.array_split(images, 20)]
        )
        print(_row(folder.name, "XLA", None, wanted, wanted, labels))
        for weights in get_args(Weights):
            engine = compile_inference(
                network.model.apply, network.variables, None, images[:1], weights=weights
            )
            size = sum(map(len, engine.programs))
            print(_row(folder.name, weights, size, engine(images), wanted, labels), flush=True)


def _row(
    name: str,
    weights: str,
    size: int | None,
    logits: np.ndarray,
    wanted: np.ndarray,
    labels: np.ndarray,
) -> str:
    accuracy = 100 * np.mean(logits.argmax(1) == labels)
    differs = np.abs(logits - wanted).max() / np.abs(wanted).max()
    shown = "-" if size is None else f"{size:,}"
    return f"| {name} | {weights} | {shown} | {accuracy:.2f} | {differs:.1e} |"


if __name__ == "__main__":
    main()
