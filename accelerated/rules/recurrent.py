"""Rules for recurrent networks: forward target propagation and backpropagation through time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..activations import ACTIVATIONS, Activation
from ..ftp import FeedbackLaw, first_difference, random_feedback, update_factors
from ..layers import Dense, forward, per_label
from ..modules import RecurrentNetwork
from ..recurrent import CELLS, Recurrent, Reduction, unrolled, updates
from .cutting import is_plain
from .output_loss import LossLike, Targets
from .rule import OutputLoss, UnitUpdate, check_place, gradients_by
from .units import Unit, check_like, refusal

Injection: TypeAlias = Literal["first", "every"]
"""The steps whose target is corrected."""


@dataclass(frozen=True, eq=False)
class RecurrentUnit(Unit):
    """The recurrent layer, all of whose steps share its parameters."""

    module: nn.RNN | nn.GRU  # type: ignore[assignment]

    @property
    def weights(self) -> list[Tensor]:
        return [p for p in self.module.parameters() if p.dim() == 2]

    @property
    def bias(self) -> None:
        """It has two."""

    @property
    def parameters(self) -> list[Tensor]:
        """In PyTorch's order: the weights of input and state, then their biases."""
        return list(self.module.parameters())

    @property
    def has_maps(self) -> bool:
        return False

    @property
    def width(self) -> int:
        return self.module.hidden_size


class RecurrentRule(OutputLoss):
    """A learning rule around a `RecurrentNetwork` of prograde.accelerated.modules. `rule(x)` gives (batch, K).

    x is (batch, steps, input_size); `loss` and y are those of `OutputLoss`. Its units are "recurrent" and "output".
    """

    wants_sequences = True
    model: RecurrentNetwork

    def __init__(
        self, model: RecurrentNetwork, *, loss: LossLike = "cross_entropy", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        rule = type(self).__name__
        if not isinstance(model, RecurrentNetwork) or type(model).forward is not RecurrentNetwork.forward:
            raise refusal("", model, rule, "a RecurrentNetwork of prograde.accelerated.modules", network="")
        layer = model.recurrent
        if (
            not isinstance(layer, nn.RNN if model.cell == "elman" else nn.GRU)
            or (layer.num_layers, layer.bidirectional, layer.batch_first, layer.bias) != (1, False, True, True)
            or getattr(layer, "nonlinearity", "tanh") != "tanh"
        ):
            raise ValueError(f"layer 'recurrent': {layer}; {rule} trains the one that RecurrentNetwork makes")
        output = model.output
        if not is_plain(output, nn.Linear) or output.bias is None or output.in_features != layer.hidden_size:
            raise ValueError(f"layer 'output': {output}; {rule} trains the one that RecurrentNetwork makes")
        if any(is_parametrized(part) for part in (layer, output)):
            raise ValueError(f"model: a parameter is computed; {rule} needs plain ones")
        if len({id(p) for p in model.parameters()}) != 6 or len({p.dtype for p in model.parameters()}) != 1:
            raise ValueError(f"model: parameters shared, missing or of several dtypes; {rule} needs six of its own")
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"parameter '{name}': not all finite")
        self.watch(model)
        self.generator = generator
        self.units = [RecurrentUnit("recurrent", layer), Unit("output", output)]
        self.num_classes = output.out_features
        self.set_loss(loss)

    def objective(self, x: Tensor, y: Targets) -> Tensor:
        with self.differentiable():
            return super().objective(x, y)

    def differentiable(self) -> AbstractContextManager[None]:
        """Where the model can be differentiated: cuDNN refuses it in evaluation mode."""
        return nullcontext() if self.training else torch.backends.cudnn.flags(enabled=False)

    def layers(self, x: Tensor) -> Recurrent:
        """The steps on x and the output as the functions of this package take them.

        Tensors are the parameters themselves. What the first layer takes is `begin(x)`.
        """
        weight_ih, weight_hh, bias_ih, bias_hh = self.units[0].parameters
        steps = unrolled(CELLS[self.model.cell], Dense(weight_ih, bias_ih), Dense(weight_hh, bias_hh), x)
        return (*steps, Dense(self.model.output.weight, self.model.output.bias))

    def begin(self, x: Tensor) -> Tensor:
        """The state before the first step."""
        return x.new_zeros(len(x), self.model.recurrent.hidden_size)

    def checked_input(self, x: Tensor) -> Tensor:
        """x itself. Raises ValueError unless it fits the model."""
        self.check_unchanged()
        if not isinstance(x, Tensor):
            raise ValueError(f"x: a {type(x).__name__}, expected a torch.Tensor")
        features = self.model.recurrent.input_size
        if x.dim() != 3 or 0 in x.shape[:2] or x.shape[2] != features:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, steps, {features}), at least one of each")
        check_like(x, self.model.output.weight)
        return x


