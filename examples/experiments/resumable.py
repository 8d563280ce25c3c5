"""Runs that are noted as they end, so that an experiment goes on where it was stopped."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from prograde.accelerated.training import Epoch

Run = dict[str, Any]
Result = dict[str, Any]


def run_all(runs: Iterable[Run], train: Callable[[Run], Result], log: Path) -> list[Result]:
    """Every run that is not in the file yet, added to it as it ends; then all that is there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    results = finished(log)
    for run in runs:
        if any(result["run"] == run for result in results):
            continue
        about = " ".join(f"{name} {value}" for name, value in run.items())
        print(f"{about} ...", file=sys.stderr, flush=True)
        results.append({"run": run, **train(run)})
        with log.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        accuracy = results[-1]["accuracy"]
        print(about, "accuracy", accuracy if accuracy is None else f"{accuracy:.6g}", flush=True)
    return results


def show(epoch: Epoch) -> None:
    """A line on stderr, for `fit`: a run may take long."""
    accuracy = f"validation {100 * epoch.validation_accuracy:.2f} %"
    print(f"epoch {epoch.epoch}: {accuracy}, {epoch.seconds:.1f} s", file=sys.stderr, flush=True)


def finished(log: Path) -> list[Result]:
    """The results in the file; a last line that was cut off is taken out of it."""
    if not log.exists():
        return []
    whole, newline, cut = log.read_text().rpartition("\n")
    if cut:
        mended = log.with_suffix(".partial")
        mended.write_text(whole + newline)
        mended.replace(log)
    return [json.loads(line) for line in whole.splitlines()]


def chosen(results: Iterable[Result], **wanted: Any) -> list[Result]:
    """Those whose runs are as wanted."""
    return [result for result in results if wanted.items() <= result["run"].items()]


def accuracies(results: Iterable[Result]) -> list[float]:
    """A run that broke down counts as chance, 10 %."""
    return [10.0 if result["accuracy"] is None else result["accuracy"] for result in results]


def cell(results: list[Result], digits: int = 1) -> str:
    """Mean and standard deviation of the accuracies, for a table."""
    if not results:
        return ""
    seen = accuracies(results)
    broken = sum(result["accuracy"] is None for result in results)
    spread = f" ± {stdev(seen):.{digits}f}" if len(seen) > 1 else ""
    return f"{mean(seen):.{digits}f}{spread}" + (f" ({broken} of {len(seen)} broke down)" if broken else "")
