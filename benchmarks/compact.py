r"""What trained sparse networks gain when their dead channels go: dense, and by active weights.

    python experiments/cifar.py --model=resnet34_narrow --schedule=east --sparsity=0.999 \
        --recipe=east --epochs=10 --execution=sparse --out=runs/east
    python -m benchmarks.compact runs/east --data_dir=data

Each folder is one of a finished run of `experiments/cifar.py`; its last network is taken. Its dead
channels are removed by `compact_module`, and the logits of test images are compared. Inference is
timed in interleaved pairs, each network with dense kernels and by its active weights, where these
are expected to be faster; "both" is the first time over the last. The limit of dense kernels is
the ratio of their multiply-adds.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxsparse
from benchmarks import timing
from experiments import cifar, fashion_mnist, loop
from experiments.records import progress
from experiments.training.run import Run
from jaxsparse.nn import Compacted, choose_forms, compact_module, sparse_execution
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import compress_leaves, count_active, find_positions
from jaxsparse.structured.comparing import difference

_HEADING = (
    f"{'':>12} {'dense ms':>9} {'without dead':>13} {'times faster':>22} "
    f"{'active ms':>10} {'without dead':>13} {'times faster':>22} {'both':>7}"
)


class Network(NamedTuple):
    """A trained network.

    Attributes:
      model: linen.
      variables: inactive weights are 0.
      masks: of the params.
    """

    model: Any
    variables: Any
    masks: Any


class Inference:
    """Logits of a batch, again and again, dense or by active weights."""

    def __init__(self, network: Network, images: jax.Array, *, sparse: bool):
        model, params, positions = network.model, network.variables["params"], {}
        if sparse:
            forms = choose_forms(
                model, images, count_active(network.masks), train=False, exact=True
            )
            model, positions = forms.model, find_positions(network.masks, capacity=forms.capacity)
            params = jax.jit(compress_leaves)(params, positions)
        self.num_sparse = len(positions)
        self.args = (network.variables | {"params": params}, images, positions)
        self.compiled = jax.jit(functools.partial(infer, model)).lower(*self.args).compile()

    def __call__(self) -> Any:
        """One pass."""
        return self.compiled(*self.args)


def infer(model: nn.Module, variables: Any, images: jax.Array, positions: Any) -> Any:
    """Returns the logits."""
    with sparse_execution(positions):
        return model.apply(variables, images)


def main() -> None:
    """Prints a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of experiments/cifar.py")
    parser.add_argument(
        "--data_dir", type=Path, help="where the images are; as in experiments/cifar.py"
    )
    parser.add_argument("--batches", default="1,128", help="numbers of images, with commas")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of calls that are timed")
    args = parser.parse_args()
    print(timing.machine())
    for folder in args.runs:
        report(args, folder)


def report(args: argparse.Namespace, folder: Path) -> None:
    """Prints what goes from the network of a run, and the speeds."""
    run, full = trained(folder, args.data_dir)
    images = run.normalise(jnp.asarray(run.dataset.test.images[:500]))
    found = compact_module(full.model, full.variables, full.masks, images[:64])
    small = Network(found.model, found.variables, found.masks)
    describe(folder, full, found, images)
    print(_HEADING)
    for batch in map(int, args.batches.split(",")):
        given = images[jnp.arange(batch) % len(images)]
        cells = []
        for sparse in (False, True):
            wide, thin = (Inference(each, given, sparse=sparse) for each in (full, small))
            times = timing.compare(wide, thin, pairs=args.pairs)
            before, after = (1e3 * seconds for seconds in times.seconds)
            cells.append((before, after, times.ratio))
        (dense, dense_small, dense_ratio), (active, active_small, active_ratio) = cells
        print(
            f"{batch:>5} images {dense:>9.3f} {dense_small:>13.3f} {dense_ratio!s:>22} "
            f"{active:>10.3f} {active_small:>13.3f} {active_ratio!s:>22} "
            f"{dense / active_small:>7.2f}",
            flush=True,
        )


def trained(folder: Path, data_dir: Path | None) -> tuple[Run, Network]:
    """Returns a finished run of `cifar.py` or `fashion_mnist.py`, and its last network."""
    flags = json.loads((folder / "config.json").read_text())
    script = fashion_mnist if flags["model"] in fashion_mnist.MODELS else cifar
    fields = {field.name for field in dataclasses.fields(script.Config)}
    asked = {name: value for name, value in flags.items() if name in fields}
    run = script.run_of(script.Config(**asked | {"data_dir": data_dir}))
    reached = progress.resume(folder / "checkpoints", run, loop.create_state(run))
    variables = reached.state.variables
    masks = jaxsparse.masks_from_params(variables["params"], run.method.prunable)
    return reached.run, Network(reached.run.model, variables, masks)


def describe(folder: Path, full: Network, found: Compacted, images: jax.Array) -> None:
    """Prints the numbers of channels, weights and multiply-adds, and the difference of logits."""
    before = sum(group.width for group in found.plan.groups)
    after = sum(found.plan.widths.values())
    macs = [
        sum(jaxsparse.layer_flops(each.model.apply, each.variables, images[:1]).values()) / 2
        for each in (full, found)
    ]
    size = [sum(x.size for x in leaves_by_path(each.variables).values()) for each in (full, found)]
    same = difference(
        jax.jit(full.model.apply)(full.variables, images),
        jax.jit(found.model.apply)(found.variables, images),
    )
    print(
        f"\n{folder.name}: {jaxsparse.num_active(full.masks):,} active weights; channels "
        f"{before:,} -> {after:,}; numbers that are stored {size[0]:,} -> {size[1]:,}; "
        f"multiply-adds of dense kernels {macs[0]:,.0f} -> {macs[1]:,.0f}, {macs[0] / macs[1]:.2f} "
        f"times fewer; logits of {len(images)} test images differ by {same:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
