"""One training: its steps and epochs, and everything that it needs to go on."""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .._arrays import generators, wide
from ..rules import Rule
from . import checkpoint as checkpoints
from .callbacks import Callback
from .diagnostics.alignment import alignment
from .errors import UserError
from .evaluation import Evaluation, evaluate, samples_in, total_weight
from .history import Epoch, History, check_fields
from .sources import MEASURED_BATCH, Batch, Loader, Tensors
from .together import Together

MOST_GROWTH = 1000
"""By how much a loss may grow, from 1 or from what it began with if that is more, before training has diverged."""

Measure: TypeAlias = Callable[[Rule, Tensor, Any], dict[str, Any]]
"""What is seen of a rule on a batch, x and y."""


class TrainingError(UserError):
    """Training that broke down: which rule, in which epoch.

    >>> rule = rules.Backprop(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), loss="squared_error")
    >>> try:
    ...     fit(rule, (torch.eye(2), 1e30 * torch.eye(2)), epochs=1)
    ... except TrainingError as error:
    ...     print(error)
    Backprop, epoch 1: the loss is inf, expected a finite one; lower the learning rate
    """


@dataclass(frozen=True)
class Plan:
    """How long a training is, and what is done in its steps and between them; see `fit`."""

    epochs: int | None = None
    max_steps: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None
    alignment_every: int = 1
    measure: Measure | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for numbers that mean nothing."""
        for name in ("max_steps", "accumulate", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"{name}: {value!r}, expected an integer, 1 or more")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise UserError(f"checkpoint_every: {self.checkpoint_every}, but no checkpoint is to be written")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise UserError(f"clip_norm: {self.clip_norm!r}, expected a positive number")

    def steps(self, batches: int | None) -> int | None:
        """How many steps there are in all, with so many batches an epoch; None where that is not known."""
        steps = [self.max_steps] if self.max_steps is not None else []
        if self.epochs is not None and batches is not None:
            steps.append(self.epochs * -(-batches // self.accumulate))
        return min(steps, default=None)


@dataclass
class _Progress:
    """How far an epoch is: its batches and samples, the weighted sum of the batches' losses, the time that they took.

    `begun` are the states of generators before the first batch, from which the same batches come again.
    """

    begun: dict[str, Tensor]
    total: Tensor
    weight: Tensor
    batches: int = 0
    samples: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


class Run:
    """A training as it stands, which callbacks see; `together` are the processes that it is in.

    `step` counts the steps done, of `steps` if that is known; `epoch_number` is the present epoch's, from 1. `loss`, a
    scalar, and `batch`, x and y, are the last step's. `train`, `validation` and `test` are where batches come from,
    `settings` what the checkpoint says of the training.

    >>> class Enough(Callback):
    ...     def on_epoch(self, run, epoch):
    ...         if run.step == 2:
    ...             run.stop("two steps")
    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=9, callbacks=[Enough()])
    >>> len(history.epochs), history.stopped
    (2, 'two steps')
    """

    loss: Tensor
    batch: Batch

    def __init__(
        self,
        together: Together,
        train: Tensors | Loader,
        validation: Tensors | Loader | None,
        test: Tensors | Loader | None,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        plan: Plan,
        settings: dict[str, Any],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.together, self.rule = together, together.rule
        self.train, self.validation, self.test = train, validation, test
        self.optimizer, self.scheduler, self.plan = optimizer, scheduler, plan
        self.settings, self.callbacks, self.device = settings, callbacks, train.place.device
        self.step, self.epoch_number, self.steps = 0, 0, plan.steps(train.batches)
        self.history = History()
        self.best_state = _copy(self.rule.state_dict())
        self._progress: _Progress | None = None
        self._begun_at: Tensor | None = None

    @property
    def samples(self) -> int:
        """How many were trained on, in all epochs."""
        return sum(epoch.samples for epoch in self.history.epochs) + (self._progress.samples if self._progress else 0)

    def stop(self, reason: str) -> None:
        """Ends training after the step in hand, whose epoch is still measured; `history.stopped` has the reason."""
        self.history.stopped = reason

    def goes_on(self) -> bool:
        """Whether there is a step to do, or an epoch to measure; where patience is at its end, training is stopped."""
        done, patience = len(self.history.epochs), self.plan.patience
        if patience is not None and done and done - self.history.best.epoch >= patience:
            self.stop(f"no better validation in {patience} epochs")
        more_epochs = self.plan.epochs is None or done < self.plan.epochs
        return self._progress is not None or (more_epochs and self._steps_on())

    def _steps_on(self) -> bool:
        self.history.stopped = self.together.agreed(self.history.stopped)
        more_steps = self.plan.max_steps is None or self.step < self.plan.max_steps
        return more_steps and self.history.stopped is None

    def epoch(self) -> Epoch:
        """Trains for one, or what is left of it. Raises TrainingError."""
        self.epoch_number = len(self.history.epochs) + 1
        where = f"{type(self.rule).__name__}, epoch {self.epoch_number}"
        try:
            return self._epoch(where)
        except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise TrainingError(f"{where}: {error}") from error
        except ValueError as error:
            if "NaN" not in str(error):  # which functions refuse
                raise
            if str(error).startswith("x: "):  # of the data, which are not looked through where load() did not read them
                raise UserError(f"{where}: {error}") from error
            raise TrainingError(f"{where}: {error}; lower the learning rate") from error

    def _epoch(self, where: str) -> Epoch:
        progress, loss = self._train()
        _check_finite(loss, "loss", where)
        self._check_growth(loss, where)
        self._check_parameters(where)
        share, validation_loss = None, None
        self.together.steps_by.calibrate([] if self.validation is None else self.validation.in_order())
        if self.validation is not None:
            share, validation_loss = self._evaluated(self.validation)
            _check_finite(validation_loss, "validation loss", where)
        self._follow(share, loss if validation_loss is None else validation_loss)

        def measured() -> Epoch:
            plan, number = self.plan, self.epoch_number
            first = self.train.first() if isinstance(self.train, Tensors) else _first(self.batch)
            cosines: dict[str, float] = {}
            if plan.alignment_every and (number - 1) % plan.alignment_every == 0:
                cosines = alignment(self.rule, *first)
            seen = {} if plan.measure is None else plan.measure(self.rule, *first)
            samples, seconds = progress.samples, progress.seconds
            return Epoch(number, loss, share, seconds, cosines, seen, validation_loss, samples)

        epoch = self.together.alone(measured)
        self.history.epochs.append(epoch)
        if self.history.best is epoch:
            self.best_state = _copy(self.rule.state_dict())
        return epoch

    def _train(self) -> tuple[_Progress, float]:
        """One pass over the training data, or what is left of it; the mean loss of the samples.

        Waits for the device at checkpoints and once, at the end.
        """
        self.rule.train()
        items = self.train.epoch(self.epoch_number)
        if self._progress is None:
            self._progress = _Progress(self._states(), self._zero(), self._zero())
        else:
            self._pass_over(items, self._progress)
        if isinstance(self.train, Loader):
            items = self.together.even(items)
        progress = self._progress
        start = time.perf_counter() - progress.seconds
        while self._steps_on() and (group := list(islice(items, self.plan.accumulate))):
            self._step(group, progress)
            progress.seconds = time.perf_counter() - start
            every = self.plan.checkpoint_every
            if every is not None and self.step % every == 0:
                self.save()
            for callback in self.callbacks:
                callback.on_step(self)
        loss = progress.total.item() / (progress.weight.item() or 1)
        progress.seconds = time.perf_counter() - start
        self._progress = None
        return progress, loss

    def _step(self, group: list[Any], progress: _Progress) -> None:
        if len(group) == 1 and self.plan.clip_norm is None:
            step = partial(self.together.steps_by.step, optimizer=self.optimizer)
            self.loss, weight = self._credit(group[0], progress, step)
        else:
            credited = self._credit(group[0], progress) if len(group) == 1 else self._mean_credit(group, progress)
            self.loss, weight = credited
            if self.plan.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.rule.parameters(), self.plan.clip_norm)
            self.optimizer.step()
            self.rule.constrain(self.optimizer)
        if self._begun_at is None:
            self._begun_at = self.loss
        progress.total += self.loss * weight
        progress.weight += weight
        progress.batches += len(group)
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.step += 1

    def _credit(
        self, item: Any, progress: _Progress, step: Callable[[Any, Any], Tensor] | None = None
    ) -> tuple[Tensor, float | Tensor]:
        """Fills `.grad`, or makes the whole `step` on the batch; the loss, and what it counts by in all processes."""
        x, y = given = self.train.read(item)
        is_share = isinstance(self.train, Loader)  # else all processes have the whole batch
        if is_share and self.together.size > 1 and not self.step:
            self.together.check_shares(checkpoints.digest_of([_tensors(x)]))
        self.batch = given if is_share else self.together.share(given)
        loss = (self.together.steps_by.assign_credit if step is None else step)(*self.batch)
        samples, weight = samples_in(y), total_weight(self.rule, x, y)
        if not is_share or self.together.size == 1:
            progress.samples += samples
            return loss, weight
        samples_in_all, weights = self.together.summed(samples, float(weight))
        progress.samples += int(samples_in_all)
        return loss, weights

    def _mean_credit(self, group: list[Any], progress: _Progress) -> tuple[Tensor, Tensor]:
        """The same of several batches at once: means over all that they count by."""
        loss, whole = self._zero(), self._zero()
        sums: dict[nn.Parameter, Tensor] = {}
        for item in group:
            found, weight = self._credit(item, progress)
            loss += found * weight
            whole += weight
            for p in self.rule.parameters():
                if p.grad is not None:
                    sums[p] = p.grad * weight if p not in sums else sums[p].add_(p.grad * weight)
        least = whole.clamp(min=torch.finfo(whole.dtype).tiny)  # where no label counts
        for p, total in sums.items():
            p.grad = total.div_(least)
        return loss / least, whole

    def _evaluated(self, source: Tensors | Loader) -> Evaluation:
        """Of the shares of all processes."""
        batches = source.in_order()
        if isinstance(source, Tensors):
            batches = (part for part in map(self.together.share, batches) if samples_in(part[1]))
        return evaluate(self.rule, batches, self.together.summed)

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.device, dtype=wide(self.train.place.dtype))

    def _pass_over(self, items: Iterator[Any], progress: _Progress) -> None:
        """Draws the epoch's batches again and leaves out those that were trained on."""
        now = self._states()
        self._set_states(progress.begun)
        seen = deque(islice(items, progress.batches), maxlen=1)
        if not seen:
            raise checkpoints.CheckpointError("checkpoint: is amid an epoch, but train gives no batches to pass over")
        self.batch = self.train.read(seen[0])
        self._set_states(now)

    def _follow(self, accuracy: float | None, loss: float) -> None:
        """Steps a scheduler that goes by a measurement. Raises UserError where there is none."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            value = loss if self.scheduler.mode == "min" else accuracy
            if value is None:
                raise UserError("scheduler: mode 'max', but no validation accuracy is measured; expected mode 'min'")
            self.scheduler.step(value)

    def _check_growth(self, loss: float, where: str) -> None:
        """Raises TrainingError for an epoch's loss far beyond that of the first step, however finite."""
        begun = 0.0 if self._begun_at is None else float(self._begun_at)
        if loss > MOST_GROWTH * max(1.0, abs(begun)):
            raise TrainingError(
                f"{where}: the loss is {loss:.3g}, over {MOST_GROWTH} times the {begun:.3g} that it began with; lower "
                "the learning rate"
            )

    def _check_parameters(self, where: str) -> None:
        parameters = dict(self.rule.named_parameters())
        finite = torch.stack([torch.isfinite(p).all() for p in parameters.values()])
        if not finite.all():
            name = list(parameters)[int(finite.logical_not().nonzero()[0])]
            raise TrainingError(f"{where}: {name} is not finite; lower the learning rate")

    def finish(self) -> History:
        """Puts the weights of the best epoch in place, if one is done, and measures them on test data."""
        history, test = self.history, self.test
        if history.epochs:
            self.rule.load_state_dict(self.best_state)
        if test is not None and not history.interrupted:
            history.test_accuracy, history.test_loss = self._evaluated(test)
            labels, seen = (part.labels if isinstance(part, Tensors) else None for part in (test, self.train))
            if labels is not None and seen is not None and history.test_accuracy is not None:
                guessed = (labels == seen.bincount().argmax()).double().mean().item()
                spread = (guessed * (1 - guessed) / len(labels)) ** 0.5
                history.at_chance = history.test_accuracy <= guessed + 2 * spread
        return history

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one, in process 0. Raises OSError."""
        if (path := self.plan.checkpoint) is None:
            return
        begun = None if self._progress is None else self._progress.begun
        others = self.together.every({"generators": self._states(), "begun": begun})[1:]
        state = {
            "settings": self.settings,
            "history": [asdict(epoch) for epoch in self.history.epochs],
            "step": self.step,
            "progress": None if self._progress is None else vars(self._progress),
            "rule": self.rule.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generators": self._states(),
            "others": others,
        }
        self.together.alone(lambda: checkpoints.save(path, state))

    def resume(self, path: str | Path) -> None:
        """Goes on from a checkpoint. Raises CheckpointError for one of another training."""
        state = self.together.alone(lambda: checkpoints.load(path))
        settings = state.get("settings")
        if not isinstance(settings, dict):
            raise checkpoints.CheckpointError(f"checkpoint: '{path}' has no settings of a training")
        _check_same(settings, self.settings, path)
        before = self.best_state
        try:
            self._take(state, path)
        except checkpoints.CheckpointError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            self.rule.load_state_dict(before)
            raise checkpoints.CheckpointError(f"checkpoint: '{path}' does not fit this training ({error})") from error

    def _take(self, state: dict[str, Any], path: str | Path) -> None:
        """Everything that `save` wrote. What is read first changes nothing yet."""
        if self.together.rank:
            own = state["others"][self.together.rank - 1]
            state["generators"] = own["generators"]
            if state["progress"] is not None:
                state["progress"]["begun"] = own["begun"]
        _check_shapes(self.optimizer, state["optimizer"])
        epochs, step = [Epoch(**epoch) for epoch in state["history"]], state["step"]
        progress = None if state["progress"] is None else _Progress(**state["progress"])
        if type(step) is not int or step < 0 or [epoch.epoch for epoch in epochs] != [*range(1, 1 + len(epochs))]:
            raise ValueError("its epochs or steps are not counted from 1")
        begun = len(epochs) + (progress is not None)
        for name, done, asked in (("epochs", begun, self.plan.epochs), ("steps", step, self.plan.max_steps)):
            if asked is not None and asked < done:
                raise checkpoints.CheckpointError(
                    f"checkpoint: '{path}' has {done} {name} done, expected at most {asked} as asked for"
                )
        self.rule.load_state_dict(state["best"])
        self.best_state = _copy(self.rule.state_dict())
        self.rule.load_state_dict(state["rule"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if progress is not None:
            progress.total, progress.weight = (part.to(self.device) for part in (progress.total, progress.weight))
            self._set_states(progress.begun)
        self._set_states(state["generators"])
        self.history.epochs, self._progress = epochs, progress
        self.epoch_number, self.step = len(epochs), step

    def _generators(self) -> dict[str, torch.Generator]:
        """Those in use, PyTorch's own for this device among them."""
        own: dict[str, torch.Generator] = dict(zip(("global", "cuda"), generators(self.device), strict=False))
        if self.rule.generator is not None:
            own["rule"] = self.rule.generator
        return self.train.generators() | own

    def _states(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self._generators().items()}

    def _set_states(self, states: dict[str, Tensor]) -> None:
        for name, generator in self._generators().items():
            generator.set_state(states[name])


