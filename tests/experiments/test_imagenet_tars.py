import re

import numpy as np
import pytest

from experiments.data import imagenet_webdataset
from experiments.data.imagenet_labels import read_labels
from experiments.data.imagenet_tars import read_copy
from tests.experiments import small_imagenet as small


@pytest.fixture(scope="module")
def train():
    return small.images("train", 30)


@pytest.fixture(scope="module")
def validation():
    return small.images("validation", 12)


@pytest.fixture
def official(tmp_path, train, validation):
    return small.write_official(tmp_path, train, validation)


@pytest.fixture
def webdataset(tmp_path, train, validation):
    return small.write_webdataset(tmp_path, train, validation)


def contents(index):
    """The images that an index leads to."""
    whole = [path.read_bytes() for path in index.tars]
    return {
        (name.decode(), label, whole[tar][offset : offset + size])
        for tar, name, label, offset, size in zip(*index[1:], strict=True)
    }


@pytest.mark.parametrize("form", ["official", "cls", "json"])
def test_all_images_are_found(tmp_path, train, validation, form):
    if form == "official":
        small.write_official(tmp_path, train, validation)
    else:
        small.write_webdataset(tmp_path, train, validation, label_in=form)
    found = read_copy(tmp_path, subset=True)
    assert list(found) == ["train", "validation"]
    assert contents(found["train"]) == set(train)
    assert contents(found["validation"]) == set(validation)


