"""Training with a rule: data, recipes, the loop, what is measured beside it, checkpoints."""

from typing import TYPE_CHECKING

from .callbacks import Callback
from .checkpoint import CheckpointError
from .data import DataError, Dataset, Split, load
from .diagnostics import (
    Cost,
    LayerCost,
    LayerMargins,
    alignment,
    confusion,
    costs,
    first_filters,
    layer_costs,
    layer_study,
    layer_summary,
    margin_summary,
    margins,
    unit_diagnostics,
)
from .errors import UserError
from .evaluation import accuracy
from .history import Epoch, History
from .loop import fit
from .recipes import PRESETS, Recipe, build, default_recipe, mlp
from .restore import Restored, restore
from .run import Run, TrainingError
from .watching import CsvTable, Progress, TensorBoard

if TYPE_CHECKING:
    from .estimators import ForwardOnlyClassifier, ForwardOnlyRegressor

__all__ = [
    "PRESETS",
    "Callback",
    "CheckpointError",
    "Cost",
    "CsvTable",
    "DataError",
    "Dataset",
    "Epoch",
    "ForwardOnlyClassifier",
    "ForwardOnlyRegressor",
    "History",
    "LayerCost",
    "LayerMargins",
    "Progress",
    "Recipe",
    "Restored",
    "Run",
    "Split",
    "TensorBoard",
    "TrainingError",
    "UserError",
    "accuracy",
    "alignment",
    "build",
    "confusion",
    "costs",
    "default_recipe",
    "first_filters",
    "fit",
    "layer_costs",
    "layer_study",
    "layer_summary",
    "load",
    "margin_summary",
    "margins",
    "mlp",
    "restore",
    "unit_diagnostics",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports the estimators when they are first asked for: they alone need scikit-learn."""
        if name not in ("ForwardOnlyClassifier", "ForwardOnlyRegressor"):
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from . import estimators

        return getattr(estimators, name)
