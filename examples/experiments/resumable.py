"""Runs that are noted as they end, so that an experiment goes on where it was stopped; and what they come to."""

import argparse
import fcntl
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t

from prograde.accelerated.command_line.versions import version
from prograde.accelerated.training import Epoch

Run = dict[str, Any]
Result = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
"""The runs that the pages show: for each experiment and data set a file of JSON lines."""


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What is given, with `--device` and `--threads` too, of which PyTorch has that many from here on."""
    parser.add_argument("--device", default="cpu", help="where to train, such as cuda")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def run_all(runs: Iterable[Run], train: Callable[[Run], Result], log: Path, device: str = "cpu") -> list[Result]:
    """Every run that is not in the file yet, added to it as it ends with what made it; then all there is.

    That is the day, seconds, versions, and the device where it is not the CPU. Several processes may share the file: it
    is read before each run, and a run that another one has added meanwhile is not added again.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if any(result["run"] == run for result in finished(log)):
            continue
        about = " ".join(f"{name} {value}" for name, value in run.items())
        print(f"{about} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        result = {"run": run, **train(run)}
        result["made"] = {
            "day": date.today().isoformat(),
            "seconds": round(time.perf_counter() - start, 1),
            "prograde": version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        if device != "cpu":
            result["made"]["device"] = torch.cuda.get_device_name(device) if "cuda" in device else device
        add(result, log)
        accuracy = result["accuracy"]
        print(about, "accuracy", accuracy if accuracy is None else f"{accuracy:.6g}", flush=True)
    return finished(log)


def add(result: Result, log: Path) -> None:
    """As a line of the file, unless its run stands there; a last line that was cut off is taken out.

    The file is locked meanwhile, and written by one call that appends.
    """
    with log.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole, newline, cut = file.read().rpartition(b"\n")
        if cut:
            file.truncate(len(whole) + len(newline))
        if not any(json.loads(line)["run"] == result["run"] for line in whole.splitlines()):
            file.write(f"{json.dumps(result)}\n".encode())


def show(epoch: Epoch) -> None:
    """A line on stderr, for `fit`: a run may take long."""
    accuracy = f"validation {100 * epoch.validation_accuracy:.2f} %"
    print(f"epoch {epoch.epoch}: {accuracy}, {epoch.seconds:.1f} s", file=sys.stderr, flush=True)


def finished(log: Path) -> list[Result]:
    """The results in the file, but for a last line that was cut off."""
    whole, _, _ = log.read_text().rpartition("\n") if log.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def chosen(results: Iterable[Result], **wanted: Any) -> list[Result]:
    """Those whose runs are as wanted."""
    return [result for result in results if wanted.items() <= result["run"].items()]


def stored(name: str, **wanted: Any) -> list[Result]:
    """Of the file in RESULTS of that name, the runs that are as wanted."""
    return chosen(finished(RESULTS / f"{name}.jsonl"), **wanted)


def longest(results: Iterable[Result]) -> list[Result]:
    """Those of the most epochs."""
    found = list(results)
    most = max((result["run"]["epochs"] for result in found), default=0)
    return chosen(found, epochs=most)


def accuracies(results: Iterable[Result]) -> list[float]:
    """A run that broke down counts as chance, 10 %."""
    return [10.0 if result["accuracy"] is None else result["accuracy"] for result in results]


def cell(results: list[Result], digits: int = 1, seeds: int | None = None) -> str:
    """Mean and standard deviation of the accuracies, for a table; and of how many, where there are not `seeds`."""
    if not results:
        return ""
    seen = accuracies(results)
    broken = sum(result["accuracy"] is None for result in results)
    spread = f" ± {stdev(seen):.{digits}f}" if len(seen) > 1 else ""
    notes = [f"{broken} of {len(seen)} broke down"] if broken else []
    if seeds not in (None, len(seen)):
        notes.append(f"{len(seen)} seed{'s' * (len(seen) > 1)}")
    return f"{mean(seen):.{digits}f}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; without another it says that nothing was run."""
    head, *others = rows
    lines = [f"| {' | '.join(row)} |" for row in (head, *(others or [["not run", *[""] * (len(head) - 1)]]))]
    return "\n".join([lines[0], "| --- |" + " --- |" * (len(rows[0]) - 1), *lines[1:]])


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; of one value everything."""
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else inf
    return mean(values) - half, mean(values) + half


def interval(values: Sequence[float], digits: int = 2) -> str:
    """The mean and its 95 % interval, in points; of one value that it is one."""
    if len(values) < 2:
        return f"{values[0]:+.{digits}f} (one seed)" if values else ""
    low, high = bounds(values)
    return f"{mean(values):+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def paired(results: Iterable[Result], others: Iterable[Result]) -> list[float]:
    """In accuracy, of the runs of the same seed on the same device."""

    def place(result: Result) -> tuple[int, str | None]:
        return result["run"]["seed"], result.get("made", {}).get("device")

    theirs = {place(other): other for other in others}
    pairs = [(result, theirs[place(result)]) for result in results if place(result) in theirs]
    return [own - other for own, other in (accuracies(pair) for pair in pairs)]
