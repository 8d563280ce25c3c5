"""Learning on low precision and noisy hardware: accuracy against bits, read noise and programming noise.

Every run is added to FOLDER/hardware.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it draws FOLDER/hardware.png and prints the tables of `hardware.md`.

The rules train equal networks, 784-1024-128-10 with tanh, by SGD with momentum 0.9 and batch 128, the rate falling to 0
as a cosine; the epoch is chosen on validation data. Training, validation and test all run on the hardware: `bits` are
those of weights, of what drives a product and of its result; one thing is varied at a time. Rates are those of RATES,
chosen on validation data at full precision with seed 0, and are not tuned to the hardware.

FTP and PEPITA run their second pass in full and subtract it, as an algorithm of two passes has to. `ftp-difference`
is ours: it carries the differences themselves, which hardware then rounds at their own scale.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from resumable import (
    Result,
    Run,
    accuracies,
    arguments_of,
    cell,
    chosen,
    interval,
    markdown,
    paired,
    run_all,
    show,
    stored,
)

from prograde.accelerated.rules import Hardware
from prograde.accelerated.training import Dataset, UserError, build, default_recipe, fit, load

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "backprop": ("backprop", {}),
    "ftp": ("ftp", {"second_pass": "full"}),
    "ftp-difference": ("ftp", {"second_pass": "difference"}),
    "dfa": ("dfa", {}),
    "pepita": ("pepita", {"second_pass": "full"}),
}
"""The rule and its options, by the name in the tables."""

RATES = {"backprop": 0.05, "ftp": 0.02, "dfa": 0.02, "pepita": 0.02}
EXACT = {"bits": None, "read_noise": 0.0, "programming_noise": 0.0}
VARIED: dict[str, tuple[Any, ...]] = {
    "bits": (2, 3, 4, 5, 6, 7, 8),
    "read_noise": (0.01, 0.03, 0.1),
    "programming_noise": (1e-4, 1e-3, 1e-2),  # the range of the group's own memristor experiments
}
NAMES = {
    "bits": "bits",
    "read_noise": "read noise / largest weight",
    "programming_noise": "programming noise / largest weight",
}


def settings() -> list[dict[str, Any]]:
    """The hardware of every run: the exact one, then one thing varied at a time."""
    return [EXACT, *({**EXACT, name: value} for name, values in VARIED.items() for value in values)]


SETTINGS = {"data": "mnist", "hidden": [1024, 128], "epochs": 2}
"""Of the stored runs."""


def kept() -> list[Result]:
    return stored("hardware/hardware", **SETTINGS)


def wanted(data: str, seeds: Iterable[int], hidden: list[int], epochs: int) -> list[Run]:
    """All runs by what sets them apart, one seed after another."""
    plain = {"data": data, "hidden": hidden, "epochs": epochs}
    return [{**plain, "seed": seed, "rule": rule, **found} for seed in seeds for found in settings() for rule in RULES]


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and each layer's alignment at the last epoch."""
    name, options = RULES[run["rule"]]
    recipe = default_recipe(
        name,
        run["data"],
        hidden=tuple(run["hidden"]),
        activation="tanh",
        epochs=run["epochs"],
        learning_rate=RATES[name],
        schedule="cosine",
        standardise=True,
        dropout=0.0,
        options=options,
    )
    try:
        rule = Hardware(
            build(name, dataset, recipe, seed=run["seed"], device=device),
            **{setting: run[setting] for setting in EXACT},
        )
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show)
    except UserError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "seconds": mean(epoch.seconds for epoch in history.epochs),
        "cosines": list(history.epochs[-1].alignment.values()),
    }


