"""How much faster a narrower network is than the one it was cut from, in the same run.

    python -m benchmarks.narrow
    python -m benchmarks.narrow --model=resnet20 --widths=16,64 --round_to=1,8 --profile

Channels are removed by `plan_widths` until half of the multiply-adds are left; the speed does not
depend on which ones. Both networks are timed in interleaved pairs: inference of 1 and 128 images,
and a step of SGD with momentum on 128. The limit is the ratio of the multiply-adds. The ratio of
XLA's count of bytes is beside it: activations shrink with a width, multiply-adds with its square.

`--profile` times every convolution of the batch alone, at both widths, and says what share of the
inference they are. So it tells whether a network stays below its limit because its convolutions do,
as where a vector of the machine is half empty, or because of what is between them. (Convolutions of
one image are shorter than a call.)
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from benchmarks import timing
from benchmarks.steps import Stepper
from jaxsparse.nn import ResNet, cifar_resnet, layer_shapes, narrow_module, resnet
from jaxsparse.sparse import LayerShape
from jaxsparse.structured import channel_groups, channel_importance, group_costs, plan_widths

CIFAR = ("resnet8", "resnet20", "resnet32", "resnet56")
# The learning rate is small, so that hundreds of steps on one batch stay finite.
OPTIMIZER = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, momentum=0.9))


class Network(NamedTuple):
    """A network with its initial variables.

    Attributes:
      model: the network.
      variables: of the network.
      macs: multiply-adds of an image.
    """

    model: ResNet
    variables: Any
    macs: int


def main() -> None:
    """Prints a table for each width and rounding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=(*CIFAR, "resnet18", "resnet50"))
    parser.add_argument("--widths", default="16,64", help="of the first stage, with commas")
    parser.add_argument("--round_to", default="1,8", help="with commas")
    parser.add_argument("--target", type=float, default=0.5, help="multiply-adds that are left")
    parser.add_argument("--ranking", default="layer", choices=("layer", "global", "isomorphic"))
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=50, help="pairs of calls that are timed")
    parser.add_argument("--profile", action="store_true", help="time convolutions alone too")
    args = parser.parse_args()
    print(timing.machine())
    for width in map(int, args.widths.split(",")):
        for round_to in map(int, args.round_to.split(",")):
            report(args, width, round_to)


def report(args: argparse.Namespace, width: int, round_to: int) -> None:
    """Prints the table of a network."""
    try:
        full, narrow = networks(args, width, round_to)
    except ValueError as error:
        print(f"\n{args.model}, width {width}, channels in multiples of {round_to}: {error}")
        return
    limit = full.macs / narrow.macs
    print(
        f"\n{args.model}, width {width}, channels in multiples of {round_to}: {full.macs:,} -> "
        f"{narrow.macs:,} multiply-adds, {limit:.3f} times fewer\n"
        f"{'':>15} {'full ms':>8} {'narrow':>8} {'times faster':>22} {'share of limit':>15} "
        f"{'narrow against itself':>22} {'fewer bytes':>12}"
    )
    for name, programs in kinds(args, full, narrow):
        found = timing.compare(*programs, pairs=args.pairs)
        seconds = [1e3 * x for x in found.seconds]
        saved = bytes_of(programs[0]) / bytes_of(programs[1])
        print(
            f"{name:>15} {seconds[0]:>8.3f} {seconds[1]:>8.3f} {found.ratio!s:>22} "
            f"{found.ratio.median / limit:>15.2f} {found.control!s:>22} {saved:>12.3f}",
            flush=True,
        )
    if args.profile:
        profile(full, narrow, args)


