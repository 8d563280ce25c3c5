"""Local classifiers, beside backpropagation on the same networks, convolutional and dense.

Every run is added to FOLDER/local_classifiers.jsonl as it ends. One that stands there already is not repeated, so that
the command goes on where it was stopped. Last it draws FOLDER/local_classifiers.png and prints tables.

"convolutional": four layers of 3 x 3 with ReLU, of 32, 64, 128 and 128 channels, or 40, 80, 120 and 120 where channels
belong to classes; averages of 2 x 2 after the first two. "5 x 5" is a network of such convolutions, with 40, 80, 240
and 240 channels and averages after the first three, for a rule whose scores are means over all positions. "dense":
three layers of 1000 with ReLU and dropout of 0.1. Behind each layer but the last stands the normalisation of the rule's
paper, without a parameter of its own; batch normalisation, which has some, stands behind the last as well, since its
rule's scores come after it. Backpropagation trains each of these networks with a linear layer at its end, behind
averages over positions: of maps normalised one by one these would all be 0. AdamW, batches of 128, the rate falling to
0 as a cosine; the epoch is chosen on validation data, and so are the layers that are added up, or their weights, where
a rule chooses. Rates stand in RULES. Of the network that each rule ends with two more accuracies are taken: of all
layers added up, and of the range of layers that is best on the validation data.

After training, on the test data: each layer's accuracy alone, how often two layers disagree, how often at least one
layer is correct, the information about the label in a layer's scalar goodness (by nearest neighbours), and a lower
bound of it for the goodness vector (95 % confidence, by a linear probe and Fano's bound). `layer_study` in
`prograde.accelerated.training` has the definitions. Published figures are those of larger networks and longer training.
"""

import argparse
from collections.abc import Callable
from functools import partial
from math import nan
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from resumable import Result, Run, accuracies, arguments_of, cell, chosen, markdown, run_all, show
from torch import nn

from prograde.accelerated.aggregation import best_range, range_hits
from prograde.accelerated.modules import ChannelNorm, small_cnn
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
    Rule,
)
from prograde.accelerated.training import Dataset, Recipe, Split, TrainingError, fit, layer_study, load

PLAIN, BY_CLASS, WIDE = (32, 64, 128, 128), (40, 80, 120, 120), (40, 80, 240, 240)
DENSE, DROPOUT = (1000, 1000, 1000), 0.1
GRID = (4, 4, 2, 2)
"""Cells a side of the convolutional layers' scores, where they have any."""


def group_norm(classes: int, width: int) -> nn.Module:
    return nn.GroupNorm(classes, width, affine=False)


NORMALISATIONS: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[int, int], nn.Module]]] = {
    "over channels": (lambda classes, width: ChannelNorm(), lambda classes, width: ChannelNorm()),
    "in groups": (group_norm, group_norm),
    "of each channel": (lambda classes, width: nn.InstanceNorm2d(width), lambda classes, width: ChannelNorm()),
    "over the batch": (
        lambda classes, width: nn.BatchNorm2d(width, eps=1e-4),
        lambda classes, width: nn.BatchNorm1d(width, eps=1e-4),
    ),
}
"""Behind convolutions, and behind dense layers, whose units have one value each."""


class Setting(NamedTuple):
    """A function of a model and of whether it has convolutions to a rule; its networks; rates of both kinds."""

    rule: Callable[[nn.Module, bool], Rule]
    normalisation: str
    channels: tuple[int, ...]
    rates: tuple[float, float]
    decay: float = 0.0
    kernel_size: int = 3
    pool_after: tuple[int, ...] = (0, 1)
    published: dict[str, str] = {}  # noqa: RUF012 (never changed)


def assignment(published: dict[str, str] | None = None, regularised: bool = False, **options: Any) -> Setting:
    """Channels assigned to classes; without the published regularisers unless asked for."""
    if not regularised:
        options |= {"label_smoothing": 0.0, "settings": {"entropy": 0.0, "orthogonality": 0.0}}
    return Setting(
        lambda model, images: ChannelClassAssignment(model, **options),
        "of each channel",
        BY_CLASS,
        (0.01, 1e-3),
        published=published or {},
    )


