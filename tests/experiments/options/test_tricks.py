"""DyReLU and weight sharing: which flags bring them, and what they do without."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from experiments.options import tricks
from jaxsparse.nn import LeNet5, cifar_resnet

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
DEEP, SHALLOW = cifar_resnet(20, num_classes=10), cifar_resnet(8, num_classes=10)


def config(**flags):
    """Flags of an experiment, all of `Tricks` left out but for the given ones."""
    names = ("dyrelu", "dyrelu_start", "dyrelu_stop", "dyrelu_blend", "dyrelu_freeze")
    names = (*names, "dyrelu_late", "weight_sharing")
    given = {"schedule": "rigl", "model": "net"} | flags
    return types.SimpleNamespace(**(dict.fromkeys(names) | given))


@pytest.mark.parametrize(
    ("flags", "dyrelu", "owners"),
    [
        ({}, False, None),
        ({"schedule": "east"}, True, 2),
        ({"schedule": "east", "dyrelu": False}, False, 2),
        ({"schedule": "east", "weight_sharing": False}, True, None),
        ({"dyrelu": True}, True, None),
        ({"weight_sharing": True}, False, 2),
    ],
)
def test_east_has_both_and_any_schedule_may_have_each(flags, dyrelu, owners):
    model = tricks.with_tricks(DEEP, config(**flags))
    assert (model.dyrelu is not None, model.num_owners) == (dyrelu, owners)
    assert tricks.has_dyrelu(config(**flags)) == dyrelu


@pytest.mark.parametrize("model", [SHALLOW, LeNet5()])
def test_a_network_with_nothing_to_share(model, capsys):
    """ResNet-8 has stages of one block."""
    assert not tricks.can_share(model) and tricks.can_share(DEEP)
    east = config(schedule="east", dyrelu=False)
    assert tricks.with_tricks(model, east) == model
    tricks.say_if_it_shares_nothing(east, model)
    note = "note: net is no ResNet with a stage of more than 2 blocks, so it shares no weights\n"
    assert capsys.readouterr().err == note
    tricks.say_if_it_shares_nothing(config(schedule="east"), DEEP)
    tricks.say_if_it_shares_nothing(config(), model)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="--weight_sharing: net is no ResNet with"):
        tricks.with_tricks(model, config(weight_sharing=True))


@pytest.mark.parametrize("name", ["start", "stop", "blend", "freeze", "late"])
def test_options_of_dyrelu_need_it(name):
    with pytest.raises(ValueError, match=f"^--dyrelu_{name} needs --dyrelu$"):
        tricks.with_tricks(DEEP, config(**{f"dyrelu_{name}": 0.3}))


def test_the_blend():
    blend = lambda **flags: tricks.with_tricks(DEEP, config(dyrelu=True, **flags)).dyrelu.blend
    assert (blend(), blend(dyrelu_blend="output")) == ("coefficient", "output")
    with pytest.raises(ValueError, match="--dyrelu_blend=mean must be coefficient or output"):
        blend(dyrelu_blend="mean")


def test_the_phase_is_shares_of_training():
    assert tricks.phase_of(config(), 1000) is None
    assert tricks.phase_of(config(dyrelu=True), 1000) == (250, 496, False)
    given = config(dyrelu=True, dyrelu_start=0.5, dyrelu_stop=1.0, dyrelu_late=True)
    assert tricks.phase_of(given, 1000) == (500, 1000, True)


def test_the_sparsity_of_the_stored_kernels():
    shared = DEEP.clone(num_owners=2)
    assert tricks.sparsity_of(DEEP, IMAGES, 0.9) == 0.9
    stored = tricks.sparsity_of(shared, IMAGES, 0.9)
    sizes = [
        sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
        for params in (
            jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
            for model in (DEEP, shared)
        )
    ]
    assert (1 - stored) * sizes[1] == pytest.approx(0.1 * sizes[0], abs=1)
    assert tricks.sparsity_of(shared, IMAGES, 1.5) == 1.5  # the method refuses it
    with pytest.raises(ValueError, match=r"^--sparsity=0.1 .*, or take --weight_sharing=False$"):
        tricks.sparsity_of(shared, IMAGES, 0.1)


def test_frozen_parameters_of_dyrelu_keep_still_from_the_start_of_the_phase():
    """RigL makes no optimizer step at its mask updates, two of which lie before step 5."""
    rigl = jaxsparse.rigl(sparsity=0.5, total_steps=10, update_interval=2)
    plain = optax.sgd(1.0)
    assert tricks.with_freezing(plain, config(dyrelu=True), rigl) is plain
    assert tricks.with_freezing(plain, config(dyrelu_freeze=True), rigl) is plain
    flags = {"dyrelu": True, "dyrelu_freeze": True, "dyrelu_start": 0.5, "dyrelu_stop": 1.0}
    tx = tricks.with_freezing(plain, config(**flags), rigl)
    params = {"DyReLU_0": {"w1": jnp.zeros(())}, "fc": {"kernel": jnp.zeros(())}}
    state, moved = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append([float(x) != 0.0 for x in jax.tree.leaves(updates)])
    assert moved == [[True, True]] * 3 + [[False, True]] * 2
