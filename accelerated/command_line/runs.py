"""Training one job after another, with a log and with progress for whoever watches."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..rules import CumulativeForwardForward, Rule, SymBa
from ..training import Dataset, Epoch, History, UserError, build, fit, layer_summary, margin_summary
from ..training.augmentation import check_moves
from ..training.loop import Measure
from .options import Job

Advance = Callable[[str], None]
Log = Callable[[dict[str, Any]], None]


class Run(NamedTuple):
    """One job trained from one seed."""

    job: Job
    seed: int
    history: History


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """A bar on stderr where that is a terminal; the function that it gives advances it by one and describes it."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda description: bar.update(task, advance=1, description=description)


@contextmanager
def log_file(folder: Path | None) -> Iterator[Log]:
    """A function that adds a line to `log.jsonl`, which is called `log.jsonl.partial` until it is complete.

    Makes the folder. Raises OSError where it can't be written.
    """
    if folder is None:
        yield lambda record: None
        return
    if folder.is_file():
        raise UserError(f"--output: '{folder}' is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "log.jsonl.partial"
    with open(partial, "w", encoding="utf-8") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()

        yield log
    partial.replace(folder / "log.jsonl")


def train_all(
    jobs: Sequence[Job],
    dataset: Dataset,
    seeds: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    log: Log,
    checkpoint: Path | None = None,
    resume: Path | None = None,
) -> list[Run]:
    """Every job from every seed. `checkpoint` and `resume` are for `fit`. Raises UserError.

    Margins are measured of rules whose goodness is a mean square, for which their summary is meant, and layers of rules
    that score by layer.
    """
    runs: list[Run] = []
    with progress(len(seeds) * sum(job.recipe.epochs for job in jobs)) as advance:
        for seed in seeds:
            for job in jobs:

                def on_epoch(epoch: Epoch, job: Job = job, seed: int = seed) -> None:
                    log({"kind": "epoch", "rule": job.method, "hidden": job.hidden, "seed": seed, **asdict(epoch)})
                    advance(f"{job.method}, seed {seed}: validation {100 * epoch.validation_accuracy:.1f} %")

                rule = build(job.method, dataset, job.recipe, seed=seed, device=device, dtype=dtype)
                history = fit(
                    rule,
                    dataset,
                    job.recipe,
                    seed=seed,
                    device=device,
                    on_epoch=on_epoch,
                    measure=_measure(rule),
                    checkpoint=checkpoint,
                    resume=resume,
                )
                runs.append(Run(job, seed, history))
    return runs


def _measure(rule: Rule) -> Measure | None:
    if hasattr(rule, "layer_outputs"):
        return layer_summary
    return margin_summary if isinstance(rule, CumulativeForwardForward | SymBa) else None


def try_all(jobs: Sequence[Job], dataset: Dataset, device: torch.device, dtype: torch.dtype) -> None:
    """Builds every job once: what a rule can't train is to be refused first of all. Raises UserError."""
    for job in jobs:
        check_moves(job.recipe.shift, job.recipe.flip, dataset)
        build(job.method, dataset, job.recipe, seed=0, device=device, dtype=dtype)


def checked_seeds(first: int, count: int) -> list[int]:
    """That many seeds from the first on. Raises UserError for none."""
    if count < 1:
        raise UserError(f"--seeds: {count}, expected at least 1")
    return list(range(first, first + count))
