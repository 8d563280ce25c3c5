"""DTG-FF's dense network, whose classifier is trained by backpropagation: no local rule."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._arrays import check_positive
from ...forward_forward import wrong_labels
from ...hybrid_dynamic_temperature import Parameters, goodness, losses, scores, updates, warm_start
from ...normalisations import Normalisation, batch_norm, batch_norm_vjp
from ..rule import LayeredRule, UnitUpdate
from ..units import Unit, without_scores


class HybridDynamicTemperature(LayeredRule):
    """The dense form of DTG-FF (arXiv 2606.06539). NOT local: its classifier's error goes back through all layers.

        loss = share sum_l [softplus(theta_l - g_l^+ / T_l) + softplus(g_l^- / T_l - theta_l)] + cross entropy

    The first part is Forward-Forward's, on two streams that carry their labels over the first K inputs, with inputs of
    layers detached and normalised: g_l is the mean square of layer l, T_l = 0.1 + 1.9 sigmoid(alpha_l) and theta_l =
    softplus(theta0_l) are learned, and the first batch sets theta_l to the mean of its g_l / T_l. The second is that of
    a linear map of BN_l(W_l z_l) of all layers but the last, of one stream without a label, and is not detached.
    Scores are that map's. How layers are normalised, and what stands in the label's place where there is none, the text
    does not say: here over all units, and a little of every label. The local dense form is `DynamicTemperature`.

    Raises ValueError for a model of other than dense layers, or of less than two hidden ones, for a negative
    `share`, and unless `amplitude` is positive.

    >>> model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> HybridDynamicTemperature(model)(torch.eye(5)).shape
    torch.Size([5, 3])
    """

    warm: Tensor

    takes_dropout = False

    def __init__(
        self, model: nn.Module, *, share: float = 0.1, amplitude: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(model, generator=generator)
        for unit in self.units:
            if not isinstance(unit.module, nn.Linear):
                kind = type(unit.module).__name__
                raise ValueError(
                    f"layer '{unit.name}': {kind}; {type(self).__name__} trains dense layers, as its paper"
                )
        if not self.units[-1].is_linear:
            raise without_scores(model)
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"layer '{name}': {type(module).__name__}; {type(self).__name__} has three streams, which are no "
                    "one batch; use LayerNorm"
                )
        self.units = self.units[:-1]
        if len(self.units) < 2:
            raise ValueError(f"model: {len(self.units)} hidden layer, expected two or more; the last has no read-out")
        weight = self.units[0].weights[0]
        if not 2 <= self.num_classes <= weight.shape[1]:
            raise ValueError(f"num_classes: {self.num_classes}, expected 2..{weight.shape[1]}, the inputs")
        if not 0 <= share < float("inf"):
            raise ValueError(f"share: {share}, expected 0 or a positive number")
        check_positive("amplitude", amplitude)
        self.share, self.amplitude = share, amplitude
        widths = [unit.width for unit in self.units[:-1]]
        self.alpha = nn.Parameter(weight.new_zeros(len(self.units)))
        self.theta = nn.Parameter(weight.new_zeros(len(self.units)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths).to(weight)
        self.classifier = nn.Linear(sum(widths), self.num_classes).to(weight)
        self.register_buffer("warm", torch.zeros((), dtype=torch.bool, device=weight.device))
        self._looked = False  # at `warm`: once, since that waits for the device

    @property
    def least_batch(self) -> int:
        """2 while batch normalisation is in training mode."""
        return 2 if any(norm.training for norm in self.norms) else 1

    def checked(self, x: Tensor, y: Tensor) -> Tensor:
        x = super().checked(x, y)
        if len(x) < self.least_batch:
            raise ValueError("x: a batch of 1, expected 2 or more: BatchNorm1d of the classifier needs them")
        return x

    def learned(self) -> Parameters:
        """What is learned beside the layers; the tensors are the parameters themselves."""
        scales, offsets = zip(*((norm.weight, norm.bias) for norm in self._norms()), strict=True)
        return Parameters(self.alpha, self.theta, scales, offsets, self.classifier.weight, self.classifier.bias)

    def _norms(self) -> list[nn.BatchNorm1d]:
        return [norm for norm in self.norms if isinstance(norm, nn.BatchNorm1d)]

    def _steps(self, counted: bool = False) -> list[Normalisation]:
        """Batch normalisation as each module's mode has it; if counted, with the batch in the running statistics."""
        steps = []
        for norm in self._norms():
            mean, variance = norm.running_mean, norm.running_var
            step = Normalisation(batch_norm, batch_norm_vjp)
            if not norm.training:
                value, vjp = (partial(f, mean=mean, variance=variance) for f in (batch_norm, batch_norm_vjp))
                step = Normalisation(value, vjp)
            elif counted:
                noted = partial(functional.batch_norm, running_mean=mean, running_var=variance, training=True)
                step = step._replace(value=noted)
            steps.append(step)
        return steps

    def checked_input(self, x: Tensor) -> Tensor:
        self.check_hooks()
        return super().checked_input(x)

    def scores(self, x: Tensor) -> Tensor:
        return scores(self.layers(), self.learned(), self.begin(x), self.amplitude, self._steps())

    def _wrong(self, y: Tensor) -> Tensor:
        return wrong_labels(y, self.num_classes, self.generator)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The layers' losses, (layers,), and the classifier's, with their graphs; wrong labels are drawn."""
        x = self.checked(x, y)
        return losses(self.layers(), self.learned(), x, y, self._wrong(y), self.amplitude, self._steps())

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [self.alpha, self.theta]

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        local, last = self.losses(x, y)
        return self.share * local.sum() + last

    def stream(self, x: Tensor, y: Tensor) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        self._warm_up(x, y)
        learned, steps = self.learned(), self._steps(counted=True)
        found = updates(self.layers(), learned, x, y, self._wrong(y), self.share, self.amplitude, steps)
        for unit, update, loss in zip(self.units, found.layers, found.local, strict=True):
            yield UnitUpdate(unit, update, self.share * loss)
        told = found.parameters
        own = ((held.alpha, held.theta, *held.scales, *held.offsets) for held in (learned, told))
        classifier = Unit("classifier", self.classifier)
        yield UnitUpdate(classifier, [told.weight, told.bias], found.classifier, tuple(zip(*own, strict=True)))

    def _load_from_state_dict(self, *state: Any, **named: Any) -> None:
        self._looked = False  # the state may be of a rule that has not seen a batch
        super()._load_from_state_dict(*state, **named)

    @torch.no_grad()
    def _warm_up(self, x: Tensor, y: Tensor) -> None:
        """Of the first batch, each theta becomes the mean goodness; the draw is another than that of the step."""
        if self._looked or not self.training or not self.theta.requires_grad:
            return
        self._looked = True
        if self.warm:
            return
        layers, learned = self.layers(), self.learned()
        self.theta.copy_(warm_start(*(goodness(layers, learned, x, k, self.amplitude) for k in (y, self._wrong(y)))))
        self.warm.fill_(True)
