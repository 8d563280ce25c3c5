"""The IDX format, in which MNIST and its relatives come.

Big-endian: two zero bytes, the element type (8: unsigned byte), the number of axes, their sizes (32 bits), the data.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import UserError


class DataError(UserError):
    """Data that can't be trained on: which file or array, what was found and what was expected."""


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file with that many axes, gzipped or not: an array of the shape that the file states.

    Raises DataError for another magic number, a length other than the stated one, or damaged gzip.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                return _parse(packed, path, axes)
        with open(path, "rb") as file:
            return _parse(file, path, axes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); expected a whole one") from error


def _parse(file: BinaryIO | gzip.GzipFile, path: Path, axes: int) -> NDArray[np.uint8]:
    length = 4 + 4 * axes
    header = file.read(length)
    magic = bytes([0, 0, 8, axes])
    if header[:4] != magic[: len(header)]:
        raise DataError(f"{path}: starts with 0x{header[:4].hex()}, expected 0x{magic.hex()} (IDX, bytes, {axes} axes)")
    if len(header) < length:
        raise DataError(f"{path}: ends after {len(header)} bytes, expected a header of {length}")
    shape = struct.unpack(f">{axes}I", header[4:])
    if not all(shape):
        raise DataError(f"{path}: shape {shape}, expected at least one element along every axis")
    expected = math.prod(shape)
    content = bytearray()
    while len(content) <= expected and (chunk := file.read(1 << 20)):  # a doctored header can't reserve memory
        content += chunk
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content)}"
        raise DataError(f"{path}: {found} bytes of data, expected {expected} for shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)
