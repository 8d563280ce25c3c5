"""FOTON as a rule."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import check_positive, is_captured
from .._autocast import outside
from ..foton import error_projection, recomputed_factors, update_factors
from ..layers import Layer, Pass, activity, forward, per_label
from ..modules import OrthogonalConv2d
from .orthogonality import Change, KnownStep, Orthogonality, PlainStep, ScaledBjorck, hidden_weights
from .output_loss import CrossEntropy, Targets
from .rule import OutputErrorRule, UnitUpdate, check_count
from .stepping import Factors, factored
from .units import ChainUnit


class Foton(OutputErrorRule):
    """FOTON (arXiv 2512.20668): two forward passes through orthogonal weights.

    Building the rule replaces the weights of the hidden layers, in place, by their polar factors. `constrain()` keeps
    every entry of their Gram matrices within `orthogonality_tolerance` of the identity, and checks them every
    `orthogonality_every` steps. The output layer is free: the theory does not need it orthogonal, and it has its exact
    gradient.

    The error projection is rebuilt every `projection_every` training steps, as `constrain` counts them.
    `activation_gain` is the factor by which the activation multiplies norms, about 0.7 for ReLU; each layer's update is
    divided by what follows from it.
    `linear=True` is not in the paper: the second pass omits the activations, and each layer applies its own derivative.
    It costs no more and is closer to backpropagation in deep networks.
    `recompute=True` computes the clean pass twice and holds one layer at a time. With `stream` the memory for
    activations then does not grow with depth; the price is one more product for each layer.

    `as_published=True` is the authors' form: the output layer is orthogonalised too, and all weights by 20 Bjorck steps
    of order 1 from the weight over its largest singular value. `temperature` is theirs as well: scores are multiplied
    by it before the loss, and the error is the gradient divided by it, softmax(T s) - t.

    Models for images begin with `OrthogonalConv2d` and `ScaledAvgPool2d` of `prograde.accelerated.modules`.
    `orthogonality_tolerance` then applies to the 2 kernel_size - 1 orthogonal parts of a kernel, whose defects add up.
    MaxPool2d may follow a convolution and its activation, best with `linear=True`. For depth, take `Rotation`: a
    shortcut that stays orthogonal; the tolerance applies to its Q. See docs/foton.md.

    Raises ValueError for a model with layers that cannot be held orthogonal, and unless tolerances, gains and
    intervals are positive.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))  # linear: the update is backpropagation's
    >>> rule, x, y = Foton(model), torch.eye(4)[:2], torch.tensor([0, 2])
    >>> loss, weight = rule.assign_credit(x, y), model[0].weight
    >>> torch.allclose(weight.grad, torch.autograd.grad(rule.objective(x, y), weight)[0], atol=1e-5)
    True
    >>> torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-5)
    True
    """

    convolution_kinds = (OrthogonalConv2d,)
    needs = "layers that can be held orthogonal, whose differences are linear"
    projection: Tensor | None
    takes_positions = "never"
    _is_due: bool

    def __init__(
        self,
        model: nn.Module,
        *,
        orthogonality_tolerance: float = 5e-3,
        orthogonality_every: int = 1,
        projection_every: int = 1,
        activation_gain: float = 1.0,
        linear: bool = False,
        recompute: bool = False,
        as_published: bool = False,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        check_positive("orthogonality_tolerance", orthogonality_tolerance)
        check_count("orthogonality_every", orthogonality_every)
        check_count("projection_every", projection_every)
        check_positive("activation_gain", activation_gain)
        check_positive("temperature", temperature)
        if temperature != 1 and not isinstance(self.loss, CrossEntropy):
            raise ValueError(f"temperature: {temperature}, expected 1 with another loss than a cross-entropy")
        hidden, tolerance, every = hidden_weights(self), orthogonality_tolerance, orthogonality_every
        self.orthogonality = Orthogonality(hidden, tolerance=tolerance, every=every)
        with outside(self.units[0].weights[0].device):
            self.orthogonality.initialise()
        if as_published:  # the output layer starts as it is
            held = {**hidden, **self.units[-1].held}
            self.orthogonality = ScaledBjorck(held, tolerance=tolerance, every=every)
        self.temperature = temperature
        self.projection_every = projection_every
        self.activation_gain = activation_gain
        self.linear = linear
        self.recompute = recompute
        if projection_every > 1:
            self.register_buffer("projection", None)  # its shape is that of the first samples
        self.set_extra_state(0)
        self._last_step: dict[str, _Credit] = {}
        self._versions = self._weight_versions()
        self.register_load_state_dict_post_hook(_see_weights)  # type: ignore[no-untyped-call]
        self._unconstrained_changes = 0

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        self._warn_if_unconstrained()
        if self._last_step:
            self._last_step.clear()
        if self.recompute:
            yield from self._recomputed(x, y)
            return
        layers = self.layers(self.masks(x))
        clean = forward(layers, self.begin(x))
        error = self.output_gradient(clean.scores, y)
        projection = self._projection(layers, clean)
        factors = update_factors(layers, clean, error, projection, self.activation_gain, self.linear)
        last = self.units[-1]
        count = self.loss.count(clean.scores, y)
        # Else a step is no product of this batch's delta and z alone, or compiled code holds these.
        is_whole = isinstance(count, int) and self.shared is None and not torch.compiler.is_compiling()
        for unit, layer, a, (delta, z) in zip(self.units, layers, clean.preactivations, factors, strict=True):
            update = per_label(factored(layer).update(z, delta), len(x), count)
            if is_whole and z.dim() == 2 and unit is not last:
                self._remember(unit, delta, z, a, update[0])
            loss = self.output_loss(clean.scores, y) if unit is last else None
            yield UnitUpdate(unit, unit.gradients(update), loss)

    def _remember(self, unit: ChainUnit, delta: Tensor, z: Tensor, a: Tensor, update: Tensor | Factors) -> None:
        """What `constrain` can use of the unit's step, if there is something."""
        weight = unit.weights[0]
        if self.orthogonality.knows_steps_of(len(z), weight):
            self._last_step[unit.name] = _Credit(unit, update, factors=(delta, z, _unbiased(unit, a)))
            return
        change = self.orthogonality.change_of(unit.name, weight, delta, z, _unbiased(unit, a))
        if change is not None:
            self._last_step[unit.name] = _Credit(unit, update, change=(change, len(z)))

    def _recomputed(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        start = self.begin(x)
        replay = self.replay(x.device) if any(unit.dropout_rate for unit in self.units) else None
        output, outline = _swept(self.each_layer(self.draw_masks(x, self.generator)), start)
        error = self.output_gradient(output, y)
        bare = self.layers()
        projection = self._projection(bare, outline)
        masked = self.each_layer(self.draw_masks(x, replay))
        factors = recomputed_factors(masked, len(bare), start, error, projection, self.activation_gain, self.linear)
        count = self.loss.count(output, y)
        for unit, layer in zip(self.units, bare, strict=True):
            delta, z = next(factors)
            gradients = unit.gradients(per_label(factored(layer).update(z, delta), len(x), count))
            del delta, z  # not held while the next layer's are computed
            yield UnitUpdate(unit, gradients, self.output_loss(output, y) if unit is self.units[-1] else None)
            del gradients

    def _projection(self, layers: Sequence[Layer], clean: Pass) -> Tensor:
        """F^T, of the present weights or those of up to `projection_every` - 1 training steps ago."""
        if self.projection_every == 1:
            return error_projection(layers, clean)
        if is_captured(clean.scores.device):
            every = f"projection_every: {self.projection_every}"
            raise ValueError(f"{every}, expected 1 while a CUDA graph is captured: it counts no steps")
        if self.projection is None or (self.training and self._is_due):
            self.projection = error_projection(layers, clean)
        if self.training:
            self._is_due, self._is_used = False, True
        return self.projection

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        """Takes a projection of any shape, or none, where the state has none yet."""
        found = state_dict.get(f"{prefix}projection")
        self.projection = None if found is None else self.units[0].weights[0].new_empty(found.shape)
        self.orthogonality.known.clear()  # known of other weights
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def output_loss(self, scores: Tensor, y: Targets) -> Tensor:
        return super().output_loss(self.temperature * scores, y)

    def output_gradient(self, scores: Tensor, y: Targets) -> Tensor:
        """e, (batch, K): of the authors' temperature the factor that the derivative has is left out."""
        return super().output_gradient(self.temperature * scores, y)

    def get_extra_state(self) -> int:
        return self._uses

    def set_extra_state(self, state: int) -> None:
        """How often the projection was used, and all that a step asks: compiled code would be made anew for a count."""
        self._uses, self._is_used = state, False
        self._is_due = self._uses % self.projection_every == 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose weights are its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _see_weights(self)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses nothing; raises FloatingPointError where the weights of the last steps were not orthogonal."""
        self.orthogonality.settle()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Restores orthogonality, see `Orthogonality`. Given the optimizer, less work may do.

        `torch.optim.SGD` without momentum and weight decay, stepped once since `assign_credit` on the gradients as they
        were left, is recognised: after a small batch the polar factor of the weights is known from the batch. In any
        other case the weights are checked, and a drift within the tolerance may stay. Both lead to the same polar
        factor, to a few hundredths of the step; the weights themselves differ within the tolerance.
        """
        plain: dict[str, PlainStep | KnownStep] = {}
        for name, credit in self._last_step.items():
            rate = plain_rate(optimizer, credit.weight) if credit.was_applied() else None
            if rate is not None:
                plain[name] = credit.taken(rate)
        self._last_step.clear()
        if self._is_used:
            self.set_extra_state(self._uses + 1)
        with outside(self.units[0].weights[0].device):
            self.orthogonality.step(plain)
        self._versions = self._weight_versions()
        self._unconstrained_changes = 0

    def _weight_versions(self) -> list[tuple[int, int]]:
        """What tells whether the weights were changed in place or replaced."""
        return [(id(weight), weight._version) for weight in self.orthogonality.weights(frozen=True).values()]

    def _warn_if_unconstrained(self) -> None:
        """Warns of a second change of the weights without `constrain`: the first may be a checkpoint's."""
        if torch.compiler.is_compiling():
            return
        versions = self._weight_versions()
        if versions != self._versions:
            self._versions = versions
            self.orthogonality.known.clear()
            self._unconstrained_changes += 1
            if self._unconstrained_changes == 2:
                warnings.warn(
                    "Foton: the weights were changed twice without constrain(); "
                    "call rule.constrain(optimizer) after every optimizer.step(), or training diverges",
                    stacklevel=6,  # of whom calls assign_credit, past the wrapper of no_grad
                )


def _see_weights(rule: Foton, *loaded: Any) -> None:
    """Takes the weights as `constrain` has left them, which is what a state is of."""
    rule._versions = rule._weight_versions()


def _swept(layers: Iterable[Layer], x: Tensor) -> tuple[Tensor, Pass]:
    """The scores; and the shapes of the pass, which take no memory, as `error_projection` needs them."""
    number = x.new_zeros(())
    shapes = []
    z = h = x
    for layer in layers:
        h = activity(layer.steps, layer.value(z))
        shapes.append((number.expand(z.shape), number.expand(h.shape)))
        z = activity(layer.outlet, h)
    inputs, activities = zip(*shapes, strict=True)
    return h, Pass(inputs, activities, activities)


def _unbiased(unit: ChainUnit, a: Tensor) -> Tensor:
    """W z."""
    return a if unit.bias is None else a - unit.bias


class _Credit:
    """What the last `assign_credit` gave to a unit, until `constrain`: factors, or what they do."""

    def __init__(
        self,
        unit: ChainUnit,
        gradient: Tensor | Factors,
        *,
        factors: tuple[Tensor, Tensor, Tensor] | None = None,
        change: tuple[Change, int] | None = None,
    ) -> None:
        (self.weight,) = unit.weights
        self.factors, self.change = factors, change
        self.gradient = gradient if isinstance(gradient, Tensor) else None
        self.versions = self._versions()

    def taken(self, rate: float) -> PlainStep | KnownStep:
        """As a step at that rate."""
        if self.factors is not None:
            return PlainStep(*self.factors, rate)
        assert self.change is not None
        change, batch = self.change
        return KnownStep(change, rate / batch)

    def _versions(self) -> tuple[int | None, int]:
        return (None if self.gradient is None else self.gradient._version), self.weight._version

    def was_applied(self) -> bool:
        """Whether the weight was changed once since, with its gradient untouched, or by `step` as it was multiplied."""
        gradient, weight = self._versions()
        return self.weight.grad is self.gradient and (gradient, weight - 1) == self.versions


def plain_rate(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> float | None:
    """The learning rate of an optimizer that takes plain gradient steps on the parameter; None for any other."""
    if type(optimizer) is not torch.optim.SGD:
        return None
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            plain = not (group["momentum"] or group["weight_decay"] or group["maximize"])
            return float(group["lr"]) if plain else None
    return None
