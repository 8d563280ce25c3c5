"""Data sets, as they are read and prepared for training."""

from ..errors import DataError
from .dataset import Dataset, Split, load

__all__ = ["DataError", "Dataset", "Split", "load"]
