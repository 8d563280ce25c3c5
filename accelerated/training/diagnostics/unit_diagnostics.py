"""What tells, unit by unit, how a training goes: updates, activities and the constraint on the weights."""

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..._arrays import widened
from ...cumulative_goodness import layer_separation
from ...orthogonality import defect
from ...rules import ForwardForward, Hardware, Orthogonality, Rule
from .alignment import check_rule, cosines, undisturbed, updates_by_unit

UNIT_DIAGNOSTICS = {
    "alignment": "cosine of the update with the backpropagated gradient",
    "update_norm": "norm of the update",
    "defect": "largest entry of |W W^T - I|",
    "dead": "share of dead units",
    "class_separation": "share of the activities' variance between classes",
    "separation": "mean margin of goodness",
}
"""What `unit_diagnostics` gives, and what each is."""


@torch.no_grad()
def unit_diagnostics(rule: Rule, x: Any, y: Any) -> dict[str, dict[str, float]]:
    """By the unit's name, what is known of it on a batch; a measure for `fit`.

    `alignment`, where the weight is not frozen. `update_norm`, the Euclidean norm of what an optimizer is to subtract
    from its parameters. `defect`, the largest entry of |G - I| of weights that the rule holds orthogonal, G the Gram
    matrix. `dead`, the share of its units (channels of maps) that give one number for the whole batch, as a ReLU that
    is always 0. `class_separation`, see there, where each sample has a label and the rule puts none into its input.
    `separation`, the mean margin of Forward-Forward's goodness, for one draw of negatives. What a unit has not, or
    what is not finite, is left out.

    Without dropout. `.grad`, generators and modes stay as they were. Shapes and errors as for `rule.assign_credit`;
    TypeError for what is no rule.

    >>> rule = rules.Backprop(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)))
    >>> round(unit_diagnostics(rule, torch.eye(2), torch.tensor([0, 2]))["0"]["alignment"], 4)
    1.0
    """
    check_rule(rule, "unit_diagnostics")
    updates = updates_by_unit(rule, x, y)
    found: dict[str, dict[str, Any]] = {unit.name: {} for unit in rule.units}
    for name, cosine in cosines(rule, x, y, updates).items():
        found[name]["alignment"] = cosine
    for name, update in updates.items():
        if update.gradients is not None:
            norms = [torch.linalg.vector_norm(widened(gradient)) for gradient in update.gradients]
            found[name]["update_norm"] = torch.stack(norms).norm()
    for name, worst in _defects(rule).items():
        found[name]["defect"] = worst
    labelled = isinstance(y, Tensor) and y.dtype == torch.int64 and y.dim() == 1
    goodness = rule if isinstance(rule, ForwardForward) else None
    with undisturbed(rule):
        for unit, h in zip(rule.units, rule.activities(x, y), strict=False):
            channels_first = getattr(unit, "gives_channels_first", h.dim() == 4)
            found[unit.name]["dead"] = dead_share(h.movedim(1, -1) if channels_first else h)
            if labelled and goodness is None:
                found[unit.name]["class_separation"] = class_separation(h, y)
    if goodness is not None:
        with undisturbed(rule):
            for unit, layer in zip(rule.units, goodness.layer_goodness(x, y), strict=True):
                found[unit.name]["separation"] = layer_separation(layer.positive, layer.negative)
    numbers = {name: {key: float(value) for key, value in values.items()} for name, values in found.items()}
    return {name: {key: value for key, value in of.items() if isfinite(value)} for name, of in numbers.items()}


def dead_share(h: Tensor) -> Tensor:
    """The share of the last axis that gives one number for all samples and positions: (batch, ..., n) to a scalar."""
    rows = h.flatten(0, -2)
    return (rows.amax(dim=0) == rows.amin(dim=0)).double().mean()


def class_separation(h: Tensor, labels: Tensor) -> Tensor:
    """The share of the variance of activities that lies between the classes' means, 0 to 1: (batch, ...) to a scalar.

    That is sum_k n_k |m_k - m|^2 / sum_i |h_i - m|^2, which K classes of N samples have at (K - 1) / (N - 1) where they
    are alike. 0 where all activities are. In float32 at least.
    """
    centred = widened(h.flatten(1))
    centred = centred - centred.mean(dim=0)
    one_hot = torch.nn.functional.one_hot(labels).to(centred.dtype)  # (batch, K)
    sums = one_hot.T @ centred  # (K, n), n_k (m_k - m)
    between = (sums.square().sum(dim=1) / one_hot.sum(dim=0).clamp(min=1)).sum()
    return between / centred.square().sum().clamp(min=torch.finfo(centred.dtype).tiny)


def _defects(rule: Rule) -> dict[str, Tensor]:
    """Of the weights that the rule holds orthogonal, the worst of each unit."""
    inner = rule.rule if isinstance(rule, Hardware) else rule
    constraint = getattr(inner, "orthogonality", None)
    if not isinstance(constraint, Orthogonality):
        return {}
    weights = constraint.weights(frozen=True)
    by_unit = {
        unit.name: [defect(widened(weights[name])) for name in unit.held if name in weights] for unit in rule.units
    }
    return {name: torch.stack(defects).amax() for name, defects in by_unit.items() if defects}
