"""The networks that become narrower, and the data that they are trained on."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.data import cifar10, cifar100, fashion_mnist
from experiments.data.augment import crop_and_flip
from experiments.data.dataset import Dataset
from experiments.data.pixels import normalise
from experiments.options.cli import nearest
from jaxsparse.nn import ResNet, cifar_resnet, resnet


class Data(NamedTuple):
    """A data set, and how its images become inputs.

    Attributes:
      load: (folder, share that is held out) to the data set. Without a folder CIFAR is read from
        "data", and Fashion-MNIST is the sample of the repository.
      normalise: uint8 images to floats, inside the compiled step.
      augment: (key, step, uint8 images) to uint8 images, inside the compiled step.
    """

    load: Callable[[Path | None, float], Dataset]
    normalise: Callable[[jax.Array], jax.Array]
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _cifar10(folder: Path | None, val_fraction: float) -> Dataset:
    return cifar10.load(folder or Path("data"), val_fraction=val_fraction)


def _cifar100(folder: Path | None, val_fraction: float) -> Dataset:
    return cifar100.load(folder or Path("data"), val_fraction=val_fraction)


def _fashion_mnist(folder: Path | None, val_fraction: float) -> Dataset:
    return fashion_mnist.load(folder, val_fraction=val_fraction)


# Those of the training images, pixels in [0, 1].
_MEAN, _STD = (0.2860,), (0.3530,)

# Functions are made once: what is compiled for one of them serves all runs.
DATA: Mapping[str, Data] = {
    "cifar10": Data(
        _cifar10,
        functools.partial(normalise, mean=cifar10.MEAN, std=cifar10.STD),
        functools.partial(crop_and_flip, mode="reflect"),
    ),
    "cifar100": Data(
        _cifar100,
        functools.partial(normalise, mean=cifar100.MEAN, std=cifar100.STD),
        functools.partial(crop_and_flip, mode="zero"),
    ),
    "fashion_mnist": Data(
        _fashion_mnist,
        functools.partial(normalise, mean=_MEAN, std=_STD),
        functools.partial(crop_and_flip, mode="zero"),
    ),
}

# Constructors, called with width and num_classes; and the width without --width.
MODELS: Mapping[str, tuple[Callable[..., ResNet], int]] = {
    **{f"resnet{n}": (functools.partial(cifar_resnet, n), 16) for n in (8, 20, 32, 56, 110)},
    **{f"resnet{n}": (functools.partial(resnet, n, stem="cifar"), 64) for n in (18, 34, 50)},
}


def width_of(model: str, width: int | None) -> int:
    """Returns the channels of the first stage: those asked for, or the published ones.

    Raises:
      ValueError: an unknown model; the nearest one is named.
    """
    return MODELS[nearest(model, MODELS, kind="model")][1] if width is None else width


def model_of(model: str, width: int | None, num_classes: int) -> ResNet:
    """Returns the network that the flags ask for.

    Raises:
      ValueError: an unknown model, or a width below 1.
    """
    make, _ = MODELS[nearest(model, MODELS, kind="model")]
    return make(width=width_of(model, width), num_classes=num_classes)


def data_of(dataset: str) -> Data:
    """Returns the data that `--dataset` names.

    Raises:
      ValueError: an unknown data set; the nearest one is named.
    """
    return DATA[nearest(dataset, DATA, kind="dataset")]
