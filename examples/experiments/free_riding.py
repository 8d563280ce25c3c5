"""Cumulative goodness: which layers still learn, by depth and remedy, and how their gradient decays on real data.

Every run is added to FOLDER/free_riding.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it draws FOLDER/free_riding.png and prints tables.

Networks of equal layers with ReLU are trained by Forward-Forward with wrong labels, on the mean square, by Adam, with
the settings of `cumulative` in the command line; only the loss differs. After every epoch, on 512 training samples with
one draw of wrong labels, every layer's margin m (goodness of the right label less that of the wrong one) is measured,
and R, its gradient divided by what softplus(-beta m), the loss of the layer alone, would give: the last epoch's are
shown. For cumulative goodness R is that of the paper (arXiv 2605.06240), at most 2 e^(-beta gamma P) for m and P >= 0,
where P is the margin of the layers before.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from resumable import Result, Run, arguments_of, cell, chosen, interval, markdown, paired, run_all, show
from torch import Tensor

from prograde.accelerated.cumulative_goodness import coverage, free_riding_fraction, per_block, starved_fraction
from prograde.accelerated.pair_losses import LayerGoodness
from prograde.accelerated.rules import CumulativeForwardForward, Rule
from prograde.accelerated.training import Dataset, UserError, build, default_recipe, fit, load

BETA = 4.0
LOSSES: dict[str, dict[str, Any]] = {
    "cumulative, gamma 1": {"remedy": "cumulative", "gamma": 1.0, "beta": BETA},
    "cumulative, gamma 0.7": {"remedy": "cumulative", "gamma": 0.7, "beta": BETA},
    "per-block": {"remedy": "per-block", "beta": BETA},
    "hardness-gated": {"remedy": "hardness-gated", "gamma": 0.7, "beta": BETA},
    "depth-scaled": {"remedy": "depth-scaled", "gamma": 0.7, "beta": BETA},
    "compensated": {"remedy": "compensated", "gamma": 0.7, "beta": BETA},
    "squared-hinge": {"remedy": "squared-hinge", "gamma": 0.7},
}
"""The rule's options, by the name in the tables."""

BINS = 12
"""Parts of equally many samples, by prior margin, in which the decay is measured."""


def wanted(data: str, seeds: Iterable[int], depths: Iterable[int], width: int, epochs: int) -> list[Run]:
    """All runs by what sets them apart, one seed after another."""
    plain = {"data": data, "width": width, "epochs": epochs}
    return [{**plain, "seed": s, "depth": depth, "loss": loss} for s in seeds for depth in depths for loss in LOSSES]


