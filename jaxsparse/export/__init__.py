"""Import and export of models: safetensors and ONNX files, compiled forward passes, PyTorch."""

from jaxsparse.export.files import load_safetensors, save_safetensors
from jaxsparse.export.forward import export_forward
from jaxsparse.export.onnx import OnnxReport, save_onnx
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
    "OnnxReport",
    "SizeReport",
    "export_forward",
    "load_safetensors",
    "masks_from_torch",
    "masks_to_torch",
    "params_from_torch",
    "params_to_torch",
    "save_onnx",
    "save_safetensors",
    "to_jax_layout",
    "to_torch_layout",
]
