"""The tensor types of the twins' signatures, and what they ask of their arguments; the reference has the same names.

Numbers in a tensor are looked at on a CPU alone, outside of compilation: elsewhere a look would wait for the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd, inf
from operator import index
from typing import Any, Protocol, TypeAlias, get_args

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Array: TypeAlias = Tensor
"""Real numbers in any floating dtype; functions return the dtype that they are given."""

Labels: TypeAlias = Tensor
"""Integers 0..K-1, shape (batch,), dtype int64."""


class Map(Protocol):
    """A function of an array. A field of this type stands for a method, as one of `Callable` does not for pyright."""

    def __call__(self, a: Array, /) -> Array: ...


class Derivative(Protocol):
    """A function of an array and a direction, likewise."""

    def __call__(self, a: Array, direction: Array, /) -> Array: ...


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: half precision has too few digits for some sums and exponentials."""
    return torch.promote_types(dtype, torch.float32)


def widened(x: Array) -> Array:
    """x in float32 at least."""
    return x.to(wide(x.dtype))


FEW, PARTS = 32, 16
"""Up to how many rows a product has few, and of how many parts it then is."""

LARGE = 2**18
"""Of how many numbers a matrix has to be for that: less is sooner multiplied than said."""


def few_rows(rows: Array, matrix: Array, less: Array | None = None) -> Array:
    """rows @ matrix, or `less` minus it: (p, k) by (k, n), (p, n).

    On a CPU few rows by a large matrix are a batch of products with parts of its columns, which threads share. MKL
    multiplies few rows in one thread, in up to three times as long even there.
    """
    parts = gcd(PARTS, matrix.shape[1])
    is_few = rows.dim() == 2 and len(rows) <= FEW and matrix.numel() >= LARGE and rows.device.type == "cpu"
    if not is_few or parts == 1 or torch.compiler.is_compiling():
        return rows @ matrix if less is None else torch.addmm(less, rows, matrix, alpha=-1)
    batch = rows.expand(parts, *rows.shape), matrix.unflatten(1, (parts, -1)).transpose(0, 1)
    if less is None:
        found = torch.bmm(*batch)
    else:
        found = torch.baddbmm(less.unflatten(1, (parts, -1)).transpose(0, 1), *batch, alpha=-1)
    return found.transpose(0, 1).flatten(1)


def few_columns(rows: Array, matrix: Array) -> Array:
    """rows @ matrix, (p, k) by (k, n), as its transpose: MKL takes two to three times as long for few columns as for
    few rows, and no less for many.
    """
    return (matrix.T @ rows.T).T


def readable(x: Array) -> bool:
    """Whether a look at the numbers of x costs no waiting, breaks no graph and passes by no transformation."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu":
        return False
    mode = _get_current_dispatch_mode()
    return not is_functorch_wrapped_tensor(x) and (mode is None or not mode.is_infra_mode())


def generators(device: torch.device) -> list[torch.Generator]:
    """PyTorch's own that modules on the device may draw from: the CPU's, and the device's."""
    own = [torch.default_generator]
    if device.type == "cuda":
        own.append(torch.cuda.default_generators[torch.cuda._utils._get_device_index(device, optional=True)])
    return own


@contextmanager
def draws_undone(device: torch.device) -> Iterator[None]:
    """Afterwards these generators are as they were."""
    states = [(generator, generator.get_state()) for generator in generators(device)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which the host reads nothing."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless 0 < value < inf; an array is not looked at."""
    if not isinstance(value, Tensor) and not 0 < value < inf:
        raise ValueError(f"{name}: {value}, expected a positive number")


def check_not_negative(name: str, value: Any) -> None:
    """Raises ValueError unless 0 <= value < inf; an array is not looked at."""
    if not isinstance(value, Tensor) and not 0 <= value < inf:
        raise ValueError(f"{name}: {value}, expected 0 or more, a finite number")


def check_finite(name: str, value: Any) -> None:
    """Raises ValueError unless -inf < value < inf; an array is not looked at."""
    if not isinstance(value, Tensor) and not -inf < value < inf:
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
    """Raises ValueError unless these are integers, shape (batch,); and on a CPU, unless they are 0..num_classes-1."""
    if labels.ndim != 1:
        hint = "; labels.squeeze(1) has it" if labels.shape[1:] == (1,) else ""
        raise ValueError(f"labels: shape {tuple(labels.shape)}, expected (batch,){hint}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: dtype {labels.dtype}, expected torch.int64, integers")
    if batch is not None and labels.shape[0] != batch:
        raise ValueError(f"labels: {len(labels)}, expected {batch}, one for each sample")
    check_range("labels", labels, num_classes)


def check_range(name: str, indices: Labels, count: int, least: int = 0) -> None:
    """Raises ValueError unless all are in least..count-1, on a CPU."""
    if readable(indices) and indices.numel():
        ends = indices.aminmax()
        low, high = ends.min.item(), ends.max.item()
        if low < least or high >= count:
            raise ValueError(f"{name}: found {low}..{high}, expected {least}..{count - 1}")


def check_numbers(name: str, array: Array) -> None:
    """Raises ValueError where there is a NaN, on a CPU."""
    if readable(array) and bool(array.isnan().any()):
        raise ValueError(f"{name}: NaN among them, expected numbers")
