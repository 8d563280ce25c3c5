"""Learning rules as modules: `rule.assign_credit(x, y)` in place of `loss.backward()`."""

from .accumulation import accumulate
from .backprop import Backprop
from .difference_target_propagation import DifferenceTargetPropagation
from .feedback_alignment import DirectFeedbackAlignment, DirectRandomTargetProjection, FeedbackAlignment
from .forward_forward import ForwardForward
from .forward_forward_losses import CumulativeForwardForward, LayerCollaboration, SymBa
from .foton import Foton
from .ftp import Ftp
from .hardware import Hardware
from .held import HeldOrthogonal, orthogonal
from .local.classifiers import LocalClassifiers
from .local.controls import BackpropDeepSupervision, BackpropEnsemble
from .local.hybrid_dynamic_temperature import HybridDynamicTemperature
from .local.methods import (
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    Hyperspherical,
    MonoForward,
    PatchEnergy,
)
from .local.units import LocalUnit
from .orthogonality import Orthogonality
from .pepita import Pepita
from .recurrent import BackpropThroughTime, RecurrentFtp, RecurrentRule
from .rule import CreditAssignment, Rule, UnitUpdate
from .units import ChainUnit, Unit

RULES: dict[str, type[Rule]] = {
    "backprop": Backprop,
    "foton": Foton,
    "ftp": Ftp,
    "pepita": Pepita,
    "fa": FeedbackAlignment,
    "dfa": DirectFeedbackAlignment,
    "drtp": DirectRandomTargetProjection,
    "dtp": DifferenceTargetPropagation,
    "forward-forward": ForwardForward,
    "symba": SymBa,
    "layer-collaboration": LayerCollaboration,
    "cumulative": CumulativeForwardForward,
    "mono-forward": MonoForward,
    "hyperspherical": Hyperspherical,
    "dynamic-temperature": DynamicTemperature,
    "backprop-deep-supervision": BackpropDeepSupervision,
}
"""The rules for chains of layers by the names that the command line uses."""

__all__ = [
    "RULES",
    "Backprop",
    "BackpropDeepSupervision",
    "BackpropEnsemble",
    "BackpropThroughTime",
    "ChainUnit",
    "ChannelClassAssignment",
    "ChannelCompetition",
    "CreditAssignment",
    "CumulativeForwardForward",
    "DeeperForward",
    "DifferenceTargetPropagation",
    "DirectFeedbackAlignment",
    "DirectRandomTargetProjection",
    "DynamicTemperature",
    "FeedbackAlignment",
    "ForwardForward",
    "Foton",
    "Ftp",
    "Hardware",
    "HeldOrthogonal",
    "HybridDynamicTemperature",
    "Hyperspherical",
    "LayerCollaboration",
    "LocalClassifiers",
    "LocalUnit",
    "MonoForward",
    "Orthogonality",
    "PatchEnergy",
    "Pepita",
    "RecurrentFtp",
    "RecurrentRule",
    "Rule",
    "SymBa",
    "Unit",
    "UnitUpdate",
    "accumulate",
    "orthogonal",
]
