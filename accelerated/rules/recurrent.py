"""Rules for recurrent networks: forward target propagation and backpropagation through time."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .._arrays import readable
from .._autocast import in_full, lowered
from ..activations import ACTIVATIONS, Activation
from ..embedding import Embedding
from ..ftp import FeedbackLaw, differences, first_difference, local_factors, random_feedback
from ..layers import Dense, Pass, forward, per_label
from ..modules import RecurrentNetwork
from ..recurrent import (
    CELLS,
    Recurrent,
    RecurrentLayer,
    Reduction,
    Stack,
    at_steps,
    differences_per_step,
    forward_per_step,
    state_size,
    unrolled,
    updates,
)
from .cutting import is_plain, untouched
from .output_loss import LossLike, Targets
from .rule import Inputs, OutputLoss, UnitUpdate, check_finite, check_place, gradients_by
from .units import OURS, Unit, check_like

Injection: TypeAlias = Literal["first", "every"]
"""The steps whose target is corrected."""

CELL_OF = {"RNN_TANH": "elman", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}
"""The cells of PyTorch's recurrent layers, by their `mode`."""


@dataclass(frozen=True, eq=False)
class EmbeddingUnit(Unit):
    """nn.Embedding below the recurrent layers."""

    module: nn.Embedding  # type: ignore[assignment]

    @property
    def bias(self) -> None:
        """It has none."""

    @property
    def has_maps(self) -> bool:
        return False

    @property
    def width(self) -> int:
        return self.module.embedding_dim

    @property
    def stack(self) -> list[Embedding]:
        """Itself as the functions of this package take it; with the parameter itself."""
        return [Embedding(self.module.weight)]

    def gradients(self, update: Sequence[Tensor]) -> list[Tensor]:
        """The update of its weight, which leaves the row of `padding_idx` as it is."""
        (found,) = update
        if self.module.padding_idx is not None:
            found[self.module.padding_idx] = 0
        return [found]


@dataclass(frozen=True, eq=False)
class RecurrentUnit(Unit):
    """nn.RNN, nn.GRU or nn.LSTM with its layers, all of whose steps share its parameters."""

    module: nn.RNN | nn.GRU | nn.LSTM  # type: ignore[assignment]

    @property
    def weights(self) -> list[Tensor]:
        return [p for p in self.parameters if p.dim() == 2]

    @property
    def bias(self) -> None:
        """It has two."""

    @property
    def parameters(self) -> list[Tensor]:
        """Of each layer the weights of input and state, then their biases, in whatever order they were registered."""
        return [p for of_layer in self.module.all_weights for p in of_layer]

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

    def gradients(self, update: Sequence[Tensor]) -> list[Tensor]:
        """The updates of its layers in the order of its parameters."""
        return list(update)


def _read(
    model: nn.Module, units: Sequence[nn.Module] | None, rule: str
) -> tuple[list[EmbeddingUnit | RecurrentUnit], Unit]:
    """The units of a model below its output, and that. Raises ValueError, with the layer's name, for another layer."""
    how = "units=[model.gru, model.head], its nn.RNN, nn.GRU or nn.LSTM and its nn.Linear"
    if units is None:
        if not isinstance(model, RecurrentNetwork) or type(model).forward is not RecurrentNetwork.forward:
            raise ValueError(
                f"model: {type(model).__name__}; {rule} trains a RecurrentNetwork {OURS}, or a model of your own with "
                f"{how} (an nn.Sequential passes no tuple on, as these give one)"
            )
        units = model.units
    paths = {id(module): path for path, module in model.named_modules()}
    lost = next((unit for unit in units if id(unit) not in paths), None)
    embedded = bool(units) and isinstance(units[0], nn.Embedding)
    if lost is not None or len(units) < 2 + embedded:
        what = f"{len(units)} of them" if lost is None else f"{type(lost).__name__} is no module of the model"
        raise ValueError(f"units: {what}, expected {how}, an nn.Embedding before them if x are tokens")
    *below, last = units
    found: list[EmbeddingUnit | RecurrentUnit] = []
    for module in below:
        name = paths[id(module)]
        if isinstance(module, nn.Embedding) and not found:
            found.append(_embedding_unit(name, module, rule))
        else:
            found.append(_recurrent_unit(name, module, found, rule))
    path, width = paths[id(last)], found[-1].width
    if not is_plain(last, nn.Linear) or last.in_features != width:
        raise ValueError(f"layer '{path}': {last}; {rule} needs an nn.Linear of the {width} states")
    _check_parameters(model, units, rule)
    return found, Unit(path, last)  # type: ignore[arg-type]


