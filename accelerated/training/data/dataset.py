"""Images and labels for training, checked once on the host so that no training step has to."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, UserError
from .archives import ARCHIVES, file_content
from .cifar import find_cifar, read_cifar
from .idx import IdxPart, find_idx, read_idx
from .image_folders import ENDS, File, find_part, read_class_folders
from .npz import read_npz
from .objects import name_of, read_objects
from .parts import Arrays, Parts, check_names, listed, whole
from .reading import entries, reading
from .tables import TABLES, find_tables, read_tables

__all__ = ["DataError", "Dataset", "Split", "load"]

VALIDATION_SHARE = 12  # 5000 of MNIST's 60000
TEST_SHARE = 5
DIGITS_TEST = 360
DIGITS_VALIDATION = 288
TEST_SEED = 1797
UNIT = 2.0  # pixels up to 1, and what resampling adds
LARGEST = 32.0  # a standardised pixel; an eighth of 0..255, which no set of such images stays below
QMNIST_COLUMNS = 8  # of a label: the class, then where the digit comes from


class Split(NamedTuple):
    """Images, flat (n, features) unless asked for otherwise, and labels (n,) int64, 0..K-1.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> data.test.images.shape, data.test.labels.shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A data set in three parts. `mean` and `std` are those of all training values together.

    `classes` are the names of labels. `feature_means` and `feature_stds` are there for tables, (n, features), whose
    features have units of their own: the mean and deviation of each, 1 for a constant one. `columns` are the names of
    features, where a file has them.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> data.num_classes, data.image_shape
    (2, (2,))
    >>> [len(part.labels) for part in (data.train, data.validation, data.test)]
    [8, 2, 2]
    """

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, ...]
    num_classes: int
    mean: float
    std: float
    classes: tuple[str, ...] = ()
    feature_means: tuple[float, ...] = ()
    feature_stds: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        """Whether samples are rows of features, whose units differ: every rule then takes them standardised."""
        return bool(self.feature_means)

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

    @property
    def standardisation(self) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
        """What is taken off, and then divided by: of a table a number for each feature, else one for all."""
        return self.feature_means or self.mean, self.feature_stds or self.std or 1.0

    def to(self, device: torch.device | str, dtype: torch.dtype, standardise: bool = False) -> "Dataset":
        """On that device, images in that dtype. If asked for, standardised: tables by feature, images by all pixels."""
        shift, scale = (torch.tensor(value, dtype=dtype, device=device) for value in self.standardisation)

        def move(split: Split) -> Split:
            images = split.images.to(device, dtype)
            return Split((images - shift) / scale if standardise else images, split.labels.to(device))

        return self._replace(train=move(self.train), validation=move(self.validation), test=move(self.test))

    def as_images(self) -> "Dataset":
        """With images (n, channels, height, width) in place of flat ones; of two axes there is one channel.

        Raises DataError for samples that are no images.
        """
        return self._shaped(self.channels_first)

    def as_sequences(self) -> "Dataset":
        """With samples (n, steps, features) in place of flat ones; of an image the rows are steps.

        Raises DataError for samples that have not two axes.
        """
        if len(self.image_shape) != 2:
            raise DataError(
                f"{self.name}: samples of shape {self.image_shape}, expected (steps, features), or images of one "
                "channel, whose rows are steps"
            )
        return self._shaped(self.image_shape)

    def _shaped(self, shape: tuple[int, ...]) -> "Dataset":
        def reshape(split: Split) -> Split:
            return Split(split.images.unflatten(1, shape), split.labels)

        return self._replace(train=reshape(self.train), validation=reshape(self.validation), test=reshape(self.test))


def load(
    source: Any, test: Any = None, *, label: str | None = None, seed: int = 0, validation: int | None = None
) -> Dataset:
    """A data set from files, arrays or another library, checked whole.

    `source` is a path or `digits`:

    - a folder of MNIST's four IDX files (gzipped or not, under its names or its relatives');
    - a folder of CIFAR-10's or CIFAR-100's files, binary or pickled, or their archive, alone or in a folder;
    - a folder of `train` and `test`, each a folder, or a .tar or .tar.gz, with a folder of image files for each class;
    - an .npz of x_train, y_train, x_test and y_test, of images, samples of other shapes, or tables, (n, features);
    - a table, .csv, .tsv or .parquet, or a folder of `train` and `test` as such.

    Or it is in memory, and so is `test`: a pair of arrays, tensors or lists; a data set of torchvision, or of pairs;
    one of Hugging Face, whose dict of train and test needs no `test`. Their random transforms are drawn once.

    `label` names a table's column of labels; `FILE:COLUMN` does so too. Where there is no test part, one sample in five
    becomes it, evenly by class and always the same. Images are (height, width), or (channels, height, width) where they
    have colours. Bytes become [0, 1]. So do images of floating-point 0..255. Other floats stay. The names of classes
    are those of folders, columns, `classes.txt` beside IDX files, an array `classes` of an .npz, or else numbers.

    `validation` samples are taken from the training part, evenly by class, by a draw from `seed`. A smaller draw is a
    part of a larger one. By default it is one sample in twelve, of the digits 288, and at least one of each class.
    Every class keeps one sample to train on: a class of one has none in validation. This seed is the split's alone:
    runs from several seeds share one split.

    Raises DataError, with the file or array, for anything missing, damaged, not finite or out of range, and for samples
    that are all alike; UserError for the digits without scikit-learn, image files without Pillow and Parquet without
    pyarrow.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> len(data.train.labels), len(data.validation.labels), len(data.test.labels)  # at least one of each class
    (8, 2, 2)
    """
    if isinstance(source, str | Path):
        if test is not None:
            raise DataError(f"test: a {type(test).__name__} beside '{source}', expected a path alone")
        path, label = path_and_label(source, label)
        if str(source) == "digits" and label is None:
            return _digits(seed, validation)
        name, parts = path.resolve().name, _read(path, source, label)
        for end in (".npz", *TABLES, *ARCHIVES[::-1]):
            name = name[: -len(end)] if name.lower().endswith(end) else name
    else:
        name, parts = name_of(source), read_objects(source, test, label)
    train, unseen = _with_test(parts)
    num_classes = _checked_classes(train, unseen)
    if train.images.shape[1:] != unseen.images.shape[1:]:
        raise DataError(
            f"{unseen.images_name}: images of shape {unseen.images.shape[1:]}, "
            f"but those of {train.images_name} have {train.images.shape[1:]}"
        )
    classes = parts.classes or tuple(str(label) for label in range(num_classes))
    if not len(set(classes)) == len(classes) == num_classes:
        raise DataError(
            f"{train.labels_name}: {num_classes} classes, but {len(classes)} names: {listed(classes)}; expected "
            "one name for each, all different"
        )
    check_names(classes, train.labels_name)
    images, unseen_images = _in_units(train, unseen)
    labels = train.labels.astype(np.int64)
    kept, held = _split(labels, seed, validation, max(num_classes, len(labels) // VALIDATION_SHARE))
    return _dataset(
        name,
        (images[kept], labels[kept]),
        (images[held], labels[held]),
        (unseen_images, unseen.labels.astype(np.int64)),
        classes,
    )._replace(columns=parts.columns)


def path_and_label(source: str | Path, label: str | None) -> tuple[Path, str | None]:
    """`table.csv:species` as both."""
    file, colon, column = str(source).rpartition(":")
    if colon and label is None and Path(file).suffix.lower() in TABLES and not Path(source).exists():
        return Path(file), column
    return Path(source), label


def _read(path: Path, source: str | Path, label: str | None) -> Parts:
    tables = find_tables(path) if path.is_dir() else None
    if tables is not None or (path.suffix.lower() in TABLES and path.is_file()):
        images = find_part(path, "train") if tables is not None else None
        if tables is not None and images is not None:
            raise DataError(f"data: folder '{source}' has {tables[0].name} and {images.name}, expected one of them")
        train, test = tables or (path, None)
        return read_tables(train, test, label)
    if label is not None:
        raise DataError(f"label: '{label}' of '{source}', expected none but of a table, whose columns have names")
    if not path.exists():
        raise DataError(f"data: '{source}' does not exist; expected 'digits', a folder, or a file: {', '.join(FILES)}")
    cifar = find_cifar(path) if path.is_dir() or path.is_file() else None
    if cifar is not None:
        return read_cifar(cifar)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path)
    raise DataError(
        f"data: '{source}' is neither 'digits' nor a folder nor one of {', '.join(FILES)}; np.savez(path, x_train=..., "
        "y_train=..., x_test=..., y_test=...) writes an .npz"
    )


FILES = (".npz", *TABLES, "CIFAR's archives")


def _with_test(parts: Parts) -> tuple[Arrays, Arrays]:
    """Those to train and to test on; the latter drawn where there are none."""
    train, test = parts.train, parts.test
    if test is not None:
        return train, test
    if len(train.labels) != len(train.images):
        raise _unequal(train)
    kept, held = _split(
        train.labels, TEST_SEED, None, max(len(np.unique(train.labels)), len(train.labels) // TEST_SHARE)
    )

    def rows(chosen: NDArray[np.int64]) -> Arrays:
        return train._replace(images=train.images[chosen], labels=train.labels[chosen])

    return rows(np.sort(kept)), rows(np.sort(held))


def _dataset(
    name: str,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    validation: tuple[NDArray[np.float32], NDArray[np.int64]],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    classes: tuple[str, ...],
) -> Dataset:
    def split(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Split:
        return Split(
            torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), -1))),
            torch.from_numpy(np.ascontiguousarray(labels)),
        )

    values = train[0]
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    shape = tuple(values.shape[1:])
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    if len(shape) == 1:
        constant = values.min(axis=0) == values.max(axis=0)  # whose deviation may not be 0 after rounding
        means = tuple(values.mean(axis=0, dtype=np.float64).tolist())
        stds = tuple(np.where(constant, 1, values.std(axis=0, dtype=np.float64)).tolist())
    parts = split(*train), split(*validation), split(*test)
    return Dataset(name, *parts, shape, len(classes), mean, std, classes, means, stds)


def _digits(seed: int, validation: int | None) -> Dataset:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise UserError("data: 'digits' come with scikit-learn; pip install 'prograde[train]'") from error
    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = _stratified_order(labels, TEST_SEED)
    test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
    kept, held = _split(labels[rest], seed, validation, DIGITS_VALIDATION)
    train, held_out, tested = ((images[part], labels[part]) for part in (rest[kept], rest[held], test))
    return _dataset("digits", train, held_out, tested, tuple(str(label) for label in range(10)))


def _split(
    labels: NDArray[np.int64], seed: int, validation: int | None, default: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples to train and to validate on, every class in nearly equal parts; one of each is left to train."""
    order = _stratified_order(labels, seed)
    _, last = np.unique(labels[order][::-1], return_index=True)
    spare = np.ones(len(order), bool)
    spare[len(order) - 1 - last] = False
    most = int(spare.sum())
    held_out = min(default, most) if validation is None else validation
    if not 1 <= held_out <= most:
        raise DataError(
            f"validation: {held_out} samples, expected 1..{most} of the {len(labels)} for training, of which each of "
            f"{len(labels) - most} classes keeps one"
        )
    spare[np.flatnonzero(spare)[held_out:]] = False
    return order[~spare], order[spare]


