"""Studies of what pruning does to a network, for your own checkpoints and training loop."""

from jaxsparse.studies.plasticity import Checkpoint, pruning_plasticity
from jaxsparse.studies.prune_once import prune_once
from jaxsparse.studies.results import Cell, How, Plasticity, PlasticityStudy

__all__ = [
    "Cell",
    "Checkpoint",
    "How",
    "Plasticity",
    "PlasticityStudy",
    "prune_once",
    "pruning_plasticity",
]
