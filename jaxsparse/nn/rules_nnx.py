"""Rules for a Flax NNX model by the classes of its layers, which are not part of its state.

model = Transformer(rngs=nnx.Rngs(0))
method = jaxsparse.rigl(sparsity=0.9, total_steps=1000, prunable=prunable_by_class(model))
masks = method.init(key, nnx.state(model, nnx.Param))
"""

import re

import numpy as np
from flax import nnx

from jaxsparse.names import is_weight
from jaxsparse.paths import leaves_by_path


def prunable_by_class(model: nnx.Module) -> tuple[tuple[str, bool | None], ...]:
    """Returns rules that go by the classes of the model's layers, and by names for other classes.

    The default rules go by names alone. They leave an `nnx.Linear` named "embed" dense, and they
    prune the "kernel" of a user's class such as `PositionTable`.

    Returns:
      `prunable=` for `nnx.state(model, nnx.Param)`. First come the leaves for which class and name
      decide differently, then the default for all others. The class of a layer decides, or the
      first known class that it derives from; `jaxsparse.names` lists the words.

    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.embed = nnx.Linear(3, 8, rngs=rngs)
    ...         self.head = nnx.Linear(8, 2, rngs=rngs)
    >>> prunable_by_class(Model(nnx.Rngs(0)))
    (('^(embed/kernel)$', True), ('', None))
    """
    layers = {"/".join(map(str, parts)): layer for parts, layer in nnx.iter_modules(model)}
    leaves = leaves_by_path(nnx.as_pure(nnx.state(model, nnx.Param)))
    by_name, by_class = {}, {}
    for path, leaf in leaves.items():
        layer = layers.get(path.rpartition("/")[0])
        by_name[path] = is_weight(path, np.ndim(leaf))
        by_class[path] = is_weight(path, np.ndim(leaf), type(layer).__mro__)
    others = [
        (f"^({'|'.join(map(re.escape, paths))})$", take)
        for take in (True, False)
        if (paths := [p for p in leaves if by_class[p] is take and by_name[p] is not take])
    ]
    same = any(by_class[path] == by_name[path] for path in leaves)
    return (*others, ("", None)) if same else tuple(others)
