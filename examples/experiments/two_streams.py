"""Forward-Forward and two of its relatives on equal networks: Hinton's loss, SymBa, and layer collaboration.

Every run is added to FOLDER/two_streams.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the table of `two_streams.md`.

Settings are those of the command line for each method, but for hidden layers, epochs, AdamW with a weight decay of 0.1
in the place of Adam, and SymBa's alpha of 16 for 4: chosen with seed 0 on validation data, on which the epoch is chosen
too.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from resumable import Result, Run, accuracies, arguments_of, cell, chosen, markdown, run_all, show

from prograde.accelerated.training import Dataset, TrainingError, build, default_recipe, fit, load

RULES = ("forward-forward", "symba", "layer-collaboration")
DECAY: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.1}
OPTIONS = {"symba": {"alpha": 16.0}}


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), seconds an epoch, and the epoch that was chosen."""
    recipe = default_recipe(run["rule"], run["data"], hidden=tuple(run["hidden"]), epochs=run["epochs"])
    options = {**recipe.options, **OPTIONS.get(run["rule"], {})}
    recipe = replace(recipe, shift=run.get("shift", 0), options=options, **DECAY)
    try:
        rule = build(run["rule"], dataset, recipe, seed=run["seed"], device=device)
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show, alignment_every=0)
    except TrainingError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "epoch": history.best.epoch,
        "seconds": mean(epoch.seconds for epoch in history.epochs),
    }


def summary(results: list[Result], rules: list[str]) -> str:
    rows = [["rule", "test accuracy, %", "test error, %", "seconds an epoch"]]
    for rule in rules:
        found = chosen(results, rule=rule)
        error = 100 - mean(accuracies(found))
        seconds = [result["seconds"] for result in found if "seconds" in result]
        rows.append([rule, cell(found, digits=2), f"{error:.2f}", f"{mean(seconds or [0]):.0f}"])
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1000] * 4, help="widths of the hidden layers")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--shift", type=int, default=0, help="pixels that training images are moved by at most")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES, metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = arguments_of(parser)
    name = Path(arguments.data).name
    plain = {"data": name, "hidden": arguments.hidden, "epochs": arguments.epochs}
    if arguments.shift:
        plain["shift"] = arguments.shift
    runs = [{**plain, "seed": seed, "rule": rule} for seed in arguments.seeds for rule in arguments.rules]
    dataset = load(arguments.data)
    log, device = arguments.folder / "two_streams.jsonl", arguments.device
    results = run_all(runs, lambda run: train(run, dataset, device), log, device)
    print(summary([result for result in results if result["run"] in runs], arguments.rules))
