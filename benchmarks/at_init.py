"""GraSP on a ResNet-50 with its batch in 1, 2 and 4 micro-batches, and SynFlow's 100 rounds.

    python -m benchmarks.at_init

The memory of GraSP is that of its largest program, as XLA plans it: the arguments, the temporary
buffers and the results. It has to fall with the size of a micro-batch, and to stay as it is when
more micro-batches of one size are added. Time is given over that of two backward passes over the
same micro-batches, timed in pairs in the same run. Images are small, so that two cores come to an
end.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from benchmarks import timing
from jaxsparse.at_init.grasp import scorer
from jaxsparse.at_init.subject import subject_of, with_temperature
from jaxsparse.at_init.watched import Watched
from jaxsparse.nn import resnet

CLASSES = 1000


def main() -> None:
    """Prints a line for every cut of the batch, and one for SynFlow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=50, choices=(18, 34, 50))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of calls that are timed")
    parser.add_argument("--rounds", type=int, default=100, help="of SynFlow; 0 leaves it out")
    args = parser.parse_args()
    print(timing.machine())
    model, shape = resnet(args.depth), (args.image_size, args.image_size, 3)
    variables = dict(jax.jit(model.init)(jax.random.key(0), jnp.ones((1, *shape))))
    params = variables.pop("params")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, *shape)).astype(np.float32)
    labels = np.arange(args.batch_size, dtype=np.int32) % CLASSES
    logits_fn = functools.partial(training_mode, model, variables)

    print(f"\nGraSP, ResNet-{args.depth}, {args.batch_size} images of {args.image_size} pixels")
    print(f"{'batches':>8} {'images':>7} {'MiB':>8} {'seconds':>8} {'x 2 backward passes'}")
    for num, repeats in ((1, 1), (2, 1), (4, 1), (4, 2)):
        cut = [*zip(np.split(images, num), np.split(labels, num), strict=True)] * repeats
        mib = peak_mib(logits_fn, params, cut[0])
        found = compared(logits_fn, params, cut, args.pairs)
        print(
            f"{len(cut):>8} {len(cut[0][1]):>7} {mib:>8,.0f} {found.seconds[0]:>8.2f} "
            f"{found.ratio}, two passes against themselves {found.control}",
            flush=True,
        )
    if args.rounds:
        report_synflow(model, params, variables, (1, *shape), args.rounds)


def training_mode(model: Any, variables: Any, params: Any, x: Any) -> Any:
    """The logits with the statistics of the batch; their update is dropped."""
    given = {"params": params, **variables}
    return model.apply(given, x, train=True, mutable=["batch_stats"])[0]


def peak_mib(logits_fn: Any, params: Any, batch: Any) -> float:
    """Returns the planned memory of one micro-batch's gradient and product with the Hessian."""
    loss = lambda params: jaxsparse.cross_entropy(logits_fn)(params, batch, 200.0)
    product = lambda params, g: jax.jvp(jax.grad(loss), (params,), (g,))[1]
    analysis = jax.jit(product).lower(params, params).compile().memory_analysis()
    assert analysis is not None
    return (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
    ) / 2**20


def compared(logits_fn: Any, params: Any, batches: Any, pairs: int) -> timing.Comparison:
    """Times the scores against two backward passes over the same micro-batches."""
    loss_fn, subject = jaxsparse.cross_entropy(logits_fn), subject_of(params, None)
    at_temperature = with_temperature(loss_fn, 200.0)
    watched = Watched(at_temperature, subject, batches, 2, None)
    score = scorer(at_temperature, subject, watched, "signed")
    backward = jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch)))

    def passes() -> Any:
        found = None
        for batch in (*batches, *batches):
            found = jax.block_until_ready(backward(params, batch))
        return found

    return timing.compare(lambda: score(subject.weights, None), passes, pairs=pairs)


def report_synflow(model: Any, params: Any, variables: Any, shape: Any, rounds: int) -> None:
    """Prints what SynFlow's rounds take, and how many programs of scores they compile."""
    traced: list[int] = []

    def apply_fn(params: Any, x: Any, collections: Any) -> Any:
        traced.append(1)
        return model.apply({"params": params, **collections}, x)

    seconds = []
    for num_rounds in (1, 1, rounds):  # the first one compiles the check of paths, op by op
        before, start = len(traced), time.perf_counter()
        masks = jaxsparse.synflow_masks(
            apply_fn, params, shape, 0.99, collections=variables, num_rounds=num_rounds
        )
        jax.block_until_ready(masks)
        seconds.append(time.perf_counter() - start)
        num_traces = len(traced) - before
    each = (seconds[2] - seconds[1]) / max(rounds - 1, 1)
    print(
        f"\nSynFlow to 99 %: {rounds} rounds trace the network {num_traces} times (the scores, the "
        f"check of paths) in {seconds[2]:.1f} s with compilation, one round in {seconds[1]:.1f} s: "
        f"about {each:.3f} s a round"
    )


if __name__ == "__main__":
    main()