def table(results: list[Result], varied: str, fill: Callable[[str, list[Result]], str]) -> str:
    """A row a rule, a column a value of what is varied, the exact hardware last, as far as there are runs.

    `fill` has the rule and the runs of the column.
    """
    by_value = {value: chosen(results, **{**EXACT, varied: value}) for value in (*VARIED[varied], EXACT[varied])}
    columns = {value: found for value, found in by_value.items() if found}
    heads = ["exact" if value == EXACT[varied] else f"{value:g}" for value in columns]
    rows = [[rule, *(fill(rule, found) for found in columns.values())] for rule in RULES]
    return markdown([[NAMES[varied], *heads], *(row for row in rows if any(row[1:]))])


def accuracy(results: list[Result], varied: str) -> str:
    return table(results, varied, lambda rule, found: cell(chosen(found, rule=rule), seeds=3))


def less_backprop(results: list[Result], varied: str) -> str:
    """Accuracies less those of backpropagation on the same hardware."""

    def gaps(rule: str, found: list[Result]) -> str:
        return (
            "" if rule == "backprop" else interval(paired(*(chosen(found, rule=name) for name in (rule, "backprop"))))
        )

    return table(results, varied, gaps)


def lost(results: list[Result], varied: str) -> str:
    """What each rule loses beside its own accuracy on exact hardware."""
    exact = chosen(results, **EXACT)

    def gaps(rule: str, found: list[Result]) -> str:
        return interval(paired(chosen(exact, rule=rule), chosen(found, rule=rule)))

    return table([result for result in results if result not in exact], varied, gaps)


def cosines(results: list[Result], varied: str) -> str:
    """Of the hidden layers' updates with the exact network's gradient at the last epoch, first hidden layer to last."""

    def means(rule: str, found: list[Result]) -> str:
        layers = zip(
            *(result["cosines"][:-1] for result in chosen(found, rule=rule) if "cosines" in result), strict=True
        )
        return ", ".join(f"{mean(layer):.2f}" for layer in layers)

    return table(results, varied, means)


def summary(results: list[Result]) -> str:
    """Test accuracy against all that is varied, and the cosines against bits."""
    return "\n\n".join([*(accuracy(results, varied) for varied in VARIED), cosines(results, "bits")])


def draw(results: list[Result], path: Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, varied in zip(figure.subplots(1, 3), VARIED, strict=True):
        for rule in RULES:
            line(axes, results, rule, varied)
        axes.set(title=f"Accuracy against {NAMES[varied].partition(' /')[0]}", xlabel=NAMES[varied], ylabel="%")
        axes.grid(alpha=0.3)
        if varied != "bits":
            axes.set_xscale("log")
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


def line(axes: Axes, results: list[Result], rule: str, varied: str) -> None:
    """Means over seeds with bars from the least to the greatest, and dotted what exact hardware gives."""
    grouped = {value: accuracies(chosen(results, rule=rule, **{**EXACT, varied: value})) for value in VARIED[varied]}
    grouped = {value: found for value, found in grouped.items() if found}
    if not grouped:
        return
    means = [mean(found) for found in grouped.values()]
    down = [m - min(found) for m, found in zip(means, grouped.values(), strict=True)]
    up = [max(found) - m for m, found in zip(means, grouped.values(), strict=True)]
    drawn = axes.errorbar(list(grouped), means, yerr=[down, up], marker="o", capsize=3, label=rule)
    exact = accuracies(chosen(results, rule=rule, **EXACT))
    if exact:
        axes.axhline(mean(exact), color=drawn.lines[0].get_color(), linestyle=":", linewidth=0.8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 128], help="widths of the hidden layers")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = arguments_of(parser)
    name = Path(arguments.data).name
    runs = wanted(name, arguments.seeds, arguments.hidden, arguments.epochs)
    dataset = load(arguments.data)
    log, device = arguments.folder / "hardware.jsonl", arguments.device
    every = run_all(runs, lambda run: train(run, dataset, device), log, device)
    results = chosen(every, data=name, hidden=arguments.hidden, epochs=arguments.epochs)
    draw(results, arguments.folder / "hardware.png")
    print(summary(results))
