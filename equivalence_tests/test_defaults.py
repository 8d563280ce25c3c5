"""What a rule does unless it is told otherwise: a default that changes, changes everybody's results.

By the file that a rule is of. Most are the papers' or the public code's; the others are ours, as the pages say.
"""

import inspect
from collections import defaultdict
from typing import Any

import pytest

from prograde.accelerated import rules

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]

ORTHOGONAL = {"tolerance": 5e-3, "blocks": 1}
FEEDBACK = {"phi": "tanh", "gain": 1.0, "scale": 0.5, "law": "uniform"}

DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "accumulation": {"accumulate": {"share": 1.0}},
    "backprop": {"Backprop": {"orthogonal": False, "loss": "cross_entropy", "label_smoothing": 0.0}},
    "controls": {"BackpropDeepSupervision": {"detach": False}, "BackpropEnsemble": {"label_smoothing": 0.0}},
    "difference_target_propagation": {"DifferenceTargetPropagation": {"step": 1.0, "noise": 0.1}},
    "feedback_alignment": {
        "DirectFeedbackAlignment": {"scale": 1.0, "signs": False},
        "DirectRandomTargetProjection": {"centred": False, "scale": 1.0},
    },
    "forward_forward": {
        "ForwardForward": {
            "goodness": "sum-of-squares", "prior": "before", "negatives": "wrong", "mask_passes": 6, "first_layer": 0,
            "readout": False,
        }
    },
    "forward_forward_losses": {
        "CumulativeForwardForward": {"remedy": "cumulative", "learn_gate": False, "goodness": "mean-square"},
        "LayerCollaboration": {"prior": "others"},
        "SymBa": {"alpha": 4.0, "goodness": "mean-square"},
    },
    "foton": {
        "Foton": {
            "orthogonality_tolerance": 5e-3, "orthogonality_every": 1, "projection_every": 1, "activation_gain": 1.0,
            "linear": False, "recompute": False, "as_published": False, "temperature": 1.0,
        }
    },
    "ftp": {
        "Ftp": {name: value for name, value in FEEDBACK.items() if name != "phi"}
        | {"inject": 1, "second_pass": "difference", "seeded": False}
    },
    "hardware": {"Hardware": {"read_noise": 0.0, "programming_noise": 0.0}},
    "hybrid_dynamic_temperature": {"HybridDynamicTemperature": {"share": 0.1, "amplitude": 1.0}},
    "classifiers": {
        "LocalClassifiers": {
            "aggregation": "sum", "score_after": "activation", "readout_dropout": 0.0, "readout_smoothing": 0.0,
            "detach": True,
        }
    },
    "methods": {
        "ChannelClassAssignment": {"assignment": "learned", "aggregation": "validation-loss"},
        "ChannelCompetition": {"loss": "cwc", "aggregation": "last"},
        "DeeperForward": {"aggregation": "range"},
        "DynamicTemperature": {"lowest": 0.5, "highest": 2.0},
        "Hyperspherical": {"scale": 20.0, "margin": 0.0, "per_class": 1, "sharpness": 10.0, "grid": 4},
        "MonoForward": {"grid": 4},
    },
    "held": {"orthogonal": ORTHOGONAL},
    "orthogonality": {"Orthogonality": ORTHOGONAL | {"every": 1, "asynchronous": False}},
    "pepita": {
        "Pepita": {"scale": 0.05, "output_error": "clean", "presynaptic": "modulated", "second_pass": "difference"}
    },
    "recurrent": {
        "BackpropThroughTime": {"loss": "cross_entropy"},
        "RecurrentFtp": FEEDBACK | {"inject": "first", "reduction": "sum", "loss": "cross_entropy"},
        "RecurrentRule": {"loss": "cross_entropy"},
    },
}  # fmt: skip


def defaults() -> dict[str, dict[str, dict[str, Any]]]:
    """Of every public rule and function of rules, but for None: what the class itself takes."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for name in rules.__all__:
        item = getattr(rules, name)
        taker = vars(item).get("__init__") if inspect.isclass(item) else item
        if inspect.isfunction(taker):
            parameters = inspect.signature(taker).parameters.values()
            given = {p.name: p.default for p in parameters if type(p.default) in (bool, int, float, str)}
            if given:
                found[item.__module__.rpartition(".")[2]][name] = given
    return found


@pytest.mark.parametrize("module", sorted(DEFAULTS))
def test_defaults(module: str) -> None:
    assert defaults()[module] == DEFAULTS[module], f"defaults of {module}"


def test_every_rule_with_defaults_is_listed() -> None:
    assert sorted(defaults()) == sorted(DEFAULTS), "files of rules"
