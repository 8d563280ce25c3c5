"""Forward Target Propagation as a rule."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..activations import ACTIVATIONS, Activation
from ..ftp import FeedbackLaw, differences, first_difference, local_factors, random_feedback
from ..losses import one_hot
from ..network import forward, layer_update
from .rule import BlockUpdate, OutputErrorRule, check_place
from .second_pass import SecondPass, check_second_pass, full_differences, full_first_difference


class Ftp(OutputErrorRule):
    """Forward Target Propagation (arXiv 2506.11030): the label's and the output's projections make the first target.

    A reconstruction, see `prograde.reference.ftp`: what is not known of the paper is an option. `feedback`, G, is a
    buffer drawn once, (n_j, K), by `law` and `scale`. `phi` is the name of the activation that projections go through;
    None takes tanh where the model has tanh and the identity elsewhere (ReLU on G leaves tanh layers untrained). `gain`
    multiplies the correction. `inject` is j, the layer with the first target, 1 for the first hidden one and 0 for the
    input; layers before it are not trained. `second_pass="full"` runs the targets themselves through the layers, in
    place of their differences to the activations: equal but for rounding, as on `Hardware`.
    """

    feedback: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        phi: str | None = None,
        gain: float = 1.0,
        scale: float = 0.5,
        law: FeedbackLaw = "uniform",
        inject: int = 1,
        second_pass: SecondPass = "difference",
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        if phi is None:
            phi = "tanh" if any(block.activation is ACTIVATIONS["tanh"] for block in self.blocks) else "identity"
        if phi not in ACTIVATIONS:
            raise ValueError(f"phi: {phi!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name, value in {"gain": gain, "scale": scale}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        if not 0 <= inject < len(self.blocks):
            raise ValueError(f"inject: {inject}, expected 0..{len(self.blocks) - 1}, the input or a hidden layer")
        check_second_pass(second_pass)
        self.phi: Activation = ACTIVATIONS[phi]
        self.gain = gain
        self.inject = inject
        self.second_pass: SecondPass = second_pass
        first = self.blocks[max(inject, 1) - 1].linear
        n = first.out_features if inject else first.in_features
        drawn = random_feedback(
            n, self.num_classes, generator, scale, law, device=first.weight.device, dtype=first.weight.dtype
        )
        self.register_buffer("feedback", drawn)

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        check_place("feedback", self.feedback, x)
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        targets = one_hot(y, self.num_classes, self.label_smoothing, dtype=x.dtype)
        full = self.second_pass == "full"
        difference = full_first_difference if full else first_difference
        first = difference(self.feedback, targets, error, self.phi, self.gain)
        found = (full_differences if full else differences)(network, clean, first, masks, self.inject)
        factors = local_factors(network, clean, error, found, masks, self.inject)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), loss)
