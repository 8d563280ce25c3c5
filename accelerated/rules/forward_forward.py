"""Forward-Forward as a rule."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..activations import identity
from ..forward_forward import (
    goodness,
    label_scores,
    local_updates,
    neutral_features,
    normalise,
    overlay,
    readout_update,
    threshold_loss,
    wrong_labels,
)
from ..losses import cross_entropy
from ..network import affine
from .chain import Block, flat_input
from .rule import BlockUpdate, Rule


class ForwardForward(Rule):
    """Hinton's Forward-Forward (arXiv 2212.13345): positive samples carry their label, negative ones a wrong label.

    The first K pixels of the input are overwritten by the label. A last Linear without an activation gives K and is
    otherwise left out: neither trained nor used, since every hidden layer is trained by its own goodness. A model
    that ends with an activation needs `num_classes`. Dropout is not part of the rule and is refused.

    `threshold` is theta per unit; `amplitude` the brightness of a label pixel; scores are the goodness of the layers
    from `first_layer` on (0: all) over candidate labels, K passes in one batch. With `readout=True` they come instead
    from a linear map of one neutral pass, `rule.readout`, trained beside the layers by its own cross-entropy.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int | None = None,
        threshold: float = 1.0,
        amplitude: float = 4.0,
        first_layer: int = 0,
        readout: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator=generator)
        last = self.blocks[-1]
        if last.is_linear:
            if num_classes not in (None, last.linear.out_features):
                raise ValueError(f"num_classes: {num_classes}, but layer '{last.name}' has {last.linear.out_features}")
            num_classes = last.linear.out_features
            self.blocks = self.blocks[:-1]
        if num_classes is None:
            raise ValueError("num_classes: missing; the model does not end with a Linear that would give it")
        if not self.blocks:
            raise ValueError("model: no hidden layer; ForwardForward trains Linear layers that an activation follows")
        for block in self.blocks:
            if block.dropout is not None:
                raise ValueError(f"layer '{block.name}': Dropout after it; ForwardForward does without, remove it")
        first = self.blocks[0].linear
        if not 2 <= num_classes <= first.in_features:
            raise ValueError(f"num_classes: {num_classes}, expected 2..{first.in_features}, the pixels of the input")
        if not 0 <= first_layer < len(self.blocks):
            raise ValueError(f"first_layer: {first_layer}, expected 0..{len(self.blocks) - 1}")
        self.num_classes = num_classes
        self.threshold = threshold
        self.amplitude = amplitude
        self.first_layer = first_layer
        self.readout: nn.Linear | None = None
        if readout:
            width = sum(block.linear.out_features for block in self.blocks[first_layer:])
            weight = first.weight
            self.readout = nn.Linear(width, num_classes, bias=False, device=weight.device, dtype=weight.dtype)
            nn.init.zeros_(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = flat_input(x, self.blocks)
        if self.readout is not None:
            return affine(self.readout.weight, None, self._features(x))
        return label_scores(self.network(), x, self.num_classes, self.amplitude, self.first_layer)

    def _features(self, x: Tensor) -> Tensor:
        return neutral_features(self.network(), x, self.num_classes, self.amplitude, self.first_layer)

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        negative = wrong_labels(y, self.num_classes, self.generator)
        features = self._features(x) if self.readout is not None else None
        layers = local_updates(self.network(), x, y, negative, self.num_classes, self.threshold, self.amplitude)
        for block, (update, loss) in zip(self.blocks, layers, strict=True):
            yield BlockUpdate(block, *update, loss)
        if self.readout is not None and features is not None:
            loss = cross_entropy(affine(self.readout.weight, None, features), y).mean()
            gradient = readout_update(self.readout.weight, features, y)
            yield BlockUpdate(Block("readout", self.readout, identity, None), gradient, None, loss)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the layers' losses, where later losses reach earlier layers: what locality leaves out."""
        x = self.checked(x, y)
        negative = wrong_labels(y, self.num_classes, self.generator)
        h = torch.cat([overlay(x, labels, self.num_classes, self.amplitude) for labels in (y, negative)])
        total = torch.zeros((), device=x.device, dtype=x.dtype)
        for weight, bias, activation in zip(*self.network(), strict=True):
            h = activation.value(affine(weight, bias, normalise(h)))
            positive, negative = goodness(h).chunk(2)
            total = total + threshold_loss(positive, negative, self.threshold * len(weight)).mean()
        return total