@torch.no_grad()
def measured(rule: Rule, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Of every layer: its separation, what its gradient keeps, and R in parts by the margin of the layers before."""
    assert isinstance(rule, CumulativeForwardForward)
    assert rule.generator is not None
    state = rule.generator.get_state()
    rule.generator.manual_seed(0)
    told = rule.layer_goodness(x, y)
    rule.generator.set_state(state)
    found: dict[str, Any] = {}
    for unit, single in zip(rule.units, told, strict=True):
        layer = LayerGoodness(*(part.double() if isinstance(part, Tensor) else part for part in single))
        margin, prior = layer.positive - layer.negative, layer.prior_positive - layer.prior_negative
        ratio = rule.layer_loss(layer).negative / per_block(BETA)(layer).negative
        parts = prior.argsort().chunk(BINS) if layer.layer else ()
        found[unit.name] = {
            "separation": margin.mean().item(),
            "free_riding": free_riding_fraction(ratio)[0].item(),
            "starved": starved_fraction(ratio).item(),
            "coverage": coverage(margin, prior).item(),
            "decay": [[prior[part].mean().item(), ratio[part].median().item()] for part in parts],
        }
    return found


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), and what is measured of the layers at the last epoch."""
    recipe = default_recipe("cumulative", run["data"], hidden=(run["width"],) * run["depth"], epochs=run["epochs"])
    recipe = replace(recipe, options={**recipe.options, **LOSSES[run["loss"]]})
    try:
        rule = build("cumulative", dataset, recipe, seed=run["seed"], device=device)
        history = fit(
            rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show, alignment_every=0, measure=measured
        )
    except UserError as error:
        return {"accuracy": None, "why": str(error)}
    return {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "seconds": mean(epoch.seconds for epoch in history.epochs),
        "layers": list(history.epochs[-1].measured.values()),
    }


def by_layer(results: list[Result], name: str) -> list[float]:
    """The mean over seeds, first layer to last."""
    seen = [[layer[name] for layer in result["layers"]] for result in results if "layers" in result]
    return [mean(values) for values in zip(*seen, strict=True)]


def rows_of(results: list[Result], columns: Iterable[str]) -> list[list[str]]:
    """Of each loss that was run: accuracy, what it is less the first loss's, and layers first to last in a cell."""
    rows = []
    first, *_ = (chosen(results, loss=loss) for loss in LOSSES)
    for loss in LOSSES:
        if found := chosen(results, loss=loss):
            cells = [", ".join(f"{value:.2f}" for value in by_layer(found, name)) for name in columns]
            rows.append([loss, cell(found, 2, 3), interval(paired(found, first)) if found != first else "", *cells])
    return rows


def table(results: list[Result], depth: int, columns: Iterable[str]) -> str:
    heads = ["test accuracy, %", "less the first row", *(name.replace("_", " ") for name in columns)]
    return markdown([[f"{depth} layers", *heads], *rows_of(chosen(results, depth=depth), columns)])


def table_of_all(results: list[Result], columns: Iterable[str]) -> str:
    """By data set and depth, as far as there are runs."""
    heads = ["test accuracy, %", "less gamma 1", *(name.replace("_", " ") for name in columns)]
    rows = [["data, layers", "loss", *heads]]
    for data in sorted({result["run"]["data"] for result in results}, reverse=True):
        for depth in sorted({result["run"]["depth"] for result in chosen(results, data=data)}):
            of_depth = rows_of(chosen(results, data=data, depth=depth), columns)
            rows += [[f"{data}, {depth}", *row] for row in of_depth]
    return markdown(rows)


def summary(results: list[Result], depths: Iterable[int]) -> str:
    """For every depth a table."""
    columns = ["separation", "free_riding", "starved", "coverage"]
    return "\n\n".join(table(results, depth, columns) for depth in depths)


def draw(results: list[Result], depths: list[int], path: Path) -> None:
    """A row for every depth: separation and free riding by layer, and the decay of R with the prior margin."""
    figure = Figure(figsize=(14, 4 * len(depths)), layout="constrained")
    rows = figure.subplots(len(depths), 3, squeeze=False)
    for row, depth in zip(rows, depths, strict=True):
        for axes, name in zip(row, ("separation", "free_riding"), strict=False):
            for loss, marker in zip(LOSSES, "o^sDvxP", strict=True):
                values = by_layer(chosen(results, depth=depth, loss=loss), name)
                line = "--" if loss in ("hardness-gated", "compensated") else "-"  # these hide what lies below them
                axes.plot(range(1, len(values) + 1), values, line, marker=marker, fillstyle="none", label=loss)
            axes.set(title=f"{name.replace('_', ' ').capitalize()}, {depth} layers", xlabel="layer")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        decay(row[2], [result for result in results if result["run"]["depth"] == depth])
    rows[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


def decay(axes: Axes, results: list[Result]) -> None:
    """Medians of R of all layers but the first against the prior margin; e^(-beta gamma P), and dashed twice that."""
    highest = 0.0
    for loss, colour in zip(list(LOSSES)[:2], ("#0b6fb8", "#d9611e"), strict=True):
        layers = [layer for r in chosen(results, loss=loss) for layer in r.get("layers", [])]
        points = [point for layer in layers for point in layer["decay"]]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3, alpha=0.6, label=loss)
        highest = max(highest, *(prior for prior, _ in points))
        ends = [0.0, max(prior for prior, _ in points)]
        gamma = LOSSES[loss]["gamma"]
        bound = [exp(-BETA * gamma * prior) for prior in ends]
        axes.plot(ends, bound, color=colour, label=f"e^(-4 · {gamma:g} P), and twice that")
        axes.plot(ends, [2 * limit for limit in bound], "--", color=colour, linewidth=1)
    axes.set(title="R against the margin of the layers before", xlabel="P", yscale="log", xlim=(-0.2, highest + 0.2))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8], help="hidden layers")
    parser.add_argument("--width", type=int, default=500, help="of every hidden layer")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = arguments_of(parser)
    name = Path(arguments.data).name
    runs = wanted(name, arguments.seeds, arguments.depths, arguments.width, arguments.epochs)
    dataset = load(arguments.data)
    log, device = arguments.folder / "free_riding.jsonl", arguments.device
    every = run_all(runs, lambda run: train(run, dataset, device), log, device)
    results = [result for result in every if result["run"] in runs]
    draw(results, arguments.depths, arguments.folder / "free_riding.png")
    print(summary(results, arguments.depths))
