"""The first minute: dense and GraNet-ST at 95 % on real images, side by side.

    python experiments/demo.py

It trains LeNet-5 twice on the Fashion-MNIST sample of the repository, in about a minute and a half
on two cores, and leaves both runs and a plot in runs/demo.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

from experiments import fashion_mnist
from experiments.options import cli
from experiments.options.schedules import make_method
from experiments.records import plots
from experiments.records.run_folder import read_metrics, series
from jaxsparse.text_table import text_table


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains LeNet-5 dense and with GraNet-ST on the shipped Fashion-MNIST sample."""

    sparsity: float = 0.95
    """Of the sparse run, at least 0.5 and below 1."""
    steps: int = 2000
    """Optimizer steps of each run."""
    seed: int = 0
    """Of the initial weights, the masks and the order of the data."""
    out: Path = Path("runs/demo")
    """Folder of the demo; an earlier demo in it is replaced."""


def main(config: Config) -> None:
    """Trains both networks and prints how they compare."""
    make_method(
        "granet_st", sparsity=config.sparsity, steps=config.steps
    )  # refuse wrong flags before training
    summaries = {}
    for schedule in ("dense", "granet_st"):
        folder = config.out / schedule
        if (folder / "config.json").exists():  # an earlier demo and nothing else
            shutil.rmtree(folder)
        summaries[schedule] = fashion_mnist.train(
            fashion_mnist.Config(
                schedule=schedule,
                sparsity=config.sparsity,
                steps=config.steps,
                seed=config.seed,
                out=folder,
            )
        )
    records = {name: read_metrics(config.out / name) for name in summaries}
    plots.plot_comparison(
        config.out / "plot.png",
        title=f"LeNet-5 on the Fashion-MNIST sample, dense and {config.sparsity:g} sparse",
        accuracy={name: series(rows, "val_accuracy") for name, rows in records.items()},
        density={name: series(rows, "density") for name, rows in records.items()},
    )
    print(f"\n{table(summaries)}\n\nplot: {config.out / 'plot.png'}")


def table(summaries: dict[str, dict]) -> str:
    """Returns a table of the runs: test accuracy, active weights and cost.

    Ratios are to the dense network. "FLOPs/image" counts a forward pass at the end, "training" all
    of training.
    """
    rows = [["", "test acc.", "sparsity", "active", "FLOPs/image", "ratio", "training"]]
    for name, row in summaries.items():
        rows.append(
            [
                name,
                f"{row['test_accuracy']:.4f}",
                f"{row['sparsity']:.4f}",
                f"{row['num_active']:,}",
                f"{row['test_flops']:,.0f}",
                f"{row['test_flops_ratio']:.3f}",
                f"{row['train_flops_ratio']:.3f}",
            ]
        )
    return "\n".join(text_table(rows))


if __name__ == "__main__":
    sys.exit(cli.run(main, Config, sys.argv[1:]))
