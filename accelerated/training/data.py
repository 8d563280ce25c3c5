"""Images and labels for training, checked once on the host so that no training step has to."""

import importlib
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import UserError
from .idx import DataError, read_idx
from .image_folders import find_part, read_class_folders

__all__ = ["DataError", "Dataset", "Split", "load"]

VALIDATION_SHARE = 12  # 5000 of MNIST's 60000
DIGITS_TEST = 360
DIGITS_VALIDATION = 288
DIGITS_SPLIT_SEED = 1797


class Split(NamedTuple):
    """Images, flat (n, features) unless asked for otherwise, and labels (n,) int64, 0..K-1."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A data set in three parts. `mean` and `std` are those of all training pixels together."""

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, ...]
    num_classes: int
    mean: float
    std: float

    @property
    def features(self) -> int:
        return self.train.images.shape[1]

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """Channels, height and width of an image. Raises DataError for samples that are no images."""
        shape = (1, *self.image_shape) if len(self.image_shape) == 2 else self.image_shape
        if len(shape) != 3:
            raise DataError(f"{self.name}: samples of shape {self.image_shape}, expected images")
        if shape[2] in (1, 3, 4) and min(shape[:2]) > 4:  # no small maps of many channels
            raise DataError(
                f"{self.name}: images of shape {self.image_shape}, expected (channels, height, width), channels first"
            )
        return shape

    def to(self, device: torch.device | str, dtype: torch.dtype, standardise: bool = False) -> "Dataset":
        """On that device, images in that dtype; standardised by the training pixels' mean and std if asked for."""

        def move(split: Split) -> Split:
            images = split.images.to(device, dtype)
            return Split((images - self.mean) / (self.std or 1) if standardise else images, split.labels.to(device))

        return self._replace(train=move(self.train), validation=move(self.validation), test=move(self.test))

    def as_images(self) -> "Dataset":
        """With images (n, channels, height, width) in place of flat ones; of two axes there is one channel.

        Raises DataError for samples that are no images.
        """
        shape = self.channels_first

        def reshape(split: Split) -> Split:
            return Split(split.images.unflatten(1, shape), split.labels)

        return self._replace(train=reshape(self.train), validation=reshape(self.validation), test=reshape(self.test))


