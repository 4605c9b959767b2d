"""Import and export of models: safetensors files, compiled forward passes, PyTorch state dicts."""

from jaxsparse.export.files import load_safetensors, save_safetensors
from jaxsparse.export.forward import export_forward
from jaxsparse.export.pytorch import (
    masks_from_torch,
    params_from_torch,
    to_jax_layout,
    to_torch_layout,
)
from jaxsparse.export.sizes import LeafSize, SizeReport
from jaxsparse.export.to_pytorch import masks_to_torch, params_to_torch

__all__ = [
    "LeafSize",
    "SizeReport",
    "export_forward",
    "load_safetensors",
    "masks_from_torch",
    "masks_to_torch",
    "params_from_torch",
    "params_to_torch",
    "save_safetensors",
    "to_jax_layout",
    "to_torch_layout",
]
