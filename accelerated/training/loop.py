"""The training loop."""

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..rules import Rule
from ..rules.output_loss import Loss, parted
from ..rules.rule import OutputLoss, evaluating
from . import checkpoint as checkpoints
from .callbacks import Callback
from .data import Dataset, Split
from .data.augmentation import Augmentation
from .diagnostics.alignment import alignment, check_rule
from .errors import UserError
from .history import Epoch, History
from .recipes import Recipe
from .schedules import SCHEDULES

EVALUATION_BATCH = 1000
MEASURED_BATCH = 512

Measure: TypeAlias = Callable[[Rule, Tensor, Tensor], dict[str, Any]]
"""What is seen of a rule on a batch, x and y."""


class TrainingError(UserError):
    """Training that broke down: which rule, in which epoch."""


class Score(NamedTuple):
    """The share of labels whose score is the highest, and the mean loss at the scores; None without labels or loss."""

    accuracy: float | None
    loss: float | None


@torch.no_grad()
def score(rule: Rule, batches: Iterable[tuple[Tensor, Any]]) -> Score:
    """Over batches (x, y), in evaluation mode. Labels may be of positions; those that the loss ignores do not count."""
    device = next(rule.parameters()).device
    right, labelled, total = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
    held = getattr(rule, "rule", rule)  # of hardware
    loss, samples, are_labels = held.loss if isinstance(held, OutputLoss) else None, 0, False
    with evaluating(rule):
        for x, y in batches:
            scores, (labels, _) = rule(x), parted(y)
            samples += len(x)
            are_labels = not labels.is_floating_point()
            if loss is not None:
                total += loss.value(scores, y) * len(x)
            if are_labels:
                right += (scores.argmax(dim=-1) == labels).sum()
                ignored = None if loss is None else loss.ignore_index
                labelled += labels.numel() if ignored is None else (labels != ignored).sum()
    return Score(
        right.item() / labelled.item() if are_labels else None, None if loss is None else total.item() / samples
    )


def accuracy(rule: Rule, split: Split) -> float:
    """The share of samples whose highest score is their label's."""
    share = score(rule, _batches(split)).accuracy
    if share is None:
        raise UserError(f"labels: {split.labels.dtype}, expected int64 for an accuracy")
    return share


def _batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)


def fit(
    rule: Rule,
    train: Dataset,
    *,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    alignment_every: int = 1,
    measure: Measure | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
) -> History:
    """Trains the rule in place and leaves it with the weights of the best epoch on validation data.

    A rule with convolutions is given images, a recurrent one sequences (of an image its rows), others pixels in a row.
    What the rule itself chooses on held-out data (`calibrate`) it chooses on the validation data, after every epoch and
    before its accuracy there is taken.
    `epochs` are the recipe's unless given; `seed` fixes batches, moves of images, masks and negatives. A last batch of
    one sample joins the one before it. The alignment is measured every so many epochs, 0 for never. `measure` is
    called after each, with the rule and the first samples of the training data; what it gives, plain numbers in dicts
    and lists, is kept with the epoch. `callbacks` are called as `Callback` says, in their order, after `on_epoch`.

    `checkpoint` is a file written after every epoch; one that is there already is replaced only where it is resumed
    or `overwrite` is True, and what is no checkpoint never. `resume` is one to go on from, exactly as if there had been
    no interruption: `on_epoch` is given its epochs too. The data are known by their content, whatever their name. With
    other `epochs` than the checkpoint's a training is extended or cut short: the schedule of the learning rate then
    runs over the new total from the next step on.

    Raises TypeError for what is no rule, TrainingError for a loss that is not finite,
    CheckpointError for a checkpoint of another training or a file that is not to be replaced, UserError for a recipe
    that did not make the rule, for targets that are no labels, and for options that are no plain values where there is
    a checkpoint to write.
    """
    check_rule(rule, "fit")
    recipe = recipe or Recipe(**(_made_by(rule) or {}))
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    for name, value in (("seed", seed), ("alignment_every", alignment_every)):
        if type(value) is not int or value < 0:
            raise UserError(f"{name}: {value!r}, expected an integer, 0 or more")
    device = next(rule.parameters()).device if device is None else torch.device(device)
    dtype = next(rule.parameters()).dtype
    standardise = recipe.standardise or train.is_table
    augmentation = Augmentation.of(train, standardise, **recipe.augmentation)
    _check_targets(rule, train)
    _check_network(rule, recipe)
    _check_batches(rule, recipe, train)
    if checkpoint is not None:
        _check_plain(recipe)
        checkpoints.claim(checkpoint, resume=resume, overwrite=overwrite)
    with _seeded(seed, device):
        moved = train.to(device, dtype, standardise)
        if rule.wants_images:
            moved = moved.as_images()
        elif rule.wants_sequences:
            moved = moved.as_sequences()
        run = Run(rule, moved, recipe, augmentation, seed, device, alignment_every, measure, callbacks)
        if checkpoint is not None or resume is not None:
            run.settings["digest"] = checkpoints.digest(train)
        if resume is not None:
            run.resume(resume)
            if on_epoch is not None:
                for epoch in run.history.epochs:
                    on_epoch(epoch)
        try:
            for callback in callbacks:
                callback.on_start(run)
            while run.history.stopped is None and len(run.history.epochs) < recipe.epochs:
                epoch = run.epoch()
                if checkpoint is not None:
                    checkpoints.save(checkpoint, run.state())
                if on_epoch is not None:
                    on_epoch(epoch)
                for callback in callbacks:
                    callback.on_epoch(run, epoch)
            return run.finish()
        finally:
            for callback in callbacks:
                callback.on_end(run)


