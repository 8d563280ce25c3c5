"""What a set of runs comes to: rows, a table, JSON."""

import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ..training import Dataset, checkpoint, files
from ..training.networks import MLP
from .options import Job
from .pictures import alignment_curves, curves, layer_curves, margin_curves
from .runs import Log, Run
from .versions import version


@dataclass(frozen=True)
class Row:
    """A job over its seeds. Accuracies are shares; `ratio` is to backprop's time with the same network, if it ran.

    `diverged` are the seeds of which there is no accuracy, since training broke down; `at_chance` those whose test
    accuracy is no better than a guess.
    """

    rule: str
    network: str
    test: list[float]
    validation: list[float]
    best_epochs: list[int]
    epochs: int
    seconds: float | None
    ratio: float | None
    diverged: list[int]
    at_chance: list[int]


def rows(runs: Sequence[Run], dataset: Dataset) -> list[Row]:
    """One row a job, in the order in which they were first run."""
    by_job: dict[str, list[Run]] = {}
    for run in runs:
        by_job.setdefault(run.job.name, []).append(run)
    seconds = {name: statistics.median(_seconds(group)) for name, group in by_job.items() if _seconds(group)}
    result = []
    for name, of_job in by_job.items():
        job, group = of_job[0].job, [run for run in of_job if run.error is None]
        yardstick = _yardstick(job, [other[0].job for other in by_job.values() if other[0].job.name in seconds])
        result.append(
            Row(
                rule=job.method,
                network=job.hidden
                if job.recipe.model != MLP
                else "-".join(map(str, (dataset.features, *job.recipe.hidden, dataset.num_classes))),
                test=_measured([run.history.test_accuracy for run in group]),
                validation=_measured([run.history.best.validation_accuracy for run in group]),
                best_epochs=[run.history.best.epoch for run in group],
                epochs=job.recipe.epochs,
                seconds=seconds.get(name),
                ratio=seconds[name] / seconds[yardstick.name]
                if group and name in seconds and yardstick is not None
                else None,
                diverged=[run.seed for run in of_job if run.error is not None],
                at_chance=[run.seed for run in group if run.history.at_chance],
            )
        )
    return result


def _measured(accuracies: Sequence[float | None]) -> list[float]:
    return [accuracy for accuracy in accuracies if accuracy is not None]


def _seconds(group: Sequence[Run]) -> list[float]:
    """Of all epochs but each training's first, in which PyTorch warms up."""
    return [epoch.seconds for run in group for epoch in run.history.epochs[1:]]


def _yardstick(job: Job, jobs: Sequence[Job]) -> Job | None:
    """Backprop with the same network, if it ran: other ratios would compare networks, not rules."""
    same = ("model", "hidden", "activation", "normalisation", "batch")
    for other in jobs:
        if other.method == "backprop" and all(getattr(other.recipe, n) == getattr(job.recipe, n) for n in same):
            return other
    return None


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation of shares, in percent; "diverged" for none."""
    if not values:
        return "diverged"
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    return f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    output = Console(file=sys.stdout, highlight=False)
    return output if output.is_terminal else Console(file=sys.stdout, highlight=False, width=max(140, output.width))


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows as they are printed."""
    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    result.add_column("rule", no_wrap=True)
    result.add_column("network", no_wrap=True)
    for name in ("test accuracy, %", "validation, %", "epochs", "s an epoch", "x backprop"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        result.add_row(
            row.rule,
            row.network,
            spread(row.test),
            spread(row.validation) if row.validation else "–",
            str(row.epochs),
            "–" if row.seconds is None else f"{row.seconds:.3g}",
            ratio,
        )
    return result


def settings(
    command: str, jobs: Sequence[Job], dataset: Dataset, seeds: Sequence[int], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What one would need to know to run it again."""
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        "kind": "settings",
        "command": command,
        "versions": {"prograde": version(), "torch": torch.__version__, "python": platform.python_version()},
        "data": dataset.name,
        "digest": checkpoint.digest(dataset),
        "samples": {name: len(part.labels) for name, part in parts.items()},
        "classes": list(dataset.classes),
        "seeds": list(seeds),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "jobs": [{"rule": job.method, **asdict(job.recipe)} for job in jobs],
    }


def finish(folder: Path | None, settings: dict[str, Any], runs: Sequence[Run], dataset: Dataset, log: Log) -> None:
    """Logs and prints the rows, and writes the files where there is a folder for them."""
    found = rows(runs, dataset)
    for row in found:
        log({"kind": "result", **asdict(row)})
    output = console()
    seeds = len(settings["seeds"])
    output.print(table(found, f"{dataset.name}, {seeds} seed{'s' if seeds > 1 else ''}, {settings['device']}"))
    for line in remarks(runs):
        print(line)
    if folder is not None:
        write_results(folder, settings, runs, dataset)
        pictures = write_pictures(folder, runs, dataset)
        for path in [folder / "log.jsonl", folder / "results.json", *pictures]:
            print(path)


def remarks(runs: Sequence[Run]) -> list[str]:
    """A line for each run that diverged or ended at chance."""
    found = []
    for run in runs:
        where = f"{run.job.name}, seed {run.seed}"
        if run.error is not None:
            found.append(f"{where}: diverged ({run.error})")
        elif run.history.at_chance and (share := run.history.test_accuracy) is not None:
            found.append(f"{where}: at chance; test accuracy {100 * share:.1f} % is no better than guessing one class")
    return found


def write_results(folder: Path, settings: dict[str, Any], runs: Sequence[Run], dataset: Dataset) -> None:
    """`results.json` of the runs so far, whole or not at all. Raises OSError."""
    results = {**settings, "kind": "results", "results": [asdict(row) for row in rows(runs, dataset)]}
    files.write(folder / "results.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


def write_pictures(folder: Path, runs: Sequence[Run], dataset: Dataset) -> list[Path]:
    """Pictures of what was measured, each whole or not at all; their paths. Raises OSError."""
    finished = [run for run in runs if run.error is None]
    if not finished:
        return []
    drawn = {
        "curves.png": curves(finished, dataset),
        "alignment.png": alignment_curves(finished),
        "margins.png": margin_curves(finished),
        "layers.png": layer_curves(finished),
    }
    contents = {name: picture for name, picture in drawn.items() if picture is not None}
    for name, content in contents.items():
        files.write(folder / name, content)
    return [folder / name for name in contents]
