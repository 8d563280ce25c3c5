"""The IDX format, in which MNIST and its relatives come.

Big-endian: two zero bytes, the element type, the number of axes, their sizes (32 bits each), the data.
"""

import gzip
import math
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .reading import DEFLATE_RATIO, check_memory, entries, reading

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"

NAME = re.compile(
    r"(?P<set>(?:.*[-_.])?)(?P<part>train|t10k|test)[-_.](?P<kind>images|labels)"
    r"(?:[-_.]idx\d?(?:[-_.](?:ubyte|byte|short|int|float|double))?)?(?:\.(?:idx|ubyte|bin))?(?:\.gz)?",
    re.IGNORECASE,
)
"""MNIST's names and those of its relatives: `train-images-idx3-ubyte.gz`, `emnist-letters-test-labels.idx1-ubyte`."""


class IdxPart(NamedTuple):
    """The two files of a part."""

    images: Path
    labels: Path


def find_idx(folder: Path) -> dict[str, IdxPart] | None:
    """`train` and `test` of a folder with four IDX files, None where it has none of them.

    Each may be a folder of that name with the file in it, as some programs unpack. An unpacked file goes before a
    packed one. Raises DataError where one is missing, or where there are several data sets.
    """
    found: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for path in entries(folder):
        match = NAME.fullmatch(path.name)
        file = _file(path) if match else None
        if match is not None and file is not None:
            part = "train" if match["part"].lower() == "train" else "test"
            found.setdefault(match["set"].lower(), {}).setdefault((part, match["kind"].lower()), []).append(file)
    if not found:
        return None
    if len(found) > 1:
        sets = " and ".join(repr(name) for name in sorted(found))
        raise DataError(f"data: folder '{folder}' has files of several sets, {sets}; expected one set in a folder")
    ((name, files),) = found.items()

    def chosen(part: str, kind: str) -> Path:
        if (part, kind) not in files:
            stem = f"{name}{'train' if part == 'train' else 't10k'}-{kind}"
            end = "idx3-ubyte" if kind == "images" else "idx1-ubyte"
            raise DataError(
                f"data: folder '{folder}' has no {stem}-{end} (nor {stem}-{end}.gz, {stem}.{end}, {stem}.{end}.gz); "
                "expected MNIST's four files, or train and test, each with a folder of images for each class"
            )
        return min(files[part, kind], key=lambda path: (path.suffix.lower() == ".gz", len(path.parts)))

    return {part: IdxPart(chosen(part, "images"), chosen(part, "labels")) for part in ("train", "test")}


def _file(path: Path) -> Path | None:
    """The path itself where it is a file; of a folder the file in it, if there is one alone or one of such a name."""
    if not path.is_dir():
        return path if path.is_file() else None
    inside = [file for file in entries(path) if file.is_file() and not file.name.startswith(".")]
    named = [file for file in inside if NAME.fullmatch(file.name)]
    return named[0] if named else inside[0] if len(inside) == 1 else None


def read_idx(path: Path, axes: tuple[int, ...]) -> NDArray[Any]:
    """The array of an IDX file, gzipped or not whatever its name, in the type and shape that the file states.

    `axes` are the numbers of axes that will do, the usual one first. Raises DataError for another magic number, a
    length other than the stated one, more than memory holds, or damaged gzip.
    """
    with reading(path, "damaged IDX file"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed:
            return _parse(file, path, axes, size)
        with reading(path, "damaged gzip file"), gzip.open(file) as unpacked:
            return _parse(unpacked, path, axes, None, DEFLATE_RATIO * size)


def _parse(
    file: BinaryIO | gzip.GzipFile, path: Path, axes: tuple[int, ...], size: int | None, most: int | None = None
) -> NDArray[Any]:
    """`size` is the file's in bytes, where that is known before reading, `most` a bound on it where it isn't."""
    magic = file.read(4)
    known = magic[2] in TYPES and magic[3] in axes if len(magic) == 4 else True  # else its length is what is wrong
    if magic[:2] != bytes(len(magic[:2])) or not known:
        expected = bytes([0, 0, 8, axes[0]]).hex()
        raise DataError(
            f"{path}: starts with 0x{magic.hex()}, expected 0x{expected} (IDX, {axes[0]} axes){_hint(magic, axes)}"
        )
    count = magic[3] if len(magic) == 4 else axes[0]
    header = magic + file.read(4 * count)
    if len(header) < 4 + 4 * count:
        raise DataError(f"{path}: ends after {len(header)} bytes, expected a header of {4 + 4 * count}")
    shape = struct.unpack(f">{count}I", header[4:])
    if not all(shape):
        raise DataError(f"{path}: shape {shape}, expected at least one element along every axis")
    dtype = np.dtype(TYPES[magic[2]])
    expected_bytes = math.prod(shape) * dtype.itemsize
    if size is not None and size - len(header) != expected_bytes:
        length = size - len(header)
        found = "more" if length > expected_bytes else f"{length}"
        raise DataError(
            f"{path}: {found} bytes of data, expected {expected_bytes} for shape {shape}"
            f"{_length_hint(file, header, length, dtype, expected_bytes)}"
        )
    if most is not None and expected_bytes > most:
        raise DataError(f"{path}: at most {most} bytes of data, expected {expected_bytes} for shape {shape}")
    check_memory(path, f"{shape[0]} samples", math.prod(shape) * (dtype.itemsize + 8))
    content = bytearray()
    while len(content) <= expected_bytes and (chunk := file.read(min(1 << 20, expected_bytes + 1 - len(content)))):
        content += chunk
    if len(content) != expected_bytes:
        found = "more" if len(content) > expected_bytes else f"{len(content)}"
        raise DataError(f"{path}: {found} bytes of data, expected {expected_bytes} for shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def _hint(magic: bytes, axes: tuple[int, ...]) -> str:
    """What such a beginning comes from, and what to do about it."""
    if magic[:1] in (b"<", b"\n", b"\r") or magic[:1].isspace():
        return "; it is a page of text or HTML: download the file again, by its direct address"
    if magic[:2] == b"PK":
        return "; it is a zip archive: unpack it"
    if magic[:2] == GZIP:
        return "; it was packed twice: gunzip it once"
    if magic[2:] == b"\0\0" and magic[1:2] and magic[1] in TYPES:
        return "; it is little-endian: write it big-endian"
    if magic[:2] == b"\0\0" and magic[2] in TYPES:
        named = "images" if 1 in axes else "labels"
        return f"; it has {magic[3]} axes, as {named} have: are images and labels swapped?"
    return "; download the file again"


def _length_hint(
    file: BinaryIO | gzip.GzipFile, header: bytes, length: int, dtype: np.dtype[Any], expected: int
) -> str:
    count = (len(header) - 4) // 4
    if math.prod(struct.unpack(f"<{count}I", header[4:])) * dtype.itemsize == length:
        return "; its header is little-endian: write it big-endian"
    if expected < length <= 2 * expected and len(file.read(length).replace(b"\r\n", b"\n")) == expected:
        return "; its line ends were changed to CRLF, as by a transfer of text: copy it again as binary"
    return "; copy or download the file again"
