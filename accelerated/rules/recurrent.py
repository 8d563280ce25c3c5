"""Rules for recurrent networks: forward target propagation and backpropagation through time."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ..activations import ACTIVATIONS, Activation
from ..ftp import FeedbackLaw, first_difference, random_feedback, update_factors
from ..layers import Dense, forward, per_label
from ..modules import RecurrentNetwork
from ..recurrent import CELLS, Recurrent, RecurrentLayer, Reduction, at_steps, state_size, unrolled, updates
from .cutting import is_plain, untouched
from .output_loss import LossLike, Targets
from .rule import OutputLoss, UnitUpdate, check_autocast, check_finite, check_place, gradients_by
from .units import OURS, Unit, check_like

Injection: TypeAlias = Literal["first", "every"]
"""The steps whose target is corrected."""

Sequences: TypeAlias = Tensor | tuple[Tensor, Tensor] | PackedSequence
"""x, (batch, steps, features); or x, padded, with the samples' lengths, (batch,); or x packed."""

CELL_OF = {"RNN_TANH": "elman", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}
"""The cells of PyTorch's recurrent layers, by their `mode`."""


@dataclass(frozen=True, eq=False)
class RecurrentUnit(Unit):
    """nn.RNN, nn.GRU or nn.LSTM with its layers, all of whose steps share its parameters."""

    module: nn.RNN | nn.GRU | nn.LSTM  # type: ignore[assignment]

    @property
    def weights(self) -> list[Tensor]:
        return [p for p in self.module.parameters() if p.dim() == 2]

    @property
    def bias(self) -> None:
        """It has two."""

    @property
    def parameters(self) -> list[Tensor]:
        """In PyTorch's order: of each layer the weights of input and state, then their biases."""
        return list(self.module.parameters())

    @property
    def has_maps(self) -> bool:
        return False

    @property
    def width(self) -> int:
        return self.module.hidden_size

    @property
    def stack(self) -> list[RecurrentLayer]:
        """Its layers, lowest first, as the functions of this package take them; with the parameters themselves."""
        each: Any = [(*parts, None, None)[:4] for parts in self.module.all_weights]
        cell = CELLS[CELL_OF[self.module.mode]]
        return [RecurrentLayer(cell, Dense(w_x, b_x), Dense(w_h, b_h)) for w_x, w_h, b_x, b_h in each]


def _read(model: nn.Module, units: Sequence[nn.Module] | None, rule: str) -> tuple[list[RecurrentUnit], Unit]:
    """The recurrent units of a model and its output. Raises ValueError, with the layer's name, for what is neither."""
    how = "units=[model.gru, model.head], its nn.RNN, nn.GRU or nn.LSTM and its nn.Linear"
    if units is None:
        if not isinstance(model, RecurrentNetwork) or type(model).forward is not RecurrentNetwork.forward:
            raise ValueError(
                f"model: {type(model).__name__}; {rule} trains a RecurrentNetwork {OURS}, or a model of your own with "
                f"{how} (an nn.Sequential passes no tuple on, as these give one)"
            )
        units = [model.recurrent, model.output]
    paths = {id(module): path for path, module in model.named_modules()}
    lost = next((unit for unit in units if id(unit) not in paths), None)
    if lost is not None or len(units) < 2:
        what = f"{len(units)} of them" if lost is None else f"{type(lost).__name__} is no module of the model"
        raise ValueError(f"units: {what}, expected {how}")
    *below, last = units
    recurrent: list[RecurrentUnit] = []
    for module in below:
        recurrent.append(_recurrent_unit(paths[id(module)], module, recurrent, rule))
    path = paths[id(last)]
    if not is_plain(last, nn.Linear) or last.in_features != recurrent[-1].width:
        raise ValueError(f"layer '{path}': {last}; {rule} needs an nn.Linear of the {recurrent[-1].width} states")
    output = Unit(path, last)  # type: ignore[arg-type]
    _check_parameters(model, units, rule)
    return recurrent, output


