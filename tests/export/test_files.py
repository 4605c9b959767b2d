"""safetensors files: exact round trips, sizes, one clear error for everything else."""

import base64
import json
import sys
import zlib

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given

from jaxsparse.export import load_safetensors, save_safetensors
from jaxsparse.masks import apply_masks, dense_masks
from jaxsparse.types import KernelAxes
from tests.leaves import bits, leaves, masked
from tests.trees import FIXED, every_other, fill

PARAMS = {
    "fc": {"kernel": np.arange(1.0, 4097).reshape(64, 64), "bias": np.zeros(64, np.float32)},
    "head": {"kernel": np.arange(1, 5, dtype=np.float16).reshape(2, 2)},
}
MASKS = {
    "fc": {"kernel": np.arange(4096).reshape(64, 64) % 64 == 0, "bias": np.ones(64, bool)},
    "head": {"kernel": np.array([[True, False], [True, True]])},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.map(bits, got) == jax.tree.map(bits, expected)


@given(st.lists(leaves(), min_size=1, max_size=3))
def test_round_trip_to_the_bit(tmp_path_factory, drawn):
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    params = {f"layer{i}": {"kernel": weights} for i, (weights, _) in enumerate(drawn)}
    masks = {f"layer{i}": {"kernel": mask} for i, (_, mask) in enumerate(drawn)}
    report = save_safetensors(path, params, masks)
    assert report.file_bytes == path.stat().st_size
    assert_same(load_safetensors(path), (jax.tree.map(masked, params, masks), masks))


def test_sizes_by_eye(path):
    report = save_safetensors(path, PARAMS, MASKS)
    bias, kernel, head = report.leaves
    assert (bias.form, bias.stored_bytes, bias.dense_bytes) == ("dense", 256, 256)
    # 64 float64 values, as many uint8 columns, 65 uint8 row ends; the bits would be 512 bytes.
    assert (kernel.form, kernel.num_active, kernel.size) == ("csr", 64, 4096)
    assert (kernel.stored_bytes, kernel.dense_bytes) == (64 * 8 + 64 + 65, 4096 * 8)
    # 3 float16 values and 4 bits, against 3 columns and 3 row ends.
    assert (head.form, head.stored_bytes, head.dense_bytes) == ("bits", 3 * 2 + 1, 8)
    assert report.dense_bytes == 256 + 32_768 + 8
    assert report.file_bytes == path.stat().st_size
    lines = str(report).splitlines()
    assert lines[1].split() == ["fc/kernel", "csr", "4,096", "64", "32,768", "641", "0.0196"]
    assert lines[-1].split()[:4] == ["file", "4,164", "131", "33,032"]


@pytest.mark.parametrize(("every", "form"), [(20, "csr"), (15, "bits")])
def test_the_smaller_form_is_taken(path, every, form):
    # 16-bit columns: 2 bytes for each of size / every weights, against size / 8 bytes.
    mask = np.arange(100 * 1000).reshape(1000, 100) % every == 0
    params = {"kernel": np.ones(mask.shape, np.float32)}
    assert save_safetensors(path, params, {"kernel": mask}).leaves[0].form == form


def test_without_masks_it_is_a_file_like_any_other(path):
    report = save_safetensors(path, PARAMS)
    assert [leaf.form for leaf in report.leaves] == ["dense"] * 3
    theirs = safetensors.numpy.load_file(path)
    assert sorted(theirs) == ["fc/bias", "fc/kernel", "head/kernel"]
    np.testing.assert_array_equal(theirs["fc/kernel"], PARAMS["fc"]["kernel"])
    assert_same(load_safetensors(path), (PARAMS, jax.tree.map(np.asarray, dense_masks(PARAMS))))


def test_a_file_of_another_program(path):
    safetensors.numpy.save_file({"fc.weight": np.eye(2), "n": np.array(3)}, path)
    params, masks = load_safetensors(path)
    assert bits(params["fc.weight"]) == bits(np.eye(2))
    assert params["n"].shape == () and masks["n"].all() and masks["fc.weight"].all()


def test_memory_order_does_not_matter(path):
    # safetensors itself writes the memory of a transposed array, with the shape of its values.
    params = {"kernel": np.arange(6.0).reshape(2, 3).T}
    save_safetensors(path, params)
    np.testing.assert_array_equal(load_safetensors(path)[0]["kernel"], params["kernel"])


def test_containers_come_from_like(path):
    masks = every_other(FIXED)
    params = apply_masks(fill(FIXED, 0, jnp.bfloat16), masks)
    save_safetensors(path, params, masks)
    assert_same(load_safetensors(path, like=FIXED), (params, masks))
    nested, _ = load_safetensors(path)
    assert bits(nested["blocks"]["0"]["kernel"]) == bits(params["blocks"][0].kernel)


# query/kernel (4, 2, 3), every fifth weight, and out/kernel (2, 3, 4), as format 1 had them.
OLD = zlib.decompress(
    base64.b85decode(
        "c-obaL2kk@5Jk-mIK!+*Kw^-hY+AbD2CQ%txxx`pAi;JJD6*6Vhv67GTF1#IRTc$H)_6QK?|-`)v36CErYB|PR$7^"
        "+5La-JH&aM$6vR*oxGHV-`B^|5pn$GI303maPJfg>t7DgExjxZJ!1vx70ls@D3*Wp6k>fmZbag3}zP~y)M;c6=bKtN"
        "iH@V7Vsf;(fwfDjsUGWgG8}xDsLi?aR%Z#$rxtU=^`hVpA#Vm%H2*Z}sGvjUd8SAKr;6p?hArA&#-lgyWIsK?(to~r"
        "ES$46eIHTQsGWJ~7Z1fm^{Q|zln~V"
    )
)


def attention(every):
    """Params and masks of an attention's query and out; every n-th weight is active."""
    shapes = {"query": (4, 2, 3), "out": (2, 3, 4)}
    of_one = lambda make: {name: {"kernel": make(name, shape)} for name, shape in shapes.items()}
    return (
        of_one(lambda name, shape: np.arange(1, 25, dtype=np.float32).reshape(shape)),
        of_one(lambda name, shape: np.arange(24).reshape(shape) % every[name] == 0),
    )


def test_files_of_the_first_format_load_as_before(path):
    assert b'\\"version\\":1,' in OLD
    path.write_bytes(OLD)
    params, masks = attention({"query": 5, "out": 23})
    assert_same(load_safetensors(path), (jax.tree.map(masked, params, masks), masks))


@pytest.mark.parametrize("every", [5, 23])
@pytest.mark.parametrize("axes", [None, {"out/kernel": KernelAxes((0, 2), (1,))}])
def test_files_of_kernels_with_other_outputs_are_of_the_second_format(path, every, axes):
    params, masks = attention({"query": every, "out": every})
    save_safetensors(path, params, masks, axes=axes)
    assert_same(load_safetensors(path), (jax.tree.map(masked, params, masks), masks))
    with safetensors.safe_open(path, "np") as file:
        described = json.loads(file.metadata()["jaxsparse"])
        values = file.get_tensor("query/kernel.values")
    assert described["version"] == 2
    outputs = {name: leaf.get("outputs") for name, leaf in described["sparse"].items()}
    assert outputs == {"query/kernel": [1, 2], "out/kernel": axes and [1]}
    by_output = np.moveaxis(masked(params["query"]["kernel"], masks["query"]["kernel"]), 0, -1)
    np.testing.assert_array_equal(values, by_output[by_output != 0])


def test_files_without_such_leaves_are_of_the_first_format(path):
    """An example is an attention whose query is dense; the outputs of `out` are last."""
    params, masks = attention({"query": 1, "out": 23})
    save_safetensors(path, params, masks)
    with safetensors.safe_open(path, "np") as file:
        text = file.metadata()["jaxsparse"]
    out = '{"form":"bits","shape":[2,3,4]}'
    assert text.startswith(f'{{"version":1,"sparse":{{"out/kernel":{out}}},"crc32":"')


def test_params_that_are_one_array_come_back_as_one(path):
    params, masks = np.arange(6.0).reshape(2, 3), np.eye(2, 3, dtype=bool)
    save_safetensors(path, params, masks)
    assert_same(load_safetensors(path), (np.where(masks, params, 0), masks))
    assert_same(load_safetensors(path, like=params), (np.where(masks, params, 0), masks))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.ones(2), "b": np.ones(2)}, "the file has no leaf b, which like has"),
        ({"a": np.ones(3)}, r"the file at a has shape \(2,\), like has \(3,\)"),
        ({}, "the file has a leaf a, which like lacks"),
    ],
)
def test_like_that_does_not_fit(path, like, message):
    save_safetensors(path, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
        load_safetensors(path, like=like)


def rewritten(path, change):
    """Writes the good file again with its tensors and description changed."""
    save_safetensors(path, PARAMS, MASKS)
    with safetensors.safe_open(path, "np") as file:
        tensors, header = file.get_tensors(), json.loads(file.metadata()["jaxsparse"])
    del header["crc32"]  # as before there were checksums: what is wrong must be seen without them
    change(tensors, header)
    safetensors.numpy.save_file(tensors, path, {"jaxsparse": json.dumps(header)})


def put(name, value):
    return lambda tensors, header: tensors.update({name: value})


def describe(**entries):
    return lambda tensors, header: header.update(entries)


def describe_head(**entries):
    return lambda tensors, header: header["sparse"]["head/kernel"].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("fc/kernel.indptr"), "tensor fc/kernel.indptr is missing"),
        (put("fc/kernel", np.ones(2)), "fc/kernel is there dense and sparse"),
        (put("fc/kernel.indices", np.full(64, 64, np.uint8)), r"fc/kernel: index 64 is outside"),
        (put("fc/kernel.values", np.ones(63)), r"fc/kernel: values \(63,\) and indices \(64,\)"),
        (put("head/kernel.bits", np.zeros(2, np.uint8)), r"head/kernel: bits uint8\(2,\) do not"),
        (put("head/kernel.bits", np.zeros(1, np.uint8)), "head/kernel: 0 bits are set, but values"),
        (describe_head(shape=[2, 5]), r"head/kernel: bits uint8\(1,\) do not fit 10 weights"),
        (describe_head(shape=[2, -2]), "metadata 'jaxsparse' cannot be understood"),
        (describe_head(form="coo"), "metadata 'jaxsparse' cannot be understood"),
        (describe(sparse=[]), "metadata 'jaxsparse' cannot be understood"),
        (describe(version=3), "written in format 3; this jaxsparse reads up to 2"),
        (describe_head(outputs=[1, 0]), r"head/kernel: outputs \(1, 0\) must be axes of \(2, 2\)"),
        (
            describe_head(outputs=[2]),
            r"head/kernel: outputs \(2,\) must be axes of \(2, 2\), rising",
        ),
        (describe_head(outputs=3), "metadata 'jaxsparse' cannot be understood"),
        (put("fc", np.ones(2)), "fc/(bias|kernel) is inside the leaf fc, so no nested dict can"),
        (put("fc/bias/x", np.ones(2)), "fc/bias/x is inside the leaf fc/bias, so no nested dict"),
    ],
)
def test_a_file_that_says_what_cannot_be(path, change, message):
    rewritten(path, lambda tensors, header: None)
    assert_same(load_safetensors(path), (jax.tree.map(masked, PARAMS, MASKS), MASKS))
    rewritten(path, change)
    with pytest.raises(ValueError, match=f"model.safetensors: .*({message})"):
        load_safetensors(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"0",
        lambda data: b"PK\x03\x04" + data,
        lambda data: data[:8] + b"[" + data[9:],
    ],
    ids=["empty", "7 bytes", "half a header", "1 byte less", "1 byte more", "a zip", "no JSON"],
)
def test_a_damaged_file(path, damage):
    save_safetensors(path, PARAMS, MASKS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        load_safetensors(path)


def test_whatever_the_damage_it_is_one_kind_of_error(path):
    save_safetensors(path, PARAMS, MASKS)
    good, rng, raised = path.read_bytes(), np.random.default_rng(0), 0
    header = 8 + int.from_bytes(good[:8], "little")
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(header)] = ord(rng.choice(list('0123456789",[]{}:ae.-')))
        path.write_bytes(data)
        try:
            load_safetensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            raised += 1
    assert 250 < raised < 300  # a file may stay one that says something


