"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as they are published: binary or pickled, unpacked or in their archives.

A binary record has a label of a byte (CIFAR-100: one of 20 coarse classes, then one of 100 fine ones, which is taken)
and 3 x 32 x 32 bytes, channels first.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .archives import archived, file_content
from .parts import Arrays, Parts, whole
from .pickles import unpickled
from .reading import check_memory, entries, reading

IMAGE = 3, 32, 32
PIXELS = 3 * 32 * 32

ARCHIVE = re.compile(r"cifar-?(?:10|100)\b.*\.(?:tar|tar\.gz|tgz)", re.IGNORECASE)
INSIDE = "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python"
"""The folders that the archives have."""


class _Layout(NamedTuple):
    """Files of training, of test, and of the classes' names; bytes of a label in a record, 0 of pickles."""

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


LAYOUTS = (
    _Layout(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    _Layout(tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", 0),
    _Layout(("train.bin",), "test.bin", "fine_label_names.txt", 2),
    _Layout(("train",), "test", "meta", 0),
)

Files = Mapping[str, Callable[[], bytes]]


class _Samples(NamedTuple):
    images: NDArray[np.uint8]
    labels: NDArray[Any]


def find_cifar(path: Path) -> Path | None:
    """What holds CIFAR's files: the path itself, a folder or an archive in it, or None."""
    if path.is_file():
        return path if ARCHIVE.fullmatch(path.name) else None
    inside = [entry for entry in entries(path) if entry.name in INSIDE and entry.is_dir()]
    packed = [entry for entry in entries(path) if ARCHIVE.fullmatch(entry.name) and entry.is_file()]
    found = [folder for folder in (path, *inside) if _layout({e.name for e in entries(folder) if e.is_file()})]
    found = found or packed
    if len(found) > 1:
        raise DataError(f"data: '{path}' has {' and '.join(each.name for each in found)}; expected one; name it")
    return found[0] if found else None


def read_cifar(path: Path) -> Parts:
    """From a folder or an archive of theirs.

    Raises DataError, with the file, for anything missing, damaged or other than the format.
    """
    with ExitStack() as stack:
        if path.is_dir():
            files: Files = {e.name: partial(file_content, e) for e in entries(path) if e.is_file()}
        else:
            stack.enter_context(reading(path, "damaged archive"))
            found = archived(path, stack.enter_context(open(path, "rb")))
            files = {name.name: read for name, read in found.files.items()}
        layout = _layout(set(files))
        if layout is None:
            raise DataError(
                f"{path}: none of CIFAR's files, expected such as data_batch_1.bin, data_batch_1 or train.bin"
            )
        missing = [name for name in (*layout.train, layout.test) if name not in files]
        if missing:
            raise DataError(f"{path}: no {missing[0]}, expected {', '.join((*layout.train, layout.test))}")
        train = [_samples(path, name, files, layout) for name in layout.train]
        test = _samples(path, layout.test, files, layout)
        where = str(path / layout.train[0]) + (f" to {layout.train[-1]}" if len(train) > 1 else "")
        images, labels = (
            np.concatenate([each.images for each in train]),
            np.concatenate([each.labels for each in train]),
        )
        return Parts(
            Arrays(images, labels, where, where),
            Arrays(test.images, test.labels, str(path / layout.test), str(path / layout.test)),
            _names(path, files, layout),
        )


def _layout(names: set[str]) -> _Layout | None:
    """That of which most files are there: training's first, the test's or, of names as common as train, all."""
    for layout in LAYOUTS:
        telling = {layout.train[0], layout.test} | ({layout.names} if layout.train == ("train",) else set())
        if telling <= names:
            return layout
    return None


def _samples(path: Path, name: str, files: Files, layout: _Layout) -> _Samples:
    where = str(path / name)
    with reading(where, "damaged file"):
        content = files[name]()
        check_memory(where, f"{len(content) // PIXELS} images", 10 * len(content))  # bytes, and two copies of floats
        return _records(where, content, layout) if layout.label_bytes else _pickled(where, content)


def _records(where: str, content: bytes, layout: _Layout) -> _Samples:
    size = layout.label_bytes + PIXELS
    if not content or len(content) % size:
        raise DataError(f"{where}: {len(content)} bytes, expected records of {size}; copy or download the file again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return _Samples(records[:, layout.label_bytes :].reshape(-1, *IMAGE), records[:, layout.label_bytes - 1])


def _pickled(where: str, content: bytes) -> _Samples:
    entry = _entries(unpickled(where, content), where)
    labels = next((entry[key] for key in ("fine_labels", "labels") if key in entry), None)
    images = entry.get("data")
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (PIXELS,)):
        found = f"{images.dtype} of shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{where}: its data are {found}, expected uint8 (samples, {PIXELS})")
    if isinstance(labels, list) and not all(type(label) is int for label in labels):
        raise DataError(f"{where}: its labels are no whole numbers, expected a list of them")
    if not isinstance(labels, list | np.ndarray) or not len(images):
        raise DataError(f"{where}: no samples with labels or fine_labels, expected a list of whole numbers")
    return _Samples(images.reshape(-1, *IMAGE), whole(np.asarray(labels), where))


def _names(path: Path, files: Files, layout: _Layout) -> tuple[str, ...]:
    """The classes', empty where the file of them is not there."""
    if layout.names not in files:
        return ()
    where = str(path / layout.names)
    with reading(where, "damaged file"):
        content = files[layout.names]()
        if layout.label_bytes:
            return tuple(line.strip() for line in content.decode().splitlines() if line.strip())
        entry = _entries(unpickled(where, content), where)
        names = next((entry[key] for key in ("fine_label_names", "label_names") if key in entry), None)
        if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
            raise DataError(f"{where}: no label_names or fine_label_names, expected a list of names")
        return tuple(_text(name) for name in names)


def _entries(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds a {type(value).__name__}, expected a dict of CIFAR's entries")
    return {_text(key): each for key, each in value.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
