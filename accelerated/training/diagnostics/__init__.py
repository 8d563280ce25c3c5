"""What is measured of rules and their layers, and what their steps cost."""

from .alignment import alignment
from .confusion import confusion
from .costs import Cost, LayerCost, costs, layer_costs
from .filters import first_filters
from .layer_study import layer_study, layer_summary
from .margins import LayerMargins, margin_summary, margins
from .unit_diagnostics import unit_diagnostics

__all__ = [
    "Cost",
    "LayerCost",
    "LayerMargins",
    "alignment",
    "confusion",
    "costs",
    "first_filters",
    "layer_costs",
    "layer_study",
    "layer_summary",
    "margin_summary",
    "margins",
    "unit_diagnostics",
]
