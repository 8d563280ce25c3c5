"""Faults that test_adaptive_pooling.py must catch."""

from . import Fault

FAULTS = [
    Fault("means for a cell's sums", "accelerated.adaptive_pooling",
          '    if pooling == "mean":\n        rows,', "    if True:\n        rows,",
          "test_twin", "grid_pool"),
    Fault("a cell's sums spread for its means", "accelerated.adaptive_pooling",
          "(y.shape[2], y.shape[3]), pooling, y)", '(y.shape[2], y.shape[3]), "sum", y)',
          "test_twin", "grid_pool_adjoint"),
    Fault("cells that do not overlap", "accelerated.adaptive_pooling",
          "-((cell + 1) * size // -count)", "(cell + 1) * size // count",
          "test_twin", "grid_pool"),
    Fault("cells of the reference that do not overlap", "reference.adaptive_pooling",
          "-((i + 1) * size // -count)", "(i + 1) * size // count",
          "test_cells_by_hand", "approx([1"),
    Fault("means for a cell's sums in the reference", "reference.adaptive_pooling",
          '1 / (end - first) if pooling == "mean" else 1', "1 / (end - first)",
          "test_cells_are_those_of_pytorch", "pixels of a cell"),
]  # fmt: skip
