"""Checkpoints with Orbax: a whole state to the bit, or one clear reason why not.

    restored = restore_checkpoint("checkpoints", state)  # so that the same command goes on
    start, state = (0, state) if restored is None else (restored.step, restored.state)
    for n in range(start + 1, total_steps + 1):
        state = train_step(state, batch_of(n), event=method.is_due(n))
        if n % 500 == 0:
            save_checkpoint("checkpoints", n, state)

    params = restore_part("checkpoints", "params")  # to evaluate: no optimizer, no method, no model

A state is any pytree of arrays and numbers: a `TrainState`, or a dict of params, masks, optimizer
state and key. Its leaves are kept by path ("masks/Dense_0/kernel") with dtype, shape and checksum,
so that a part of it can be read without what made the rest, and damage does not go unnoticed: Orbax
itself does not see that a byte inside an array has changed.

Saving is synchronous, from one process with any number of devices. When `save_checkpoint` returns,
the checkpoint is whole, and the next step may donate the state; an error is the caller's own and
not a thread's. This package is not part of `import jaxsparse`, which Orbax would slow down.
"""

from jaxsparse.checkpoint.parts import restore_masks, restore_part, restore_parts
from jaxsparse.checkpoint.restore import Restored, restore_checkpoint
from jaxsparse.checkpoint.save import save_checkpoint

__all__ = [
    "Restored",
    "restore_checkpoint",
    "restore_masks",
    "restore_part",
    "restore_parts",
    "save_checkpoint",
]
