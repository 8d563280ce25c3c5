"""Training with a rule: data, recipes, the loop, what is measured beside it, checkpoints."""

from .alignment import alignment
from .checkpoint import CheckpointError
from .costs import Cost, LayerCost, costs, layer_costs
from .data import DataError, Dataset, Split, load
from .errors import UserError
from .layer_study import layer_study, layer_summary
from .loop import Epoch, History, TrainingError, accuracy, fit
from .margins import LayerMargins, margin_summary, margins
from .recipes import PRESETS, Recipe, build, default_recipe, mlp
from .restore import Restored, restore

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Cost",
    "DataError",
    "Dataset",
    "Epoch",
    "History",
    "LayerCost",
    "LayerMargins",
    "Recipe",
    "Restored",
    "Split",
    "TrainingError",
    "UserError",
    "accuracy",
    "alignment",
    "build",
    "costs",
    "default_recipe",
    "fit",
    "layer_costs",
    "layer_study",
    "layer_summary",
    "load",
    "margin_summary",
    "margins",
    "mlp",
    "restore",
]
