"""A narrower network on disk: its widths as JSON, its arrays as safetensors, and no pickle.

narrow.json           the model, its widths, and what follows inner convolutions
narrow.safetensors    params and statistics, by path, dense
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.records.run_folder import write_json
from experiments.structured.networks import model_of
from jaxsparse.export import load_safetensors, save_safetensors
from jaxsparse.nn import ResNet
from jaxsparse.types import PyTree

JSON, ARRAYS = "narrow.json", "narrow.safetensors"


def write(folder: Path, name: str, model: ResNet, variables: PyTree) -> None:
    """Writes both files.

    Args:
      folder: that of the run.
      name: value of `--model`.
      model: the network.
      variables: of the network.
    """
    save_safetensors(folder / ARRAYS, variables)
    fields = {
        "model": name,
        "width": model.width,
        "channels": variables["params"]["conv1"]["kernel"].shape[-2],
        "num_classes": model.num_classes,
        "widths": model.conv_widths(),
        "after_inner": model.after_inner,
    }
    write_json(folder / JSON, fields)


def read(folder: Path) -> tuple[ResNet, dict[str, Any]]:
    """Reads the network of a finished arm.

        model, variables = narrow_files.read(Path("runs/.../seed0/resrep-0.5"))
        logits = model.apply(variables, images)

    Args:
      folder: that of the arm.

    Raises:
      OSError: a file is missing.
      ValueError: the arrays are not those of the widths, or a file is damaged.
    """
    fields = json.loads((folder / JSON).read_text("utf-8"))
    model = model_of(fields["model"], fields["width"], fields["num_classes"])
    model = model.clone(widths=fields["widths"], after_inner=fields["after_inner"])
    image = jax.ShapeDtypeStruct((1, 32, 32, fields["channels"]), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, _ = load_safetensors(folder / ARRAYS, like=like)
    return model, jax.tree.map(jnp.asarray, variables)
