"""The flags of `experiments/imagenet.py`."""

import dataclasses
from pathlib import Path

from experiments.options import cli, flags


@flags.own_first
@dataclasses.dataclass(frozen=True)
class Config(flags.Tricks, flags.Pruning, flags.Meeting):
    """Trains a sparse ResNet on ImageNet and writes a folder with metrics, summary and plot."""

    model: str = "resnet50"
    """resnet18, resnet34, resnet50 (v1.5) or resnet101."""
    schedule: str = "granet_st"
    """dense, static, gmp, set, rigl, set_itop, rigl_itop, snfs, granet, granet_st, east or gsm. Or
    masks that scores of the initial weights choose once, over all layers: snip, grasp, synflow,
    magnitude or random. snip and grasp score by the batches of the first steps."""
    sparsity: float = 0.9
    """Share of the prunable weights that are 0 at the end, at least 0 and below 1."""
    data_dir: Path = Path("data")
    """Folder that prepare.py or TFDS has put imagenet2012 in."""
    seed: int = 0
    """Seed of the initial weights, the masks, the order of the data and its augmentation."""
    out: cli.OptionalPath = None
    """Folder of the run, which all processes share. Default:
    runs/imagenet2012/MODEL-SCHEDULE-SPARSITY-stepsN-seedN."""
    dry_run: bool = False
    """Print the plan, FLOPs, memory of a device, and the time that the run would take by a step
    measured on generated images; then stop."""
    fake_data: bool = False
    """Train on generated images of full size, of as many classes and as many images."""

    recipe: cli.OptionalStr = None
    """granet (100 epochs, 128 images a step), rigl (32,000 steps of 4,096) or east (as granet,
    gradient cut to norm 1). Default: rigl for static, set, rigl, snfs and gmp, else granet."""
    epochs: cli.OptionalFloat = None
    """Length of the run, to which schedules adapt. Default: the recipe's."""
    steps: cli.OptionalInt = None
    """Length of the run in optimizer steps, in place of --epochs."""
    batch_size: cli.OptionalInt = None
    """Images a step, over all devices. Default: the recipe's."""
    learning_rate: cli.OptionalFloat = None
    """At its highest. Default: the recipe's, in proportion to --batch_size."""
    weight_decay: cli.OptionalFloat = None
    """L2, added to the gradient of kernels. Default: 0.0001."""
    image_size: int = 224
    """Height and width that the network sees, in pixels; for evaluation a square of 224 is cut
    from images whose shorter side is 256, or in proportion."""
    dtype: str = "float32"
    """float32, or bfloat16 for mixed precision: parameters, masks, norms' statistics and logits
    stay float32."""
    sparse_init: cli.OptionalStr = None
    """unit or layer: scale the initial weights to the initial masks, by the active inputs of each
    unit or by the density of each layer. Default: the weights are those of the dense network."""

    fsdp: bool = False
    """Cut parameters, masks and optimizer state over the devices; without it each holds all."""
    exchange: str = "automatic"
    """automatic (JAX finds what devices have to exchange) or explicit (written out under
    jax.shard_map; the same up to rounding)."""
    norms: str = "global"
    """Batch norms over the whole batch (global), or over the part of each device (device), as
    published runs on several GPUs have them; device needs --exchange=explicit."""
    accumulate: int = 1
    """Number of micro-batches that a step's batch is cut into, to save memory."""
    workers: int = 8
    """Processes that decode images, for each process of the run; 0 decodes in the run's own."""
    max_corrupt: int = 10
    """Images that may be unreadable, each of which is named and replaced, before the run ends."""

    eval_every: cli.OptionalInt = None
    """Steps between evaluations. Default: an epoch."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, from which the same command goes on after a crash, on any number
    of devices and processes."""
