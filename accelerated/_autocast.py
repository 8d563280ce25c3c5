"""What of a step is computed in the lower precision of an autocast region, and what is not.

A step of a rule in a region of `torch.autocast` computes in the region's dtype
- the products of a layer with activities, differences or credit: `product`;
- the modules of a model that are run as they are, as there by themselves: `lowered`.

Everything else keeps the parameters' dtype: activations, losses, scores of local layers, projections, updates.
So do differences of two values, z and z - u, which would cancel: `in_full` computes both values without the region.
Where parameters are of half precision themselves, modules and maxima compute both in float32 (`widened`).
A difference that is carried through a product does not cancel.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from ._arrays import Array

_NO_CONTEXT = nullcontext()


class Region(NamedTuple):
    """The kind of device of an autocast region, and its dtype."""

    kind: str
    dtype: torch.dtype


class _Step(threading.local):
    """The region that the present step is in, with autocast itself switched off."""

    def __init__(self) -> None:
        self.region: Region | None = None


_STEP = _Step()


def region_on(device: torch.device) -> Region | None:
    """The autocast region that we are in, if it is one of that device; a step's own counts too."""
    if _STEP.region is not None or not torch.is_autocast_enabled(device.type):
        return _STEP.region
    return Region(device.type, torch.get_autocast_dtype(device.type))


def outside(device: torch.device) -> AbstractContextManager[Any]:
    """Outside of any autocast region of that device: a constraint on weights has their own precision."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else _NO_CONTEXT


@contextmanager
def step_in(region: Region) -> Iterator[None]:
    """Inside, autocast is off but for `product` and `lowered`."""
    before, _STEP.region = _STEP.region, region
    try:
        with torch.autocast(region.kind, enabled=False):
            yield
    finally:
        _STEP.region = before
        if not torch.compiler.is_compiling():
            torch.clear_autocast_cache()  # of weights as they were before the step, which scores would be made from


@contextmanager
def _in_full() -> Iterator[None]:
    before, _STEP.region = _STEP.region, None
    try:
        yield
    finally:
        _STEP.region = before


def in_full() -> AbstractContextManager[None]:
    """Inside, a step computes all in the parameters' dtype: there differences of two values are taken."""
    return _NO_CONTEXT if _STEP.region is None else _in_full()


def is_lowered() -> bool:
    """Whether a step is in a region, outside of `in_full`."""
    return _STEP.region is not None


def lowered() -> AbstractContextManager[Any]:
    """Inside, modules run in the region of the step.

    Casts of weights are not kept: a unit may be stepped in the region, and one without a graph would hide its weight.
    """
    region = _STEP.region
    if region is None:
        return _NO_CONTEXT
    return torch.autocast(region.kind, region.dtype, cache_enabled=False)


def raised(given: Array, x: Array, modules: Iterable[nn.Module]) -> Array:
    """What modules give for x in `lowered`, in the dtype of x, or of their parameters where x are integers."""
    if _STEP.region is None:
        return given
    dtypes = (p.dtype for module in modules for p in module.parameters())
    return given.to(x.dtype if x.is_floating_point() else next(dtypes, given.dtype))


def product(multiply: Callable[..., Array], *operands: Array | None) -> Array:
    """multiply(*operands), in a step's region of operands in its dtype; the result has the first one's own."""
    region, first = _STEP.region, operands[0]
    if region is None or first is None or first.device.type != region.kind or first.dtype == torch.float64:
        return multiply(*operands)
    found = multiply(*(operand if operand is None else operand.to(region.dtype) for operand in operands))
    return found.to(first.dtype)
