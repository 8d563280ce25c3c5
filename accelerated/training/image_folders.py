"""Images of each class in a folder of their own, as files or in a tar archive; Pillow decodes them."""

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
"""Files that end otherwise are passed over."""

ARCHIVES = ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"


class ClassFolders(NamedTuple):
    """Bytes (n, height, width), or (n, 3, height, width) unless all are grey; labels (n,) by the order of names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def find_part(folder: Path, part: str) -> Path | None:
    """`part` in the folder, itself a folder or an archive, if there is one."""
    paths = (folder / f"{part}{end}" for end in ("", *ARCHIVES))
    return next((path for path in paths if (path.is_file() if path.suffix else path.is_dir())), None)


def read_class_folders(path: Path, classes: tuple[str, ...] | None = None) -> ClassFolders:
    """The images of all folders in path, sorted by class, which is the name of an image's folder, and by their own.

    An image with transparency loses it; one of several frames gives its first. Labels are the places
    of classes in their order, or in `classes` if given.

    Raises DataError, with the file, for an image that can't be read, is of another size than the first or has more than
    8 bits a channel, for a class that is not in `classes`, and where there is no image; UserError without Pillow.
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
        raise DataError(f"{path}: no images in it, expected a folder of them for each class")
    found = tuple(sorted({kind for kind, _ in images}))
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
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            if _is_image(PurePosixPath(name.as_posix())) and file.is_file():
                yield name.parts[-2], name.as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if _is_image(PurePosixPath(member.name)) and (packed := archive.extractfile(member)) is not None:
                    yield PurePosixPath(member.name).parts[-2], member.name, packed.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: damaged archive ({' '.join(str(error).split())}); expected a whole one") from error


def _is_image(name: PurePosixPath) -> bool:
    """Whether it ends like one, lies in a folder, and is not hidden, as some systems' leavings are."""
    return name.suffix.lower() in ENDS and len(name.parts) > 1 and not name.name.startswith(".")


def _decoded(content: bytes, name: str) -> NDArray[np.uint8]:
    """(height, width) of a grey image, (height, width, 3) of any other."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("data: images need Pillow; pip install 'prograde[train]'") from error
    try:
        with Image.open(BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{name}: pixels of mode {image.mode}, expected 8 bits a channel")
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: not a whole image ({error})") from error
