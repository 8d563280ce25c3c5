"""Images of each class in a folder of their own, as files or in a tar archive; Pillow decodes them."""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .idx import DataError

ENDS = ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
"""Files that end otherwise, in whatever case, are passed over."""

ARCHIVES = ".tar", ".tar.gz", ".tgz"


class ClassFolders(NamedTuple):
    """Bytes (n, height, width), or (n, 3, height, width) unless all are grey; labels (n,) by the order of names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def find_part(folder: Path, part: str) -> Path | None:
    """`part` in the folder, itself a folder or an archive, if there is one. Raises DataError where there are two."""
    archives = [folder / f"{part}{end}" for end in ARCHIVES]
    found = [path for path in archives if path.is_file()]
    if (folder / part).is_dir():
        found.append(folder / part)
    if len(found) > 1:
        raise DataError(
            f"data: folder '{folder}' has {' and '.join(path.name for path in found)}, expected one of them"
        )
    return found[0] if found else None


def read_class_folders(path: Path, classes: tuple[str, ...] | None = None) -> ClassFolders:
    """The images of all folders in path, sorted by class, which is the name of an image's folder, and by their own.

    Files and folders whose names begin with a dot, and images in no folder of a class, are passed over. An image with
    transparency loses it; one of several frames gives its first; what Pillow gives as 8 bits a channel is taken. Labels
    are the places of classes in their order, or in `classes` if given.

    Raises DataError, with the file, for an image that can't be read or is of another size than the first, for a class
    that is not in `classes`, for a damaged archive, and where there is no image; UserError without Pillow.
    """
    images: dict[tuple[str, str], NDArray[np.uint8]] = {}
    first = ""
    for kind, name, content in _files(path):
        image = _decoded(content, f"{path}, {name}")
        if images and image.shape[:2] != (expected := images[next(iter(images))].shape[:2]):
            raise DataError(f"{path}, {name}: {_size(image.shape)} pixels, expected {_size(expected)} as in {first}")
        first = first or name
        images[kind, name] = image
    if not images:
        raise DataError(f"{path}: no images in it, expected a folder for each class with files of {', '.join(ENDS)}")
    found = tuple(sorted({kind for kind, _ in images}))
    if classes is None and len(found) == 1:
        raise DataError(f"{path}: only the class '{found[0]}', expected two or more, each in a folder of its own")
    if classes is not None and (unknown := set(found) - set(classes)):
        raise DataError(f"{path}: class '{min(unknown)}', expected one of training's: {', '.join(classes)}")
    classes = found if classes is None else classes
    number = {kind: label for label, kind in enumerate(classes)}
    order = sorted(images)
    labels = np.array([number[kind] for kind, _ in order], np.int64)
    return ClassFolders(_stacked([images[key] for key in order]), labels, classes)


def _stacked(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if all(image.ndim == 2 for image in images):
        return np.stack(images)
    stacked = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return stacked


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Of every image its class, its path in the folder or archive, and what the file holds."""
    if path.is_file():
        yield from _packed(path)
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            inside = PurePosixPath(file.relative_to(path).as_posix())
            if _is_image(inside):
                yield inside.parts[-2], str(inside), file.read_bytes()


def _packed(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same of an archive. A folder that everything lies in, as the part's own often is, is no class."""
    try:
        with tarfile.open(path, "r:" if path.suffix == ".tar" else "r:gz") as archive:
            members = {PurePosixPath(member.name): member for member in archive if not member.isdir()}
            _check_end(archive)
            outer = 1 if len({name.parts[0] for name in members}) == 1 else 0
            for name, member in members.items():
                if _is_image(PurePosixPath(*name.parts[outer:])) and (file := archive.extractfile(member)) is not None:
                    yield name.parts[-2], str(name), file.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, KeyError) as error:
        raise DataError(f"{path}: damaged archive ({error}); expected a whole one") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises ReadError unless the archive ends as it should, where tarfile takes a damaged header for its end."""
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no empty block after its last file")
    while file.read(1 << 20):  # to the checksum of a compressed one
        pass


def _is_image(name: PurePosixPath) -> bool:
    """Whether it ends like one, lies in a folder, and is not hidden, as some systems' leavings are."""
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in ENDS and len(name.parts) > 1 and not hidden


def _decoded(content: bytes, name: str) -> NDArray[np.uint8]:
    """(height, width) of a grey image, (height, width, 3) of any other."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError("data: images need Pillow; pip install 'prograde[train]'") from error
    try:
        with Image.open(BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{name}: pixels of mode {image.mode}, expected 8 bits a channel")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a whole image of a kind that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a whole image ({error})") from error
