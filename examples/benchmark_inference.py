"""Times a network's inference on this machine: dense XLA, ONNX Runtime, and the sparse engine.

    python examples/benchmark_inference.py resnet20
    python examples/benchmark_inference.py resnet34 --sparsity=0.9,0.99 --batch=1,8 --threads=1,2
    python examples/benchmark_inference.py my_module:network        # a network of your own

MODEL is a network of jaxsparse, with ERK masks drawn at random and weights made up, since the time
does not depend on their values:

    lenet_300_100 lenet5 resnet8 resnet20 resnet32 resnet56 resnet110 resnet18 resnet34 resnet50
    vgg16 vgg19 wide_resnet_22_2

ResNet-18, 34 and 50 have CIFAR's stem here, and images of 32 x 32. Or MODEL is `module:function`,
of a module in the current folder or installed. The function takes nothing and returns
(apply_fn, variables, masks, example), the arguments of `jaxsparse.sparse.compile_inference`. Its
masks, which may be None, decide the sparsity.

All are sampled in turn, round by round, so that another load on the machine meets all alike. A
number is the median over the rounds [quartiles]. XLA uses all cores, whatever --threads says. ONNX
Runtime runs the same masked network with dense kernels, if it is installed
(`pip install onnx onnxruntime`). The plot needs matplotlib (`pip install matplotlib`). Behind the
table come the steps of the engine, and with layer_times.py, which lies beside this file, the layers
of XLA and of ONNX Runtime.
"""

import argparse
import functools
import importlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import jax
import numpy as np

import jaxsparse
from jaxsparse.nn import VGG, LeNet5, LeNet300100, WideResNet, cifar_resnet, resnet
from jaxsparse.paths import leaves_by_path
from jaxsparse.sparse import CompiledInference, compile_inference
from jaxsparse.text_table import text_table

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "lenet_300_100": (LeNet300100, MNIST),
    "lenet5": (LeNet5, MNIST),
    **{f"resnet{n}": (functools.partial(cifar_resnet, n), CIFAR) for n in (8, 20, 32, 56, 110)},
    **{
        f"resnet{n}": (functools.partial(resnet, n, stem="cifar", num_classes=10), CIFAR)
        for n in (18, 34, 50)
    },
    **{f"vgg{n}": (functools.partial(VGG, n), CIFAR) for n in (16, 19)},
    "wide_resnet_22_2": (functools.partial(WideResNet, 22, 2), CIFAR),
}
PLOTS = (".png", ".pdf", ".svg")
MOST_DIFFERENT = 1e-4  # of the largest output, from XLA's
Run = Callable[[], Any]
Weights = Literal["float32", "bfloat16", "int8"]


class Network(NamedTuple):
    """What `compile_inference` takes."""

    apply_fn: Callable[[Any, Any], Any]
    variables: Any
    masks: Any
    example: Any


class Row(NamedTuple):
    """A line of the table: times in milliseconds of every round, by the name of what ran."""

    sparsity: float
    batch: int
    threads: int
    times: dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    rows, profiles = [], []
    for sparsity in args.sparsity:
        network = own(args.model) if sparsity is None else named(args.model, sparsity)
        network = network._replace(variables=masked(network))
        share, num_active = inactive_share(network)
        rows += measured(network, share, args)
        if args.profile:
            heading = f"{args.model}, {100 * share:.4g} % inactive, {num_active:,} active weights"
            profiles += ["", heading, *profile(network, args)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{args.model}: ms a call, jax {jax.__version__}, {cores} cores", *table(rows), sep="\n")
    print(*profiles, sep="\n")
    if args.plot:
        plot(Path(args.plot), args.model, rows)


def measured(network: Network, share: float, args: argparse.Namespace) -> list[Row]:
    """Times a network for all batches and threads."""
    rows = []
    for threads in args.threads:
        engine = compiled(network, threads, args.weights)
        onnx = onnx_session(network, threads) if args.onnx else None
        args.onnx = onnx is not None  # says once why not
        for batch in args.batch:
            images = of_batch(network.example, batch)
            runs = {"XLA": xla(network, images)}
            if onnx is not None:
                runs["ONNX Runtime"] = functools.partial(onnx, images)
            runs["engine"] = functools.partial(engine, images)
            compare(runs, args.weights)
            rows.append(Row(share, batch, threads, in_turn(runs, args.rounds, args.seconds)))
    return rows


def compiled(network: Network, threads: int, weights: Weights) -> CompiledInference:
    """The network in the engine."""
    apply_fn, variables, _, example = network  # whose variables are masked
    return compile_inference(apply_fn, variables, None, example, threads=threads, weights=weights)


def profile(network: Network, args: argparse.Namespace) -> list[str]:
    """The time of each step of the smallest batch, in the engine and in dense ones."""
    engine, images = compiled(network, 1, args.weights), of_batch(network.example, min(args.batch))
    lines = [str(engine), str(engine.profile(images))]
    try:
        sys.path.insert(0, str(Path(__file__).parent))
        import layer_times
    except ImportError:  # this file was copied without it
        return lines
    dense = {
        "XLA, all cores": layer_times.of_xla(jax.jit(network.apply_fn), network.variables, images)
    }
    if args.onnx:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            jaxsparse.save_onnx(path, network.apply_fn, network.variables, None, network.example)
            feeds = onnx_feeds(images)
            dense["ONNX Runtime, one thread"] = layer_times.of_onnx_runtime(path, feeds, 1)
    for name, layers in dense.items():
        lines += ["", f"dense, {name}", *text_table(layer_times.rows(layers), align="<<>>")]
    return lines


def named(name: str, sparsity: float) -> Network:
    """A network of `MODELS`; norms and biases differ from channel to channel."""
    make, shape = MODELS[name]
    model, example = make(), np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), example[:1])
    rng = np.random.default_rng(2)
    noisy = lambda x: x + 0.1 * rng.random(x.shape, np.float32) if x.ndim == 1 else x
    variables = jax.tree.map(noisy, variables)
    method = jaxsparse.static(sparsity=sparsity, total_steps=1)
    return Network(
        model.apply, variables, method.init(jax.random.key(3), variables["params"]), example
    )