def _stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order in which any stretch holds the classes in nearly equal parts."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = np.arange(len(members)) / len(members)
    return order[np.argsort(place, kind="stable")]


def _read_folder(folder: Path) -> Parts:
    train, test = find_part(folder, "train"), find_part(folder, "test")
    images = train is not None and test is not None
    try:
        files = find_idx(folder)
    except DataError:
        if not images:
            raise
        files = None  # a stray one beside the images
    if files is not None:
        return Parts(_read_part(files["train"]), _read_part(files["test"]), _names(folder / "classes.txt"))
    if train is None or test is None:
        raise DataError(
            f"data: folder '{folder}' has no train-images-idx3-ubyte and no {'train' if train is None else 'test'}; "
            "expected MNIST's four files, or train and test, each with a folder of images for each class"
            f"{_hint(folder)}"
        )
    return _read_image_files(train, test)


ALIASES = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "val": "test", "valid": "test", "validation": "test",
}  # fmt: skip


def _hint(folder: Path) -> str:
    """What is in the folder instead, and what to do about it."""
    found = entries(folder)
    renamed = [
        f"'{path.name}' to '{part}'"
        for path in found
        if (part := ALIASES.get(path.name.lower())) and path.is_dir() and path.name.lower() != part
    ]
    if renamed:
        return f"; rename {' and '.join(renamed)}"
    packed = [path.name for path in found if path.suffix.lower() in (".zip", ".7z", ".rar", ".bz2", ".xz", ".zst")]
    if packed:
        return f"; unpack {packed[0]}, or pack it as one of {', '.join(ARCHIVES)}"
    written = [path.name for path in found if path.suffix.lower() in (".npz", *TABLES)]
    if written:
        return f"; or name the file: {written[0]}"
    if not found:
        return "; the folder is empty"
    folders = [path for path in found if path.is_dir()]
    for inner in [path for one in folders for path in (one, *entries(one)) if path.is_dir()]:
        if find_idx(inner) or (find_part(inner, "train") and find_part(inner, "test")):
            return f"; or name the folder inside: {inner}"
    if any(path.suffix.lower() in ENDS for one in folders for path in entries(one)):
        return f"; divide the images of {folders[0].name} and the others into train and test"
    return ""


