"""The training loop."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._arrays import draws_undone
from ..rules import Rule
from . import checkpoint as checkpoints
from .callbacks import Callback
from .data import Dataset
from .diagnostics.alignment import check_rule
from .errors import UserError, available
from .evaluation import held
from .history import Epoch, History
from .optimizers import of_recipe, optimizer_of, schedule_of, scheduler_of
from .recipes import Recipe
from .run import Measure, Plan, Run
from .sources import BatchOf, Loader, Place, Tensors, of_dataset, of_others
from .together import Interrupted, Together


def fit(
    rule: Rule,
    train: Any,
    validation: Any = None,
    *,
    test: Any = None,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch: int | None = None,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    scheduler: LRScheduler | Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    patience: int | None = None,
    batch_of: BatchOf | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    alignment_every: int = 1,
    measure: Measure | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
) -> History:
    """Trains the rule in place and leaves it with the weights of the best epoch on validation data.

    **Data.** `train` is a `Dataset`, which has validation and test data; or a TensorDataset, or a pair of arrays,
    tensors or lists; or what gives batches (x, y) anew in each epoch, such as a DataLoader. So are `validation` and
    `test`. `batch_of` makes (x, y) of what is given otherwise, such as a dict. They are taken to `device`, the rule's
    unless given, and real numbers to the rule's dtype. x and y are what the rule takes.

    Of a `Dataset` a rule with convolutions is given images, a recurrent one sequences (of an image its rows), others
    pixels in a row; the recipe says how they are standardised and augmented. Other data are taken as they are.
    Tensors are shuffled in each epoch, in batches of `batch`, the recipe's unless given; a last batch of one sample
    joins the one before it. They are held on the device. A loader has its own batches and order.

    **Steps.** `optimizer` and `scheduler` are PyTorch's, or functions that make them: of the rule's parameters, and of
    the optimizer. Without, they are the recipe's; an optimizer of one's own has the recipe's schedule no more.
    `accumulate` batches make a step, by their mean gradient over all that the loss counts; `clip_norm` limits its norm.
    The scheduler steps after each step; a ReduceLROnPlateau after each epoch, by the validation loss, else that of
    training, or in mode "max" by the validation accuracy.

    **The end.** After `epochs`, the recipe's unless given or `max_steps` are; after `max_steps`; where validation was
    no better in `patience` epochs; where a callback stops it. Ctrl-C ends it too: what was trained is returned, with
    the best epoch's weights if one is done, and no test.

    **Measurements.** After every epoch the accuracy on validation data where y are labels, and the loss where the rule
    has one at its scores. What the rule itself chooses on held-out data (`calibrate`) it chooses before. The alignment
    is measured every so many epochs, 0 for never, and `measure` is called, with the rule, x and y: the first samples of
    tensors, else the last batch. What it gives, plain numbers in dicts and lists, is kept with the epoch. `on_epoch` is
    called with the epoch, `callbacks` as `Callback` says.

    **Checkpoints.** `checkpoint` is a file written after every epoch, and every `checkpoint_every` steps. One that is
    there already is replaced only where it is resumed or `overwrite` is True, and what is no checkpoint never. `resume`
    is one to go on from, exactly as if there had been no interruption: `on_epoch` is given its epochs too. A loader is
    passed through up to where the epoch was; that is exact if it gives the same batches from the same state of
    PyTorch's generator, or of its own. Tensors are known by their content. With other `epochs` or `max_steps` a
    training is extended or cut short: the recipe's schedule then runs over the new total from the next step on. An
    epoch that `max_steps` or a callback cut short is done.

    `seed` fixes batches, moves of images, masks and negatives. What one's own modules draw from PyTorch's generators,
    as nn.Dropout does where PyTorch runs it, is another draw in each process.

    **Several processes.** With `DataParallel` around the rule all of them call `fit` alike. A batch of a `Dataset` or
    of tensors, which all have, is shared out among them; a loader gives each process a share of its own, as by a
    DistributedSampler, and as many batches. What is measured is of all shares. Process 0 alone measures alignment,
    calls `measure`, `on_epoch` and `callbacks`, reads and writes files; an error of these before or after an epoch is
    raised in all. They end together: Ctrl-C in one ends all after a step, a second one at once. `rule.rule` is what
    a checkpoint is of. As many processes resume it.

    Raises TypeError for what is no rule, TrainingError for a loss that is not finite, CheckpointError for a checkpoint
    of another training or a file that is not to be replaced, UserError for options and data that do not fit, by name.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=3, batch=2)
    >>> [(epoch.epoch, epoch.samples) for epoch in history.epochs]
    [(1, 2), (2, 2), (3, 2)]
    """
    check_rule(rule, "fit")
    _check_callbacks(callbacks)
    together = Together(rule)
    rule = together.rule
    if together.rank > 0:
        callbacks, on_epoch = (), None
    recipe = recipe or Recipe(**(_made_by(rule) or {}))
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    recipe = recipe if batch is None else replace(recipe, batch=batch)
    _check_network(rule, recipe)
    plan = Plan(
        recipe.epochs if epochs is not None or max_steps is None else None,
        max_steps, accumulate, clip_norm, patience, alignment_every, measure, checkpoint, checkpoint_every,
    )  # fmt: skip
    for name, value in (("seed", seed), ("alignment_every", alignment_every)):
        if type(value) is not int or value < 0:
            raise UserError(f"{name}: {value!r}, expected an integer, 0 or more")
    parameter = next(rule.parameters())
    place = Place(parameter.device if device is None else available(device), parameter.dtype, batch_of)
    shuffling = torch.Generator().manual_seed(seed)
    if checkpoint is not None:
        _check_plain(recipe)
        together.alone(partial(checkpoints.claim, checkpoint, resume=resume, overwrite=overwrite))
    with _seeded(seed + together.rank, place.device):
        if isinstance(train, Dataset):
            data = of_dataset(rule, train, recipe, place, shuffling)
            if validation is not None or test is not None or batch_of is not None:
                raise UserError("validation, test, batch_of: given beside a Dataset, expected none: it has its own")
        else:
            data = of_others(train, validation, test, recipe, place, shuffling)
            if batch is not None and isinstance(data.train, Loader):
                raise UserError(f"batch: {batch}, but a {type(train).__name__} has batches of its own")
        least = max(rule.least_batch, together.size)
        if isinstance(data.train, Tensors):
            data.train.least = max(data.train.least, least)
        _check_batches(rule, data.train, least)
        notes = getattr(getattr(rule, "aggregation", None), "kind", None) == "training-loss"
        if together.size > 1 and checkpoint_every is not None and notes:
            raise UserError(
                f"checkpoint_every: {checkpoint_every}, but each process notes losses of its own; expected None"
            )
        if patience is not None and data.validation is None:
            raise UserError(f"patience: {patience}, but there are no validation data")
        if data.validation is None and held(rule).chooses_on_held_out_data:
            warnings.warn(
                f"validation: none, on which {type(held(rule)).__name__} chooses how to add up its layers; they stay "
                "as they were weighted when it was built; give validation data, to an estimator early_stopping=True",
                stacklevel=2,
            )
        made = of_recipe(rule, recipe) if optimizer is None else optimizer_of(rule, optimizer)
        if scheduler is not None:
            stepped: LRScheduler | None = scheduler_of(made, scheduler)
        else:
            stepped = schedule_of(made, recipe, plan.steps(data.train.batches)) if optimizer is None else None
        is_kept = checkpoint is not None or resume is not None
        settings = {
            "rule": type(rule).__name__,
            "digest": checkpoints.digest_of(data.content) if is_kept or together.size > 1 else None,
            **data.about,
            "device": place.device.type,
            "dtype": str(parameter.dtype),
            "seed": seed,
            "recipe": {name: value for name, value in asdict(recipe).items() if name not in recipe.network},
            "network": _made_by(rule),
            "own_optimizer": None if optimizer is None else type(made).__name__,
            "own_scheduler": None if scheduler is None else type(stepped).__name__,
            "accumulate": accumulate,
            "clip_norm": clip_norm,
            "processes": together.size,
        }
        in_all = {**settings, **settings["recipe"], "recipe": None, "digest": None, "epochs": plan.epochs}
        in_all |= {"train, validation, test": f"SHA-256 {str(settings['digest'])[:8]}", "max_steps": max_steps}
        in_all |= {"patience": patience, "alignment_every": alignment_every, "checkpoint_every": checkpoint_every}
        together.check_same(**in_all, is_kept=is_kept)
        run = Run(together, data.train, data.validation, data.test, made, stepped, plan, settings, callbacks)
        if resume is not None:
            run.resume(resume)
            if on_epoch is not None:
                for epoch in run.history.epochs:
                    on_epoch(epoch)
        with ExitStack() as ends:  # each is called, whatever another raises
            for callback in reversed(callbacks):
                ends.callback(callback.on_end, run)
            with together.interruptible():
                _train(run, on_epoch)
                return run.finish()


def _train(run: Run, on_epoch: Callable[[Epoch], None] | None) -> None:
    """Epoch by epoch, until it ends or Ctrl-C ends it."""
    together = run.together

    def start() -> None:
        for callback in run.callbacks:
            callback.on_start(run)

    def tell(epoch: Epoch) -> None:
        if on_epoch is not None:
            on_epoch(epoch)
        for callback in run.callbacks:
            callback.on_epoch(run, epoch)

    try:
        together.alone(start)
        while run.goes_on():
            epoch = run.epoch()
            run.save()
            together.alone(partial(tell, epoch))
    except KeyboardInterrupt as interrupt:
        if together.size > 1 and not isinstance(interrupt, Interrupted):  # the others wait for this one
            raise
        run.history.interrupted = interrupt.with_traceback(None)
        run.stop("interrupted")


def _made_by(rule: Rule) -> dict[str, Any] | None:
    """What `build` made the rule, or the one that its hardware runs, from."""
    return getattr(getattr(rule, "rule", rule), "made_by", None)


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


def _check_callbacks(callbacks: Any) -> None:
    """Raises UserError for what is no list of callbacks."""
    if not isinstance(callbacks, Sequence):
        raise UserError(f"callbacks: a {type(callbacks).__name__}, expected a list of Callback")
    for each in callbacks:
        if not isinstance(each, Callback):
            raise UserError(f"callbacks: a {type(each).__name__} among them, expected Callbacks")


def _check_batches(rule: Rule, source: Tensors | Loader, least: int) -> None:
    """Raises UserError where a step would have fewer samples than the rule takes in all processes."""
    if isinstance(source, Tensors):
        samples = min(source.batch, source.samples)
        if samples < least:
            needs = f"at least {least}, which {type(rule).__name__} needs"
            raise UserError(f"batch: {samples} samples, expected {needs}")


def _check_plain(recipe: Recipe) -> None:
    """Raises UserError for options that a checkpoint could not give back."""
    for name, value in recipe.options.items():
        if type(value) not in (str, bool, int, float, tuple, type(None)):
            kind = type(value).__name__
            raise UserError(f"options: {name} is a {kind}, expected a name or a number where a checkpoint is written")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's global generators, from which nn.Dropout draws, seeded inside and as before afterwards."""
    with draws_undone(device):
        torch.manual_seed(seed)
        yield