def own(name: str) -> Network:
    """A network of `module:function`."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        refuse(f"MODEL={name}: {error}")
    made = make()
    if not isinstance(made, tuple | list) or len(made) != len(Network._fields):
        what = (
            f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        )
        refuse(f"MODEL={name} returns {what}, not {', '.join(Network._fields)}")
    return Network(*made)


def masked(network: Network) -> Any:
    """The variables, with zeros for inactive weights."""
    variables, masks = network.variables, network.masks
    if masks is None:
        return variables
    if isinstance(variables, dict) and "params" in variables:
        return variables | {"params": jaxsparse.apply_masks(variables["params"], masks)}
    return jaxsparse.apply_masks(variables, masks)


def inactive_share(network: Network) -> tuple[float, int]:
    """The share of prunable weights that are inactive, and the number of active ones.

    Without masks, kernels are prunable: arrays of two axes or more, and what is not 0 is active.
    """
    masks = network.masks
    if masks is None:
        arrays = [x for x in map(np.asarray, jax.tree.leaves(network.variables)) if x.ndim > 1]
        masks = [x != 0 for x in arrays]
    leaves = [np.asarray(x) for x in jax.tree.leaves(masks) if np.ndim(x) > 1]
    active, size = sum(int(x.sum()) for x in leaves), sum(x.size for x in leaves)
    return (1 - active / size if size else 0.0), active


def of_batch(example: Any, batch: int) -> Any:
    """The example's images, as often as needed."""
    return jax.tree.map(lambda x: np.asarray(x)[np.arange(batch) % len(x)], example)


def xla(network: Network, images: Any) -> Run:
    """Dense kernels, compiled."""
    apply, given = jax.jit(network.apply_fn), jax.tree.map(jax.numpy.asarray, images)
    return lambda: jax.block_until_ready(apply(network.variables, given))


