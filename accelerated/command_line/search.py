"""The same search of a learning rate for every rule."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..training import Dataset, UserError
from .options import Job
from .runs import Run, check_log, read_log, train_all

MIDDLE = {"sgd": -3, "adam": -6, "adamw": -6}
"""The middle of the grid: 0.03 and 1e-3, as powers of the root of ten, of which each second is rounded to 3."""


@dataclass(frozen=True)
class Trial:
    """A job at one learning rate, by its best epoch on validation data; neither is known of one that diverged."""

    rule: str
    hidden: str
    learning_rate: float
    validation_accuracy: float | None
    validation_loss: float | None

    @property
    def name(self) -> str:
        return f"{self.rule}:{self.hidden}"

    @property
    def merit(self) -> tuple[float, float]:
        """By accuracy, and of equal ones by loss: few validation samples leave many equal."""
        unknown = float("-inf")
        loss = unknown if self.validation_loss is None else -self.validation_loss
        return unknown if self.validation_accuracy is None else self.validation_accuracy, loss


def rates(optimizer: str, count: int) -> list[float]:
    """So many around the middle, from the greatest on: 0.3, 0.1, 0.03, 0.01, 0.003 for five of SGD."""
    powers = range(MIDDLE[optimizer] + count // 2, MIDDLE[optimizer] + count // 2 - count, -1)
    return [float(f"{3 if power % 2 else 1}e{power // 2}") for power in powers]


def candidates(jobs: Sequence[Job], count: int) -> list[Job]:
    """Each job at each rate."""
    return [
        job._replace(recipe=replace(job.recipe, learning_rate=rate))
        for job in jobs
        for rate in rates(job.recipe.optimizer, count)
    ]


def trials(
    asked: Sequence[Job],
    dataset: Dataset,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    done: Sequence[Trial],
    on_trial: Callable[[list[Trial]], None],
) -> list[Trial]:
    """One run of each candidate after those that are `done`; test data is not looked at. Raises UserError."""
    left = asked[len(done) :]

    def on_run(so_far: Sequence[Run]) -> None:
        on_trial([*done, *map(_trial, so_far)])

    found = train_all(left, dataset, [seed], device, dtype, lambda *records: None, on_run=on_run)
    return [*done, *map(_trial, found)]


def _trial(run: Run) -> Trial:
    best = None if run.error is not None else run.history.best
    measured = (None, None) if best is None else (best.validation_accuracy, best.validation_loss)
    return Trial(run.job.method, run.job.hidden, run.job.recipe.learning_rate, *measured)


def logged(folder: Path, settings: dict[str, Any], asked: Sequence[Job]) -> list[Trial]:
    """The search in the log of a folder, of the first of the candidates where it was interrupted.

    Raises UserError for one of other candidates, or whose settings were not these.
    """
    found_settings, _ = read_log(folder, "--resume")
    try:
        found = [Trial(**trial) for trial in found_settings.get("search", [])]
    except TypeError as error:
        raise UserError(f"--resume: '{folder}' has a log with a search that is none ({error})") from error
    names = [(job.name, job.recipe.learning_rate) for job in asked[: len(found)]]
    if [(trial.name, trial.learning_rate) for trial in found] != names or bool(found) != bool(asked):
        has = f"a search with {len(found)} runs" if found else "no search"
        expected = "one of the same rules and learning rates" if asked else "a log without, or --search"
        raise UserError(f"--resume: '{folder}' has {has}, expected {expected}")
    if len(found) < len(asked):
        check_log(folder, settings)
    return found


def best(job: Job, found: Sequence[Trial]) -> Trial:
    """Of the job's trials; of equal ones the first, which has the greatest rate."""
    return max((trial for trial in found if trial.name == job.name), key=lambda trial: trial.merit)


def settled(jobs: Sequence[Job], found: Sequence[Trial]) -> list[Job]:
    """The jobs, each at its best rate."""
    return [job._replace(recipe=replace(job.recipe, learning_rate=best(job, found).learning_rate)) for job in jobs]


def lines(jobs: Sequence[Job], found: Sequence[Trial], seed: int) -> list[str]:
    """The budget, and for each job the rates and the best of them; one at the end of the grid is said to be so."""
    count = len(found) // len(jobs)
    said = [f"search: for each rule {count} learning rates, a run of seed {seed} at each, the best on validation data"]
    for job in jobs:
        own, taken = [trial.learning_rate for trial in found if trial.name == job.name], best(job, found)
        share = "diverged" if taken.merit == (float("-inf"),) * 2 else f"validation {_said(taken)}"
        end = {own[0]: ", the greatest", own[-1]: ", the least"}.get(taken.learning_rate, "")
        said.append(f"{job.name}: {taken.learning_rate:g}{end} of {', '.join(f'{rate:g}' for rate in own)}: {share}")
    return said


def _said(trial: Trial) -> str:
    if trial.validation_accuracy is None:
        return f"loss {trial.validation_loss:.4g}"
    return f"{100 * trial.validation_accuracy:.2f} %"


def record(found: Sequence[Trial]) -> dict[str, Any]:
    """For the settings in the log and the results."""
    return {"search": [asdict(trial) for trial in found]} if found else {}