def _made_by(rule: Rule) -> dict[str, Any] | None:
    """What `build` made the rule, or the one that its hardware runs, from."""
    return getattr(getattr(rule, "rule", rule), "made_by", None)


def _check_targets(rule: Rule, dataset: Dataset) -> None:
    """Raises UserError for targets of a regression, or several labels: accuracies are of one label a sample."""
    labels, loss = dataset.train.labels, getattr(getattr(rule, "rule", rule), "loss", None)
    instead = "fit trains and counts classes; write the loop with rule.assign_credit(x, y)"
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise UserError(f"data: {labels.dtype} labels of shape {tuple(labels.shape)}, expected int64 (n,); {instead}")
    if isinstance(loss, Loss) and loss.targets_are and not loss.labels:
        raise UserError(f"rule: its loss takes {loss.targets_are}, expected one of labels; {instead}")


def _check_network(rule: Rule, recipe: Recipe) -> None:
    """Raises UserError for a rule that another recipe made; warns of parts of the recipe that no model is made from."""
    made_by = _made_by(rule)
    for name, value in recipe.network.items():
        if made_by is not None and made_by[name] != value:
            raise UserError(f"{name}: {value!r} in the recipe, but the rule was built with {made_by[name]!r}")
    default = Recipe().network
    unused = [name for name, value in recipe.network.items() if made_by is None and value != default[name]]
    if unused:
        warnings.warn(f"recipe: {', '.join(unused)} of no effect, since `build` did not make this rule", stacklevel=3)


def _check_batches(rule: Rule, recipe: Recipe, dataset: Dataset) -> None:
    """Raises UserError where a step would have fewer samples than the rule takes."""
    samples = min(recipe.batch, len(dataset.train.labels))
    if samples < rule.least_batch:
        needs = f"at least {rule.least_batch}, which {type(rule).__name__} needs"
        raise UserError(f"batch: {samples} samples, expected {needs}")