def _names(path: Path) -> tuple[str, ...]:
    """One a line; none where there is no such file."""
    if not path.is_file():
        return ()
    with reading(path, "no names of classes"):
        return tuple(line.strip() for line in file_content(path).decode().splitlines() if line.strip())


def _read_image_files(train: Path, test: Path) -> Parts:
    files: dict[File, str] = {}
    seen = read_class_folders(train, seen=files)
    unseen = read_class_folders(test, seen.classes, files)
    coloured = max(seen.images.ndim, unseen.images.ndim) == 4

    def part(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Arrays:
        if coloured and images.ndim == 3:
            images = np.repeat(images[:, None], 3, axis=1)
        return Arrays(images, labels, str(path), str(path))

    return Parts(part(train, seen.images, seen.labels), part(test, unseen.images, unseen.labels), seen.classes)


def _read_part(files: IdxPart) -> Arrays:
    images = read_idx(files.images, axes=(3, 4, 2))
    labels = read_idx(files.labels, axes=(1, 2))
    if labels.ndim == 2 and labels.shape[1] == QMNIST_COLUMNS:
        labels = labels[:, 0]
    return Arrays(images, whole(labels, str(files.labels)), str(files.images), str(files.labels))


def _in_units(train: Arrays, test: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bytes, and images of floating-point 0..255, in 0..1; other values as they are.

    Raises DataError for values that are not finite or that could be in either unit, and for samples all alike.
    """
    scales, found = [], []
    for part in (train, test):
        with np.errstate(over="ignore"):  # becomes infinite, which is reported
            values = part.images.astype(np.float32)
        if not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise DataError(f"{part.images_name}: {values[index]} at index {index}, expected finite float32 numbers")
        if len(values) > 1 and (values == values[0]).all():
            raise DataError(f"{part.images_name}: all {len(values)} samples are alike, expected different ones")
        found.append(values)
        scales.append(_unit(part, values))
    floating = train.images.dtype.kind == test.images.dtype.kind == "f"
    if scales[0] != scales[1] and floating and train.images.ndim > 2:
        raise DataError(
            f"{test.images_name}: values to {found[1].max():g}, but those of {train.images_name} go to "
            f"{found[0].max():g}; expected both in 0..1 or both in 0..255; divide one of them by 255"
        )
    for values, scale in zip(found, scales, strict=True):
        values /= scale
    return found[0], found[1]


def _unit(part: Arrays, values: NDArray[np.float32]) -> int:
    """What to divide by: 255 or 1."""
    low, high = float(values.min()), float(values.max())
    if part.images.dtype == np.uint8:
        return 255 if high > 1 else 1  # bytes of 0 and 1 are whole pixels
    if part.images.ndim == 2 or (-LARGEST <= low < 0 and high <= LARGEST) or (low >= 0 and high <= UNIT):
        return 1
    if low < 0 or not LARGEST < high <= 255:
        raise DataError(
            f"{part.images_name}: values {low:g} to {high:g}, expected 0..1, 0..255, or standardised ones up to "
            f"{LARGEST:g}; divide by the largest that they can be, and clip what lies beyond"
        )
    peaks = values.reshape(len(values), -1).max(axis=1)
    fractions = (values % 1 != 0).reshape(len(values), -1).any(axis=1)
    small = np.flatnonzero((peaks <= 1) & fractions)
    if len(small):
        raise DataError(
            f"{part.images_name}: sample {small[0]} has values in 0..1, others go to {high:g}; expected all in 0..1 or "
            "all in 0..255; divide the others by 255"
        )
    return 255


def _checked_classes(train: Arrays, test: Arrays) -> int:
    """K, the number of distinct training labels."""
    for part in (train, test):
        if len(part.labels) != len(part.images):
            raise _unequal(part)
    present = [int(label) for label in np.unique(train.labels)]
    num_classes = len(present)
    if num_classes < 2:
        raise DataError(f"{train.labels_name}: only the label {present[0]}, expected two classes or more")
    for part in (train, test):
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
        if len(wrong):
            raise DataError(
                f"{part.labels_name}: label {part.labels[wrong[0]]} at index {wrong[0]}, "
                f"expected 0..{num_classes - 1} (training has {num_classes} distinct labels)"
                f"{_labels_hint(present, int(part.labels[wrong[0]]))}"
            )
    return num_classes


def _unequal(part: Arrays) -> DataError:
    return DataError(
        f"{part.labels_name}: {len(part.labels)} labels, but {part.images_name} has {len(part.images)} images"
    )


def _labels_hint(present: list[int], wrong: int) -> str:
    if present == list(range(1, len(present) + 1)):
        return "; labels count from 1: subtract 1 from those of both parts"
    if present == list(range(len(present))):
        return f"; there is no class {wrong} in training: leave such samples out, or add some to training"
    missing = next(label for label in range(len(present) + 1) if label not in present)
    return f"; training has no label {missing}: add it, or number both parts' labels anew from 0 without gaps"
