"""Small copies of CIFAR in the official layouts, and what is in them."""

import hashlib
import io
import json
import pickletools
import struct
import tarfile

import numpy as np
from PIL import Image

FOLDER = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar10", "sheets"): "package",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}
COARSE = [f"coarse_{i}" for i in range(20)]
FINE = [f"fine_{i}" for i in range(100)]


def batches(name, num=4):
    """Name of each file -> (images uint8[num, 32, 32, 3], tuple of labels uint8[num])."""
    rng = np.random.default_rng(0)
    names = ["train", "test"]
    if name == "cifar10":
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    found = {}
    for batch in names:
        images = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
        fine = rng.permutation(10 if name == "cifar10" else 100)[:num].astype(np.uint8)
        found[batch] = (images, (fine,) if name == "cifar10" else (fine // 5, fine))
    return found


def files(name, layout):
    """Name of each file -> content."""
    return {"binary": binary, "python": python, "sheets": sheets}[layout](name)


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def binary(name):
    found = {
        f"{batch}.bin": np.column_stack([*labels, planes(images)]).tobytes()
        for batch, (images, labels) in batches(name).items()
    }
    if name == "cifar100":
        found["coarse_label_names.txt"] = "\n".join(COARSE).encode() + b"\n"
        found["fine_label_names.txt"] = "\n".join(FINE).encode() + b"\n"
    return found


def python(name):
    found = {}
    for batch, (images, labels) in batches(name).items():
        keys = ["labels"] if name == "cifar10" else ["coarse_labels", "fine_labels"]
        columns = {key: column.tolist() for key, column in zip(keys, labels, strict=True)}
        found[batch] = python2_pickle({"data": planes(images), **columns, "filenames": ["a.png"]})
    if name == "cifar100":
        found["meta"] = python2_pickle({"coarse_label_names": COARSE, "fine_label_names": FINE})
    return found


def sheets(name):
    assert name == "cifar10"
    found = {}
    all_labels = {"train": [], "test": []}
    for batch, (images, (labels,)) in batches(name).items():
        file = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG")
        found[f"{batch}.png"] = file.getvalue()
        all_labels["test" if batch == "test_batch" else "train"] += labels.tolist()
    return found | {f"{s}_lables.json": json.dumps(x).encode() for s, x in all_labels.items()}


def python2_pickle(value):
    """What Python 2 with an old NumPy wrote: str is bytes, `align` of a dtype is 0."""

    def string(x):
        return b"T" + struct.pack("<I", len(x)) + x

    def encode(x):
        if isinstance(x, str):
            return string(x.encode())
        if isinstance(x, int):
            return b"J" + struct.pack("<i", x)
        if isinstance(x, list):
            return b"](" + b"".join(map(encode, x)) + b"e"
        if isinstance(x, dict):
            return b"}(" + b"".join(encode(k) + encode(v) for k, v in x.items()) + b"u"
        shape = b"(" + b"".join(map(encode, x.shape)) + b"t"
        dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|")
        dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b")
        return empty + b"tR(K\x01" + shape + dtype + b"\x89" + string(x.tobytes()) + b"tb"

    content = b"\x80\x02" + encode(value) + b"."
    pickletools.dis(content, out=io.StringIO())  # is a pickle
    return content


def write_folder(folder, contents):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, folder, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def official(module, *layouts):
    """The module's `OFFICIAL`, as if the small copies were the published ones."""
    layouts = layouts or ("binary", "python")
    md5 = {
        n: hashlib.md5(c).hexdigest() for la in layouts for n, c in files(module.NAME, la).items()
    }
    return module.OFFICIAL._replace(md5=md5, archive_md5=())
