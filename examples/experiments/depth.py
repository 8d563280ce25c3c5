"""FOTON through many layers: accuracy and alignment against depth, and against how seldom things are renewed.

Every run is added to FOLDER/depth.jsonl as it ends. One that stands there already is not repeated, so that the command
goes on where it was stopped. Last it draws FOLDER/depth.png and prints the tables of `depth.md`.

Networks are 784-256-...-256-10, trained by SGD with momentum 0.9 and batch 128, the rate falling to 0 as a cosine; the
epoch is chosen on validation data. The rates are those of RATES, also chosen there, with seed 0.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from resumable import Result, Run, accuracies, arguments_of, cell, chosen, interval, markdown, paired, run_all, show
from torch import nn

from prograde.accelerated.rules import Rule
from prograde.accelerated.training import PRESETS, UserError, build, default_recipe, fit, load

WIDTH = 256
DEPTHS = (3, 10, 50, 100)
INTERVALS = (1, 3, 10, 30, 100)
FROZEN = {"frozen": slice(1, -1), "last-layer": slice(0, -1)}
"""Controls, by the linear pass at its rates: which layers stay as they are drawn."""
RULES = ("backprop", "backprop-orthogonal", "foton", "foton-linear", "pepita", *FROZEN)
RATES = {
    "tanh": {
        "backprop": {3: 0.02, 10: 0.02, 50: 0.02, 100: 0.02},
        "backprop-orthogonal": {3: 0.05, 10: 0.05, 50: 0.05, 100: 0.05},
        "foton": {3: 0.05, 10: 0.02, 50: 0.01, 100: 0.01},
        "foton-linear": {3: 0.05, 10: 0.05, 50: 0.03, 100: 0.02},
        "pepita": {3: 0.02, 10: 0.02, 50: 0.02, 100: 0.02},
        "frozen": {3: 0.05, 10: 0.05, 50: 0.03, 100: 0.02},
        "last-layer": {3: 0.05, 10: 0.05, 50: 0.03, 100: 0.02},
    },
    "relu": {
        "backprop": {10: 0.02, 50: 0.02},
        "backprop-orthogonal": {10: 0.05, 50: 0.05},
        "foton": {10: 0.01, 50: 0.003},
        "foton-linear": {10: 0.02, 50: 0.003},
    },
    "maxmin": {
        "backprop": {10: 0.005},
        "backprop-orthogonal": {10: 0.01},
        "foton": {10: 0.005},
        "foton-linear": {10: 0.01},
    },
}
RENEWED = {"orthogonality": "orthogonality_every", "projection": "projection_every"}
VARIED_DEPTH = 10  # of the networks in which the intervals and the gain are varied
PLAIN = {"activation": "tanh", "orthogonality_every": 1, "projection_every": 1, "activation_gain": 1.0}
RELU_GAIN = 0.7


def wanted(data: str, depths: Iterable[int], seeds: Iterable[int], epochs: int) -> list[Run]:
    """All runs by what sets them apart, one seed after another, the shortest first."""
    runs: list[Run] = []
    for seed in seeds:
        plain = {"data": data, "epochs": epochs, "seed": seed, **PLAIN}
        for depth in depths:
            for activation, rates in RATES.items():
                rules = [rule for rule in RULES if depth in rates.get(rule, {})]
                runs += [{**plain, "rule": rule, "depth": depth, "activation": activation} for rule in rules]
            if depth == VARIED_DEPTH:
                varied = {**plain, "rule": "foton", "depth": depth}
                runs.append({**varied, "activation": "relu", "activation_gain": RELU_GAIN})
                runs += [{**varied, option: n} for option in RENEWED.values() for n in INTERVALS if n > 1]
    return runs


def train(run: Run, data: str, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and each layer's alignment at each epoch."""
    preset = "foton-linear" if run["rule"] in FROZEN else run["rule"]
    options = dict(PRESETS[preset].recipe.options)
    if run["rule"] == "foton":
        options |= {name: run[name] for name in ("orthogonality_every", "projection_every", "activation_gain")}
    dataset = load(data)
    recipe = default_recipe(
        preset,
        data,
        hidden=(WIDTH,) * (run["depth"] - 1),
        activation=run["activation"],
        epochs=run["epochs"],
        learning_rate=RATES[run["activation"]][run["rule"]][run["depth"]],
        schedule="cosine",
        standardise=True,
        dropout=0.0,
        options=options,
    )
    try:
        rule = build(preset, dataset, recipe, seed=run["seed"], device=device)
        for unit in rule.units[FROZEN[run["rule"]]] if run["rule"] in FROZEN else ():
            unit.module.requires_grad_(False)
        if run["rule"] == "backprop" and run["activation"] == "tanh":
            start_orthogonal(rule, run["seed"])
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show)
    except UserError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "seconds": mean(epoch.seconds for epoch in history.epochs),
        "cosines": [[round(cosine, 4) for cosine in epoch.alignment.values()] for epoch in history.epochs],
    }


