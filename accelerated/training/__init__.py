"""Training with a rule: data, recipes, the loop, what is measured beside it, checkpoints."""

from .alignment import alignment
from .checkpoint import CheckpointError
from .data import DataError, Dataset, Split, load
from .errors import UserError
from .loop import Epoch, History, TrainingError, accuracy, fit
from .recipes import METHODS, Recipe, build, default_recipe, mlp
from .restore import Restored, restore

__all__ = [
    "METHODS",
    "CheckpointError",
    "DataError",
    "Dataset",
    "Epoch",
    "History",
    "Recipe",
    "Restored",
    "Split",
    "TrainingError",
    "UserError",
    "accuracy",
    "alignment",
    "build",
    "default_recipe",
    "fit",
    "load",
    "mlp",
    "restore",
]