def test_a_part_has_to_be_asked_for(official):
    expected = (
        f"train: 30 images of 10 classes in {official}, expected 1,281,167 of 1000; pass --subset "
        f"to prepare a part"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_copy(official)


@pytest.mark.parametrize("missing", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_missing_tar(official, missing):
    (official / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"^{missing} missing in {official}; expected ILSV"):
        read_copy(official)


def test_no_tar_and_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^no tars of ImageNet in {tmp_path}; expected IL"):
        read_copy(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^no folder {tmp_path}/x; expected ILSVRC2012"):
        read_copy(tmp_path / "x")


@pytest.mark.parametrize("left", [0.2, 0.5, 0.9])
def test_an_official_tar_that_is_cut_off(official, left):
    path = official / "ILSVRC2012_img_train.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    with pytest.raises(ValueError, match=f"^{path} is cut off: .*; get it again$"):
        read_copy(official, subset=True)


def test_an_inner_tar_that_is_cut_off(tmp_path, train, validation):
    small.write_official(tmp_path, train, validation)
    inner = small.tar_bytes({x.name: x.content for x in train if x.label == 0})
    path = tmp_path / "ILSVRC2012_img_train.tar"
    small.write_tar(path, {"n01440764.tar": inner[: len(inner) // 2], "n01443537.tar": inner})
    with pytest.raises(ValueError, match=f"^{path}: n01440764.tar is cut off: its last whole file"):
        read_copy(tmp_path, subset=True)


def test_an_unknown_class(official):
    path = small.write_tar(
        official / "ILSVRC2012_img_train.tar", {"n99999999.tar": small.tar_bytes({})}
    )
    expected = f"{path}: n99999999.tar: n99999999 is none of the 1000 classes of ImageNet"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        read_copy(official, subset=True)


def test_an_image_twice(official, train):
    inner = small.tar_bytes({train[0].name: train[0].content})
    path = official / "ILSVRC2012_img_train.tar"
    small.write_tar(path, {"n01440764.tar": inner, "n01443537.tar": inner})
    expected = f"train: {train[0].name} is in {path} and again in {path}, expected once"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        read_copy(official, subset=True)


def test_an_empty_train_tar(official):
    path = small.write_tar(official / "ILSVRC2012_img_train.tar", {})
    with pytest.raises(ValueError, match=f"^train: no image in {path}$"):
        read_copy(official, subset=True)


@pytest.mark.parametrize("name", ["cat.JPEG", "ILSVRC2012_val_00050001.JPEG"])
def test_a_validation_image_of_another_name(official, name):
    path = small.write_tar(official / "ILSVRC2012_img_val.tar", {name: b""})
    with pytest.raises(ValueError, match=f"^{path}: {name} is no ILSVRC2012_val_00000001.JPEG to "):
        read_copy(official, subset=True)


def test_validation_labels_do_not_depend_on_which_images_are_there(official, validation):
    half = validation[1::2]
    small.write_tar(official / "ILSVRC2012_img_val.tar", {x.name: x.content for x in half})
    assert contents(read_copy(official, subset=True)["validation"]) == set(half)


def test_labels_of_tfds():
    labels = read_labels()
    assert list(labels.of_synset)[:2] == ["n01440764", "n01443537"]
    assert labels.of_synset["n01443537"] == labels.of_image("n01443537_5.JPEG") == 1
    # The first images of the official validation set: a snake, a ski, a sheepdog.
    names = [f"ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2, 3)]
    assert [labels.of_image(name) for name in names] == [65, 970, 230]
    assert labels.of_image("cat.JPEG") is labels.of_image("ILSVRC2012_val_00000000.JPEG") is None


def test_labels_that_are_missing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core, "tfds_path", lambda path: tmp_path / path)
    expected = f"{tmp_path}/datasets/imagenet2012/labels.txt has 0 lines, expected the 1,000 labels"
    with pytest.raises(ValueError, match=f"^{expected} of ImageNet that tensorflow-datasets"):
        read_labels()


# WebDataset


def refused(folder, files, expected):
    path = small.write_tar(folder / "imagenet1k-train-0001.tar", files)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {expected}')}$"):
        read_copy(folder, subset=True)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.jpg": b""}, "a has no label: expected a .cls, or a .json with a label"),
        (
            {"a.jpg": b"", "a.json": b"{}"},
            "a has no label: expected a .cls, or a .json with a label",
        ),
        (
            {"b/a.jpg": b"", "c/a.cls": b"1"},
            "b/a has no label: expected a .cls, or a .json with a label",
        ),
        ({"a.cls": b"1", "b.jpg": b""}, "a has no image, .jpg or .jpeg"),
        ({"a.jpg": b"", "a.cls": b"1000"}, "a has label '1000', expected 0 to 999"),
        ({"a.jpg": b"", "a.cls": b"cat"}, "a has label 'cat', expected 0 to 999"),
        ({"a.jpg": b"", "a.cls": b"\xff"}, "a has label '\ufffd', expected 0 to 999"),
        ({"a.jpg": b"", "a.json": b'{"label": -1}'}, "a has label -1, expected 0 to 999"),
        ({"a.jpg": b"", "a.json": b"[3]"}, "a.json is [3], expected an object with a label"),
        (
            {"n01440764_1.jpg": b"", "n01440764_1.cls": b"5"},
            "n01440764_1 has label 5, but n01440764_1.JPEG is of class 0",
        ),
        (
            {"x.jpg": b"", "x.json": b'{"label": 5, "filename": "a/ILSVRC2012_val_00000001.JPEG"}'},
            "x has label 5, but ILSVRC2012_val_00000001.JPEG is of class 65",
        ),
        (
            {"n99999999_1.jpg": b"", "n99999999_1.cls": b"5"},
            "n99999999_1: n99999999 is none of the 1000 classes of ImageNet",
        ),
    ],
)
def test_samples_that_are_refused(webdataset, files, expected):
    refused(webdataset, files, expected)


def test_a_json_that_is_none(webdataset):
    small.write_tar(webdataset / "imagenet1k-train-0001.tar", {"a.jpg": b"", "a.json": b"{"})
    with pytest.raises(ValueError, match=r"train-0001.tar: a.json is no JSON \(Expecting "):
        read_copy(webdataset, subset=True)


def test_other_files_beside_the_pairs_do_not_matter(webdataset):
    path = webdataset / "imagenet1k-train-0001.tar"
    small.write_tar(path, {"a.JPEG": b"x", "a.cls": b"3\n", "a.seg.png": b"", "README.txt": b""})
    index = read_copy(webdataset, subset=True)["train"]
    assert ("a.JPEG", 3, b"x") in contents(index)
    assert b"README.JPEG" not in index.name


def test_tars_are_read_in_the_order_of_their_numbers(webdataset, train):
    assert np.array_equal(
        read_copy(webdataset, subset=True)["train"].name,
        [x.name.encode() for number in range(3) for x in train[number::3]],
    )


def test_a_gap_in_the_numbers(webdataset):
    (webdataset / "imagenet1k-train-0001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"tars number 1 of train are missing beside image"):
        read_copy(webdataset, subset=True)


def test_two_sets_in_a_folder(webdataset):
    (webdataset / "imagenet22k-train-0000.tar").write_bytes(b"")
    expected = r"imagenet1k-train-\*.tar, imagenet22k-train-\*.tar are several sets of train images"
    with pytest.raises(ValueError, match=expected):
        read_copy(webdataset, subset=True)


def test_no_validation_images(webdataset):
    for path in imagenet_webdataset.shards(webdataset, "validation"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^NAME-validation-0000.tar ... missing in "):
        read_copy(webdataset, subset=True)