def start_orthogonal(rule: Rule, seed: int) -> None:
    """Gives backpropagation the weights that FOTON starts from: through 50 layers of tanh it fails from He's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for unit in rule.units[:-1]:
            weight = unit.module.weight.data
            weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape)))


def of(results: list[Result], **wanted: Any) -> list[Result]:
    """Results of the plain runs, but for what is asked for."""
    return chosen(results, **{**PLAIN, **wanted})


def draw(results: list[Result], path: Path) -> None:
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    depth, renewed, layer, epoch = figure.subplots(2, 2).flatten()
    depths = sorted({r["run"]["depth"] for r in results})
    for rule in RULES:
        points(depth, {d: accuracies(of(results, rule=rule, depth=d)) for d in depths}, rule)
    depth.set(title="Test accuracy against depth", xscale="log", xlabel="layers", ylabel="%")
    depth.set_xticks(depths, [str(d) for d in depths])
    for name, option in RENEWED.items():
        varied = {n: of(results, rule="foton", depth=VARIED_DEPTH, **{option: n}) for n in INTERVALS}
        points(renewed, {n: accuracies(found) for n, found in varied.items()}, name)
    renewed.set(title=f"FOTON, {VARIED_DEPTH} layers, renewed every so many steps", xscale="log", xlabel="steps")
    renewed.set_xticks(INTERVALS, [str(n) for n in INTERVALS])
    for rule, style in (("foton", "-"), ("foton-linear", "--")):
        for number, d in enumerate(depths):
            found = [r["cosines"] for r in of(results, rule=rule, depth=d) if "cosines" in r]
            if not found:
                continue
            look = {"label": f"{rule}, {d} layers", "linestyle": style, "color": f"C{number}"}
            last = [mean(cosines) for cosines in zip(*(c[-1] for c in found), strict=True)]
            layer.plot([(i + 1) / len(last) for i in range(len(last))], last, **look)
            means = [mean(mean(c) for c in cosines) for cosines in zip(*found, strict=True)]
            epoch.plot(range(1, len(means) + 1), means, **look)
    layer.set(title="Cosine with backpropagation, last epoch", xlabel="layer / layers")
    epoch.set(title="The same over training, mean over layers", xlabel="epoch")
    epoch.xaxis.get_major_locator().set_params(integer=True)
    for axes in (depth, renewed, layer, epoch):
        axes.grid(alpha=0.3)
        axes.minorticks_off()
    for axes in (depth, renewed):
        axes.legend(frameon=False, fontsize="small")
    handles, labels = layer.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


def points(axes: Axes, grouped: dict[int, list[float]], label: str) -> None:
    """Means over seeds, with bars from the least to the greatest."""
    grouped = {x: found for x, found in grouped.items() if found}
    means = [mean(found) for found in grouped.values()]
    down = [m - min(found) for m, found in zip(means, grouped.values(), strict=True)]
    up = [max(found) - m for m, found in zip(means, grouped.values(), strict=True)]
    axes.errorbar(list(grouped), means, yerr=[down, up], marker="o", capsize=3, label=label)


def summary(results: list[Result]) -> str:
    """Test accuracy as mean and standard deviation over seeds, in two tables."""
    return f"{by_depth(results)}\n\n{by_interval(results)}"


def by_depth(results: list[Result], activations: Iterable[str] = RATES) -> str:
    """Rows and depths with a run."""
    depths = sorted({r["run"]["depth"] for r in results})
    kinds = {f"{a}, {rule}": {"activation": a, "rule": rule} for a in activations for rule in RATES[a]}
    if "relu" in activations:
        gain = {"activation": "relu", "rule": "foton", "activation_gain": RELU_GAIN}
        kinds[f"relu, foton with gain {RELU_GAIN}"] = gain
    rows = [[name, *(cell(of(results, depth=d, **kind), seeds=3) for d in depths)] for name, kind in kinds.items()]
    return markdown([["activation, rule", *(f"{d} layers" for d in depths)], *(row for row in rows if any(row[1:]))])


def less(results: list[Result], other: str) -> str:
    """Of networks with tanh, what each rule's accuracy is less the other's, in points."""
    depths = sorted({r["run"]["depth"] for r in of(results, rule=other)})
    rows = [
        [rule, *(interval(paired(of(results, rule=rule, depth=d), of(results, rule=other, depth=d))) for d in depths)]
        for rule in RULES
        if rule != other
    ]
    return markdown([[f"less {other}", *(f"{d} layers" for d in depths)], *rows])


def by_interval(results: list[Result]) -> str:
    """Intervals with a run: accuracies, and those less the ones of every step."""
    rows = [["renewed every", *map(str, INTERVALS)]]
    for name, option in RENEWED.items():
        found = [of(results, rule="foton", depth=VARIED_DEPTH, **{option: n}) for n in INTERVALS]
        rows.append([name, *(cell(each, seeds=3) for each in found)])
        rows.append([f"{name}, less every step", *(interval(paired(each, found[0])) for each in found)])
        rows[-1][1] = ""
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, choices=DEPTHS)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    arguments = arguments_of(parser)
    name = Path(arguments.data).name
    runs = wanted(name, arguments.depths, arguments.seeds, arguments.epochs)
    runs = [run for run in runs if run["rule"] in arguments.rules]
    log, device = arguments.folder / "depth.jsonl", arguments.device
    every = run_all(runs, lambda run: train(run, arguments.data, device), log, device)
    results = chosen(every, data=name, epochs=arguments.epochs)
    draw(results, arguments.folder / "depth.png")
    print(summary(results))
