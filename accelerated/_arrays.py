"""The tensor types of the twins' signatures; the reference has the same names for NumPy arrays."""

from typing import TypeAlias

import torch
from torch import Tensor

Array: TypeAlias = Tensor
"""Real numbers in any floating dtype; functions return the dtype that they are given."""

Labels: TypeAlias = Tensor
"""Integers 0..K-1, shape (batch,), dtype int64."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 at least: half precision has too few digits for some sums and exponentials."""
    return torch.promote_types(dtype, torch.float32)


def widened(x: Array) -> Array:
    """x in float32 at least."""
    return x.to(wide(x.dtype))
