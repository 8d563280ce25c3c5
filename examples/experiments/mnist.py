"""Rules with their own settings, or others, as `prograde compare` trains them: accuracies, curves and cosines, stored.

Every run is added to FOLDER/mnist.jsonl as it ends. One that stands there already is not repeated, so that the command
goes on where it was stopped. Last it prints a table.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from resumable import Result, Run, arguments_of, cell, chosen, interval, markdown, paired, run_all, show

from prograde.accelerated.command_line.options import Job
from prograde.accelerated.command_line.pictures import alignment_curves, curves
from prograde.accelerated.command_line.runs import Run as Trained
from prograde.accelerated.training import (
    PRESETS,
    Dataset,
    Epoch,
    History,
    Recipe,
    Split,
    UserError,
    build,
    default_recipe,
    fit,
    load,
)

VARIED = ("data", "rule", "seed")


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and those and each layer's alignment at each epoch."""
    recipe = recipe_of(run)
    try:
        rule = build(run["rule"], dataset, recipe, seed=run["seed"], device=device)
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show)
    except UserError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "epoch": history.best.epoch,
        "curve": [round(100 * epoch.validation_accuracy, 4) for epoch in history.epochs],
        "cosines": [[round(cosine, 4) for cosine in epoch.alignment.values()] for epoch in history.epochs],
    }


def of_settings(results: list[Result], settings: Run) -> list[Result]:
    """Those with no other settings, be they fewer or more."""
    return [r for r in results if {name: value for name, value in r["run"].items() if name not in VARIED} == settings]


def recipe_of(run: Run) -> Recipe:
    changes = {name: tuple(value) if name == "hidden" else value for name, value in run.items() if name not in VARIED}
    return default_recipe(run["rule"], run["data"], **changes)


def summary(results: list[Result]) -> str:
    """Rules with a run: accuracies, and what they are less backpropagation's."""
    rows = [["rule", "hidden layers", "epochs", "test accuracy, %", "less backprop", "validation, %"]]
    first = chosen(results, rule="backprop")
    for rule in PRESETS:
        if found := chosen(results, rule=rule):
            recipe = recipe_of(found[0]["run"])
            held = [{"accuracy": result.get("validation")} for result in found]
            gaps = interval(paired(found, first)) if rule != "backprop" else ""
            sizes = ["-".join(map(str, recipe.hidden)), str(recipe.epochs)]
            rows.append([f"`{rule}`", *sizes, cell(found, 2, 3), gaps, cell(held, 2)])
    return markdown(rows)


def trained(results: list[Result]) -> list[Trained]:
    """The runs that ended, as `prograde compare` has them for its pictures."""
    found = []
    for result in results:
        if result["accuracy"] is not None:
            units = [{str(n): {"alignment": each} for n, each in enumerate(cosines)} for cosines in result["cosines"]]
            epochs = [
                Epoch(number, 0.0, accuracy / 100, 0.0, {}, {"units": of_epoch})
                for number, (accuracy, of_epoch) in enumerate(zip(result["curve"], units, strict=True), 1)
            ]
            job = Job(result["run"]["rule"], recipe_of(result["run"]))
            found.append(Trained(job, result["run"]["seed"], History(epochs, result["accuracy"] / 100)))
    return found


def draw(results: list[Result], samples: int, path: Path) -> None:
    """Errors over training on so many validation samples."""
    part = Split(torch.empty(samples, 0), torch.empty(samples))
    path.write_bytes(curves(trained(results), Dataset(results[0]["run"]["data"], part, part, part, (), 0, 0.0, 1.0)))


def draw_cosines(results: list[Result], path: Path) -> None:
    """Of each layer's update with the gradient, over training."""
    drawn = alignment_curves(trained(results))
    assert drawn is not None
    path.write_bytes(drawn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="a data set, as `prograde compare --data` takes it")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument(
        "--rules", nargs="+", default=list(PRESETS), choices=PRESETS, metavar="RULE", help="all unless given"
    )
    parser.add_argument("--hidden", type=int, nargs="+", help="widths of hidden layers; each rule's own unless given")
    parser.add_argument("--activation", help="each rule's own unless given")
    parser.add_argument("--epochs", type=int, help="each rule's own unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = arguments_of(parser)
    given = {name: getattr(arguments, name) for name in ("hidden", "activation", "epochs")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    name, dataset = Path(arguments.data).name, load(arguments.data)
    runs = [
        {"data": name, "seed": seed, "rule": rule, **settings} for seed in arguments.seeds for rule in arguments.rules
    ]
    log, device = arguments.folder / "mnist.jsonl", arguments.device
    results = run_all(runs, lambda run: train(run, dataset, device), log, device)
    print(summary(of_settings(chosen(results, data=name), settings)))
