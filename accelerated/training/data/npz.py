"""NumPy's .npz files of plain arrays."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .parts import Arrays, Parts, real, whole
from .reading import check_memory, reading


def read_npz(path: Path) -> Parts:
    """Its arrays x_train, y_train, x_test, y_test and, if there is one, `classes`. Raises DataError, with the array."""
    with reading(path, "not a whole .npz file of plain arrays"), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in members]
        if missing:
            raise DataError(
                f"{path}: no array {missing[0]} (found: {', '.join(members) or 'none'}), expected x_train, y_train, "
                "x_test and y_test; save it anew with np.savez under these names"
            )

        def part(name: str) -> Arrays:
            names = f"{path}, array x_{name}", f"{path}, array y_{name}"
            images, labels = (
                _read_member(archive, members[f"{kind}_{name}"], where) for kind, where in zip("xy", names, strict=True)
            )
            return Arrays(real(images, names[0]), whole(labels, names[1]), *names)

        classes: tuple[str, ...] = ()
        if "classes" in members:
            names = _read_member(archive, members["classes"], f"{path}, array classes")
            if names.dtype.kind not in "SU" or names.ndim != 1:
                raise DataError(
                    f"{path}, array classes: {names.dtype} of shape {names.shape}, expected names (classes,)"
                )
            classes = tuple(names.astype(str).tolist())
        return Parts(part("train"), part("test"), classes)


def _read_member(archive: zipfile.ZipFile, member: str, name: str) -> NDArray[Any]:
    """An array of an .npz. Its header is held to the file's length and to memory before anything is read."""
    info = archive.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: packed by method {info.compress_type}, expected np.savez or np.savez_compressed")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            raise DataError(
                f"{name}: an array of Python objects, expected one of numbers; np.stack makes one of samples of one "
                "shape, and y.astype(np.int64) of labels"
            )
        expected = math.prod(shape) * dtype.itemsize
        length = info.file_size - file.tell()
        if min(shape, default=0) < 0 or expected != length:
            raise DataError(f"{name}: {length} bytes of data, expected {expected} for shape {shape}; save it anew")
        check_memory(name, f"{shape[:1]} samples", expected + 8 * math.prod(shape))
        content = file.read(expected)
        if len(content) != expected or file.read(1):  # the second reaches the end, and its checksum
            raise DataError(f"{name}: not {expected} bytes of data, expected as many for shape {shape}; save it anew")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
