"""Forward Target Propagation: against depth, beside its relatives, and by the law and size of its feedback.

Every run is added to FOLDER/ftp.jsonl as it ends. One that stands there already is not repeated, so that the command
goes on where it was stopped. Last it prints the tables of `ftp.md`.

Networks have hidden layers of 256 units with tanh, and 784-1024-128-10 for the laws; SGD with momentum 0.9 and batch
128, the rate falling to 0 as a cosine; the epoch is chosen on validation data. Rates and gains are those of RATES and
SCALES, chosen there with seed 0.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from resumable import Result, Run, arguments_of, cell, chosen, markdown, run_all, show

from prograde.accelerated.training import PRESETS, UserError, build, default_recipe, fit, load

RATES = {"backprop": 0.05, "ftp": 0.02, "dfa": 0.02, "fa": 0.02, "drtp": 0.005, "dtp": 0.02, "pepita": 0.02}
HIDDEN_LAYERS = (2, 3, 5, 8)
SCALES = {2: 0.5, 3: 0.5, 5: 0.2, 8: 0.1}  # of the feedback, by hidden layers: targets stray further in deep networks
LAWS = ("uniform", "normal", "orthogonal")
GAINS = (0.1, 0.25, 0.5, 1.0)


def wanted(data: str, seeds: Iterable[int], epochs: int) -> list[Run]:
    """All runs by what sets them apart, one seed after another."""
    runs: list[Run] = []
    for seed in seeds:
        plain = {"data": data, "epochs": epochs, "seed": seed}
        runs += [
            {**plain, "table": "depth", "rule": rule, "hidden": [256] * n, "scale": SCALES[n], "law": "uniform"}
            for n in HIDDEN_LAYERS
            for rule in RATES
        ]
        runs += [
            {**plain, "table": "laws", "rule": "ftp", "hidden": [1024, 128], "scale": gain, "law": law}
            for law in LAWS
            for gain in GAINS
        ]
    return runs


def train(run: Run, data: str, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and each layer's alignment at the last epoch."""
    options: dict[str, Any] = dict(PRESETS[run["rule"]].recipe.options)
    if run["rule"] == "ftp":
        options |= {"scale": run["scale"], "law": run["law"]}
    dataset = load(data)
    recipe = default_recipe(
        run["rule"],
        data,
        hidden=tuple(run["hidden"]),
        activation="tanh",
        epochs=run["epochs"],
        learning_rate=RATES[run["rule"]],
        schedule="cosine",
        standardise=True,
        dropout=0.0,
        options=options,
    )
    try:
        rule = build(run["rule"], dataset, recipe, seed=run["seed"], device=device)
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show)
    except UserError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "cosines": list(history.epochs[-1].alignment.values()),
    }


def of_depth(results: list[Result], hidden_layers: int, rule: str) -> list[Result]:
    return chosen(results, table="depth", hidden=[256] * hidden_layers, rule=rule)


def by_depth(results: list[Result]) -> str:
    rows = [["rule", *(f"{n} hidden" for n in HIDDEN_LAYERS)]]
    rows += [[rule, *(cell(of_depth(results, n, rule), seeds=3) for n in HIDDEN_LAYERS)] for rule in RATES]
    return markdown(rows)


def cosines(results: list[Result]) -> str:
    rows = [["hidden layers", "cosine of FTP with backpropagation, first hidden layer to last"]]
    for n in HIDDEN_LAYERS:
        found = [result["cosines"] for result in of_depth(results, n, "ftp") if "cosines" in result]
        layers = [f"{mean(layer):.2f}" for layer in zip(*found, strict=True)][:-1]
        rows.append([str(n), ", ".join(layers)])
    return markdown(rows)


def by_law(results: list[Result]) -> str:
    """Laws with a run, by the number of epochs."""
    of_laws = chosen(results, table="laws")
    rows = [["law of G", "epochs", *(f"scale {gain}" for gain in GAINS)]]
    for epochs in sorted({result["run"]["epochs"] for result in of_laws}):
        for law in LAWS:
            found = chosen(of_laws, law=law, epochs=epochs)
            rows += [[law, str(epochs), *(cell(chosen(found, scale=gain), seeds=3) for gain in GAINS)]] if found else []
    return markdown(rows)


def summary(results: list[Result]) -> str:
    """Test accuracy against depth, FTP's cosines with backpropagation there, and accuracy by law and scale."""
    return "\n\n".join(table(results) for table in (by_depth, cosines, by_law))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = arguments_of(parser)
    name = Path(arguments.data).name
    runs = wanted(name, arguments.seeds, arguments.epochs)
    log, device = arguments.folder / "ftp.jsonl", arguments.device
    every = run_all(runs, lambda run: train(run, arguments.data, device), log, device)
    print(summary(chosen(every, data=name, epochs=arguments.epochs)))
