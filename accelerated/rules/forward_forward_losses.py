"""Forward-Forward with other losses, as rules."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._arrays import check_positive
from ..cumulative_goodness import REMEDIES, gate_gradient, hardness_gated
from ..forward_forward import Prior
from ..goodness import Goodness
from ..pair_losses import LayerCredit, LayerGoodness, LayerLoss, collaboration, symba
from .forward_forward import ForwardForward

GATED = "hardness-gated"


class SymBa(ForwardForward, sets=("loss", "threshold")):
    """SymBa (arXiv 2303.08418): softplus(-alpha (g^+ - g^-)) of the mean square, with opposite slopes of g^+ and g^-.

    The label overwrites pixels as in `ForwardForward`; the paper adds an image for each class. `options` are those of
    `ForwardForward`.

    Raises ValueError unless `alpha` is positive.

    >>> model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> model[0].bias.data[:] = model[0].weight.data[:] = 0
    >>> loss = SymBa(model).assign_credit(torch.eye(5)[:2], torch.tensor([0, 2]))
    >>> round(loss.item(), 4)  # log 2, since both goodnesses are 0
    0.6931
    """

    def __init__(
        self, model: nn.Module, *, alpha: float = 4.0, goodness: str | Goodness = "mean-square", **options: Any
    ) -> None:
        check_positive("alpha", alpha)
        super().__init__(model, goodness=goodness, loss=symba(alpha), **options)


class LayerCollaboration(ForwardForward, sets=("loss",)):
    """Layer collaboration (arXiv 2305.12393): the threshold loss of the layer's goodness plus that of other layers.

    The goodness of the others is detached. They are all other layers, or with `prior="before"` those before it. Theta
    is `threshold` for each unit of the layer, by default the number of layers in the sum. The paper trains layers in
    turn; here one pass updates all. `options` are those of `ForwardForward`.

    Raises ValueError for a threshold that is not finite, and for the prior 'none'.

    >>> rule = LayerCollaboration(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    >>> torch.equal(rule.objective(x, y), ForwardForward(rule.model).objective(x, y))  # a layer without others
    True
    """

    def __init__(
        self, model: nn.Module, *, threshold: float | None = None, prior: Prior = "others", **options: Any
    ) -> None:
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold: {threshold}, expected a finite number")
        if prior == "none":
            raise ValueError("prior: 'none', expected 'before' or 'others', which are what layers collaborate by")
        loss = partial(_collaboration_of_layers, prior) if threshold is None else collaboration(threshold)
        super().__init__(model, loss=loss, prior=prior, **options)


# A function of the module, so that the rule can be pickled.
def _collaboration_of_layers(prior: Prior, layer: LayerGoodness) -> LayerCredit:
    added = layer.depth if prior == "others" else layer.layer + 1
    return collaboration(added)(layer)


class CumulativeForwardForward(ForwardForward, sets=("loss", "threshold")):
    """Cumulative goodness (arXiv 2605.06240): softplus(-beta M), M the layer's margin and gamma times those before it.

    `remedy` is a name in `prograde.accelerated.cumulative_goodness.REMEDIES`, "cumulative" for none, or a loss made
    there with settings of your own; `gamma` and `beta` are the remedy's own unless given. With `learn_gate`, for
    "hardness-gated", every layer but the first learns its gate's tau, as `raw_tau` with tau = softplus(raw_tau), and
    `kappa`, neither of which weight decay should act on (`no_weight_decay`); in the published code tau is one for all
    layers. `options` are those of `ForwardForward`.

    Raises ValueError for a negative `gamma`, a `beta` that is not positive, and settings that the remedy does not
    have.

    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> rule = CumulativeForwardForward(model, remedy="hardness-gated", learn_gate=True)
    >>> [name for name, _ in rule.named_parameters() if not name.startswith("model.")]
    ['raw_tau.0', 'kappa.0']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        remedy: str | LayerLoss = "cumulative",
        gamma: float | None = None,
        beta: float | None = None,
        learn_gate: bool = False,
        goodness: str | Goodness = "mean-square",
        **options: Any,
    ) -> None:
        given = {name: value for name, value in {"gamma": gamma, "beta": beta}.items() if value is not None}
        if gamma is not None and not 0 <= gamma < math.inf:
            raise ValueError(f"gamma: {gamma}, expected 0 or a positive number")
        loss = remedy if callable(remedy) else _remedy(remedy, given)
        if beta is not None:
            check_positive("beta", beta)
        if options.setdefault("prior", "before") != "before":
            raise ValueError(f"prior: {options['prior']!r}, expected 'before': goodness is accumulated over layers")
        super().__init__(model, goodness=goodness, loss=loss, **options)
        if callable(remedy) and given:
            raise ValueError(f"{' and '.join(given)}: given, but the remedy is a loss with settings of its own")
        if learn_gate and remedy != GATED:
            raise ValueError(f"learn_gate: True, expected remedy {GATED!r}, got {remedy!r}")
        self.gate = given
        self.raw_tau, self.kappa = nn.ParameterList(), nn.ParameterList()
        if learn_gate:
            like = self.units[0].weights[0]
            for _ in self.units[1:]:
                self.raw_tau.append(nn.Parameter(torch.full_like(like.flatten()[0], math.log(math.expm1(1)))))
                self.kappa.append(nn.Parameter(torch.zeros_like(like.flatten()[0])))

    def layer_loss(self, layer: LayerGoodness) -> LayerCredit:
        if not layer.layer or not self.raw_tau:
            return super().layer_loss(layer)
        raw_tau, kappa = self.raw_tau[layer.layer - 1], self.kappa[layer.layer - 1]
        return hardness_gated(tau=softplus(raw_tau), kappa=kappa, **self.gate)(layer)

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [*self.raw_tau, *self.kappa]

    def own_updates(self, layer: LayerGoodness) -> tuple[tuple[Tensor, Tensor], ...]:
        if not layer.layer or not self.raw_tau:
            return ()
        gate = raw_tau, kappa = self.raw_tau[layer.layer - 1], self.kappa[layer.layer - 1]
        gradients = gate_gradient(layer, raw_tau, kappa, **self.gate)
        return tuple((held, gradient.mean().to(held.dtype)) for held, gradient in zip(gate, gradients, strict=True))


def _remedy(name: str, given: dict[str, float]) -> LayerLoss:
    """The remedy with these settings. Raises ValueError for a name that is none, or a setting that it lacks."""
    if name not in REMEDIES:
        raise ValueError(f"remedy: {name!r}, expected one of {', '.join(REMEDIES)}, or a loss")
    try:
        return REMEDIES[name](**given)
    except TypeError as error:
        raise ValueError(f"remedy: {name!r} does not take {' and '.join(given)} ({error})") from error