def _recurrent_unit(name: str, module: nn.Module, below: Sequence[RecurrentUnit], rule: str) -> RecurrentUnit:
    """Raises ValueError for a module that is no nn.RNN, nn.GRU or nn.LSTM, or one that does more than their steps."""
    if not any(is_plain(module, kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)):
        raise ValueError(f"layer '{name}': {type(module).__name__}; {rule} trains nn.RNN, nn.GRU and nn.LSTM")
    assert isinstance(module, nn.RNN | nn.GRU | nn.LSTM)
    for is_so, what in (
        (module.bidirectional, "bidirectional=True, which begins at the end; give two models one direction each"),
        (module.proj_size, "proj_size, which its state goes through; set it to 0"),
        (module.num_layers > 1 and module.dropout, "dropout between its layers; set it to 0"),
    ):
        if is_so:
            raise ValueError(f"layer '{name}': {module}; {rule} trains none with {what}")
    if below and module.input_size != below[-1].width:
        raise ValueError(
            f"layer '{name}': takes {module.input_size} features, but layer '{below[-1].name}' gives {below[-1].width}"
        )
    return RecurrentUnit(name, module)


def _check_parameters(model: nn.Module, units: Sequence[nn.Module], rule: str) -> None:
    """Raises ValueError unless the model's parameters are its units', plain, of one dtype and finite."""
    computed = next((path for path, part in model.named_modules() if is_parametrized(part)), None)
    if computed is not None:
        raise ValueError(f"layer '{computed}': a parameter is computed; {rule} needs plain ones")
    named = list(model.named_parameters(remove_duplicate=False))
    own = {id(p) for unit in units for p in unit.parameters(recurse=False)}
    for name, parameter in named:
        if id(parameter) not in own:
            raise ValueError(f"parameter '{name}': in none of the units; {rule} would not train it")
        if not torch.isfinite(parameter).all():
            raise ValueError(f"parameter '{name}': not all finite")
    if len(own) != len(named) or len({(p.dtype, p.device) for _, p in named}) != 1:
        raise ValueError(
            f"model: parameters shared, or of several dtypes or devices; {rule} needs each layer's own, alike"
        )


