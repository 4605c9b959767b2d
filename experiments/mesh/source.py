"""The images of an ImageNet run, as batches on its mesh."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.data import generated, imagenet
from experiments.mesh import layout
from experiments.options.imagenet_flags import Config
from experiments.training.batches import Batch, Loaded, Stacked, prefetched
from experiments.training.recipes import Recipe


class Data(NamedTuple):
    """The source of a run's images.

    Attributes:
      train: completed steps to the batches of the steps that follow, on the mesh.
      evaluation: to the batches that hold every validation image once, on the mesh.
      num_train: images of an epoch.
    """

    train: Callable[[int], Iterator[Batch]]
    evaluation: Callable[[], Iterator[tuple[jax.Array, jax.Array, jax.Array]]]
    num_train: int


def data_of(config: Config, recipe: Recipe, mesh: Mesh) -> Data:
    """Returns where the images come from: the data set, or a generator of images."""
    images: dict[str, Any] = {
        "seed": config.seed,
        "batch_size": recipe.batch_size,
        "image_size": config.image_size,
        "process": (jax.process_index(), jax.process_count()),
    }
    if config.fake_data or config.dry_run:
        local = generated.Generated(**images)
    else:
        images |= {"workers": config.workers, "max_corrupt": config.max_corrupt}
        local = imagenet.open_data(config.data_dir, **images)

    def on_mesh(batch: tuple[np.ndarray, np.ndarray]) -> Batch:
        if config.accumulate == 1:
            return layout.spread(mesh, Loaded(*batch))
        cut = lambda x: x.reshape(config.accumulate, -1, *x.shape[1:])
        return layout.spread(mesh, Stacked(*map(cut, batch)), axis=1)

    train = lambda step: prefetched(local.train(step), on_mesh)
    evaluation = lambda: prefetched(local.evaluation(), lambda x: layout.spread(mesh, x))
    return Data(train, evaluation, local.num_train)
