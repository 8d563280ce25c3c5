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

from resumable import Result, Run, accuracies, arguments_of, cell, chosen, interval, markdown, paired, run_all, show

from prograde.accelerated.training import Dataset, TrainingError, build, default_recipe, fit, load

RULES = ("forward-forward", "symba", "layer-collaboration")
DECAY: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.1}
PUBLISHED = {
    ("forward-forward", 0): "1.36 (four layers of 2000, 60 epochs)",
    ("forward-forward", 1): "0.64 (by up to two pixels, 500 epochs)",
    ("symba", 0): "1.42",
    ("layer-collaboration", 0): "2.1 (Forward-Forward: 3.3)",
}
"""Errors, by the rule and the pixels that images are moved by."""
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


def errors(results: list[Result], part: str = "accuracy") -> list[Result]:
    seen = accuracies({"accuracy": result.get(part)} for result in results)
    return [{"accuracy": 100 - share} for share in seen]


def summary(results: list[Result]) -> str:
    """Errors by how far images were moved, by the number of epochs, and by rule."""
    heads = ["epochs", "images", "seeds", "test error, %", "validation error, %", "test error less Forward-Forward's"]
    rows = [["rule", *heads, "published, %"]]
    for shift, epochs in sorted({(result["run"].get("shift", 0), result["run"]["epochs"]) for result in results}):
        alike = [result for result in chosen(results, epochs=epochs) if result["run"].get("shift", 0) == shift]
        images = f"moved by up to {shift}" if shift else "as they are"
        for rule in RULES:
            if found := chosen(alike, rule=rule):
                gaps = paired(chosen(alike, rule="forward-forward"), found) if rule != "forward-forward" else []
                told = [cell(errors(found), 2), cell(errors(found, "validation"), 2), interval(gaps)]
                rows.append([rule, str(epochs), images, str(len(found)), *told, PUBLISHED.get((rule, shift), "")])
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
    print(summary([result for result in results if result["run"] in runs]))
