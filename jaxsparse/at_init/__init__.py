"""Pruning at initialisation: masks from a network that has not been trained.

    from jaxsparse import at_init

    def loss_fn(params, batch):                   # a mean over the images of the batch
        logits = model.apply({"params": params}, batch["image"])
        return cross_entropy(logits, batch["label"])

    masks = at_init.snip_masks(loss_fn, params, [batch], 0.95)
    method = jaxsparse.static(total_steps=10_000, masks=masks)          # as the papers train on
    method = jaxsparse.starting_from(jaxsparse.rigl(sparsity=0.95, total_steps=10_000), masks)

`snip_masks` and `grasp_masks` need some labelled images, `synflow_masks` only their shape.
Magnitude at initialisation is `jaxsparse.magnitude_masks`, and `random_masks` is the control. Each
`*_masks` is `masks_from_scores` of its `*_scores`, and takes the options of that.
"""

from jaxsparse.at_init.grasp import cross_entropy, grasp_masks, grasp_scores
from jaxsparse.at_init.random import random_masks
from jaxsparse.at_init.snip import snip_masks, snip_scores
from jaxsparse.at_init.synflow import synflow_masks, synflow_scores

__all__ = [
    "cross_entropy",
    "grasp_masks",
    "grasp_scores",
    "random_masks",
    "snip_masks",
    "snip_scores",
    "synflow_masks",
    "synflow_scores",
]