def _embedding_unit(name: str, module: nn.Embedding, rule: str) -> EmbeddingUnit:
    """Raises ValueError for an embedding that does more than to look rows up."""
    if not is_plain(module, nn.Embedding) or module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        raise ValueError(
            f"layer '{name}': {module}; {rule} trains an nn.Embedding without max_norm, scale_grad_by_freq and sparse"
        )
    return EmbeddingUnit(name, module)


def _recurrent_unit(name: str, module: nn.Module, below: Sequence[Unit], rule: str) -> RecurrentUnit:
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

        rule = RecurrentFtp(model, units=[model.embedding, model.gru, model.head])

    `units` are these modules of the model, in the order in which they run, an nn.Embedding before them if x are tokens;
    a `RecurrentNetwork` needs none. The model is any that computes what they do, from the state 0. Its scores are those
    of each sample's last state, (batch, K), or of all states, (batch, steps, K), for a label of every step. That they
    are is checked on the `example`, x as the model takes it, else on the first batch.

    x is (batch, steps, features), whatever `batch_first` is, or int64 tokens (batch, steps). Sequences of several
    lengths are x, padded, and lengths: `rule.assign_credit((x, lengths), y)` calls `model(x, lengths)`; or a
    PackedSequence, for a model that takes one. `loss` and y are those of `OutputLoss`, y (batch, steps) or (batch,
    steps, K) where every step has a label; labels behind a sample's end do not count.

    Raises ValueError for units that are not the model.

    >>> rule, x = RecurrentFtp(modules.RecurrentNetwork(2, 4, 3)), torch.ones(2, 5, 2)
    >>> isinstance(rule, RecurrentRule), rule((x, torch.tensor([5, 1]))).shape
    (True, torch.Size([2, 3]))
    >>> torch.allclose(rule((x, torch.tensor([5, 1])))[1], rule(x[1:, :1])[0], atol=1e-6)
    True
    """

    wants_sequences = True

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Sequence[nn.Module] | None = None,
        example: Inputs | None = None,
        loss: LossLike = "cross_entropy",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.below, self.output = _read(model, units, type(self).__name__)
        self.units = [*self.below, self.output]
        self.watch(model)
        self.generator = generator
        self.num_classes = self.output.width
        self.set_loss(loss)
        self.per_step = isinstance(model, RecurrentNetwork) and model.per_step
        """Whether every step has scores, and a label."""
        self._are_the_model = units is None and all(getattr(unit.module, "batch_first", True) for unit in self.below)
        if example is not None:
            self._check_units(example)

    def forward(self, x: Inputs) -> Tensor:
        self.sequences(x)
        return self._outputs(x)

    def _outputs(self, x: Inputs) -> Tensor:
        """The model's."""
        with_lengths = isinstance(x, tuple) and not isinstance(x, PackedSequence)
        outputs: Tensor = self.model(*x) if with_lengths else self.model(x)
        return outputs

    def differentiable(self) -> AbstractContextManager[None]:
        """Where the model can be differentiated: cuDNN refuses it in evaluation mode."""
        return nullcontext() if self.training else torch.backends.cudnn.flags(enabled=False)

    @property
    def stack(self) -> Stack:
        """The layers below the output, lowest first."""
        return [layer for unit in self.below for layer in unit.stack]

    @property
    def takes_tokens(self) -> bool:
        """Whether x are tokens."""
        return isinstance(self.below[0], EmbeddingUnit)

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """The steps, if each has a label."""
        return (x.shape[1],) if self.per_step else ()

    def layers(self, x: Tensor, lengths: Tensor | None = None) -> Recurrent:
        """The steps on x and the output as the functions of this package take them.

        Tensors are the parameters themselves. What the first layer takes is `begin(x)`.
        """
        lengths = None if lengths is None else lengths.to(x.device)
        return (*unrolled(self.stack, x, lengths), Dense(self.output.weights[0], self.output.bias))

    def begin(self, x: Tensor) -> Tensor:
        """The state before the first step."""
        return self.output.weights[0].new_zeros(len(x), state_size(self.stack))

    def passed(self, x: Tensor, lengths: Tensor | None) -> tuple[Recurrent, Pass]:
        """The layers on x, and their pass."""
        layers = self.layers(x, lengths)
        return layers, (forward_per_step if self.per_step else forward)(layers, self.begin(x))

    def sequences(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        """x, padded, and the lengths if there are any. Raises ValueError unless it fits the model."""
        self.check_unchanged()
        given: Any = pad_packed_sequence(x, batch_first=True) if isinstance(x, PackedSequence) else x
        values, lengths = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        if not isinstance(values, Tensor):
            raise ValueError(f"x: a {type(values).__name__}, expected a torch.Tensor")
        self._check_values(values)
        if lengths is None:
            return values, None
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != values.shape[:1]:
            came = (
                f"{lengths.dtype} of shape {tuple(lengths.shape)}"
                if isinstance(lengths, Tensor)
                else f"a {type(lengths).__name__}"
            )
            raise ValueError(f"lengths: {came}, expected int64 of shape ({len(values)},), one for each sample")
        if readable(lengths) and (lengths.min() < 1 or lengths.max() > values.shape[1]):
            raise ValueError(f"lengths: {lengths.min()}..{lengths.max()}, expected 1..{values.shape[1]}, steps of x")
        return values, lengths

    def _check_values(self, x: Tensor) -> None:
        """Raises ValueError unless x are sequences, or tokens, that the lowest unit takes."""
        lowest, weight = self.below[0].module, self.output.weights[0]
        if isinstance(lowest, nn.Embedding):
            if x.dim() != 2 or 0 in x.shape or x.dtype != torch.int64:
                raise ValueError(
                    f"x: {x.dtype} of shape {tuple(x.shape)}, expected int64 of shape (batch, steps), tokens"
                )
            if x.device != weight.device:
                raise ValueError(f"x: on {x.device}, expected {weight.device}, where the model is")
            if readable(x) and (x.min() < 0 or x.max() >= lowest.num_embeddings):
                raise ValueError(
                    f"x: tokens {x.min()}..{x.max()}, expected 0..{lowest.num_embeddings - 1}, padding too"
                )
            return
        if x.dim() != 3 or 0 in x.shape or x.shape[2] != lowest.input_size:
            expected = f"(batch, steps, {lowest.input_size}), at least one of each"
            raise ValueError(f"x: shape {tuple(x.shape)}, expected {expected}")
        check_like(x, weight)

    def checked_sequences(self, x: Inputs, y: Targets) -> tuple[Tensor, Tensor | None]:
        """`sequences`. Raises ValueError unless x and y fit the model and each other, and the units are the model."""
        self.check_same_parameters()
        self.check_hooks()
        values, lengths = self.sequences(x)
        if not self.takes_tokens:
            check_finite(values)
        if not self._are_the_model:
            self._check_units(x)
        self.check_y(values, self._known(y, lengths))
        return values, lengths

    def _known(self, y: Targets, lengths: Tensor | None) -> Targets:
        """y with a sample's first label where it has no such step."""
        labels = y[0] if isinstance(y, tuple) else y
        if not self.per_step or lengths is None or not isinstance(labels, Tensor) or labels.dim() != 2:
            return y
        behind = torch.arange(labels.shape[1], device=labels.device) >= lengths.to(labels.device)[:, None]
        known = torch.where(behind, labels[:, :1], labels) if len(labels) == len(lengths) else labels
        return (known, y[1]) if isinstance(y, tuple) else known

    @torch.no_grad()
    def _check_units(self, x: Inputs) -> None:
        """Raises ValueError where the model gives other scores than its units do, in evaluation or in training mode."""
        values, lengths = self.sequences(x)
        for training in (False, True):
            with untouched(self.model, values):
                self.model.train(training)
                expected = self._outputs(x)
            self.per_step = expected.dim() == 3
            with in_full():
                given = self.passed(values, lengths)[1].scores
            apart = f"shape {tuple(expected.shape)}, not {tuple(given.shape)}"
            if expected.shape == given.shape:
                found, wanted, _ = self.labelled(given, expected, lengths)
                difference, size = (part.double().abs().max() for part in (found - wanted, wanted))
                if difference <= torch.finfo(given.dtype).eps ** 0.5 * size:
                    continue
                apart = f"scores {difference:.3g} apart from theirs, where these are {size:.3g} at most"
            raise ValueError(
                f"units: in {'training' if training else 'evaluation'} mode the model gives {apart}; expected those of "
                "the last state of each sample, or of all, x being (batch, steps, ...) and the first state 0"
            )
        self._are_the_model = True

    def labelled(self, scores: Tensor, y: Targets, lengths: Tensor | None) -> tuple[Tensor, Any, Tensor | None]:
        """Scores and y of the steps that samples have, and which rows these are of all; None where they are all."""
        if not self.per_step or lengths is None:
            return scores, y, None
        steps = torch.arange(scores.shape[1], device=lengths.device)
        rows = (steps < lengths[:, None]).flatten().nonzero().flatten().to(scores.device)
        told = tuple(part.flatten(0, 1)[rows] for part in (y if isinstance(y, tuple) else (y,)))
        return scores.flatten(0, 1)[rows], told if isinstance(y, tuple) else told[0], rows

    def objective(self, x: Inputs, y: Targets) -> Tensor:
        with self.differentiable():
            scores, told, _ = self.labelled(self(x), y, self.sequences(x)[1])
            return self.output_loss(scores, told)


def _spread(found: Tensor, rows: Tensor | None, shape: Sequence[int]) -> Tensor:
    """What is found of labels, (N, n), as (*shape, n): 0 but for the rows, None being all of them."""
    if rows is not None:
        found = found.new_zeros(prod(shape), found.shape[1]).index_copy(0, rows, found)
    return found.unflatten(0, tuple(shape))


class RecurrentFtp(RecurrentRule):
    """Forward Target Propagation through time; see `prograde.reference.ftp`, and `Ftp` for the options.

    `feedback`, G, is a buffer drawn once, (n, K). `phi` is the name of the activation that projections go through.
    `inject` is "first" or "every". With "first" the first step has a corrected target, which runs forward: the most
    direct reading of the paper, which learns little beyond a few steps. "every" corrects it at each step and is ours.
    Of several recurrent layers the lowest has that target and the others what becomes of it; "every" corrects them all,
    with rows of G for each. Of tokens "first" corrects what is embedded, at all steps. Where every step has a label,
    its correction of the lowest layer, or of all, is of that label, and no target goes on in time. `reduction` is "sum"
    or "mean", of the updates of all steps, of a sample's own.

    Raises ValueError for options that are not known, and unless `gain` and `scale` are positive.

    >>> rule = RecurrentFtp(modules.RecurrentNetwork(2, 4, 3), inject="every")
    >>> rule.feedback.shape
    torch.Size([4, 3])
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
        example: Inputs | None = None,
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
        sizes = [layer.table.shape[1] if isinstance(layer, Embedding) else layer.n for layer in self.stack]
        self.corrected = sizes[: 1 if inject == "first" else None]
        """Rows of G of each layer with a corrected target."""
        weight = self.output.weights[0]
        drawn = [
            random_feedback(n, len(weight), generator, scale, law, device=weight.device, dtype=weight.dtype)
            for n in self.corrected
        ]
        self.register_buffer("feedback", torch.cat(drawn))
        self.check_hooks()

    def stream(self, x: Inputs, y: Targets) -> Iterator[UnitUpdate]:
        values, lengths = self.checked_sequences(x, y)
        check_place("feedback", self.feedback, self.output.weights[0])
        layers, clean = self.passed(values, lengths)
        scores, told, rows = self.labelled(clean.scores, y, lengths)
        e = self.output_gradient(scores, told)
        targets, count = self.loss.pursued(scores, told, e), self.loss.count(scores, told)
        places, K = clean.scores.shape[:-1], self.num_classes
        kappa = first_difference(self.feedback, targets.reshape(-1, K), e.reshape(-1, K), self.phi, self.gain)
        kappa = _spread(kappa, rows, places)
        if not self.per_step:
            kappa = kappa[:, None].expand(-1, values.shape[1], -1)
        parts = kappa.split(self.corrected, dim=2)
        corrections = at_steps(layers[:-1], [*parts, *[None] * (len(self.stack) - len(parts))])
        if self.per_step:
            found = differences_per_step(layers, clean, corrections)
        else:
            first, *later = corrections
            assert first is not None
            alone = self.inject == "first" and not self.takes_tokens
            found = differences(layers, clean, first, later=() if alone else later)
        factors = local_factors(layers, clean, _spread(e.reshape(-1, K), rows, places), found)
        *of_stack, of_output = (
            per_label(update, len(values), count) for update in updates(layers, factors, self.reduction)
        )
        each = iter(of_stack)
        for unit in self.below:
            yield UnitUpdate(unit, unit.gradients([part for _ in unit.stack for part in next(each)]))
        yield UnitUpdate(self.output, of_output, self.output_loss(scores, told))


class BackpropThroughTime(RecurrentRule):
    """Backpropagation through time by PyTorch's autograd, through the last `truncation` steps; None is all of them.

    Raises ValueError for a truncation below one step.

    >>> model = modules.RecurrentNetwork(2, 4, 3)
    >>> rule, x, y = BackpropThroughTime(model), torch.ones(1, 5, 2), torch.tensor([0])
    >>> loss = rule.assign_credit(x, y)
    >>> weight = model.recurrent.weight_hh_l0
    >>> torch.allclose(weight.grad, torch.autograd.grad(rule.objective(x, y), weight)[0], atol=1e-6)
    True
    """

    differentiates = True

    def __init__(
        self,
        model: nn.Module,
        *,
        truncation: int | None = None,
        units: Sequence[nn.Module] | None = None,
        example: Inputs | None = None,
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

    def stream(self, x: Inputs, y: Targets) -> Iterator[UnitUpdate]:
        values, lengths = self.checked_sequences(x, y)
        if self.truncation is not None and (self.per_step or lengths is not None):
            what = "lengths" if lengths is not None else "labels of every step"
            raise ValueError(
                f"truncation: {self.truncation}, with {what}; it is of the last steps of all samples alike"
            )
        with torch.enable_grad(), lowered(), self.differentiable():
            outputs = self._outputs(x) if self.truncation is None else self._truncated(values, self.truncation)
            scores, told, _ = self.labelled(outputs, y, lengths)
            loss = self.output_loss(scores, told)
            gradients = gradients_by(loss, self.model.parameters())
        for unit in self.units:
            of_unit = [gradients[p] for p in unit.parameters]
            yield UnitUpdate(unit, of_unit, loss.detach() if unit is self.output else None)

    def _truncated(self, x: Tensor, steps: int) -> Tensor:
        """The model's outputs, differentiable through the last steps alone."""
        first, *others = self.below
        recurrent = others if isinstance(first, EmbeddingUnit) else self.below
        states: list[Any] = [None for _ in recurrent]
        x = first.module(x) if isinstance(first, EmbeddingUnit) else x
        with torch.no_grad():
            if steps < x.shape[1]:
                _, states = _through(recurrent, x[:, :-steps], states)
        h, _ = _through(recurrent, x[:, -steps:], states)
        outputs: Tensor = self.output.module(h[:, -1])
        return outputs


def _through(units: Sequence[Unit], x: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
    """The uppermost h's, (batch, steps, n), and the last states of the recurrent units, from their first."""
    last = []
    for unit, before in zip(units, states, strict=True):
        module: Any = unit.module
        h, state = module(x if module.batch_first else x.transpose(0, 1), before)
        x = h if module.batch_first else h.transpose(0, 1)
        last.append(state)
    return x, last