class RecurrentRule(OutputLoss):
    """A learning rule for recurrent networks: nn.RNN, nn.GRU or nn.LSTM, of any layers, and nn.Linear on their states.

        rule = RecurrentFtp(model, units=[model.gru, model.head])

    `units` are these modules of the model, in the order in which they run; a `RecurrentNetwork` needs none. The model
    is any that computes what they do, from the state 0: its scores, (batch, K), are those of each sample's last state.
    That they are is checked on the `example`, x as the model takes it, else on the first batch.

    x is (batch, steps, features), whatever `batch_first` is. Sequences of several lengths are x, padded, and lengths:
    `rule.assign_credit((x, lengths), y)` calls `model(x, lengths)`; or a PackedSequence, for a model that takes one.
    `loss` and y are those of `OutputLoss`.
    """

    wants_sequences = True

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Sequence[nn.Module] | None = None,
        example: Sequences | None = None,
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.recurrent, self.output = _read(model, units, type(self).__name__)
        self.units = [*self.recurrent, self.output]
        self.watch(model)
        self.generator = generator
        self.num_classes = self.output.width
        self.set_loss(loss)
        self._are_the_model = units is None and self.recurrent[0].module.batch_first
        if example is not None:
            self._check_units(example)

    def forward(self, x: Sequences) -> Tensor:
        self.sequences(x)
        return self._outputs(x)

    def _outputs(self, x: Sequences) -> Tensor:
        """The model's."""
        with_lengths = isinstance(x, tuple) and not isinstance(x, PackedSequence)
        outputs: Tensor = self.model(*x) if with_lengths else self.model(x)
        return outputs

    def objective(self, x: Sequences, y: Targets) -> Tensor:
        with self.differentiable():
            return self.output_loss(self(x), y)

    def differentiable(self) -> AbstractContextManager[None]:
        """Where the model can be differentiated: cuDNN refuses it in evaluation mode."""
        return nullcontext() if self.training else torch.backends.cudnn.flags(enabled=False)

    @property
    def stack(self) -> list[RecurrentLayer]:
        """The recurrent layers, lowest first."""
        return [layer for unit in self.recurrent for layer in unit.stack]

    def layers(self, x: Tensor, lengths: Tensor | None = None) -> Recurrent:
        """The steps on x and the output as the functions of this package take them.

        Tensors are the parameters themselves. What the first layer takes is `begin(x)`.
        """
        return (*unrolled(self.stack, x, lengths), Dense(self.output.weights[0], self.output.bias))

    def begin(self, x: Tensor) -> Tensor:
        """The state before the first step."""
        return x.new_zeros(len(x), state_size(self.stack))

    def sequences(self, x: Sequences) -> tuple[Tensor, Tensor | None]:
        """x, padded, and the lengths if there are any. Raises ValueError unless it fits the model."""
        self.check_unchanged()
        given: Any = pad_packed_sequence(x, batch_first=True) if isinstance(x, PackedSequence) else x
        values, lengths = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        if not isinstance(values, Tensor):
            raise ValueError(f"x: a {type(values).__name__}, expected a torch.Tensor")
        features = self.recurrent[0].module.input_size
        if values.dim() != 3 or 0 in values.shape[:2] or values.shape[2] != features:
            shape = tuple(values.shape)
            raise ValueError(f"x: shape {shape}, expected (batch, steps, {features}), at least one of each")
        check_like(values, self.output.weights[0])
        if lengths is None:
            return values, None
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != values.shape[:1]:
            came = (
                f"{lengths.dtype} of shape {tuple(lengths.shape)}"
                if isinstance(lengths, Tensor)
                else f"a {type(lengths).__name__}"
            )
            raise ValueError(f"lengths: {came}, expected int64 of shape ({len(values)},), one for each sample")
        if lengths.device.type == "cpu" and (lengths.min() < 1 or lengths.max() > values.shape[1]):
            raise ValueError(f"lengths: {lengths.min()}..{lengths.max()}, expected 1..{values.shape[1]}, steps of x")
        return values, lengths.to(values.device)

    def checked_sequences(self, x: Sequences, y: Targets) -> tuple[Tensor, Tensor | None]:
        """`sequences`. Raises ValueError unless x and y fit the model and each other, and the units are the model."""
        self.check_hooks()
        values, lengths = self.sequences(x)
        check_autocast(values)
        check_finite(values)
        if not self._are_the_model:
            self._check_units(x)
        self.check_y(values, y)
        return values, lengths

    @torch.no_grad()
    def _check_units(self, x: Sequences) -> None:
        """Raises ValueError where the model gives other scores than its units do, in evaluation or in training mode."""
        values, lengths = self.sequences(x)
        given = forward(self.layers(values, lengths), self.begin(values)).scores
        for training in (False, True):
            with untouched(self.model, values):
                self.model.train(training)
                expected = self._outputs(x)
            apart = f"shape {tuple(expected.shape)}, not {tuple(given.shape)}"
            if expected.shape == given.shape:
                difference, size = (part.double().abs().max() for part in (given - expected, expected))
                if difference <= torch.finfo(given.dtype).eps ** 0.5 * size:
                    continue
                apart = f"scores {difference:.3g} apart from theirs, where these are {size:.3g} at most"
            raise ValueError(
                f"units: in {'training' if training else 'evaluation'} mode the model gives {apart}; expected those of "
                "the last state of each sample, x being (batch, steps, features) and the first state 0"
            )
        self._are_the_model = True


