"""The tensor types of the twins' signatures; the reference has the same names for NumPy arrays."""

from typing import TypeAlias

from torch import Tensor

Array: TypeAlias = Tensor
"""Real numbers in any floating dtype; functions return the dtype that they are given."""

Labels: TypeAlias = Tensor
"""Integers 0..K-1, shape (batch,), dtype int64."""
