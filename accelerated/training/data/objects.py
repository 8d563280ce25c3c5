"""Data sets in memory or of other libraries, known by what they offer: nothing of these is imported.

- a pair of arrays, tensors or lists, x and y;
- Hugging Face's: rows by column, `column_names` and `features`, of which a ClassLabel has `names`;
- torchvision's, and any other whose `data[i]` is a sample and its label, with `len`; `classes` are names if there.

Samples are arrays, tensors, or images of Pillow. Each is asked for once, so that a random transform is drawn once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .image_folders import pixels_of
from .parts import Arrays, Parts, listed, numbered, real, whole
from .reading import check_memory
from .tables import LABELS

KINDS = "a pair of arrays, a data set of torchvision or of Hugging Face, or another with len whose items are (x, y)"


def read_objects(train: Any, test: Any, label: str | None) -> Parts:
    """The samples of one data set, or of two.

    A mapping of `train` and `test`, as Hugging Face's, is two; other parts of it are passed over.

    `label` is Hugging Face's column of labels; it need not be given where there is one of classes alone, or one with a
    usual name. Text labels are numbered by the order of their names.

    Raises DataError for what is no such data set, for samples of several shapes and for what can't be trained on.
    """
    if isinstance(train, Mapping):
        if test is not None or not {"train", "test"} <= set(train):
            raise DataError(f"data: has {listed(list(map(str, train)))}, expected train and test alone")
        train, test = train["train"], train["test"]
    seen, labels, classes = _read(train, "train", label)
    parts = [(seen, labels, "train")]
    if test is not None:
        unseen, labels, others = _read(test, "test", label)
        if others != classes:
            raise DataError(f"test: classes {listed(others)}, expected those of train: {listed(classes)}")
        parts.append((unseen, labels, "test"))
    if isinstance(parts[0][1], list):
        classes = tuple(sorted(set(parts[0][1])))
    coloured = any(images.dtype == np.uint8 and images.ndim == 4 for images, _, _ in parts)

    def arrays(images: NDArray[Any], labels: NDArray[Any] | list[str], name: str) -> Arrays:
        if coloured and images.ndim == 3:
            images = np.repeat(images[:, None], 3, axis=1)
        numbers = numbered(labels, classes, name) if isinstance(labels, list) else whole(labels, f"{name}, labels")
        return Arrays(real(images, name), numbers, name, f"{name}, labels")

    read = [arrays(*part) for part in parts]
    return Parts(read[0], read[1] if test is not None else None, classes)


def name_of(data: Any) -> str:
    """What to call a data set."""
    if isinstance(data, Mapping):
        data = next(iter(data.values()), None)
    return getattr(getattr(data, "info", None), "dataset_name", None) or type(data).__name__


Read = tuple[NDArray[Any], NDArray[Any] | list[str], tuple[str, ...]]
"""Samples, labels, which may be text, and names of classes if known."""


def _read(data: Any, name: str, label: str | None) -> Read:
    if getattr(data, "column_names", None) and getattr(data, "features", None):
        return _columns(data, name, label)
    if label is not None:
        raise DataError(f"{name}: label '{label}' of a {type(data).__name__}, which has no columns; expected none")
    if isinstance(data, tuple | list) and len(data) == 2 and _is_x_and_y(*data):
        x, y = (_array(each, name) for each in data)
        return x, y.tolist() if y.dtype.kind == "U" else y, ()
    if hasattr(data, "__array__"):
        raise DataError(f"{name}: a {type(data).__name__} alone, expected {KINDS}; load((x, y)) takes two arrays")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataError(f"{name}: of type {type(data).__name__}, expected {KINDS}")
    return _items(data, name)


def _is_x_and_y(x: Any, y: Any) -> bool:
    """Whether they are arrays, or lists of samples and of their labels, not two pairs of a sample and its label."""
    if hasattr(y, "shape") or not isinstance(y, list | tuple):
        return hasattr(x, "shape") and hasattr(y, "shape")
    samples = hasattr(x, "shape") or (isinstance(x, list | tuple) and not any(map(_is_label, x)))
    return samples and all(map(_is_label, y))


def _is_label(item: Any) -> bool:
    return isinstance(item, int | float | str)


def _items(data: Any, name: str) -> Read:
    labels: list[Any] = []

    def samples() -> Iterator[Any]:
        for place in range(len(data)):
            item = data[place]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(
                    f"{name}: item {place} is a {type(item).__name__}, expected a pair of a sample and its label"
                )
            labels.append(item[1])
            yield item[0]

    images = _stacked(samples(), len(data), name)
    whole_set = data
    while not hasattr(whole_set, "classes") and hasattr(whole_set, "dataset"):  # as Subset has
        whole_set = whole_set.dataset
    classes = getattr(whole_set, "classes", ())
    return images, _labels(labels, name), tuple(map(str, classes)) if isinstance(classes, Sequence) else ()


def _columns(data: Any, name: str, label: str | None) -> Read:
    """Of Hugging Face: one column of images or arrays, or several of numbers, beside the labels."""
    names = {column: getattr(data.features[column], "names", None) for column in data.column_names}
    known = [column for column in names if names[column]] or [c for c in names if c.lower() in LABELS]
    known = known if label is None else [label]
    if len(known) != 1 or known[0] not in names:
        raise DataError(
            f"{name}: {' and '.join(known) or 'no column'} for the label, expected one of {listed(list(names))}; name "
            f"it as in load(data, label='{(known or list(names))[-1]}')"
        )
    inputs = [column for column in names if column != known[0] and not names[column]]
    if not inputs:
        raise DataError(f"{name}: no column beside {known[0]}, expected images or features")
    labels: list[Any] = []

    def samples() -> Iterator[Any]:
        for row in data:
            labels.append(row[known[0]])
            values = [row[column] for column in inputs]
            for column, value in zip(inputs, values, strict=True):
                if value is None or isinstance(value, str | bytes | dict):
                    raise DataError(
                        f"{name}: column {column} of row {len(labels) - 1} is {_shown(value)}, expected numbers or an "
                        f"image; data.remove_columns('{column}') leaves it out"
                    )
            yield values[0] if len(values) == 1 else _array(values, f"{name}: row {len(labels) - 1}").astype(np.float64)

    images = _stacked(samples(), len(data), name)
    if images.ndim == 1:
        images = images[:, None].astype(np.float64)
    return images, _labels(labels, name), tuple(names[known[0]] or ())


def _shown(value: Any) -> str:
    return repr(value)[:40] if value is None or isinstance(value, str) else f"a {type(value).__name__}"


def _labels(labels: Sequence[Any], name: str) -> NDArray[Any] | list[str]:
    if labels and all(isinstance(label, str) for label in labels):
        return list(labels)
    return _array([_array(label, name) for label in labels], f"{name}, labels")


def _array(value: Any, name: str) -> NDArray[Any]:
    """Of an array, a tensor on any device, a number or a list. Raises DataError for what makes no numbers or text."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        found = np.asarray(value)
    except (TypeError, ValueError) as error:  # lists of several lengths
        raise DataError(f"{name}: numbers in no one shape, expected an array; pad or resize them") from error
    if found.dtype.hasobject and found.ndim and all(isinstance(each, str) for each in found.flat):
        return found.astype(str)
    if found.dtype.hasobject:
        raise DataError(f"{name}: {_shown(value)} among them, expected numbers")
    return found


