"""FOTON through many layers: accuracy against depth, and against how seldom orthogonality and projection are renewed.

Run it: python depth.py DATA FOLDER [EPOCHS [SEEDS]]      (hours on two cores: five epochs and three seeds by default)

Every run is added to FOLDER/depth.jsonl as it ends. One that stands there already is not repeated, so that the command
goes on where it was stopped. Last it draws FOLDER/depth.png. Networks are 784-256-...-256-10 with tanh, trained by SGD
with momentum 0.9 and batch 128, the rate falling to 0 as a cosine; the epoch is chosen on validation data.
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prograde.accelerated.training import UserError, build, default_recipe, fit, load

WIDTH = 256
DEPTHS = (3, 10, 50)
INTERVALS = (1, 3, 10, 30, 100)
RATES = {"backprop": 0.02, "backprop-orthogonal": 0.05, "foton": 0.05, "foton-linear": 0.05, "pepita": 0.02}
PLAIN_OPTIONS = {"backprop-orthogonal": {"orthogonal": True}, "foton-linear": {"linear": True}}
VARIED_DEPTH = 10  # of the networks in which the intervals are varied


def wanted(epochs: int, seeds: int) -> list[dict[str, Any]]:
    """All runs by what sets them apart, one seed after another."""
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        plain = {"epochs": epochs, "seed": seed, "every": 1, "refresh": 1}
        runs += [{**plain, "rule": rule, "depth": depth} for depth in DEPTHS for rule in RATES]
        varied = {**plain, "rule": "foton", "depth": VARIED_DEPTH}
        runs += [{**varied, option: n} for option in ("every", "refresh") for n in INTERVALS if n > 1]
    return runs


def train(run: dict[str, Any], data: str) -> dict[str, Any]:
    """Test accuracy in percent (None where training breaks down), and each layer's alignment at each epoch."""
    options: dict[str, Any] = {}
    if run["rule"] == "foton":
        options = {"every": run["every"], "refresh": run["refresh"]}
    elif run["rule"] in PLAIN_OPTIONS:
        options = PLAIN_OPTIONS[run["rule"]]
    dataset = load(data)
    recipe = default_recipe(
        run["rule"],
        data,
        hidden=(WIDTH,) * (run["depth"] - 1),
        activation="tanh",
        epochs=run["epochs"],
        learning_rate=RATES[run["rule"]],
        schedule="cosine",
        standardise=True,
        dropout=0.0,
        options=options,
    )
    rule = build(run["rule"], dataset, recipe, seed=run["seed"])
    try:
        history = fit(rule, dataset, recipe, seed=run["seed"])
    except UserError as error:
        return {"run": run, "accuracy": None, "why": str(error)}
    cosines = [list(epoch.alignment.values()) for epoch in history.epochs]
    seconds = mean(epoch.seconds for epoch in history.epochs)
    return {"run": run, "accuracy": 100 * history.test_accuracy, "seconds": seconds, "cosines": cosines}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    depth, interval, layer, epoch = figure.subplots(2, 2).flatten()
    plain = [r for r in results if r["run"]["every"] == r["run"]["refresh"] == 1]
    for rule in RATES:
        points(depth, [r for r in plain if r["run"]["rule"] == rule], "depth", rule)
    depth.set(title="Test accuracy against depth", xscale="log", xlabel="layers", ylabel="%")
    depth.set_xticks(DEPTHS, [str(d) for d in DEPTHS])
    varied = [r for r in results if r["run"]["rule"] == "foton" and r["run"]["depth"] == VARIED_DEPTH]
    for option, other, name in (("every", "refresh", "orthogonality"), ("refresh", "every", "projection")):
        points(interval, [r for r in varied if r["run"][other] == 1], option, name)
    interval.set(title=f"FOTON, {VARIED_DEPTH} layers, renewed every so many steps", xscale="log", xlabel="steps")
    interval.set_xticks(INTERVALS, [str(n) for n in INTERVALS])
    for r in [r for r in plain if r["run"]["rule"] == "foton" and r["run"]["seed"] == 0 and "cosines" in r]:
        last, label = r["cosines"][-1], f"{r['run']['depth']} layers"
        layer.plot([(i + 1) / len(last) for i in range(len(last))], last, label=label)
        epoch.plot(range(1, len(r["cosines"]) + 1), [mean(c) for c in r["cosines"]], label=label)
    layer.set(title="Cosine with backpropagation, last epoch", xlabel="layer / layers")
    epoch.set(title="The same over training, mean over layers", xlabel="epoch")
    for axes in (depth, interval, layer, epoch):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.minorticks_off()
    figure.savefig(path, dpi=130)


def points(axes: Axes, results: list[dict[str, Any]], key: str, label: str) -> None:
    """Means over seeds, with bars from the least to the greatest; a run that broke down counts as chance."""
    grouped: dict[int, list[float]] = {}
    for r in results:
        grouped.setdefault(r["run"][key], []).append(10.0 if r["accuracy"] is None else r["accuracy"])
    xs = sorted(grouped)
    means = [mean(grouped[x]) for x in xs]
    down = [m - min(grouped[x]) for x, m in zip(xs, means, strict=True)]
    up = [max(grouped[x]) - m for x, m in zip(xs, means, strict=True)]
    axes.errorbar(xs, means, yerr=[down, up], marker="o", capsize=3, label=label)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    data, folder = sys.argv[1], Path(sys.argv[2])
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    seeds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "depth.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for run in wanted(epochs, seeds):
        if any(r["run"] == run for r in results):
            continue
        results.append(train(run, data))
        with log.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(*(f"{name} {value}" for name, value in run.items()), f"accuracy {results[-1]['accuracy']}", flush=True)
    draw([r for r in results if r["run"]["epochs"] == epochs], folder / "depth.png")
