"""Any number of images: groups of 16 and smaller ones, tuned; functions that read the number."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine.files import load_engine, save_engine
from jaxsparse.engine.inference import compile_inference
from tests.engine.agreement import difference, numbers

W, V = numbers(40, 30, seed=1), numbers(30, 5, seed=2)


def test_every_number():
    """A dense network goes together from two images on."""
    network = lambda _, x: jnp.tanh(x @ W) @ V
    x = numbers(35, 40)
    for threads in (1, 2, 3):
        engine = compile_inference(network, {}, None, x, threads=threads)
        for batch in range(len(x) + 1):
            want = np.tanh(x[:batch] @ W) @ V
            assert difference(engine(x[:batch]), want) < 1e-5, batch


def test_arrays_that_cannot_be_written():
    x = numbers(3, 40)
    engine = compile_inference(lambda _, x: x @ W, {}, None, x)
    want = engine(x)
    x.flags.writeable = False
    np.testing.assert_array_equal(engine(x), want)


@pytest.mark.parametrize("batch", [2, 7, 15, 23, 34])
def test_same_bits_for_any_threads(batch):
    network = lambda _, x: jnp.tanh(x @ W) @ V
    x = numbers(batch, 40)
    one, *others = (compile_inference(network, {}, None, x, threads=n)(x) for n in (1, 2, 3))
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_no_image_changes_another():
    """Lanes of a group that hold no image of this call hold those of calls before."""
    engine = compile_inference(lambda _, x: jnp.maximum(x @ W, 0) @ V, {}, None, numbers(2, 40))
    x = numbers(9, 40)
    want = engine(x)
    for fill in (np.nan, np.inf, 1e30):
        engine(np.full((16, 40), fill, np.float32))
        np.testing.assert_array_equal(engine(x), want)
        mixed = x.copy()
        mixed[::2] = fill
        np.testing.assert_array_equal(engine(mixed)[1::2], want[1::2])


@pytest.mark.parametrize("batch", [1, 5, 16, 39])
def test_tuned(batch, tmp_path):
    """Whatever is found fastest, outputs are right, and of the same bits for any threads."""
    network = lambda _, x: (
        jnp.tanh(x.reshape(-1, 5, 8)[..., None] * V[:1, None, None]).max((1, 2)) @ V[:5]
    )
    x = numbers(batch, 40)
    engine = compile_inference(network, {}, None, x, threads=2)
    assert engine.is_whole
    save_engine(tmp_path / "network.jse", engine)
    loaded = load_engine(tmp_path / "network.jse", 1)
    want = network({}, x)
    for _ in range(3):
        engine.tune(x)
        loaded.tune(x)
        for other in (1, batch, 40):
            y = numbers(other, 40)
            assert difference(engine(y), network({}, y)) < 1e-5
        np.testing.assert_allclose(engine(x), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(loaded(x)[0], want, rtol=1e-4, atol=1e-5)


def test_what_is_not_tuned():
    mixed = compile_inference(lambda _, x: jnp.sort(x @ W), {}, None, numbers(2, 40))
    with pytest.raises(ValueError, match="only a network that the engine runs as a whole is tuned"):
        mixed.tune(numbers(2, 40))


def test_a_profile_of_a_small_group():
    engine = compile_inference(lambda _, x: jnp.tanh(x @ W) @ V, {}, None, numbers(2, 40))
    profile = engine.profile(numbers(5, 40), repeats=1)
    assert [step.kind for step in profile.steps if step.planes] == ["linear", "linear"]
    assert all(step.microseconds > 0 for step in profile.steps if step.planes)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "network",
    [
        lambda x: (x @ W) / x.shape[0],
        lambda x: (x @ W) * (1 if x.shape[0] == 6 else 5),
        lambda x: (x @ W).reshape(2, -1),
        lambda x: (x @ W).reshape(6, 3, 10),
    ],
)
def test_functions_that_read_the_number_of_images(network, tmp_path):
    x = numbers(6, 40)
    engine = compile_inference(lambda _, x: network(x), {}, None, x)
    assert not engine.is_whole
    assert "the number of images: it changes what the function does" in str(engine)
    assert difference(engine(x), network(x)) < 1e-5
    with pytest.raises(ValueError, match="the number of images"):
        save_engine(tmp_path / "network.jse", engine)
    if network(x).shape[0] == 6:
        return
    assert difference(engine(x[:4]), network(x[:4])) < 1e-5


def test_small_integers():
    """Images of uint8 are numbers as soon as the function makes them so."""
    images = np.random.default_rng(0).integers(0, 256, (17, 40)).astype(np.uint8)
    network = lambda _, x: (x / 255.0) @ W
    engine = compile_inference(network, {}, None, images[:1])
    assert engine.is_whole
    for batch in (1, 5, 17):
        assert difference(engine(images[:batch]), network({}, images[:batch])) < 1e-5
    flags = images > 128
    engine = compile_inference(lambda _, x: x.astype(np.float32) @ W, {}, None, flags)
    assert engine.is_whole
    assert difference(engine(flags), flags @ W) < 1e-5


def test_examples_without_images():
    for example, message in (
        ({}, "need images along their first axis: none"),
        ((np.ones((2, 3), np.float32), np.float32(2)), r"first axis: \(2, 3\), \(\)"),
        ((np.ones((2, 3)), np.ones((3, 3))), r"different numbers of images: \(2, 3\), \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            compile_inference(lambda _, x: x, {}, None, example)