def plain(rule: Callable[[nn.Module, bool], Rule], rate: float, **published: str) -> Setting:
    return Setting(rule, "over channels", PLAIN, (rate, 1e-3), published=published)


def backprop(normalisation: str, channels: tuple[int, ...]) -> Setting:
    return Setting(lambda model, images: Backprop(model), normalisation, channels, (3e-3, 1e-3))


def by_fives(setting: Setting) -> Setting:
    return setting._replace(channels=WIDE, kernel_size=5, pool_after=(0, 1, 2))


RULES = {
    "hyperspherical": plain(lambda model, images: Hyperspherical(model, grid=4), 3e-3, cifar="83.08 (dense: 61.93)"),
    "dynamic temperature": plain(
        lambda model, images: DynamicTemperature(model, grid=GRID if images else None), 2e-3, cifar="91.79 (VGG8)"
    ),
    "patch energy": plain(
        lambda model, images: PatchEnergy(model), 2e-3, mnist="99.65", fashion="93.41", cifar="90.62"
    ),
    "mono-forward": plain(
        lambda model, images: MonoForward(model, grid=GRID if images else 1),
        2e-3,
        fashion="93.98 (dense: 90.5)",
        cifar="dense: 58.3",
    ),
    "deep supervision": plain(lambda model, images: BackpropDeepSupervision(model), 2e-3, cifar="93.73 (VGG8)"),
    "backprop": backprop("over channels", PLAIN),
    "deeper-forward": Setting(
        lambda model, images: DeeperForward(model), "in groups", BY_CLASS, (0.03, 1e-3), 5e-4,
        published={
            "mnist": "99.50 (TinyCNN), 99.63 (ResNet17)",
            "fashion": "91.83 (TinyCNN), 93.13 (ResNet17)",
            "cifar": "86.22 (ResNet17)",
        },
    ),
    "backprop, in groups": backprop("in groups", BY_CLASS),
    "assignment": assignment(
        {"mnist": "99.74 (ResNet17)", "fashion": "94.55 (ResNet17)", "cifar": "89.37 (ResNet17)"}
    ),
    "assignment, regularised": assignment(regularised=True),
    "assignment, static": assignment(assignment="static"),
    "assignment, frozen": assignment(assignment="frozen"),
    "backprop, each channel": backprop("of each channel", BY_CLASS),
    "channel competition": Setting(
        lambda model, images: ChannelCompetition(model), "over the batch", BY_CLASS, (0.01, 1e-3),
        published={"mnist": "99.42", "fashion": "92.31", "cifar": "78.11"},
    ),
    "backprop, over the batch": backprop("over the batch", BY_CLASS),
}  # fmt: skip


for name in ("deeper-forward", "backprop, in groups"):
    RULES[f"{name}, 5 x 5"] = by_fives(RULES[name])

PUBLISHED_ON = {"mnist": "mnist", "fashionmnist": "fashion", "cifar10": "cifar", "cifar10jpeg": "cifar"}
"""What published figures are known by, by the name of the data set's folder."""


def network(setting: Setting, kind: str, dataset: Dataset) -> nn.Sequential:
    """Ends with a linear layer to the scores, which local rules leave out."""
    of_maps, of_vectors = NORMALISATIONS[setting.normalisation]
    if kind == "convolutional":
        by_width = partial(of_maps, dataset.num_classes)
        after_last = setting.normalisation == "over the batch"
        model = small_cnn(
            setting.channels,
            dataset.num_classes,
            image_channels=dataset.channels_first[0],
            pool_after=setting.pool_after,
            normalisation=by_width,
            normalise_last=after_last,
            kernel_size=setting.kernel_size,
        )
    else:
        layers: list[nn.Module] = []
        for n_in, n_out in zip((dataset.features, *DENSE), DENSE, strict=False):
            norm = of_vectors(dataset.num_classes, n_out)
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(DROPOUT), norm]
        if setting.normalisation != "over the batch":
            layers.pop()
        model = nn.Sequential(*layers, nn.Linear(DENSE[-1], dataset.num_classes))
    return model


