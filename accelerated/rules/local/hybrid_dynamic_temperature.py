"""DTG-FF's dense network, whose classifier is trained by backpropagation: no local rule."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._arrays import check_positive
from ...activations import identity
from ...forward_forward import overlay, overlay_neutral, wrong_labels
from ...normalisations import layer_norm
from ..chain import Block
from ..rule import BlockUpdate, Rule, gradients_by

LOWEST, HIGHEST = 0.1, 2.0
"""Temperatures of dense layers, in the paper."""
LARGE = 20.0
"""A goodness from which on softplus is taken for the identity, in the paper."""


class HybridDynamicTemperature(Rule):
    """The dense form of DTG-FF (arXiv 2606.06539). NOT local: its classifier's error goes back through all layers.

        loss = share sum_l [softplus(theta_l - g_l^+ / T_l) + softplus(g_l^- / T_l - theta_l)] + cross entropy

    The first part is Forward-Forward's, on two streams that carry their labels over the first K inputs, with inputs of
    layers detached and normalised: g_l is the mean square of layer l, T_l = 0.1 + 1.9 sigmoid(alpha_l) and theta_l =
    softplus(theta0_l) are learned, and the first batch sets theta_l to the mean of its g_l / T_l. The second is that of
    a linear map of BN_l(W_l z_l) of all layers but the last, of one stream without a label, and is not detached.
    Scores are that map's. How layers are normalised, and what stands in the label's place where there is none, the text
    does not say: here over all units, and a little of every label. The local dense form is `DynamicTemperature`.
    """

    warm: Tensor

    takes_dropout = False

    def __init__(
        self, model: nn.Module, *, share: float = 0.1, amplitude: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(model, generator=generator)
        if not self.blocks[-1].is_linear:
            raise ValueError(
                f"layer '{self.blocks[-1].name}': an activation at the end; expected a Linear that gives K"
            )
        self.blocks = self.blocks[:-1]
        if len(self.blocks) < 2:
            raise ValueError(f"model: {len(self.blocks)} hidden layer, expected two or more; the last has no read-out")
        for block in self.blocks:
            if block.dropout is not None:
                raise ValueError(
                    f"layer '{block.name}': Dropout after it; {type(self).__name__} does without, remove it"
                )
        weight = self.blocks[0].linear.weight
        if not 2 <= self.num_classes <= weight.shape[1]:
            raise ValueError(f"num_classes: {self.num_classes}, expected 2..{weight.shape[1]}, the inputs")
        if not 0 <= share < float("inf"):
            raise ValueError(f"share: {share}, expected 0 or a positive number")
        check_positive("amplitude", amplitude)
        self.share, self.amplitude = share, amplitude
        widths = [block.linear.out_features for block in self.blocks[:-1]]
        self.alpha = nn.Parameter(weight.new_zeros(len(self.blocks)))
        self.theta = nn.Parameter(weight.new_zeros(len(self.blocks)))
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

    def forward(self, x: Tensor) -> Tensor:
        self.check_hooks()
        h = overlay_neutral(self.checked_input(x), self.num_classes, self.amplitude)
        seen = []
        for block, norm in zip(self.blocks[:-1], self.norms, strict=True):
            a = block.linear(h)
            seen.append(norm(a))
            h = block.activation.value(a)
        scores: Tensor = self.classifier(torch.cat(seen, dim=1))
        return scores

    def goodness(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """g_l / T_l of every layer for right labels and for one draw of wrong ones: (layers, batch) each."""
        x = self.checked(x, y)
        wrong = wrong_labels(y, self.num_classes, self.generator)
        h = torch.cat([overlay(x, labels, self.num_classes, self.amplitude) for labels in (y, wrong)])
        temperature = LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(self.alpha)
        found = []
        for index, block in enumerate(self.blocks):
            h = block.activation.value(block.linear(h))
            found.append(h.square().mean(dim=1) / temperature[index])
            h = layer_norm(h.detach())
        positive, negative = torch.stack(found).unflatten(1, (2, -1)).unbind(dim=1)
        return positive, negative

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The layers' losses, (layers,), and the classifier's, with their graphs."""
        positive, negative = self.goodness(x, y)
        theta = functional.softplus(self.theta)[:, None]
        local = functional.softplus(theta - positive) + functional.softplus(negative - theta)
        return local.mean(dim=1), functional.cross_entropy(self(x), y)

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [self.alpha, self.theta]

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        local, last = self.losses(x, y)
        return self.share * local.sum() + last

    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        self._warm_up(x, y)
        with torch.enable_grad():
            local, last = self.losses(x, y)
            total = self.share * local.sum() + last
        held = [p for block in self.blocks for p in block.linear.parameters()]
        trained = [*held, self.alpha, self.theta, *self.norms.parameters(), *self.classifier.parameters()]
        gradients = gradients_by(total, trained)
        for index, block in enumerate(self.blocks):
            bias = None if block.bias is None else gradients[block.bias]
            yield BlockUpdate(block, gradients[block.linear.weight], bias, self.share * local[index].detach())
        own = tuple((p, gradients[p]) for p in (self.alpha, self.theta, *self.norms.parameters()))
        weight, bias = (gradients[p] for p in (self.classifier.weight, self.classifier.bias))
        yield BlockUpdate(Block("classifier", self.classifier, identity, None), weight, bias, last.detach(), own)

    def _load_from_state_dict(self, *state: Any) -> None:
        self._looked = False  # the state may be of a rule that has not seen a batch
        super()._load_from_state_dict(*state)

    @torch.no_grad()
    def _warm_up(self, x: Tensor, y: Tensor) -> None:
        """Of the first batch, each theta becomes the mean goodness; the draw is another than that of the step."""
        if self._looked or not self.training or not self.theta.requires_grad:
            return
        self._looked = True
        if self.warm:
            return
        mean = torch.stack(self.goodness(x, y)).mean(dim=(0, 2)).clamp(min=1e-6)  # softplus is above 0
        self.theta.copy_(torch.where(mean > LARGE, mean, mean.clamp(max=LARGE).expm1().log()))
        self.warm.fill_(True)