@pytest.mark.parametrize("masks", [MASKS, None], ids=["sparse", "dense"])
def test_one_bit_flipped_anywhere_is_found_or_harmless(path, masks):
    """Without checksums, 167 of 200 flips in the data gave another weight and no error."""
    save_safetensors(path, PARAMS, masks, metadata={"step": "100"})
    good, trees, rng, refused = (
        path.read_bytes(),
        load_safetensors(path),
        np.random.default_rng(0),
        0,
    )
    header = 8 + int.from_bytes(good[:8], "little")
    for trial in range(300):
        data = bytearray(good)
        at = rng.integers(8 * header) if trial % 2 else rng.integers(8 * header, 8 * len(data))
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            assert_same(load_safetensors(path), trees)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert 250 < refused < 300  # metadata of one's own may change


def test_what_is_damaged_is_named(path):
    rewritten(path, lambda tensors, header: None)
    old = path.read_bytes()
    save_safetensors(path, PARAMS, MASKS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="safetensors: [a-z/.]+ is damaged: it has another checks"):
        load_safetensors(path)
    # A file without checksums is still read, with the changed value.
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    load_safetensors(path)


def test_a_file_written_again_by_another_program_keeps_its_checksums(path):
    save_safetensors(path, PARAMS, MASKS)
    with safetensors.safe_open(path, "np") as file:
        tensors, metadata = file.get_tensors(), file.metadata()
    again = dict(reversed(tensors.items())), {"format": "pt"} | metadata
    safetensors.numpy.save_file(again[0], path, again[1])
    assert_same(load_safetensors(path), (jax.tree.map(masked, PARAMS, MASKS), MASKS))
    safetensors.numpy.save_file(tensors | {"more": np.ones(1)}, path, metadata)
    with pytest.raises(ValueError, match="has checksums of other tensors than the file"):
        load_safetensors(path)