def _sample(value: Any, name: str) -> NDArray[Any]:
    """The same of an image of Pillow too: (height, width) of a grey one, (3, height, width) of any other."""
    if hasattr(value, "convert") and hasattr(value, "mode"):
        pixels = pixels_of(value, name)
        return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return _array(value, name)


def _stacked(samples: Iterator[Any], count: int, name: str) -> NDArray[Any]:
    """(count, ...). Raises DataError for none, for more than memory holds, and for samples of several shapes."""
    stacked: NDArray[Any] | None = None
    place = -1
    for place, value in enumerate(samples):
        sample = _sample(value, f"{name}: sample {place}")
        if stacked is None:
            check_memory(name, f"{count} samples of shape {sample.shape}", count * sample.size * (sample.itemsize + 8))
            stacked = np.empty((count, *sample.shape), sample.dtype)
        if sample.shape != stacked.shape[1:] or sample.dtype != stacked.dtype:
            found, first = (f"{each.dtype} of shape {each.shape}" for each in (sample, stacked[0]))
            raise DataError(
                f"{name}: sample {place} is {found}, expected {first} as the first; "
                "a transform may resize and convert them"
            )
        stacked[place] = sample
    if stacked is None or place + 1 != count:
        raise DataError(f"{name}: {place + 1} samples, expected {count or 'some'}")
    return stacked
