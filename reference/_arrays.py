"""The array types of the reference's signatures."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""Real numbers in any floating dtype; functions return the dtype that they are given."""

Labels: TypeAlias = NDArray[Any]
"""Integers 0..K-1, shape (batch,)."""