def _batches_of(order: Tensor, batch: int) -> list[Tensor]:
    """Batches in that order. A last one of one sample joins the one before: some rules and BatchNorm need two."""
    batches = list(order.split(batch))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch > 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _check_plain(recipe: Recipe) -> None:
    """Raises UserError for options that a checkpoint could not give back."""
    for name, value in recipe.options.items():
        if type(value) not in (str, bool, int, float, tuple, type(None)):
            kind = type(value).__name__
            raise UserError(f"options: {name} is a {kind}, expected a name or a number where a checkpoint is written")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's global generators, from which nn.Dropout draws, seeded inside and as before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Run:
    """One training as it stands: everything that a checkpoint has to hold.

    `step` counts the steps done, of `steps`; `epoch_number` is the present epoch's, from 1. `loss` and `batch`, x and
    y, are the last step's.
    """

    loss: Tensor
    batch: tuple[Tensor, Tensor]

    def __init__(
        self,
        rule: Rule,
        dataset: Dataset,
        recipe: Recipe,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        alignment_every: int,
        measure: Measure | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.rule, self.dataset, self.recipe = rule, dataset, recipe
        self.augmentation = augmentation
        self.device, self.alignment_every, self.measure, self.callbacks = device, alignment_every, measure, callbacks
        self.shuffling = torch.Generator().manual_seed(seed)
        self.optimizer = _optimizer(rule, recipe)
        samples = len(dataset.train.labels)
        self.step = self.epoch_number = 0
        self.steps: int | None = recipe.epochs * len(_batches_of(torch.arange(samples), recipe.batch))
        total, factor = self.steps, SCHEDULES[recipe.schedule]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factor(min(1, step / total)))
        self.history = History()
        self.best_state = _copy(rule.state_dict())
        self.settings: dict[str, Any] = {
            "rule": type(rule).__name__,
            "data": dataset.name,
            "digest": None,
            "samples": [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)],
            "image_shape": list(dataset.image_shape),
            "num_classes": dataset.num_classes,
            "mean": dataset.standardisation[0],
            "std": dataset.standardisation[1],
            "dtype": str(dataset.train.images.dtype),
            "seed": seed,
            "recipe": {name: value for name, value in asdict(recipe).items() if name not in recipe.network},
            "network": _made_by(rule),
        }

    def stop(self, reason: str) -> None:
        """Ends training after the step in hand, whose epoch is still measured; `history.stopped` has the reason."""
        self.history.stopped = reason

    def epoch(self) -> Epoch:
        self.epoch_number = number = len(self.history.epochs) + 1
        where = f"{type(self.rule).__name__}, epoch {number}"
        try:
            return self._epoch(number, where)
        except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise TrainingError(f"{where}: {error}") from error
        except ValueError as error:
            if "NaN" not in str(error):  # which functions refuse; the data have none
                raise
            raise TrainingError(f"{where}: {error}; lower the learning rate") from error

    def _epoch(self, number: int, where: str) -> Epoch:
        start = time.perf_counter()
        loss, samples = self._train()
        seconds = time.perf_counter() - start
        if not abs(loss) < float("inf"):
            raise TrainingError(f"{where}: the loss is {loss}, expected a finite one; lower the learning rate")
        self._check_parameters(where)
        self.rule.calibrate(_batches(self.dataset.validation))
        share, validation_loss = score(self.rule, _batches(self.dataset.validation))
        first = self.dataset.train.images[:MEASURED_BATCH], self.dataset.train.labels[:MEASURED_BATCH]
        cosines: dict[str, float] = {}
        if self.alignment_every and (number - 1) % self.alignment_every == 0:
            cosines = alignment(self.rule, *first)
        measured = {} if self.measure is None else self.measure(self.rule, *first)
        epoch = Epoch(number, loss, share, seconds, cosines, measured, validation_loss, samples)
        self.history.epochs.append(epoch)
        if self.history.best is epoch:
            self.best_state = _copy(self.rule.state_dict())
        return epoch

    def _train(self) -> tuple[float, int]:
        """One pass over the training data; the mean loss of the samples. Waits for the device once, at the end."""
        rule, recipe, (images, labels) = self.rule, self.recipe, self.dataset.train
        rule.train()
        total, samples = torch.zeros((), device=self.device, dtype=images.dtype), 0
        order = torch.randperm(len(labels), generator=self.shuffling).to(self.device)
        for batch in _batches_of(order, recipe.batch):
            self.batch = self.augmentation(images[batch], self.shuffling), labels[batch]
            self.loss = rule.assign_credit(*self.batch)
            self.optimizer.step()
            rule.constrain(self.optimizer)
            self.scheduler.step()
            self.step += 1
            total += self.loss * len(batch)
            samples += len(batch)
            for callback in self.callbacks:
                callback.on_step(self)
            if self.history.stopped is not None:
                break
        return total.item() / samples, samples

    def _check_parameters(self, where: str) -> None:
        parameters = dict(self.rule.named_parameters())
        finite = torch.stack([torch.isfinite(p).all() for p in parameters.values()])
        if not finite.all():
            name = list(parameters)[int(finite.logical_not().nonzero()[0])]
            raise TrainingError(f"{where}: {name} is not finite; lower the learning rate")

    def finish(self) -> History:
        self.rule.load_state_dict(self.best_state)
        history, labels = self.history, self.dataset.test.labels
        history.test_accuracy, history.test_loss = score(self.rule, _batches(self.dataset.test))
        if history.test_accuracy is not None:
            common = self.dataset.train.labels.bincount().argmax()
            guessed = (labels == common).double().mean().item()
            spread = (guessed * (1 - guessed) / len(labels)) ** 0.5
            history.at_chance = history.test_accuracy <= guessed + 2 * spread
        return history

    def state(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "history": [asdict(epoch) for epoch in self.history.epochs],
            "rule": self.rule.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": {name: state for name, (state, _) in self._generators().items()},
        }

    def resume(self, path: str | Path) -> None:
        state = checkpoints.load(path)
        settings = state.get("settings")
        if not isinstance(settings, dict):
            raise checkpoints.CheckpointError(f"checkpoint: '{path}' has no settings of a training")
        found, asked = _flat(settings), _flat(self.settings)
        for name, expected in asked.items():
            if name not in ("data", "epochs") and found.get(name) != expected:
                has, wanted = f"{name} {found.get(name)}", f"{expected}"
                if name == "digest":
                    has, wanted = _data_in(found), _data_in(asked)
                raise checkpoints.CheckpointError(
                    f"checkpoint: '{path}' has {has}, expected {wanted} as asked for; a training goes on as it was "
                    "begun, or begins anew"
                )
        try:
            self.rule.load_state_dict(state["best"])
            self.best_state = _copy(self.rule.state_dict())
            self.rule.load_state_dict(state["rule"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            for name, (_, set_state) in self._generators().items():
                set_state(state["generators"][name])
            self.history.epochs = [Epoch(**epoch) for epoch in state["history"]]
            for group, rate in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
                group["lr"] = rate * self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoints.CheckpointError(f"checkpoint: '{path}' does not fit this training ({error})") from error
        done = len(self.history.epochs)
        self.step = self.scheduler.last_epoch
        if self.recipe.epochs < done:
            raise checkpoints.CheckpointError(
                f"checkpoint: '{path}' has {done} epochs done, expected at most {self.recipe.epochs} as asked for"
            )

    def _generators(self) -> dict[str, tuple[Tensor, Callable[[Tensor], object]]]:
        """The present state of every generator in use, and how to set it."""
        generators: dict[str, tuple[Tensor, Callable[[Tensor], object]]] = {
            "shuffling": (self.shuffling.get_state(), self.shuffling.set_state),
            "global": (torch.get_rng_state(), torch.set_rng_state),
        }
        if self.rule.generator is not None:
            generators["rule"] = (self.rule.generator.get_state(), self.rule.generator.set_state)
        if self.device.type == "cuda":
            generators["cuda"] = (
                torch.cuda.get_rng_state(self.device),
                lambda state: torch.cuda.set_rng_state(state, self.device),
            )
        return generators


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """With those of the recipe one by one."""
    recipe, network = settings.get("recipe") or {}, settings.get("network") or {}
    return {**{name: value for name, value in settings.items() if name != "recipe"}, **recipe, **network}


def _data_in(settings: dict[str, Any]) -> str:
    parts = " + ".join(map(str, settings.get("samples") or ()))
    return f"data '{settings.get('data')}' of {parts} samples (SHA-256 {str(settings.get('digest'))[:8]})"


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for name, v in state.items()}


def _groups(rule: Rule) -> list[dict[str, Any]]:
    """The rule's parameters, and apart from them those that weight decay is not for."""
    no_weight_decay = rule.no_weight_decay()
    apart = {id(parameter) for parameter in no_weight_decay}
    groups: list[dict[str, Any]] = [{"params": [p for p in rule.parameters() if id(p) not in apart]}]
    return [*groups, {"params": no_weight_decay, "weight_decay": 0.0}] if no_weight_decay else groups


def _optimizer(rule: Rule, recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    parameters = _groups(rule)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    fused = next(rule.parameters()).device.type in ("cpu", "cuda")
    return adam(parameters, lr=rate, weight_decay=decay, fused=fused)