def onnx_session(network: Network, threads: int) -> Callable[[Any], Any] | None:
    """ONNX Runtime's session of the masked network; None, and a line that says why, if it lacks."""
    try:
        import onnxruntime  # pip install onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            jaxsparse.save_onnx(path, network.apply_fn, network.variables, None, network.example)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3  # errors
            providers = ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(path, options, providers=providers)
    except (ImportError, ValueError) as error:
        print(f"without ONNX Runtime: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    names = {x.name for x in session.get_inputs()}

    return lambda images: session.run(
        None, {name: x for name, x in onnx_feeds(images).items() if name in names}
    )


def onnx_feeds(images: Any) -> dict[str, Any]:
    """The inputs under the names that `save_onnx` gives them."""
    leaves = leaves_by_path(images)
    return {f"input/{path}" if path else "input": x for path, x in leaves.items()}


def compare(runs: dict[str, Run], weights: str) -> None:
    """Calls each once, and compares the outputs: leaving out work would be fast."""
    wanted = [np.asarray(x) for x in jax.tree.leaves(runs["XLA"]())]
    for name, run in runs.items():
        for a, b in zip(wanted, jax.tree.leaves(run()), strict=True):
            differs = float(np.abs(b - a).max() / max(np.abs(a).max(), 1e-30))
            if not differs < MOST_DIFFERENT and (name != "engine" or weights == "float32"):
                sys.exit(f"error: {name} differs from XLA by {differs:.1e} of the largest output")


def in_turn(runs: dict[str, Run], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a call in every round: the median of calls that together take `seconds`."""
    calls = {name: max(round(seconds / max(timed(run), 1e-7)), 1) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            times = [timed(runs[name]) for _ in range(calls[name])]
            found[name].append(1e3 * statistics.median(times))
    return found


def timed(run: Run) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return float(low), float(median), float(high)


def spread(values: Sequence[float]) -> str:
    low, median, high = quartiles(values)
    return f"{median:.3g} [{low:.3g}, {high:.3g}]"


def table(rows: Sequence[Row]) -> list[str]:
    """Times of all, and how many times the engine's the others' are."""
    others = [name for name in rows[0].times if name != "engine"]
    heading = ["sparsity", "batch", "threads", *others, "engine"]
    lines = [[*heading, *(f"{name} / engine" for name in others)]]
    for row in rows:
        pairs = [zip(row.times[name], row.times["engine"], strict=True) for name in others]
        ratios = [spread([other / engine for other, engine in pair]) for pair in pairs]
        times = [spread(row.times[name]) for name in (*others, "engine")]
        first = f"{100 * row.sparsity:.4g} %", str(row.batch), str(row.threads)
        lines.append([*first, *times, *ratios])
    return text_table(lines, align=">>>")


def plot(path: Path, model: str, rows: Sequence[Row]) -> None:
    """Draws the times over the sparsity, with quartiles; one picture a batch."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    batches = sorted({row.batch for row in rows})
    sparsities = sorted({row.sparsity for row in rows})
    figure = Figure(figsize=(1.5 + 3.5 * len(batches), 4.2), layout="constrained")
    for axes, batch in zip(
        figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True
    ):
        lines = {}
        for row in (row for row in rows if row.batch == batch):
            for name, times in row.times.items():
                what = name if name == "XLA" else f"{name}, threads: {row.threads}"
                lines.setdefault(what, {}).setdefault(row.sparsity, []).extend(times)
        for what, by_sparsity in lines.items():
            low, median, high = np.transpose([quartiles(by_sparsity[s]) for s in sparsities])
            bars = (median - low, high - median)
            axes.errorbar(range(len(sparsities)), median, bars, marker="o", label=what)
        axes.set_xticks(range(len(sparsities)), [f"{100 * s:.4g} %" for s in sparsities])
        axes.set(
            yscale="log", xlabel="sparsity", ylabel="ms a call", title=f"{model}, batch {batch}"
        )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=150)
    print(f"\nplot: {path}")


def refuse(message: str) -> NoReturn:
    print(f"error: {message}; see --help", file=sys.stderr)
    sys.exit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if " must be " in message:  # as it was typed
            message = re.sub(r"^argument (--\w+): ", r"\1=", message)
        refuse(message)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags; refuses those that do not fit, in a line."""
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    sparsity = listed(float, lambda x: 0 <= x < 1, "in [0, 1)")
    add("model", metavar="MODEL", help="a network's name, or module:function")
    add("--sparsity", type=sparsity, metavar="S", help="shares in [0, 1), by comma (0.9,0.99)")
    add("--batch", type=whole(None), default=[1], metavar="N", help="batches, by comma (1)")
    add("--threads", type=whole(256), default=[1], metavar="N", help="1 to 256, by comma (1)")
    weights = get_args(Weights)
    add(
        "--weights", choices=weights, default="float32", help="how the engine stores them (float32)"
    )
    add("--rounds", type=one(whole(None)), default=7, metavar="N", help="of samples in turn (7)")
    seconds = one(listed(float, lambda x: 0 < x < 3600, "in (0, 3600)"))
    add("--seconds", type=seconds, default=0.25, metavar="S", help="of calls in a sample (0.25)")
    add("--no_onnx", dest="onnx", action="store_false", help="leave out ONNX Runtime")
    add("--no_profile", dest="profile", action="store_false", help="leave out steps and layers")
    add("--plot", default="benchmark_inference.png", metavar="FILE", help='"" draws none')
    args = parser.parse_args(argv)
    if ":" in args.model:
        if args.sparsity is not None:
            parser.error(f"--sparsity: {args.model} has masks of its own")
        args.sparsity = [None]
    elif args.model not in MODELS:
        parser.error(f"MODEL={args.model} is none of {', '.join(MODELS)}, nor module:function")
    args.sparsity = args.sparsity or [0.9, 0.99]
    plot = Path(args.plot)
    if args.plot and (plot.suffix not in PLOTS or not plot.parent.is_dir()):
        parser.error(
            f"--plot: {args.plot} must end with {', '.join(PLOTS)}, in a folder that exists"
        )
    return args


def listed(kind: Callable[[str], Any], fits: Callable[[Any], bool], wanted: str) -> Any:
    """Reads values that are separated by commas."""

    def read(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            values = [None]
        if any(x is None or not fits(x) for x in values):
            raise argparse.ArgumentTypeError(f"{text} must be {wanted}")
        return values

    return read


def whole(most: int | None) -> Any:
    """Reads whole numbers of 1 or more."""
    wanted = f"whole numbers in [1, {most}]" if most else "whole numbers of 1 or more"
    return listed(int, lambda x: x >= 1 and (most is None or x <= most), wanted)


def one(read: Callable[[str], list[Any]]) -> Any:
    """Reads a single value."""

    def single(text: str) -> Any:
        if "," in text:
            raise argparse.ArgumentTypeError(f"{text} must be one number")
        return read(text)[0]

    return single


if __name__ == "__main__":
    main()
