"""Fashion-MNIST as NumPy arrays: the shipped sample, or the full set from a folder.

The full set is 60,000 training and 10,000 test images of clothing, 28 x 28 grey, in ten classes of
equal size. Both come as gzipped IDX files: a magic number, the dimensions, then unsigned bytes.

Reference: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

import gzip
import hashlib
import http.client
import math
import os
import shlex
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset, Split

NUM_CLASSES = 10
SAMPLE_DIR = Path(__file__).parent / "sample"
# Of the decompressed bytes: the official site and Debian compress the same content differently.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


def load(data_dir: Path | None, *, val_fraction: float = 0.1) -> Dataset:
    """Reads Fashion-MNIST and cuts a validation set off the end of the training set.

    The cut is deterministic and needs no shuffle: the files are shuffled already (every tenth of
    the full training set holds 555 to 654 images of each class, 600 expected), and the sample is
    ordered so that every ten consecutive images show the ten classes. The test set is left alone.

    Args:
      data_dir: folder of the full set; the files lie in it or in its subfolder `fashion_mnist`,
        which is looked at first, as the files of MNIST have the same names. None reads the shipped
        sample of 5,000 training and 1,000 test images.
      val_fraction: share of the training images that become the validation set, in (0, 1); their
        number is rounded to the nearest integer.

    Returns:
      The data set, named "fashion_mnist", or "fashion_mnist_sample" for the sample.

    Raises:
      FileNotFoundError: a file is missing; the line says where it was expected and how to get it.
      ValueError: `val_fraction` is out of range or leaves a split empty, or a file is damaged.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, expected a number between 0 and 1")
    paths = find_files(SAMPLE_DIR if data_dir is None else data_dir)
    train = read_split(paths["train-images-idx3-ubyte"], paths["train-labels-idx1-ubyte"])
    test = read_split(paths["t10k-images-idx3-ubyte"], paths["t10k-labels-idx1-ubyte"])
    num_images = len(train.labels)
    num_train = num_images - round(num_images * val_fraction)
    if not 0 < num_train < num_images:
        raise ValueError(
            f"val_fraction={val_fraction} of {num_images} images leaves {num_train} for training "
            f"and {num_images - num_train} for validation, expected at least 1 each"
        )
    return Dataset(
        name="fashion_mnist_sample" if data_dir is None else "fashion_mnist",
        train=Split(train.images[:num_train], train.labels[:num_train]),
        val=Split(train.images[num_train:], train.labels[num_train:]),
        test=test,
        num_classes=NUM_CLASSES,
    )


def find_files(data_dir: Path) -> dict[str, Path]:
    """Finds the four files, gzipped or not, by their official names.

    Args:
      data_dir: folder that holds the files, or whose subfolder `fashion_mnist` does.

    Returns:
      Path of each file, keyed by its official name without `.gz`.

    Raises:
      FileNotFoundError: neither folder holds all four files.
    """
    fewest_missing = list(CONTENT_SHA256)
    for folder in (data_dir / "fashion_mnist", data_dir):
        found = {}
        for name in CONTENT_SHA256:
            for path in (folder / name, folder / f"{name}.gz"):  # the last one found is taken
                if path.is_file():
                    found[name] = path
        missing = [name for name in CONTENT_SHA256 if name not in found]
        if not missing:
            return found
        fewest_missing = min(fewest_missing, missing, key=len)
    raise FileNotFoundError(
        f"Fashion-MNIST: {', '.join(f'{name}.gz' for name in fewest_missing)} expected in "
        f"{data_dir / 'fashion_mnist'} or {data_dir}; fetch with: {_fetch_command(data_dir)}"
    )


