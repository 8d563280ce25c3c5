"""Rules with their own settings, or others, as `prograde compare` trains them: accuracies, curves and cosines, stored.

Every run is added to FOLDER/mnist.jsonl as it ends. One that stands there already is not repeated, so that the command
goes on where it was stopped. Last it prints a table.
"""

import argparse
from pathlib import Path
from typing import Any

from resumable import Result, Run, arguments_of, cell, chosen, markdown, run_all, show

from prograde.accelerated.training import PRESETS, Dataset, UserError, build, default_recipe, fit, load

VARIED = ("data", "rule", "seed")


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and those and each layer's alignment at each epoch."""
    changes = {name: tuple(value) if name == "hidden" else value for name, value in run.items() if name not in VARIED}
    recipe = default_recipe(run["rule"], run["data"], **changes)
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


def summary(results: list[Result]) -> str:
    rows = [["rule", "test accuracy, %", "validation, %"]]
    for rule in PRESETS:
        found = chosen(results, rule=rule)
        held = [{"accuracy": result.get("validation")} for result in found]
        if found:
            rows.append([f"`{rule}`", cell(found, 2), cell(held, 2)])
    return markdown(rows)


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
