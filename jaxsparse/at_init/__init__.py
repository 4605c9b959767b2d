"""Pruning at initialisation: SNIP, GraSP, SynFlow, and random masks.

Scores come from a loss (SNIP, GraSP) or from the network alone (SynFlow), and go by way of
`masks_from_scores` to masks with exact counts. Higher always means keep.
"""

from jaxsparse.at_init.grasp import grasp_masks, grasp_scores
from jaxsparse.at_init.losses import CrossEntropy, balanced_indices, cross_entropy
from jaxsparse.at_init.random import random_masks
from jaxsparse.at_init.snip import snip_masks, snip_scores
from jaxsparse.at_init.synflow import synflow_masks, synflow_scores

__all__ = [
    "CrossEntropy",
    "balanced_indices",
    "cross_entropy",
    "grasp_masks",
    "grasp_scores",
    "random_masks",
    "snip_masks",
    "snip_scores",
    "synflow_masks",
    "synflow_scores",
]