def test_a_dtype_that_numpy_lacks(path):
    header = b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(ValueError, match="model.safetensors: a has dtype F8_E8M0, which NumPy"):
        load_safetensors(path)


def test_no_such_file(path):
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_safetensors(path)


@pytest.mark.parametrize(
    ("params", "masks", "message"),
    [
        ({"a": np.ones(2, np.complex128)}, None, "params at a has dtype complex128; a safetensors"),
        ({"a": {"act": np.tanh}}, None, "params at a/act has dtype object"),
        ({"a": {"key": jax.random.key(0)}}, None, "params at a/key is a random key; write jax."),
        ({"a": np.ones(2)}, {"b": np.ones(2, bool)}, "masks has no leaf a, which params has"),
        (
            {"a": np.ones(2), "a.values": np.ones(2)},
            {"a": np.array([True, False]), "a.values": np.ones(2, bool)},
            "the name a.values is taken in the file; rename the leaf",
        ),
        ({"__metadata__": np.ones(2)}, None, "the name __metadata__ is taken in the file"),
    ],
)
def test_trees_that_cannot_be_written(path, params, masks, message):
    path.write_text("what was there")
    with pytest.raises(ValueError, match=message):
        save_safetensors(path, params, masks)
    assert path.read_text() == "what was there"


def test_a_file_is_replaced_whole(path):
    path.write_text("what was there")
    save_safetensors(path, PARAMS, MASKS)
    first = path.read_bytes()
    save_safetensors(path, PARAMS, MASKS)
    assert path.read_bytes() == first  # the same trees, the same bytes
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        save_safetensors(tmp_path / "folder", PARAMS)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_metadata(path):
    save_safetensors(path, PARAMS, MASKS, metadata={"step": "100"})
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["step"] == "100"
    load_safetensors(path)
    for metadata in ({"jaxsparse": "1"}, {"step": 100}):
        with pytest.raises(ValueError, match="must be strings, under a name but jaxsparse"):
            save_safetensors(path, PARAMS, metadata=metadata)


def test_without_the_package(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxsparse\[export\]'"):
        save_safetensors(path, PARAMS)
    assert not path.exists()