def train(run: Run, dataset: Dataset, device: str, study: bool) -> Result:
    """Test accuracy in percent at the best epoch (None where training breaks down), seconds, and what layers do.

    That is their weights; the accuracy of all and of those in the best range, first to last; their study if asked for.
    """
    setting, images = RULES[run["rule"]], run["network"] == "convolutional"
    torch.manual_seed(run["seed"])
    rule = setting.rule(network(setting, run["network"], dataset), images).to(device)
    recipe = Recipe(
        epochs=run["epochs"],
        optimizer="adamw",
        learning_rate=run.get("rate", setting.rates[0 if images else 1]),
        weight_decay=run.get("decay", setting.decay),
        standardise=True,
        shift=run.get("shift", 0),
    )
    try:
        history = fit(rule, dataset, recipe=recipe, seed=run["seed"], on_epoch=show, device=device, alignment_every=0)
    except TrainingError as error:
        return {"accuracy": None, "why": str(error)}
    result = {
        "accuracy": 100 * history.test_accuracy,
        "validation": 100 * history.best.validation_accuracy,
        "seconds": mean(epoch.seconds for epoch in history.epochs),
    }
    if isinstance(rule, LocalClassifiers):
        seen = dataset.to(device, torch.float32, standardise=True)
        seen = seen.as_images() if images else seen
        if study:
            result["study"] = layer_study(rule, seen.test, seed=run["seed"])
        first, last = best_range(layer_scores(rule, seen.validation), seen.validation.labels)
        hits = range_hits(layer_scores(rule, seen.test), seen.test.labels).double() / len(seen.test.labels)
        result["weights"] = rule.aggregation.weights.tolist()
        result["all"], result["range"] = 100 * hits[0, -1].item(), 100 * hits[first, last].item()
        result["first"], result["last"] = first + 1, last + 1
    return result


def of_settings(results: list[Result], settings: Run) -> list[Result]:
    """Those of any rule, network and seed with no other settings, be they fewer or more."""
    varied = ("seed", "network", "rule")
    return [r for r in results if {name: value for name, value in r["run"].items() if name not in varied} == settings]


def layer_scores(rule: LocalClassifiers, split: Split) -> torch.Tensor:
    """(layers, samples, K)."""
    rule.eval()
    return torch.cat([rule.layer_scores(x) for x in split.images.split(1000)], dim=1)


def cell_of(results: list[Result], name: str) -> str:
    """Mean and standard deviation of that accuracy."""
    return cell([{"accuracy": result[name]} for result in results if name in result], 2)


def of_layers(results: list[Result], value: Callable[[dict[str, Any]], list[float]], digits: int) -> str:
    """The mean over seeds, first layer to last."""
    studies = [value(result["study"]) for result in results if "study" in result]
    return ", ".join(f"{mean(layer):.{digits}f}" for layer in zip(*studies, strict=True))


