"""Files of a folder, or of a tar archive that is never unpacked."""

import gzip
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, cast

from ..errors import DataError
from .idx import GZIP
from .reading import available_memory

ARCHIVES = ".tar", ".tar.gz", ".tgz"

MAX_FILE = 1 << 28  # bytes of one file, and of one piece of an archive
MAX_MEMBERS = 4_000_000  # thrice ImageNet's
MEMBER = 2000  # bytes of memory that each takes, however small it is


class Found(NamedTuple):
    """Folders and files by their paths in a folder or an archive, and what reads a file."""

    folders: set[PurePosixPath]
    files: dict[PurePosixPath, Callable[[], bytes]]


def file_content(path: Path) -> bytes:
    """A file's. Raises DataError for a large one."""
    with open(path, "rb") as file:
        found = file.read(MAX_FILE + 1)
    if len(found) > MAX_FILE:
        raise DataError(f"{path}: more than {MAX_FILE} bytes, expected less")
    return found


class _Limited:
    """A file for tarfile, which reads pieces as long as a header says."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_FILE:
            raise tarfile.ReadError(f"a piece of {size} bytes, expected 0..{MAX_FILE}")
        return self.file.read(size)


def archived(path: Path, file: BinaryIO, ends: tuple[str, ...] = ()) -> Found:
    """What is in an archive, gzipped or not whatever its name. Reading in this order is quick.

    Raises DataError for more than memory holds, for a damaged archive, and for a link or device whose name is one of
    those with `ends`.
    """
    packed = file.read(2) == GZIP
    file.seek(0)
    limited = _Limited(gzip.GzipFile(fileobj=file) if packed else file)
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], limited))
    found = Found(set(), {})
    most, total = available_memory() or sys.maxsize, 0
    for count, member in enumerate(archive):
        total += member.size + MEMBER
        if member.size < 0 or total > most or count > MAX_MEMBERS:
            raise DataError(f"{path}: {count} files of {total} bytes, expected no more than {most} bytes to unpack")
        name = PurePosixPath(*(part for part in PurePosixPath(member.name).parts if part not in ("/", "..")))
        if member.isdir():
            found.folders.add(name)
        elif member.isreg():
            found.files[name] = partial(_unpacked, path, archive, member)
        elif name.suffix.lower() in ends:
            raise DataError(f"{path}, {name}: a link or device, expected a file; pack what it leads to")
    limited.seek(archive.offset)
    if limited.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError("no empty block after its last file")
    while total < most and (chunk := limited.read(1 << 20)):  # to the checksum of a packed one
        total += len(chunk)
    return found


def _unpacked(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_FILE:
        raise DataError(f"{path}, {member.name}: {member.size} bytes, expected {MAX_FILE} or less")
    file = archive.extractfile(member)
    assert file is not None, "a regular file"
    return file.read()
