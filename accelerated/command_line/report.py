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

from ..training import Dataset, files
from .options import Job
from .pictures import curves, layer_curves, margin_curves
from .runs import Log, Run
from .versions import version


@dataclass(frozen=True)
class Row:
    """A job over its seeds. Accuracies are shares; `ratio` is to backprop's time with the same network, if it ran."""

    rule: str
    network: str
    test: list[float]
    validation: list[float]
    best_epochs: list[int]
    epochs: int
    seconds: float
    ratio: float | None


def rows(runs: Sequence[Run], dataset: Dataset) -> list[Row]:
    """One row a job, in the order in which they were first run."""
    by_job: dict[str, list[Run]] = {}
    for run in runs:
        by_job.setdefault(run.job.name, []).append(run)
    seconds = {name: statistics.median(_seconds(group)) for name, group in by_job.items()}
    result = []
    for name, group in by_job.items():
        job = group[0].job
        yardstick = _yardstick(job, [other[0].job for other in by_job.values()])
        result.append(
            Row(
                rule=job.method,
                network="-".join(map(str, (dataset.features, *job.recipe.hidden, dataset.num_classes))),
                test=[run.history.test_accuracy for run in group],
                validation=[run.history.best.validation_accuracy for run in group],
                best_epochs=[run.history.best.epoch for run in group],
                epochs=job.recipe.epochs,
                seconds=seconds[name],
                ratio=None if yardstick is None else seconds[name] / seconds[yardstick.name],
            )
        )
    return result


def _seconds(group: Sequence[Run]) -> list[float]:
    return [epoch.seconds for run in group for epoch in run.history.epochs]


def _yardstick(job: Job, jobs: Sequence[Job]) -> Job | None:
    """Backprop with the same network, if it ran: other ratios would compare networks, not rules."""
    same = ("hidden", "activation", "normalisation", "batch")
    for other in jobs:
        if other.method == "backprop" and all(getattr(other.recipe, n) == getattr(job.recipe, n) for n in same):
            return other
    return None


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation of shares, in percent."""
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
            spread(row.validation),
            str(row.epochs),
            f"{row.seconds:.3g}",
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
        "samples": {name: len(part.labels) for name, part in parts.items()},
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
    if folder is not None:
        for path in [folder / "log.jsonl", *write(folder, settings, found, runs, dataset)]:
            print(path)


def write(
    folder: Path, settings: dict[str, Any], rows: Sequence[Row], runs: Sequence[Run], dataset: Dataset
) -> list[Path]:
    """`results.json` and pictures of what was measured, each whole or not at all; their paths. Raises OSError."""
    results = {**settings, "kind": "results", "results": [asdict(row) for row in rows]}
    contents = {
        "results.json": (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(),
        "curves.png": curves(runs, dataset),
    }
    for name, picture in {"margins.png": margin_curves(runs), "layers.png": layer_curves(runs)}.items():
        if picture is not None:
            contents[name] = picture
    for name, content in contents.items():
        files.write(folder / name, content)
    return [folder / name for name in contents]