def _check_finite(loss: float | None, name: str, where: str) -> None:
    if loss is not None and not abs(loss) < float("inf"):
        raise TrainingError(f"{where}: the {name} is {loss}, expected a finite one; lower the learning rate")


def _check_shapes(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raises ValueError for a state of PyTorch's optimizers that is not of its parameter's shape.

    They do not look, and fused ones would read what lies behind it. Adafactor's is of rows and columns.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or kind is torch.optim.Adafactor:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            shape = tuple(parameters[number].shape)
            if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != shape:
                raise ValueError(f"optimizer: {name} {number} of shape {tuple(value.shape)}, expected {shape}")


def _check_same(found: dict[str, Any], asked: dict[str, Any], path: str | Path) -> None:
    """Raises CheckpointError for settings of another training, but for how long it is and what its data are called."""
    found, asked = _flat(found), _flat(asked)
    for name, expected in asked.items():
        if name not in ("data", "epochs") and found.get(name) != expected:
            has, wanted = f"{name} {found.get(name)}", f"{expected}"
            if name == "digest":
                has, wanted = _data_in(found), _data_in(asked)
            raise checkpoints.CheckpointError(
                f"checkpoint: '{path}' has {has}, expected {wanted} as asked for; a training goes on as it was begun, "
                "or begins anew"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """With those of the recipe one by one."""
    recipe, network = settings.get("recipe") or {}, settings.get("network") or {}
    return {**{name: value for name, value in settings.items() if name != "recipe"}, **recipe, **network}


def _data_in(settings: dict[str, Any]) -> str:
    parts = " + ".join(map(str, settings.get("samples") or ()))
    return f"data '{settings.get('data')}' of {parts} samples (SHA-256 {str(settings.get('digest'))[:8]})"


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for name, v in state.items()}


def _tensors(part: Any) -> list[Tensor]:
    """Those in x, whatever it is."""
    if isinstance(part, PackedSequence):
        return [part.data]
    return [part] if isinstance(part, Tensor) else [tensor for each in part for tensor in _tensors(each)]


def _first(batch: Batch) -> Batch:
    """No more samples of it than a rule is measured on, but of a packed batch all."""
    if isinstance(batch[0], PackedSequence):
        return batch
    x, y = (
        tuple(each[:MEASURED_BATCH] for each in part) if isinstance(part, tuple) else part[:MEASURED_BATCH]
        for part in batch
    )
    return x, y
