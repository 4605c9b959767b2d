"""Files of networks: what is written is read; what is damaged gets one clear error."""

import pickle
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.engine.files import load_engine, save_engine
from jaxsparse.engine.inference import compile_inference
from jaxsparse.engine.network import Network
from jaxsparse.engine.operations import Array, Pool, Size
from jaxsparse.engine.program import to_bytes
from tests.engine.agreement import numbers
from tests.engine.drawn import SHAPE, drawn


@pytest.fixture(scope="module")
def engine():
    network = drawn(4)
    return compile_inference(
        lambda _, x: network(x), {}, None, np.zeros((1, *SHAPE), np.float32), threads=1
    )


@pytest.fixture
def file(engine, tmp_path):
    path = tmp_path / "network.jse"
    assert save_engine(path, engine) == path.stat().st_size
    return path


def slow() -> bytes:
    """A file of 200 bytes with a max pool of windows as large as its image of 5000 x 5000."""
    net = Network()
    size = Size(5000, 5000)
    x = net.new(size, 1)
    net.inputs.append(Array(x, np.zeros(1, np.int64), 5000, 1, size))
    for _ in range(20):
        made = net.new(size, 1)
        net.operations.append(Pool(made, x, (10000, 10000), (1, 1), (-5000, -5000)))
        x = made
    net.outputs.append(Array(x, np.zeros(1, np.int64), 5000, 1, size))
    return to_bytes(net)


def with_body(data: bytes, body: bytes) -> bytes:
    """A file with another body, whose length and checksum are right."""
    return data[:12] + struct.pack("<II", zlib.crc32(body), len(body)) + body


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_there_and_back(engine, file, threads):
    x = numbers(17, *SHAPE)
    found = load_engine(file, threads)(x)
    for got, want in zip(found, jax.tree.leaves(engine(x)), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_memory(file):
    loaded = load_engine(file, 1)
    before = loaded.memory
    loaded(numbers(1, *SHAPE))
    assert loaded.memory > before > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "this is no network"),
        (lambda data: b"JSENGINE", "this is no network"),
        (lambda data: b"something else, and longer than a head", "this is no network"),
        (lambda data: data[:-1], "cut off or too long"),
        (lambda data: data[: len(data) // 2], "cut off or too long"),
        (lambda data: data + b"\0", "cut off or too long"),
        (lambda data: data[:8] + struct.pack("<I", 77) + data[12:], "version 77"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "damaged"),
        (lambda data: with_body(data, data[20:-4]), "it ends too early"),
        (lambda data: with_body(data, data[20:] + bytes(4)), "more bytes than its parts"),
        (lambda data: with_body(data, b""), "it ends too early"),
        (lambda data: with_body(data, b"\xff" * 400), "families is -1"),
        (lambda data: slow(), "it would take too long"),
    ],
)
def test_damaged(file, change, message):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"network.jse: .*{message}"):
        load_engine(file, 1)


def test_every_byte(file):
    """Each wrong byte is found by the checksum."""
    data = file.read_bytes()
    for at in range(0, len(data), 7):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="network.jse: (this is no|the) network"):
            load_engine(file, 1)


def test_not_there(file):
    with pytest.raises(FileNotFoundError):
        load_engine(file.with_name("missing.jse"))
    with pytest.raises(OSError, match="directory"):
        load_engine(file.parent)
    with pytest.raises(ValueError, match="threads"):
        load_engine(file, 0)


def test_wrong_inputs(file):
    loaded = load_engine(file, 1)
    with pytest.raises(ValueError, match="2 inputs, the network takes 1"):
        loaded(numbers(1, *SHAPE), numbers(1, *SHAPE))
    height, width, channels = SHAPE
    for wrong in (numbers(2, 5), numbers(2, channels, height, width), np.ones((), np.float32)):
        with pytest.raises(
            ValueError, match=r"input 0 has shape .*; it must be \(images, 7, 6, 4\)"
        ):
            loaded(wrong)
    with pytest.raises(ValueError, match="input 0 has dtype complex64"):
        loaded(numbers(2, *SHAPE).astype(np.complex64))


def test_arrays_are_in_the_order_of_the_function(tmp_path):
    """Read in another one, unread, repeated, passed on."""
    a, b, unread = numbers(17, 3), numbers(17, 3, seed=1), numbers(17, 2, 5, seed=2)
    w = numbers(3, 4, seed=3)

    def network(_, x):
        heads = x["b"] @ w - jnp.tanh(x["a"] @ w)
        return [heads, x["a"], heads, (x["b"] @ w).reshape(-1, 2, 2)]

    inputs = {"a": a, "b": b, "never read": unread}
    engine = compile_inference(network, {}, None, inputs)
    save_engine(tmp_path / "network.jse", engine)
    loaded = load_engine(tmp_path / "network.jse", 1)
    assert loaded.input_shapes == [(3,), (3,), (2, 5)]
    assert loaded.output_shapes == [(4,), (3,), (4,), (2, 2)]
    assert "(images, 3), (images, 3), (images, 2, 5) -> (images, 4)" in repr(loaded)
    for batch in (1, 3, 16, 17):
        some = {name: x[:batch] for name, x in inputs.items()}
        of_file, of_engine = loaded(*jax.tree.leaves(some)), engine(some)
        for got, same, want in zip(of_file, of_engine, network({}, some), strict=True):
            np.testing.assert_array_equal(got, same)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert not np.shares_memory(engine(inputs)[1], a)


def test_what_cannot_be_saved(engine, tmp_path):
    with pytest.raises(TypeError, match="engine is a str, not of compile_inference"):
        save_engine(engine, "network.jse")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        FileNotFoundError, match="missing/network.jse: there is no folder .*missing"
    ):
        save_engine(tmp_path / "missing" / "network.jse", engine)
    with pytest.raises(TypeError, match="cannot be pickled or copied; save_engine writes a file"):
        pickle.dumps(engine)


def test_a_shortcut_does_not_coarsen_int8():
    """Its weight of 1 becomes part of a convolution whose weights are small."""
    kernel = jnp.asarray(0.02 * numbers(3, 3, 8, 8, seed=1))
    convolved = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = numbers(2, 6, 6, 8)
    want = np.asarray(convolved(x))
    for shortcut in (0.0, 1.0):
        network = lambda _, x, shortcut=shortcut: shortcut * x + convolved(x)
        engine = compile_inference(network, {}, None, x, weights="int8")
        assert len([s for s in engine.profile(x, repeats=1).steps if s.planes]) == 1
        error = engine(x) - shortcut * x - want
        assert 1e-4 < np.sqrt(np.mean(error**2) / np.mean(want**2)) < 0.02


def test_parts_of_xla(tmp_path):
    gram = compile_inference(
        lambda _, x: jnp.einsum("nc,nd->ncd", x, x) @ np.eye(3, dtype=np.float32),
        {},
        None,
        np.zeros((1, 3), np.float32),
    )
    meets = compile_inference(lambda _, x: x * x[:1], {}, None, np.zeros((1, 3), np.float32))
    for engine in (gram, meets):
        with pytest.raises(ValueError, match="parts of the network need XLA"):
            save_engine(tmp_path / "network.jse", engine)
    assert list(tmp_path.iterdir()) == []