def networks(args: argparse.Namespace, width: int, round_to: int) -> tuple[Network, Network]:
    """Returns the network at full width, and narrower."""
    depth = int(args.model.removeprefix("resnet"))
    if args.model in CIFAR:
        model = cifar_resnet(depth, width=width)
    else:
        model = resnet(depth, stem="cifar", num_classes=10, width=width)
    image = jnp.zeros((1, args.image_size, args.image_size, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    groups = channel_groups(model.apply, variables, image)
    costs = group_costs(groups, jaxsparse.layer_flops(model.apply, variables, image))
    importance = channel_importance(groups, jax.tree.map(jnp.abs, variables))
    options = {"target": args.target, "ranking": args.ranking, "round_to": round_to}
    plan = plan_widths(groups, importance, costs, **options)
    narrow = narrow_module(model, plan)
    assert isinstance(narrow, ResNet)
    return (
        Network(model, variables, costs({})),
        Network(narrow, plan.apply(variables), costs(plan.widths)),
    )


class Inference:
    """Logits of a batch, again and again."""

    def __init__(self, network: Network, images: jax.Array):
        self.compiled = jax.jit(network.model.apply).lower(network.variables, images).compile()
        self.args = (network.variables, images)

    def __call__(self) -> Any:
        """One pass."""
        return self.compiled(*self.args)


def kinds(
    args: argparse.Namespace, full: Network, narrow: Network
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields what is timed, by name: the programs of both networks."""
    for batch in (1, args.batch_size):
        images = random_images(batch, args.image_size)
        yield f"inference, {batch}", (Inference(full, images), Inference(narrow, images))
    images = random_images(args.batch_size, args.image_size)
    yield f"step, {args.batch_size}", (training(full, images), training(narrow, images))


def random_images(batch: int, size: int) -> jax.Array:
    """Returns float32[batch, size, size, 3]."""
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def training(network: Network, images: jax.Array) -> Stepper:
    """A training step, each time from the last state."""
    labels = jnp.arange(len(images)) % network.model.num_classes

    def step(state: tuple[Any, Any, Any], images: jax.Array, labels: jax.Array) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": stats}
            options = {"train": True, "mutable": ["batch_stats"]}
            logits, new = network.model.apply(variables, images, **options)
            losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
            return losses.mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    params, stats = (network.variables[name] for name in ("params", "batch_stats"))
    return Stepper(step, (params, stats, OPTIMIZER.init(params)), images, labels)


def bytes_of(program: Any) -> float:
    """Returns the bytes of a program's reads and writes, as XLA counts them."""
    return program.compiled.cost_analysis()["bytes accessed"]


def profile(full: Network, narrow: Network, args: argparse.Namespace) -> None:
    """Prints the time of every kind of convolution alone, and of all of them in the inference."""
    images = random_images(args.batch_size, args.image_size)
    few = max(args.pairs // 5, 1)
    wide, less = (layer_shapes(each.model.apply, each.variables, images) for each in (full, narrow))
    kinds: dict[tuple[LayerShape, LayerShape], int] = {}
    for path in wide:
        if path != "fc/kernel":
            both = (wide[path], less[path])
            kinds[both] = kinds.get(both, 0) + 1
    print(f"{'convolutions':>22} {'number':>7} {'fewer MACs':>11} {'times faster':>22}")
    total = np.zeros(2)
    for both, number in kinds.items():
        found = timing.compare(*map(alone, both), pairs=few)
        total += number * np.array(found.seconds)
        kernels = " -> ".join(f"{shape.kernel[2]}x{shape.kernel[3]}" for shape in both)
        fewer = both[0].macs / both[1].macs
        print(f"{kernels:>22} {number:>7} {fewer:>11.2f} {found.ratio!s:>22}")
    whole = [timing.median_seconds(Inference(each, images), times=few) for each in (full, narrow)]
    shares = " -> ".join(f"{share:.0f} %" for share in 100 * total / whole)
    print(f"all of them are {shares} of the inference", flush=True)


def alone(shape: LayerShape) -> Any:
    """Returns a convolution of random images, compiled."""
    x = jax.random.normal(jax.random.key(2), shape.images)
    kernel = jax.random.normal(jax.random.key(3), shape.kernel)
    window, pair = shape.window, lambda x: (x, x) if isinstance(x, int) else tuple(x)
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x,
        kernel,
        pair(window.strides),
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    compiled = jax.jit(convolve).lower(x, kernel).compile()
    return lambda: compiled(x, kernel)


if __name__ == "__main__":
    main()