class RecurrentFtp(RecurrentRule):
    """Forward Target Propagation through time; see `prograde.reference.ftp`, and `Ftp` for the options.

    `feedback`, G, is a buffer drawn once, (n, K). `phi` is the name of the activation that projections go through.
    `inject` is "first" or "every". With "first" the first step has a corrected target, which runs forward: the most
    direct reading of the paper, which learns little beyond a few steps. "every" corrects it at each step and is ours.
    Of several recurrent layers the lowest has that target and the others what becomes of it; "every" corrects them
    all, with rows of G for each. `reduction` is "sum" or "mean", of the updates of all steps, of a sample's own.
    """

    feedback: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        phi: str = "tanh",
        gain: float = 1.0,
        scale: float = 0.5,
        law: FeedbackLaw = "uniform",
        inject: Injection = "first",
        reduction: Reduction = "sum",
        units: Sequence[nn.Module] | None = None,
        example: Sequences | None = None,
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, units=units, example=example, loss=loss, generator=generator)
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
        self.corrected = [layer.n for layer in self.stack][: 1 if inject == "first" else None]
        """Rows of G of each recurrent layer with a corrected target."""
        weight = self.output.weights[0]
        drawn = [
            random_feedback(n, len(weight), generator, scale, law, device=weight.device, dtype=weight.dtype)
            for n in self.corrected
        ]
        self.register_buffer("feedback", torch.cat(drawn))
        self.check_hooks()

    @torch.no_grad()
    def stream(self, x: Sequences, y: Targets) -> Iterator[UnitUpdate]:
        values, lengths = self.checked_sequences(x, y)
        check_place("feedback", self.feedback, values)
        layers = self.layers(values, lengths)
        clean = forward(layers, self.begin(values))
        error = self.output_gradient(clean.scores, y)
        targets, count = self.loss.pursued(clean.scores, y, error), self.loss.count(clean.scores, y)
        kappa = first_difference(self.feedback, targets, error, self.phi, self.gain)
        parts = kappa[:, None].expand(-1, values.shape[1], -1).split(self.corrected, dim=2)
        corrections = at_steps(layers[:-1], [*parts, *[None] * (len(self.stack) - len(parts))])
        later = corrections[1:] if self.inject == "every" else ()
        assert corrections[0] is not None
        factors = update_factors(layers, clean, error, corrections[0], later=later)
        each = updates(layers, factors, self.reduction)
        *of_layers, of_output = (per_label(update, len(values), count) for update in each)
        found = iter(of_layers)
        for unit in self.recurrent:
            yield UnitUpdate(unit, [part for _ in range(unit.module.num_layers) for part in next(found)])
        yield UnitUpdate(self.output, of_output, self.output_loss(clean.scores, y))


class BackpropThroughTime(RecurrentRule):
    """Backpropagation through time by PyTorch's autograd, through the last `truncation` steps; None is all of them."""

    differentiates = True

    def __init__(
        self,
        model: nn.Module,
        *,
        truncation: int | None = None,
        units: Sequence[nn.Module] | None = None,
        example: Sequences | None = None,
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, units=units, example=example, loss=loss, generator=generator)
        if truncation is not None and (not isinstance(truncation, int) or truncation < 1):
            raise ValueError(f"truncation: {truncation}, expected at least one step, or None for all")
        self.truncation = truncation
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        return self.truncation is None

    def stream(self, x: Sequences, y: Targets) -> Iterator[UnitUpdate]:
        values, lengths = self.checked_sequences(x, y)
        if self.truncation is not None and lengths is not None:
            raise ValueError("lengths: with truncation, whose last steps would be each sample's own; leave one out")
        with torch.enable_grad(), self.differentiable():
            outputs = self._outputs(x) if self.truncation is None else self._truncated(values, self.truncation)
            loss = self.output_loss(outputs, y)
            gradients = gradients_by(loss, self.model.parameters())
        for unit in self.units:
            of_unit = [gradients[p] for p in unit.parameters]
            yield UnitUpdate(unit, of_unit, loss.detach() if unit is self.output else None)

    def _truncated(self, x: Tensor, steps: int) -> Tensor:
        """The model's outputs, differentiable through the last steps alone."""
        states: list[Any] = [None] * len(self.recurrent)
        with torch.no_grad():
            if steps < x.shape[1]:
                _, states = self._through(x[:, :-steps], states)
        h, _ = self._through(x[:, -steps:], states)
        outputs: Tensor = self.output.module(h[:, -1])
        return outputs

    def _through(self, x: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """The uppermost h's, (batch, steps, n), and the last states of the recurrent units, from their first."""
        last = []
        for unit, state in zip(self.recurrent, states, strict=True):
            h, state = unit.module(x if unit.module.batch_first else x.transpose(0, 1), state)
            x = h if unit.module.batch_first else h.transpose(0, 1)
            last.append(state)
        return x, last