class _Arrays(NamedTuple):
    """What the readers give: real images (n, ...) and labels, with names for messages."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    images_name: str
    labels_name: str


def load(name_or_folder: str | Path, *, seed: int = 0, validation: int | None = None) -> Dataset:
    """`digits`, a folder of data, or an .npz of x_train, y_train, x_test and y_test.

    The folder has MNIST's four IDX files (gzipped or not), or else `train` and `test`, each a folder, or a .tar or
    .tar.gz, with a folder of image files for each class. Images are (height, width), or (channels, height, width) where
    they have colours, and so are expected in an .npz, which may hold samples of other shapes too. Bytes become [0, 1];
    floating-point images stay as they are. `validation` samples are taken from the training part: the last ones of IDX
    files and an .npz; of image files and of the digits a draw by `seed`, even by class. By default one in twelve, of
    the digits 288.

    Raises DataError, with the file or array, for anything missing, damaged, not finite or out of range, and UserError
    for the digits without scikit-learn and image files without Pillow.
    """
    if str(name_or_folder) == "digits":
        return _digits(seed, validation)
    path = Path(name_or_folder)
    if path.is_dir():
        train, test = _read_folder(path, seed)
    elif path.suffix == ".npz" and path.is_file():
        train, test = _read_npz(path)
    elif not path.exists():
        raise DataError(f"data: '{name_or_folder}' does not exist; expected 'digits', a folder or an .npz")
    else:
        raise DataError(f"data: '{name_or_folder}' is neither 'digits' nor a folder nor an .npz file")
    num_classes = _checked_classes(train, test)
    for part in (train, test):
        _check_images(part)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{test.images_name}: images of shape {test.images.shape[1:]}, "
            f"but those of {train.images_name} have {train.images.shape[1:]}"
        )
    samples = len(train.images)
    held_out = _checked_validation(validation, max(1, samples // VALIDATION_SHARE), samples)
    return _dataset(
        path.resolve().name.removesuffix(".npz"),
        (train.images[:-held_out], train.labels[:-held_out]),
        (train.images[-held_out:], train.labels[-held_out:]),
        (test.images, test.labels),
        num_classes,
    )


def _dataset(
    name: str,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    validation: tuple[NDArray[np.float32], NDArray[np.int64]],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    num_classes: int,
) -> Dataset:
    def split(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Split:
        return Split(
            torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), -1))),
            torch.from_numpy(np.ascontiguousarray(labels)),
        )

    pixels = train[0]
    mean, std = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    shape = tuple(pixels.shape[1:])
    return Dataset(name, split(*train), split(*validation), split(*test), shape, num_classes, mean, std)


def _checked_validation(validation: int | None, default: int, samples: int) -> int:
    held_out = default if validation is None else validation
    if not 1 <= held_out < samples:
        raise DataError(f"validation: {held_out} samples, expected 1..{samples - 1} of the {samples} for training")
    return held_out


def _digits(seed: int, validation: int | None) -> Dataset:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise UserError("data: 'digits' come with scikit-learn; pip install 'prograde[train]'") from error
    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = _stratified_order(labels, DIGITS_SPLIT_SEED)
    test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
    held_out = _checked_validation(validation, DIGITS_VALIDATION, len(rest))
    rest = rest[_stratified_order(labels[rest], seed)]
    train, held, tested = ((images[part], labels[part]) for part in (rest[held_out:], rest[:held_out], test))
    return _dataset("digits", train, held, tested, num_classes=10)


def _stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order in which any stretch holds the classes in nearly equal parts."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = np.arange(len(members)) / len(members)
    return order[np.argsort(place, kind="stable")]


def _read_folder(folder: Path, seed: int) -> tuple[_Arrays, _Arrays]:
    if not any(folder.glob("t*-*idx?-ubyte*")):
        train_path, test_path = find_part(folder, "train"), find_part(folder, "test")
        if train_path is not None and test_path is not None:
            return _read_image_files(train_path, test_path, seed)
    train, test = (_read_part(folder, part) for part in ("train", "t10k"))
    return train, test


def _read_image_files(train: Path, test: Path, seed: int) -> tuple[_Arrays, _Arrays]:
    """Training images in a random order, in which any stretch at the end holds the classes in nearly equal parts."""
    seen = read_class_folders(train)
    unseen = read_class_folders(test, seen.classes)
    order = _stratified_order(seen.labels, seed)[::-1]
    coloured = max(seen.images.ndim, unseen.images.ndim) == 4

    def part(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Arrays:
        if coloured and images.ndim == 3:
            images = np.repeat(images[:, None], 3, axis=1)
        return _Arrays(images.astype(np.float32) / np.float32(255), labels, str(path), str(path))

    return part(train, seen.images[order], seen.labels[order]), part(test, unseen.images, unseen.labels)


def _read_part(folder: Path, part: str) -> _Arrays:
    images_path = _find(folder, f"{part}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels", "idx1-ubyte")
    images = read_idx(images_path, axes=3).astype(np.float32) / np.float32(255)
    labels = read_idx(labels_path, axes=1).astype(np.int64)
    return _Arrays(images, labels, str(images_path), str(labels_path))


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{end}" for separator in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"data: folder '{folder}' has no {names[0]} (nor {', '.join(names[1:])}); expected MNIST's four files, or "
        "train and test, each with a folder of images for each class"
    )


def _read_npz(path: Path) -> tuple[_Arrays, _Arrays]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, AttributeError) as error:
        raise DataError(f"{path}: not a whole .npz file of plain arrays ({' '.join(str(error).split())})") from error
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if missing:
        raise DataError(f"{path}: no array {missing[0]} (found: {', '.join(arrays) or 'none'})")

    def part(name: str) -> _Arrays:
        images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
        names = f"{path}, array x_{name}", f"{path}, array y_{name}"
        if not (images.dtype == np.uint8 or images.dtype.kind == "f"):
            raise DataError(f"{names[0]}: dtype {images.dtype}, expected uint8 or floating point")
        if images.ndim < 2 or 0 in images.shape:
            raise DataError(f"{names[0]}: shape {images.shape}, expected (samples, ...), none of them 0")
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(f"{names[1]}: {labels.dtype} of shape {labels.shape}, expected integers (samples,)")
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        with np.errstate(over="ignore"):  # becomes infinite, which _check_images reports
            return _Arrays(images.astype(np.float32) / scale, labels.astype(np.int64), *names)

    return part("train"), part("test")


def _check_images(part: _Arrays) -> None:
    if np.isfinite(part.images).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(part.images))[0])
    raise DataError(f"{part.images_name}: {part.images[index]} at index {index}, expected finite float32 numbers")


def _checked_classes(train: _Arrays, test: _Arrays) -> int:
    """K, the number of distinct training labels."""
    for part in (train, test):
        if len(part.labels) != len(part.images):
            raise DataError(
                f"{part.labels_name}: {len(part.labels)} labels, but {part.images_name} has {len(part.images)} images"
            )
    num_classes = len(np.unique(train.labels))
    if num_classes < 2:
        raise DataError(f"{train.labels_name}: only the label {train.labels[0]}, expected two classes or more")
    for part in (train, test):
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
        if len(wrong):
            raise DataError(
                f"{part.labels_name}: label {part.labels[wrong[0]]} at index {wrong[0]}, "
                f"expected 0..{num_classes - 1} (training has {num_classes} distinct labels)"
            )
    return num_classes
