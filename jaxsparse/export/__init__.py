"""Models that leave the library: safetensors files, compiled forward passes, PyTorch's masks."""

from jaxsparse.export.files import load_safetensors, save_safetensors
from jaxsparse.export.forward import export_forward
from jaxsparse.export.pytorch import masks_from_torch, params_from_torch, to_jax_layout
from jaxsparse.export.sizes import LeafSize, SizeReport

__all__ = [
    "LeafSize",
    "SizeReport",
    "export_forward",
    "load_safetensors",
    "masks_from_torch",
    "params_from_torch",
    "save_safetensors",
    "to_jax_layout",
]
