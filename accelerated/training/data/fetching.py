"""Published data sets from their mirrors: each file whole and as published, or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .. import files
from ..errors import UserError, unknown

TIMEOUT = 30.0  # seconds in which a server says nothing
ATTEMPTS = 8  # at one mirror, each of which goes on where the last was cut off
CHUNK = 1 << 16


class PublishedFile(NamedTuple):
    """A file of a data set: its name, its bytes, and the SHA-256 of these, in hexadecimal digits."""

    name: str
    size: int
    sha256: str


class Source(NamedTuple):
    """A data set: where it is from, folders that have its files, and names of classes that the files lack."""

    title: str
    mirrors: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    classes: tuple[str, ...] = ()


TORONTO = "https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"

SOURCES = {
    "mnist": Source(
        "MNIST, 70,000 digits of 28 x 28 (LeCun, Cortes, Burges)",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            PublishedFile(
                "train-images-idx3-ubyte.gz",
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            PublishedFile(
                "train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        ),
    ),
    "fashion-mnist": Source(
        "Fashion-MNIST, 70,000 garments of 28 x 28 (Xiao, Rasul, Vollgraf, 2017)",
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            PublishedFile(
                "train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            PublishedFile(
                "train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        ),
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar-10": Source(
        "CIFAR-10, 60,000 photographs of 32 x 32 in colour, ten classes (Krizhevsky, 2009)",
        TORONTO,
        (
            PublishedFile(
                "cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            ),
        ),
    ),
    "cifar-100": Source(
        "CIFAR-100, 60,000 photographs of 32 x 32 in colour, a hundred classes (Krizhevsky, 2009)",
        TORONTO,
        (
            PublishedFile(
                "cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
            ),
        ),
    ),
}

OnProgress = Callable[[str, int, int], None]
"""Told a file's name, its bytes that are there, and all of its bytes."""


class _Failure(Exception):
    """Why a mirror did not give a file, or the rest of it."""


def fetch(
    name: str,
    folder: str | Path,
    *,
    mirror: str | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """The files of one of SOURCES into a folder, which is made if need be; what `load` reads it from.

    A file that is there with the published SHA-256 is left as it is. Another of its name is replaced only if
    `overwrite`. What was cut off stays beside as a hidden file, from which the next call goes on. `mirror` is the
    address of a folder to use in place of the known ones.

    Raises UserError for an unknown name, a file in the way, and where no mirror has a file as published; OSError where
    the folder can't be written.
    """
    if name not in SOURCES:
        raise unknown("data", name, SOURCES)
    source, folder = SOURCES[name], Path(folder)
    mirrors = source.mirrors if mirror is None else (mirror.rstrip("/") + "/",)
    if not all(address.startswith(("http://", "https://")) for address in mirrors):
        raise UserError(f"mirror: '{mirror}', expected an address that begins with https://")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in source.files if not _is_there(folder / file.name, file, overwrite)]
    for file in missing:
        _fetch(file, folder / file.name, mirrors, on_progress or (lambda name, done, total: None))
    names = folder / "classes.txt"
    if source.classes and not os.path.lexists(names):
        files.write(names, "".join(f"{label}\n" for label in source.classes).encode())
    return folder


def _is_there(path: Path, file: PublishedFile, overwrite: bool) -> bool:
    """Raises UserError for another file."""
    if not os.path.lexists(path):
        return False
    if path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256:
        return True
    if not overwrite:
        raise UserError(f"'{path}' is there and is not the published file; --overwrite replaces it")
    files.prepare(path)
    return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _fetch(file: PublishedFile, target: Path, mirrors: tuple[str, ...], on_progress: OnProgress) -> None:
    partial = target.with_name(f".{target.name}{files.PARTIAL}")
    if os.path.lexists(partial) and (partial.is_symlink() or not partial.is_file()):  # it would be written elsewhere
        raise UserError(f"'{partial}' is a link or no file, expected what was fetched before; remove it")
    failures = []
    for mirror in mirrors:
        try:
            _download(mirror + file.name, partial, file, on_progress)
        except _Failure as failure:
            failures.append(f"{mirror}{file.name}: {failure}")
            continue
        os.replace(partial, target)
        return
    left = "; the same again goes on from what is here" if partial.exists() else ""
    raise UserError(f"data: no mirror has {file.name} as published: {'; '.join(failures)}{left}")


def _download(url: str, partial: Path, file: PublishedFile, on_progress: OnProgress) -> None:
    """The file whole, beside its place. Raises _Failure, and leaves what a further attempt can go on from."""
    failure: _Failure | None = None
    for _ in range(ATTEMPTS):
        begun = partial.stat().st_size if partial.exists() else 0
        failure = None
        with open(partial, "ab") as output:
            try:
                for chunk in _rest(url, output) if begun < file.size else ():
                    output.write(chunk)
                    on_progress(file.name, min(output.tell(), file.size), file.size)
                    if output.tell() > file.size:
                        break
            except _Failure as error:
                failure = error
            length = output.tell()
            output.flush()
            os.fsync(output.fileno())
        if length < file.size:
            failure = failure or _Failure(f"cut off after {length} of {file.size} bytes")
            if length <= begun:
                break
            continue
        found = _sha256(partial)
        if found == file.sha256:
            return
        failure = _Failure(f"{length} bytes, SHA-256 {found}; expected {file.size} bytes, {file.sha256}")
        partial.unlink()
        if begun == 0:  # else what was here before may be at fault
            break
    if partial.exists() and not partial.stat().st_size:
        partial.unlink()
    assert failure is not None, "ATTEMPTS is positive"
    raise failure


def _rest(url: str, output: BinaryIO) -> Iterator[bytes]:
    """Pieces of a file from the end of `output` on. From a server that gives no parts the whole, `output` emptied."""
    begun = output.tell()
    headers = {"User-Agent": "prograde", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={begun}-"} if begun else {}))
    with _answer(request) as response:
        if begun and not (response.headers["Content-Range"] or "").startswith(f"bytes {begun}-"):
            output.seek(0)
            output.truncate()
        while chunk := _read(response):
            yield chunk


def _answer(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer, too
        raise _Failure(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failure(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _read(response: Any) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Failure(str(error) or type(error).__name__) from error