def summary(results: list[Result], data: str) -> str:
    """For each kind of network a table: a row for each rule, with layers first to last in a cell."""
    known = PUBLISHED_ON.get(data.lower().replace("-", "").replace("_", ""), "")
    tables = []
    for kind in ("convolutional", "dense"):
        heads = [kind, "normalised", "test accuracy, %", "validation, %", "published, %"]
        heads += ["all layers, %", "best range, %", "range", "s an epoch", "layers alone, %"]
        heads += ["disagreement, %", "any layer, %", "bits in goodness", "bits in its vector, at least (95 %)"]
        heads += ["bits in pooled features, at least"]
        rows = [heads]
        for rule, setting in RULES.items():
            found = chosen(results, rule=rule, network=kind)
            whole = [result for result in found if result["accuracy"] is not None]
            if not whole:
                continue
            row = [rule, setting.normalisation, cell(found, 2), cell_of(whole, "validation")]
            row += [setting.published.get(known, ""), cell_of(whole, "all"), cell_of(whole, "range")]
            row += [", ".join(f"{result['first']}-{result['last']}" for result in whole if "first" in result)]
            row += [f"{mean(result['seconds'] for result in whole):.1f}"]
            row += [of_layers(whole, lambda study: [100 * accuracy for accuracy in study["accuracies"]], 1)]
            row += [of_layers(whole, lambda study: [100 * study["disagreement"]], 1)]
            row += [of_layers(whole, lambda study: [100 * study["oracle"]], 1)]
            row += [
                of_layers(whole, lambda s: [x["goodness"]["nearest neighbours"]["bits"] for x in s["layers"]], 2),
                of_layers(whole, lambda s: [x["vector"].get("at_least", nan) for x in s["layers"]], 2),
                of_layers(whole, lambda s: [x["features"].get("at_least", nan) for x in s["layers"]], 2),
            ]
            rows.append(row)
        if len(rows) > 1:
            tables.append(markdown(rows))
    return "\n\n".join(tables)


def draw(results: list[Result], path: Path) -> None:
    """For each kind of network, each rule's layers alone, dark to light, all together, and what any layer guesses."""
    kinds = [kind for kind in ("convolutional", "dense") if chosen(results, network=kind)]
    figure = Figure(figsize=(7 * len(kinds), 5.5), layout="constrained")
    shades = colormaps["viridis"]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = [rule for rule in RULES if chosen(results, network=kind, rule=rule)]
        for place, rule in enumerate(names):
            found = chosen(results, network=kind, rule=rule)
            studies = [result["study"] for result in found if "study" in result]
            errors = {
                f"layer {number}": (100 - 100 * mean(layer), "o", shades(0.28 * number - 0.28))
                for number, layer in enumerate(zip(*(s["accuracies"] for s in studies), strict=True), 1)
            }
            if studies:
                errors["any layer"] = (100 - 100 * mean(s["oracle"] for s in studies), "<", "#222222")
            errors["the rule"] = (100 - mean(accuracies(found)), "D", "#d9611e")
            for label, (error, marker, colour) in errors.items():
                axes.plot(error, place, marker, color=colour, label=label)
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize="small")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(title=f"Test error, %, {kind}", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="a data set, as `prograde train --data` takes it")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--epochs", type=int, default=7, help="default: 7")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--networks", nargs="+", default=["convolutional", "dense"], choices=["convolutional", "dense"])
    names = "all by default: " + ", ".join(f'"{name}"' for name in RULES)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE", help=names)
    parser.add_argument("--rate", type=float, help="of learning; by default the rule's own, in RULES")
    parser.add_argument("--decay", type=float, help="of weights; by default the rule's own, in RULES")
    parser.add_argument("--shift", type=int, help="pixels that training images are moved by at most; by default 0")
    parser.add_argument("--study", action=argparse.BooleanOptionalAction, default=True, help="look at layers, or not")
    arguments = arguments_of(parser)
    dataset = load(arguments.data)
    settings = {"data": Path(arguments.data).name, "epochs": arguments.epochs}
    given = {name: getattr(arguments, name) for name in ("rate", "decay", "shift")}
    settings |= {name: value for name, value in given.items() if value is not None}
    runs = [
        {**settings, "seed": seed, "network": kind, "rule": rule}
        for seed in arguments.seeds
        for kind in arguments.networks
        for rule in arguments.rules
        if kind == "convolutional" or RULES[rule].kernel_size == 3
    ]
    log = arguments.folder / "local_classifiers.jsonl"
    every = run_all(runs, lambda run: train(run, dataset, arguments.device, arguments.study), log, arguments.device)
    results = of_settings(every, settings)
    draw(results, arguments.folder / "local_classifiers.png")
    print(summary(results, settings["data"]))
