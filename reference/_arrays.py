"""The array types of the reference's signatures, and what its functions ask of their arguments.

Wrong arguments are refused with a ValueError. NaN in arrays is passed on, as NumPy does; where a comparison would turn
it into a number (the largest of scores), it is refused.
"""

from math import inf
from operator import index
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""Real numbers in any floating dtype; functions return the dtype that they are given."""

Labels: TypeAlias = NDArray[Any]
"""Integers 0..K-1, shape (batch,)."""


class Map(Protocol):
    """A function of an array. A field of this type stands for a method, as one of `Callable` does not for pyright."""

    def __call__(self, a: Array, /) -> Array: ...


class Derivative(Protocol):
    """A function of an array and a direction, likewise."""

    def __call__(self, a: Array, direction: Array, /) -> Array: ...


def _is_whole(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises ValueError unless the value is a whole number from least on, up to most."""
    if not _is_whole(value) or value < least or (most is not None and value > most):
        expected = f"{least} or more" if most is None else f"{least}..{most}"
        raise ValueError(f"{name}: {value!r}, expected {expected}, a whole number")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless 0 < value < inf."""
    if not 0 < value < inf:
        raise ValueError(f"{name}: {value}, expected a positive number")


def check_not_negative(name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value < inf."""
    if not 0 <= value < inf:
        raise ValueError(f"{name}: {value}, expected 0 or more, a finite number")


def check_finite(name: str, value: Any) -> None:
    """Raises ValueError unless -inf < value < inf; an array is not looked at."""
    if not isinstance(value, np.ndarray) and not -inf < value < inf:
        raise ValueError(f"{name}: {value}, expected a finite number")


def check_rate(name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}: {value}, expected 0 or more and less than 1")


def check_option(name: str, value: Any, options: Any) -> None:
    """Raises ValueError unless the value is one of a Literal's."""
    names = [repr(option) for option in get_args(options)]
    if repr(value) not in names:
        raise ValueError(f"{name}: {value!r}, expected {', '.join(names[:-1])} or {names[-1]}")


def check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless the array has this shape."""
    if array.shape != expected:
        raise ValueError(f"{name}: shape {tuple(array.shape)}, expected {tuple(expected)}")


def check_batch(name: str, array: Array, sample: str = "n", axes: int = 1) -> None:
    """Raises ValueError unless there is at least one sample, of so many axes."""
    if array.ndim != axes + 1 or 0 in array.shape:
        raise ValueError(f"{name}: shape {tuple(array.shape)}, expected (batch, {sample}), at least one of each")


def check_rows(name: str, array: Array) -> None:
    """Raises ValueError unless there is at least one sample, of one row or of one for each position."""
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"{name}: shape {tuple(array.shape)}, expected (batch, ..., n), at least one of each")


def check_images(name: str, array: Array) -> None:
    """Raises ValueError unless there are images, at least one."""
    check_batch(name, array, "channels, height, width", 3)


def check_labels(labels: Labels, num_classes: int, batch: int | None = None) -> None:
    """Raises ValueError unless these are integers 0..num_classes-1, shape (batch,)."""
    if labels.ndim != 1:
        hint = "; labels.squeeze(1) has it" if labels.shape[1:] == (1,) else ""
        raise ValueError(f"labels: shape {labels.shape}, expected (batch,){hint}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: dtype {labels.dtype}, expected integers")
    if batch is not None and len(labels) != batch:
        raise ValueError(f"labels: {len(labels)}, expected {batch}, one for each sample")
    check_range("labels", labels, num_classes)


def check_range(name: str, indices: Labels, count: int, least: int = 0) -> None:
    """Raises ValueError unless all are in least..count-1."""
    if indices.size and (indices.min() < least or indices.max() >= count):
        raise ValueError(f"{name}: found {indices.min()}..{indices.max()}, expected {least}..{count - 1}")


def check_numbers(name: str, array: Array) -> None:
    """Raises ValueError where there is a NaN."""
    if np.isnan(array).any():
        raise ValueError(f"{name}: NaN among them, expected numbers")
