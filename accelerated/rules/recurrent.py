"""Rules for recurrent networks: forward target propagation and backpropagation through time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .. import losses
from ..activations import ACTIVATIONS, Activation
from ..ftp import FeedbackLaw, first_difference, random_feedback
from ..losses import one_hot
from ..modules import RecurrentNetwork
from ..recurrent import CELLS, RecurrentParameters, RecurrentUpdates, forward, residuals, time_summed_updates
from ..recurrent_ftp import Injection, Reduction, update_factors
from .rule import CreditAssignment, check_autocast, check_finite, check_labels, check_place, gradients_by, trained_pairs
from .units import check_like, is_plain, refusal


class RecurrentUpdate(NamedTuple):
    """What an optimizer is to subtract from the recurrent layer or the output, and the loss at the output."""

    name: str
    parameters: list[Tensor]
    updates: list[Tensor]
    loss: Tensor | None

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter that is not frozen, and what is to be subtracted from it."""
        return trained_pairs(zip(self.parameters, self.updates, strict=True))


class RecurrentRule(CreditAssignment):
    """A learning rule around a `RecurrentNetwork` of prograde.accelerated.modules. `rule(x)` gives (batch, K).

    `loss` is "cross_entropy", y int64 labels (batch,), or "squared_error", half the sum of squares of a regression, y
    (batch, K) in the model's dtype. x is (batch, steps, input_size).
    """

    model: RecurrentNetwork

    def __init__(
        self, model: RecurrentNetwork, *, loss: str = "cross_entropy", generator: torch.Generator | None = None
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
        if loss not in ("cross_entropy", "squared_error"):
            raise ValueError(f"loss: {loss!r}, expected 'cross_entropy' or 'squared_error'")
        self.watch(model)
        self.loss = loss
        self.generator = generator
        self.num_outputs = model.output.out_features

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(self.checked_input(x))
        return outputs

    def output_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The batch-mean loss, a scalar."""
        if self.loss == "squared_error":
            return 0.5 * residuals(outputs, y).square().sum(dim=1).mean()
        return losses.cross_entropy(outputs, y).mean()

    def output_gradient(self, outputs: Tensor, y: Tensor) -> Tensor:
        """e, the loss's gradient of each sample: (batch, K)."""
        return residuals(outputs, y) if self.loss == "squared_error" else losses.cross_entropy_gradient(outputs, y)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        with self.differentiable():
            return self.output_loss(self(x), y)

    def differentiable(self) -> AbstractContextManager[None]:
        """Where the model can be differentiated: cuDNN refuses it in evaluation mode."""
        return nullcontext() if self.training else torch.backends.cudnn.flags(enabled=False)

    def network(self) -> RecurrentParameters:
        """The model as the functions of this package take it; the tensors are the parameters themselves."""
        weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out = self.trained
        cell = CELLS[self.model.cell]
        return RecurrentParameters(weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out, cell)

    @property
    def trained(self) -> list[Tensor]:
        """The parameters in the order of `RecurrentUpdates`, which is PyTorch's."""
        return [*self.model.recurrent.parameters(), *self.model.output.parameters()]

    def parts(self, updates: RecurrentUpdates, loss: Tensor) -> Iterator[RecurrentUpdate]:
        """The updates of the recurrent layer, then of the output."""
        own, found = self.trained, [update for update in updates if update is not None]
        yield RecurrentUpdate("recurrent", own[:4], found[:4], None)
        yield RecurrentUpdate("output", own[4:], found[4:], loss)

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

    def checked(self, x: Tensor, y: Tensor) -> Tensor:
        """x itself. Raises ValueError unless x and y fit the model and each other."""
        self.check_hooks()
        x = self.checked_input(x)
        check_autocast(x)
        check_finite(x)
        if self.loss == "cross_entropy":
            check_labels(x, y, self.num_outputs)
            return x
        if not isinstance(y, Tensor):
            raise ValueError(f"y: a {type(y).__name__}, expected a torch.Tensor")
        shape = (len(x), self.num_outputs)
        if y.shape != shape or y.dtype != x.dtype:
            hint = "; y.unsqueeze(1)" if (*y.shape, 1) == shape and y.dtype == x.dtype else ""
            raise ValueError(f"y: {y.dtype} of shape {tuple(y.shape)}, expected {x.dtype} of shape {shape}{hint}")
        if y.device != x.device:
            raise ValueError(f"y: on {y.device}, expected {x.device}, where x is")
        return x


class RecurrentFtp(RecurrentRule):
    """Forward Target Propagation through time; see `prograde.reference.recurrent_ftp`, and `Ftp` for the options.

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
        loss: str = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, generator=generator)
        if phi not in ACTIVATIONS:
            raise ValueError(f"phi: {phi!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name, value in {"gain": gain, "scale": scale}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        if inject not in ("first", "every"):
            raise ValueError(f"inject: {inject!r}, expected 'first' or 'every'")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction: {reduction!r}, expected 'sum' or 'mean'")
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
    def stream(self, x: Tensor, y: Tensor) -> Iterator[RecurrentUpdate]:
        x = self.checked(x, y)
        check_place("feedback", self.feedback, x)
        network = self.network()
        clean = forward(network, x)
        error = self.output_gradient(clean.outputs, y)
        targets = y if self.loss == "squared_error" else one_hot(y, self.num_outputs, dtype=x.dtype)
        first = first_difference(self.feedback, targets, error, self.phi, self.gain)
        factors = update_factors(network, clean, first, self.inject, self.reduction)
        updates = time_summed_updates(network, clean, factors, error)
        yield from self.parts(updates, self.output_loss(clean.outputs, y))


class BackpropThroughTime(RecurrentRule):
    """Backpropagation through time by PyTorch's autograd, through the last `truncation` steps; None is all of them."""

    differentiates = True

    def __init__(
        self,
        model: RecurrentNetwork,
        *,
        truncation: int | None = None,
        loss: str = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, generator=generator)
        if truncation is not None and (not isinstance(truncation, int) or truncation < 1):
            raise ValueError(f"truncation: {truncation}, expected at least one step, or None for all")
        self.truncation = truncation
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        return self.truncation is None

    def stream(self, x: Tensor, y: Tensor) -> Iterator[RecurrentUpdate]:
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
            gradients = gradients_by(loss, self.trained)
        yield from self.parts(RecurrentUpdates(*gradients.values()), loss.detach())
