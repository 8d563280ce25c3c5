"""Images of each class in a folder of their own, as files or in a tar archive; Pillow decodes them."""

import os
import stat
import warnings
from collections.abc import Callable, Collection
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError
from .archives import ARCHIVES, Found, archived, file_content
from .reading import check_memory, entries, reading

ENDS = ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
"""Files that end otherwise, in whatever case, are passed over."""

FORMATS = "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"
"""Pillow's names of these; its other formats, some of which start programs, are not tried."""

GREY = "1", "L", "LA"

LEFT_BY_SYSTEMS = "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"

MAX_PIXELS = 1 << 24  # of an image, and beyond that so many for each byte of its file:
MAX_PIXELS_A_BYTE = 2000  # twice what deflate reaches

File = tuple[int, int]
"""What tells files apart: device and inode."""


class ClassFolders(NamedTuple):
    """Bytes (n, height, width), or (n, 3, height, width) unless all are grey; labels (n,) by the order of names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def find_part(folder: Path, part: str) -> Path | None:
    """`part` in the folder, in whatever case, itself a folder or an archive. Raises DataError where there are two."""
    names = {part + end for end in ARCHIVES}
    found = [path for path in entries(folder) if path.name.lower() in names and path.is_file()]
    found += [path for path in entries(folder) if path.name.lower() == part and path.is_dir()]
    if len(found) > 1:
        raise DataError(
            f"data: folder '{folder}' has {' and '.join(path.name for path in found)}, expected one of them"
        )
    return found[0] if found else None


def read_class_folders(
    path: Path, classes: tuple[str, ...] | None = None, seen: dict[File, str] | None = None
) -> ClassFolders:
    """The images of all folders in path, at any depth. The class is the first folder on an image's way from path.

    A folder that everything lies in, as an archive's often is, is no class. Names are compared in Unicode's normal form
    C. Files and folders whose names begin with a dot, files of other kinds, and images in no folder of a class are
    passed over. Images are turned as cameras note. Transparent ones are laid on white. An image of several frames gives
    its first. What Pillow gives as 8 bits a channel is taken. Images are sorted by class, then by path. Labels are the
    places of classes in their order, or in `classes` if given. `seen` collects the files that were read, so that links
    lead to no file twice.

    Raises DataError, with the file, for an image that can't be read or is of another size than the first, for a class
    without images or not in `classes`, for a link to what is read already, for a damaged archive, and where there is no
    image; UserError without Pillow.
    """
    if path.is_file():
        with reading(path, "damaged archive"), open(path, "rb") as file:
            return _read(path, archived(path, file, ENDS), classes)
    return _read(path, _in_folder(path, {} if seen is None else seen), classes)


def read_images(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    """A file, or all images in a folder and the folders in it, by name, of whatever class: bytes as `ClassFolders` has.

    Raises DataError as `read_class_folders`.
    """
    found = {PurePosixPath(path.name): partial(file_content, path)} if path.is_file() else _in_folder(path, {}).files
    files = {str(name): read for name, read in sorted(found.items()) if name.suffix.lower() in ENDS}
    if not files:
        raise DataError(f"{path}: no images in it, expected files of {', '.join(ENDS)}")
    images: list[NDArray[np.uint8]] = []
    first: tuple[tuple[int, ...], str] | None = None
    for name, read in files.items():
        images.append(_decoded(read, f"{path}, {name}", len(files), first))
        first = first or (images[0].shape, name)
    return list(files), _stacked(images)


def _read(path: Path, found: Found, classes: tuple[str, ...] | None) -> ClassFolders:
    outer = _outer(found, classes or ())
    depth = len(outer)

    def in_class(name: PurePosixPath) -> bool:
        return len(name.parts) > depth and name.parts[:depth] == outer and not _hidden(name.parts[depth:])

    files = {
        (normalize("NFC", name.parts[depth]), str(name)): read
        for name, read in found.files.items()
        if in_class(name.parent) and not _hidden((name.name,)) and name.suffix.lower() in ENDS
    }
    if not files:
        raise DataError(f"{path}: no images in it, expected a folder for each class with files of {', '.join(ENDS)}")
    names = tuple(sorted({kind for kind, _ in files}))
    for folder in sorted(found.folders):
        if len(folder.parts) == depth + 1 and in_class(folder):
            _check_class(path, folder, found, names)
    if classes is None and len(names) == 1:
        raise DataError(f"{path}: only the class '{names[0]}', expected two or more, each in a folder of its own")
    for name in names if classes is not None else ():
        _check_known(path, name, classes or ())
    classes = names if classes is None else classes
    number = {kind: label for label, kind in enumerate(classes)}
    images: dict[tuple[str, str], NDArray[np.uint8]] = {}
    first: tuple[tuple[int, ...], str] | None = None
    for key, read in files.items():
        images[key] = _decoded(read, f"{path}, {key[1]}", len(files), first)
        first = first or (images[key].shape, key[1])
    order = sorted(images)
    labels = np.array([number[kind] for kind, _ in order], np.int64)
    return ClassFolders(_stacked([images[key] for key in order]), labels, classes)


def _check_class(path: Path, folder: PurePosixPath, found: Found, classes: Collection[str]) -> None:
    if normalize("NFC", folder.name) not in classes:
        others = sorted(str(file) for file in found.files if file.parts[: len(folder.parts)] == folder.parts)
        holds = f"holds {others[0]}" if others else "is empty"
        raise DataError(
            f"{path}: class '{folder.name}' has no images (its folder {holds}), expected files of {', '.join(ENDS)}; "
            "convert its images, or remove the folder"
        )


def _check_known(path: Path, name: str, classes: tuple[str, ...]) -> None:
    if name not in classes:
        alike = [known for known in classes if known.casefold() == name.casefold()]
        fix = f"; rename it to '{alike[0]}'" if alike else ""
        raise DataError(f"{path}: class '{name}', expected one of training's: {', '.join(classes)}{fix}")


def _outer(found: Found, classes: Collection[str]) -> tuple[str, ...]:
    """The folders that everything lies in, up to the first that is a known class or has nothing but files in it."""
    folders = found.folders | {parent for file in found.files for parent in file.parents if parent.parts}
    outer: tuple[str, ...] = ()
    while True:
        depth = len(outer)
        names = {folder.parts[depth] for folder in folders if len(folder.parts) > depth}
        names = {name for name in names if not _hidden((name,))} or names
        if len(names) != 1 or normalize("NFC", *names) in classes:
            return outer
        folders = {f for f in folders if len(f.parts) > depth + 1 and f.parts[depth] in names}
        if not folders:
            return outer
        outer = (*outer, *names)


def _hidden(parts: Collection[str]) -> bool:
    return any(part.startswith(".") or part in LEFT_BY_SYSTEMS for part in parts)


def _stacked(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if all(image.ndim == 2 for image in images):
        return np.stack(images)
    stacked = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return stacked


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _in_folder(path: Path, seen: dict[File, str]) -> Found:
    """Links are followed, but for those to a folder or file that is found otherwise."""
    found = Found(set(), {})
    _note(path, seen)
    folders = [path]
    while folders:
        folder = folders.pop()
        visible = [entry for entry in entries(folder) if not _hidden((entry.name,))]
        for entry in visible:
            inside = PurePosixPath(entry.relative_to(path).as_posix())
            if entry.is_dir():
                _note(entry, seen)
                found.folders.add(inside)
            elif entry.suffix.lower() in ENDS and not stat.S_ISREG(_note(entry, seen).st_mode):
                raise DataError(f"{entry}: a pipe, socket or device, expected an image file")
            else:
                found.files[inside] = partial(file_content, entry)
        folders += reversed([entry for entry in visible if entry.is_dir()])
    return found


def _note(path: Path, seen: dict[File, str]) -> os.stat_result:
    """What a path leads to. Raises DataError where another has led there, unless by several names of one file."""
    with reading(path, "broken link"):
        status = path.stat()
    if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
        before = seen.setdefault((status.st_dev, status.st_ino), str(path))
        if before != str(path):
            raise DataError(f"{path}: a link to what is read as {before}, expected every image once; remove the link")
    return status


def _decoded(
    read: Callable[[], bytes], name: str, count: int, first: tuple[tuple[int, ...], str] | None
) -> NDArray[np.uint8]:
    """(height, width) of a grey image, (height, width, 3) of any other; one of `count`, of a size with the first."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError("data: images need Pillow; pip install 'prograde[train]'") from error
    with reading(name, "not a whole image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what is checked here or does not matter
        content = read()
        try:
            opened = Image.open(BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise DataError(f"{name}: not a whole image of a kind that Pillow knows; save it anew as PNG") from error
        with opened as image:
            shape = image.height, image.width
            if image.height * image.width > MAX_PIXELS + MAX_PIXELS_A_BYTE * len(content):
                raise DataError(
                    f"{name}: not a whole image ({_size(shape)} pixels in {len(content)} bytes, a decompression bomb)"
                )
            if first is None:
                values = image.height * image.width * (1 if image.mode in GREY else 3)
                check_memory(name, f"{count} images of {_size(shape)} pixels", 9 * count * values)  # bytes and floats
            elif sorted(shape) != sorted(first[0][:2]):
                raise _other_size(name, shape, first)
            pixels = pixels_of(image, name)
    if first is not None and pixels.shape[:2] != first[0][:2]:
        raise _other_size(name, pixels.shape, first)
    return pixels


def pixels_of(image: Any, name: str) -> NDArray[np.uint8]:
    """(height, width) of a grey image of Pillow, (height, width, 3) of any other, as cameras want it shown, on white.

    Raises DataError for one of more than 8 bits a channel, and for one that only its transparency shows.
    """
    from PIL import ImageOps

    if image.mode[0] in "IF":
        raise DataError(f"{name}: pixels of mode {image.mode}, expected 8 bits a channel; convert the image")
    grey = image.mode in GREY
    turned = ImageOps.exif_transpose(image)
    if "A" in turned.getbands() or "transparency" in turned.info:
        turned = _on_white(turned, name)
    return np.asarray(turned.convert("L" if grey else "RGB"))


def _other_size(name: str, shape: tuple[int, ...], first: tuple[tuple[int, ...], str]) -> DataError:
    return DataError(f"{name}: {_size(shape)} pixels, expected {_size(first[0])} as in {first[1]}; resize the images")


def _on_white(image: Any, name: str) -> Any:
    """The image without transparency. Raises DataError where it can only be seen by it, as white lines on nothing."""
    from PIL import Image

    layers = image.convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers)
    lowest, highest = layers.getchannel("A").getextrema()
    if lowest != highest and len(opaque.getcolors(1) or ()) == 1:
        raise DataError(
            f"{name}: one colour once laid on white, expected a ground to see it on; save it with its ground"
        )
    return opaque
