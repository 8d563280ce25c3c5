"""How far the goodness of each layer separates positive from negative data, and what cumulative goodness costs it."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...cumulative_goodness import (
    attenuation,
    coverage,
    free_riding_fraction,
    layer_separation,
    log_attenuation,
    starved_fraction,
)
from ...rules import ForwardForward, Rule
from ..errors import UserError
from .alignment import undisturbed


class LayerMargins(NamedTuple):
    """A layer's goodness for positive and for negative data, and the margin of the layers before: (batch,) each.

    A margin is the goodness for positive data less that for negative data; those of several layers add up.

    >>> LayerMargins(positive=torch.ones(2), negative=torch.zeros(2), prior=torch.zeros(2)).margin.tolist()
    [1.0, 1.0]
    """

    positive: Tensor
    negative: Tensor
    prior: Tensor

    @property
    def margin(self) -> Tensor:
        return self.positive - self.negative


@torch.no_grad()
def margins(rule: Rule, x: Tensor, y: Tensor) -> dict[str, LayerMargins]:
    """Those of every layer for one draw of negatives, by the layer's name in the model.

    Generators and modes stay as they were. Shapes and errors as for `rule.assign_credit`; UserError for a rule whose
    layers have no goodness.

    >>> rule = rules.ForwardForward(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    >>> [(name, of.margin.shape) for name, of in margins(rule, torch.eye(4), torch.tensor([0, 1, 0, 1])).items()]
    [('0', torch.Size([4]))]
    """
    if not isinstance(rule, ForwardForward):
        raise UserError(f"rule: a {type(rule).__name__}, whose layers have no goodness; expected ForwardForward or kin")
    with undisturbed(rule):
        layers = rule.layer_goodness(x, y, prior="before")
    return {
        unit.name: LayerMargins(found.positive, found.negative, found.prior_positive - found.prior_negative)
        for unit, found in zip(rule.units, layers, strict=True)
    }


def margin_summary(
    rule: Rule, x: Tensor, y: Tensor, *, gamma: float = 1.0, beta: float = 4.0
) -> dict[str, dict[str, float]]:
    """By the layer's name: `separation`, the mean margin, and what the cumulative loss with gamma and beta does to it.

    That is the median `log_attenuation` of its gradient, the `free_riding` and `starved` fractions, and the `coverage`
    of the decay bound; see `cumulative_goodness`. beta = 4 is for margins of about 1, as the mean square has. Errors as
    for `margins`, and ValueError for a batch of one sample.

    >>> rule = rules.ForwardForward(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    >>> list(margin_summary(rule, torch.eye(4), torch.tensor([0, 1, 0, 1]))["0"])
    ['separation', 'log_attenuation', 'free_riding', 'starved', 'coverage']
    """
    found: dict[str, dict[str, float]] = {}
    for name, layer in margins(rule, x, y).items():
        ratio = attenuation(layer.margin, layer.prior, beta, gamma)
        values = {
            "separation": layer_separation(layer.positive, layer.negative),
            "log_attenuation": log_attenuation(layer.margin, layer.prior, beta, gamma).median(),
            "free_riding": free_riding_fraction(ratio)[0],
            "starved": starved_fraction(ratio),
            "coverage": coverage(layer.margin, layer.prior),
        }
        found[name] = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return found
