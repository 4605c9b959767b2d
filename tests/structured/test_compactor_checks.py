"""What may stand between a compactor and the next layer, and what is refused with a reason."""

import jax
import pytest
from flax import linen as nn

from jaxsparse.nn import Compactor
from jaxsparse.structured import check_compactor


class Net(nn.Module):
    """A layer, a compactor, `between`, and a layer that reads it."""

    between: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="first")(x)
        x = start = Compactor(name="compactor1")(x)
        x = {
            "relu": nn.relu,
            "gelu": nn.gelu,
            "sigmoid": nn.sigmoid,
            "dropout": nn.Dropout(0.5, deterministic=True),
            "bias": lambda x: nn.relu(x + self.param("bias", nn.initializers.zeros, (1, 6))),
            "batch norm": lambda x: nn.relu(nn.BatchNorm(use_running_average=False)(x)),
            "rms norm": nn.RMSNorm(),
            "softmax": lambda x: nn.softmax(x) - 1 / 6,
            "residual": nn.relu,
            "two": nn.relu,
        }[self.between](x)
        y = nn.Dense(6, name="second")(x)
        y = y + x if self.between == "residual" else y
        return y * nn.Dense(6, name="gate")(start) if self.between == "two" else y


def check(between, consumers=("params/second/kernel",)):
    model, x = Net(between), jax.random.normal(jax.random.key(1), (8, 4))
    variables = model.init(jax.random.key(0), x)
    where = {"compactor": "params/compactor1/matrix", "consumers": dict.fromkeys(consumers, 0)}
    forward = lambda v: model.apply(v, x, mutable=["batch_stats"])[0]
    check_compactor(forward, variables, jax.random.key(2), **where)


@pytest.mark.parametrize("between", ["relu", "gelu", "dropout"])
def test_what_maps_0_to_0_may_stand_behind_it(between):
    check(between)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("sigmoid", "second/kernel reads other values than 0 from channels that are 0"),
        ("bias", "second/kernel reads other values than 0"),
        ("batch norm", "second/kernel reads other values than 0"),
        ("softmax", "second/kernel reads other values than 0"),
        ("rms norm", "its channels reach the outputs not only as inputs of .*a norm over channels"),
        ("residual", "its channels reach the outputs not only as inputs of"),
        ("two", "its channels reach the outputs not only as inputs of"),
    ],
)
def test_what_may_not_stand_behind_it(between, message):
    with pytest.raises(ValueError, match=f"params/compactor1/matrix: .*{message}"):
        check(between)


def test_two_consumers_both_named():
    check("two", ("params/second/kernel", "params/gate/kernel"))


@pytest.mark.parametrize(
    ("consumers", "message"),
    [
        (("params/third/kernel",), "variables has no leaf params/third/kernel; it has"),
        (
            ("params/first/kernel",),
            r"first/kernel \(4, 6\) has 4 inputs on axis 0, and .* 6 channels",
        ),
        (("params/compactor1/matrix",), "compactor1"),
    ],
)
def test_what_is_refused(consumers, message):
    with pytest.raises(ValueError, match=message):
        check("relu", consumers)