def read_split(images_path: Path, labels_path: Path) -> Split:
    """Reads the images and the labels of one split.

    Args:
      images_path: IDX file of uint8[n, 28, 28], gzipped if its name ends in `.gz`.
      labels_path: IDX file of uint8[n], values in [0, 10), likewise.

    Returns:
      The split: images uint8[n, 28, 28, 1], labels int32[n], n at least 1.

    Raises:
      ValueError: a file is damaged, has other dimensions or labels, or the counts differ.
    """
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise ValueError(f"{images_path}: shape is {images.shape}, expected (at least 1, 28, 28)")
    if len(labels) != len(images):
        raise ValueError(
            f"{labels_path}: {len(labels)} labels, expected {len(images)}, the number of images "
            f"in {images_path}"
        )
    if labels.max() >= NUM_CLASSES:
        worst = int(labels.argmax())
        raise ValueError(
            f"{labels_path}: label {labels[worst]} at index {worst}, "
            f"expected 0 to {NUM_CLASSES - 1}"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
      path: the file, gzipped if its name ends in `.gz`.
      ndim: number of dimensions that the file has to have, at least 1.

    Returns:
      uint8 array with `ndim` dimensions, read-only.

    Raises:
      ValueError: not such a file, truncated, or longer than its header says.
    """
    content = _read_content(path)
    header_size = 4 + 4 * ndim
    if len(content) < header_size:
        raise ValueError(f"{path}: {len(content)} bytes, expected a header of {header_size} bytes")
    magic, *shape = (int(word) for word in np.frombuffer(content, ">u4", count=1 + ndim))
    expected_magic = 0x0800 | ndim  # 08 says unsigned byte, the last byte counts the dimensions
    if magic != expected_magic:
        raise ValueError(
            f"{path}: magic number is 0x{magic:08x}, expected 0x{expected_magic:08x} "
            f"(unsigned bytes in {ndim} dimensions)"
        )
    if len(content) - header_size != math.prod(shape):
        raise ValueError(
            f"{path}: {len(content) - header_size} bytes after the header, expected "
            f"{math.prod(shape)} for shape {tuple(shape)}; fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def prepare(data_dir: Path) -> None:
    """Fetches the full set into `data_dir/fashion_mnist`, unless it is complete already.

    Tries the official site, then the Debian package where apt-get and dpkg exist (unpacked into a
    temporary folder, not installed). The content of all four files is checked before the first of
    them is moved into place. Prints what it does.

    Args:
      data_dir: folder for data sets, created if missing.

    Raises:
      ConnectionError: no source gave the right files; the line says what to do by hand.
      OSError: `data_dir` cannot be written.
    """
    folder = data_dir / "fashion_mnist"
    try:
        _check_content(found := find_files(data_dir))
        print(f"Fashion-MNIST is complete in {found['train-images-idx3-ubyte'].parent}")
        return
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"fetching again, as a file is damaged: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    for source, fetch in (("official site", _download), ("Debian package", _unpack_debian)):
        print(f"trying the {source}", flush=True)
        # Inside the target folder, so that the move is a rename on one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            try:
                fetched = find_files(fetch(Path(temporary)))
                _check_content(fetched)
            except (OSError, ValueError, http.client.HTTPException) as error:
                print(f"  did not work: {error}", flush=True)
                continue
            for path in fetched.values():
                os.replace(path, folder / path.name)
        print(f"Fashion-MNIST is complete in {folder}")
        return
    raise ConnectionError(
        f"Fashion-MNIST could not be fetched: put {', '.join(f'{n}.gz' for n in CONTENT_SHA256)} "
        f"from https://github.com/zalandoresearch/fashion-mnist into {folder}"
    )


def _fetch_command(data_dir: Path) -> str:
    script = "python experiments/data/prepare.py fashion_mnist"
    return f"{script} --data_dir={shlex.quote(str(data_dir))}"


def _read_content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: {len(content)} bytes, expected a whole gzip file ({error}); "
            "fetch the file again"
        ) from error


def _check_content(paths: dict[str, Path]) -> None:
    for name, path in paths.items():
        digest = hashlib.sha256(_read_content(path)).hexdigest()
        if digest != CONTENT_SHA256[name]:
            raise ValueError(
                f"{path}: sha256 of the content is {digest}, expected {CONTENT_SHA256[name]}"
            )


def _download(folder: Path) -> Path:
    for name in CONTENT_SHA256:
        with urllib.request.urlopen(f"{_OFFICIAL_URL}{name}.gz", timeout=10) as response:
            print(f"  {name}.gz, {response.headers['Content-Length']} bytes", flush=True)
            with open(folder / f"{name}.gz", "wb") as file:
                shutil.copyfileobj(response, file)
    return folder


def _unpack_debian(folder: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise FileNotFoundError("this system has no apt-get and dpkg")
    _run(["apt-get", "download", _DEBIAN_PACKAGE], folder)
    (package,) = folder.glob("*.deb")
    print(f"  {package.name}, {package.stat().st_size} bytes", flush=True)
    _run(["dpkg", "-x", package.name, "."], folder)
    return folder / _DEBIAN_FOLDER


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{shlex.join(command)} took more than {error.timeout} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"{shlex.join(command)}: {last_line}") from error