class RecurrentFtp(RecurrentRule):
    """Forward Target Propagation through time; see `prograde.reference.ftp`, and `Ftp` for the options.

    `feedback`, G, is a buffer drawn once, (n, K). `phi` is the name of the activation that projections go through.
    `inject` is "first" or "every". With "first" the first step has a corrected target, which runs forward: the most
    direct reading of the paper, which learns little beyond a few steps. "every" corrects it at each step and is ours.
    `reduction` is "sum" or "mean", of the updates of all steps.
    """

    feedback: Tensor

    def __init__(
        self,
        model: RecurrentNetwork,
        *,
        phi: str = "tanh",
        gain: float = 1.0,
        scale: float = 0.5,
        law: FeedbackLaw = "uniform",
        inject: Injection = "first",
        reduction: Reduction = "sum",
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, generator=generator)
        if phi not in ACTIVATIONS:
            raise ValueError(f"phi: {phi!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name, value in {"gain": gain, "scale": scale}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        for name, option, options in (("inject", inject, Injection), ("reduction", reduction, Reduction)):
            if option not in get_args(options):
                raise ValueError(f"{name}: {option!r}, expected {' or '.join(map(repr, get_args(options)))}")
        self.phi: Activation = ACTIVATIONS[phi]
        self.gain = gain
        self.inject: Injection = inject
        self.reduction: Reduction = reduction
        weight = model.output.weight
        drawn = random_feedback(
            weight.shape[1], len(weight), generator, scale, law, device=weight.device, dtype=weight.dtype
        )
        self.register_buffer("feedback", drawn)
        self.check_hooks()

    @torch.no_grad()
    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        check_place("feedback", self.feedback, x)
        layers = self.layers(x)
        clean = forward(layers, self.begin(x))
        error = self.output_gradient(clean.scores, y)
        targets, count = self.loss.pursued(clean.scores, y, error), self.loss.count(clean.scores, y)
        first = first_difference(self.feedback, targets, error, self.phi, self.gain)
        factors = update_factors(layers, clean, error, first, every=self.inject == "every")
        found = updates(layers, factors, self.reduction)
        of_steps, of_output = (per_label(update, len(x), count) for update in found)
        yield UnitUpdate(self.units[0], of_steps)
        yield UnitUpdate(self.units[1], of_output, self.output_loss(clean.scores, y))


class BackpropThroughTime(RecurrentRule):
    """Backpropagation through time by PyTorch's autograd, through the last `truncation` steps; None is all of them."""

    differentiates = True

    def __init__(
        self,
        model: RecurrentNetwork,
        *,
        truncation: int | None = None,
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, generator=generator)
        if truncation is not None and (not isinstance(truncation, int) or truncation < 1):
            raise ValueError(f"truncation: {truncation}, expected at least one step, or None for all")
        self.truncation = truncation
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        return self.truncation is None

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        start = 0 if self.truncation is None else max(x.shape[1] - self.truncation, 0)
        state = None
        if start:
            with torch.no_grad():
                _, state = self.model.recurrent(x[:, :start])
        with torch.enable_grad(), self.differentiable():
            if self.truncation is None:
                outputs = self.model(x)
            else:
                states, _ = self.model.recurrent(x[:, start:], state)
                outputs = self.model.output(states[:, -1])
            loss = self.output_loss(outputs, y)
            gradients = gradients_by(loss, self.model.parameters())
        recurrent, output = self.units
        yield UnitUpdate(recurrent, [gradients[p] for p in recurrent.parameters])
        yield UnitUpdate(output, [gradients[p] for p in output.parameters], loss.detach())
