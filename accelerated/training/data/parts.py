"""What the readers of all formats give."""

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


class Arrays(NamedTuple):
    """Real images (n, ...) and labels (n,), with names for messages."""

    images: NDArray[Any]
    labels: NDArray[Any]
    images_name: str
    labels_name: str


class Parts(NamedTuple):
    """Samples to train and to test on; where the latter are None they are to be drawn from the former.

    `classes` are the names of labels, `columns` those of a table's features; empty where there are none.
    """

    train: Arrays
    test: Arrays | None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def real(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Samples (n, ...) of bytes or floats. Raises DataError with what makes others such."""
    if not (values.dtype == np.uint8 or values.dtype.kind == "f"):
        raise DataError(
            f"{name}: dtype {values.dtype}, expected uint8 or floating point; x.astype(np.uint8) of whole "
            "numbers 0..255, else x.astype(np.float32)"
        )
    if values.ndim < 2 or 0 in values.shape:
        raise DataError(f"{name}: shape {values.shape}, expected (samples, ...), none of them 0")
    return values


def whole(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Whole numbers (n,), also of (n, 1). Raises DataError with what makes others such."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        fix = "y.astype(np.int64)"
        if labels.ndim == 2:
            fix = "y.argmax(axis=1) of one-hot labels"
        elif labels.dtype.kind in "SU":
            fix = "np.unique(y, return_inverse=True)[1]"
        raise DataError(f"{name}: {labels.dtype} of shape {labels.shape}, expected integers (samples,); {fix}")
    return labels


def numbered(labels: Sequence[str], classes: tuple[str, ...], name: str) -> NDArray[np.int64]:
    """The places of labels among the classes. Raises DataError for one that is not there."""
    places = {known: place for place, known in enumerate(classes)}
    for sample, label in enumerate(labels):
        if label not in places:
            raise DataError(
                f"{name}: class '{label}' of sample {sample}, expected one of training's: {listed(classes)}"
            )
    return np.array([places[label] for label in labels], np.int64)


def check_names(names: Sequence[str], name: str) -> None:
    """Raises DataError for a name with a control character in it, by which a terminal could be led astray."""
    for each in names:
        if any(unicodedata.category(character) == "Cc" for character in each):
            raise DataError(f"{name}: class {each[:40]!r}, expected names without control characters")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first of many."""
    return ", ".join([*names[:most], "..."] if len(names) > most else names)
