"""The dense networks of `sparse_execution` in PyTorch and ONNX Runtime; imports no JAX.

    python -m benchmarks.torch_dense --model=resnet20 --batch=128 --threads=2

PyTorch runs eagerly with channels last. A step is SGD with momentum and weight decay. ONNX Runtime
runs the network that PyTorch exports, with norms folded into convolutions. The last line is JSON. A
number that could not be measured is null; "onnx_problem" is the reason for ONNX Runtime.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import quiet

# Blocks of each stage, whether they are bottlenecks, width of the first stage.
NETWORKS = {
    "resnet8": ((1, 1, 1), False, 16),
    "resnet20": ((3, 3, 3), False, 16),
    "resnet34": ((3, 4, 6, 3), False, 64),
    "resnet50": ((3, 4, 6, 3), True, 64),
}


class Block(nn.Module):
    """A residual block, basic or bottleneck."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        self.out = 4 * width if bottleneck else width
        if bottleneck:
            plan = [(channels, width, 1, 1), (width, width, 3, stride), (width, self.out, 1, 1)]
        else:
            plan = [(channels, width, 3, stride), (width, width, 3, 1)]
        self.layers = nn.ModuleList(_conv(*numbers) for numbers in plan)
        self.shortcut = (
            _conv(channels, self.out, 1, stride)
            if stride > 1 or channels != self.out
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images to images."""
        y = x
        for layer in self.layers[:-1]:
            y = F.relu(layer(y), inplace=True)
        return F.relu(self.layers[-1](y) + self.shortcut(x), inplace=True)


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def network(name: str) -> nn.Module:
    """Returns the network for CIFAR-10 with a stem of 3 x 3, as `jaxsparse.nn` has it."""
    stages, bottleneck, width = NETWORKS[name]
    parts: list[nn.Module] = [_conv(3, width, 3, 1), nn.ReLU(inplace=True)]
    channels = width
    for stage, num in enumerate(stages):
        for block in range(num):
            stride = 2 if stage > 0 and block == 0 else 1
            part = Block(channels, width * 2**stage, stride, bottleneck)
            channels = part.out
            parts.append(part)
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)


def main() -> None:
    """Times training, inference and ONNX Runtime's inference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NETWORKS, default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--inference", action="store_true", help="PyTorch's inference alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    found = {"torch": torch.__version__, "onnxruntime": None, "threads": args.threads}
    found |= {"torch_train_ms": None, "torch_infer_ms": None, "onnx_infer_ms": None}

    def measure(name: str, run: quiet.Run) -> None:
        samples = quiet.in_turn({name: run}, rounds=args.rounds, retries=args.retries)
        found[name] = quiet.milliseconds(samples[name])

    # The engines run one after the other, as the threads of each spin for a while after its work.
    measure("torch_infer_ms", _inference(network(args.model), images))
    if args.inference:
        print(json.dumps(found))
        return
    measure("torch_train_ms", _training(network(args.model), images))
    try:
        run, found["onnxruntime"] = _onnx(network(args.model), images, args.threads)
    except Exception as error:  # it is optional, and its exporter fails in many ways
        found["onnx_problem"] = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        measure("onnx_infer_ms", run)
    print(json.dumps(found))


def _training(model: nn.Module, images: torch.Tensor) -> quiet.Run:
    labels = torch.arange(len(images)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def _inference(model: nn.Module, images: torch.Tensor) -> quiet.Run:
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def _onnx(model: nn.Module, images: torch.Tensor, threads: int) -> tuple[quiet.Run, str]:
    import onnxruntime

    model.eval()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), path, input_names=["images"], dynamo=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    pixels = images.contiguous().numpy()
    return lambda: session.run(None, {"images": pixels}), onnxruntime.__version__


if __name__ == "__main__":
    main()
