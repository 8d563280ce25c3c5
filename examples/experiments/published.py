"""Published systems, trained as their papers say, as far as that is known.

Every run is added to FOLDER/published.jsonl as it ends, with all settings. One that stands there already is not
repeated, so that the command goes on where it was stopped. Last it prints the table of `published.md`.

The epoch is chosen on validation data, one training image in twelve. Papers often report the best epoch on test data,
which is higher. CIFAR-10 is a JPEG copy here; accuracy on it differs from that on the original by a point or so.
Convolutions have our sizes of first weights, and moved images our borders (the border repeated).

- PEPITA: batches of 64, 100 epochs, dropout 0.1, SGD at 0.1 with momentum 0.9, a tenth of it from epochs 60 and 90 on,
  pixels in 0..1, no biases, as in its authors' code.
- Forward-Forward: four layers of 2000 units, 60 epochs, labels in the first ten pixels, scores without the first layer,
  images moved by two pixels for 500 epochs, as in the paper. Not known, and ours: batch, AdamW with its rate and decay,
  theta, the labels' amplitude. "top-k" is the largest units' energy: its paper has four layers of 2000; the share of
  units, 0.02, is ours, and labels do not enter every layer. Layer collaboration: all layers; its network is not known.
  SymBa: alpha and rate are ours, chosen on moved images; its paper's are 4 and not known.
- FOTON: what its authors' code has for CIFAR-100, 256-256 with ReLU, batches of 256, 100 epochs, dropout 0.1, SGD at
  0.5, weights orthogonalised at every step by 20 Bjorck steps, no biases. What they had for MNIST, for convolutions and
  for 50 layers (but for Tanh) is not known. The convolutional network and its settings are those of `convolutions.py`;
  "slower" are those of `depth.py`, "frozen" these with hidden layers as they were drawn, but for the first.
  Backpropagation has a rate of 0.1, ours: at 0.5 it diverges.
- DTG-FF: VGG8, AdamW at 2e-4 falling to 1e-5 as a cosine, decay 1e-3, batches of 128, 400 epochs, images moved by four
  pixels, mirrored and cut out. The strength of its changes of colour and the limit on gradients are not known: none
  here. Backpropagation has the same, and deep supervision a linear classifier of means at each layer and their sum.
- CAW-Conv: ResNet-17, AdamW at 0.08 falling to 0.006 as a cosine, decay 5e-4, batches of 128, 150 epochs, temperatures
  from 10 on, entropy and orthogonality, gradients of a layer limited to 1, layers weighted by their training losses as
  in the code. Assignments begin with noise where the code has a constant, at which convolutions have no gradient. The
  frozen assignment is as drawn at a temperature of 1, since at 10 it has almost no classes.
- DeeperForward: ResNet-17, AdamW at 0.08 falling to 0.008 as a cosine, decay 5e-4, batches of 128, 150 epochs.
- HFF: neither network nor settings are known. VGG8, a margin of 0.1, four prototypes of a class, and the rest are ours.
- ASGE: VGG11, RMS pooling and a decay of 1e-4 are known; its widths, the place of poolings and the rest are ours.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from convolutions import orthogonal
from resumable import Result, Run, arguments_of, cell, markdown, paired, run_all, show, stored
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prograde.accelerated.layers import he_uniform
from prograde.accelerated.modules import ChannelNorm, resnet17, vgg8
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    ChannelClassAssignment,
    DeeperForward,
    DynamicTemperature,
    ForwardForward,
    Foton,
    Hyperspherical,
    LayerCollaboration,
    LocalClassifiers,
    PatchEnergy,
    Pepita,
    Rule,
    SymBa,
)
from prograde.accelerated.training import Callback, Dataset, Recipe, Split, TrainingError, fit, load
from prograde.accelerated.training.run import Run as Training
from prograde.accelerated.training.schedules import SCHEDULES

Network = Callable[[Dataset, float], nn.Module]
"""For a data set, with a share of the published widths."""


class System(NamedTuple):
    """A published system: its data, what was published, and how it is trained.

    `floor` is the share of the rate at the end of training; `clip` limits the gradient of each layer; `frozen` leaves
    all layers but the first and the last as they were drawn.
    """

    data: str
    published: str
    network: Network
    rule: type[Rule]
    options: dict[str, Any]
    recipe: Recipe
    floor: float = 0.0
    clip: float | None = None
    frozen: bool = False


def share_of(widths: Iterable[int], share: float, multiple: int = 1) -> list[int]:
    return [multiple * max(1, round(share * width / multiple)) for width in widths]


def dense(
    *hidden: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, dropout: float = 0.0, he: bool = True
) -> Network:
    """With He's first weights and biases of 0, or PyTorch's own."""

    def network(dataset: Dataset, share: float) -> nn.Module:
        widths = share_of(hidden, share)
        layers: list[nn.Module] = []
        for n_in, n_out in zip((dataset.features, *widths), widths, strict=False):
            layers += [nn.Linear(n_in, n_out, bias), activation(), *([nn.Dropout(dropout)] if dropout else [])]
        layers.append(nn.Linear(widths[-1], dataset.num_classes, bias))
        for linear in layers if he else ():
            if isinstance(linear, nn.Linear):
                linear.weight.data.copy_(he_uniform(tuple(linear.weight.shape)))
                if bias:
                    nn.init.zeros_(linear.bias)
        return nn.Sequential(*layers)

    return network


def vgg(normalisation: Callable[[int], nn.Module] = lambda width: ChannelNorm()) -> Network:
    def network(dataset: Dataset, share: float) -> nn.Module:
        channels = share_of((128, 256, 256, 512, 512, 512, 512), share)
        image_channels = dataset.channels_first[0]
        return vgg8(dataset.num_classes, image_channels, normalisation=normalisation, channels=channels)

    return network


def resnet(dropout: float, normalisation: Callable[[int], nn.Module] | None = None) -> Network:
    def network(dataset: Dataset, share: float) -> nn.Module:
        (first,) = share_of((100,), share, dataset.num_classes)
        planes = [first << stage for stage in range(4)]
        return resnet17(dataset.num_classes, dataset.channels_first[0], dropout, normalisation, planes)

    return network


def patches(dataset: Dataset, share: float) -> nn.Module:
    """VGG11 with means of squares in the place of other poolings."""
    widths = share_of((64, 128, 256, 256, 512, 512, 512, 512), share)
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(zip((dataset.channels_first[0], *widths), widths, strict=False)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        layers += [nn.LPPool2d(2, 2)] if index in (0, 1, 3, 5) else []
        layers.append(ChannelNorm())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], dataset.num_classes))


MNIST, CIFAR = "MNIST", "CIFAR-10"
WIDE = dense(2000, 2000, 2000, 2000)
STREAMS = Recipe(
    epochs=60, optimizer="adamw", learning_rate=1e-3, weight_decay=0.1, schedule="linear-tail", standardise=False
)
AUTHORS = Recipe(epochs=100, batch=256, learning_rate=0.5, momentum=0.0, schedule="constant")
SMALLER = replace(AUTHORS, learning_rate=0.1)
SLOWER = Recipe(epochs=30, learning_rate=0.01)
DEEP = (256,) * 49
ADAMW = Recipe(optimizer="adamw", weight_decay=5e-4, epochs=150, learning_rate=0.08)
DTG = replace(ADAMW, epochs=400, learning_rate=2e-4, weight_decay=1e-3, shift=4, flip=True, cutout=16)
READOUT = {"aggregation": "readout", "first_layer": 1, "readout_dropout": 0.2, "readout_smoothing": 0.1}
FIXED = {**READOUT, "lowest": 1.0, "highest": 1.0}
OURS = Recipe(optimizer="adamw", learning_rate=1e-3, epochs=60, shift=4, flip=True)

pepita = Recipe(epochs=100, batch=64, schedule="steps", standardise=False)
streams = partial(System, MNIST, network=WIDE, recipe=STREAMS)
deep = partial(dense, *DEEP, activation=nn.Tanh, he=False)
dtg = partial(System, CIFAR, network=vgg(), rule=DynamicTemperature, options=READOUT, recipe=DTG, floor=0.05)
caw = partial(
    System,
    CIFAR,
    network=resnet(0.1, nn.InstanceNorm2d),
    rule=ChannelClassAssignment,
    recipe=ADAMW,
    floor=0.075,
    clip=1.0,
)

SYSTEMS = {
    "pepita": System(MNIST, "98.0", dense(1024, bias=False, dropout=0.1), Pepita, {}, pepita),
    "forward-forward": streams("98.64", rule=ForwardForward, options={"first_layer": 1}),
    "forward-forward, moved": streams(
        "99.36", rule=ForwardForward, options={"first_layer": 1}, recipe=replace(STREAMS, epochs=500, shift=2)
    ),
    "layer-collaboration": streams("97.9 (Forward-Forward: 96.7)", rule=LayerCollaboration, options={}),
    "top-k": streams(
        "98.2 (squares: 65.6)", rule=ForwardForward, options={"first_layer": 1, "goodness": "top-k"}
    ),
    "symba": System(
        MNIST, "98.58", dense(1000, 1000, 1000, 1000), SymBa, {"alpha": 16.0}, replace(STREAMS, epochs=30)
    ),
    "foton": System(
        MNIST, "98.5", dense(256, 256, bias=False, dropout=0.1, he=False), Foton, {"as_published": True}, AUTHORS
    ),
    "backprop, as foton": System(MNIST, "98.5", dense(256, 256, bias=False, dropout=0.1), Backprop, {}, SMALLER),
    "foton, convolutional": System(
        MNIST, "90.69", lambda dataset, share: orthogonal(dataset), Foton, {},
        Recipe(epochs=5, batch=64, learning_rate=0.02),
    ),
    "foton, 50 layers": System(CIFAR, "75.06", deep(bias=False, dropout=0.1), Foton, {"as_published": True}, AUTHORS),
    "foton, 50 layers, slower": System(CIFAR, "75.06", deep(), Foton, {}, SLOWER),
    "foton, 50 layers, frozen": System(CIFAR, "", deep(), Foton, {}, SLOWER, frozen=True),
    "dtg-ff": dtg("91.33 (sum: 91.79)"),
    "dtg-ff, T = 1": dtg("90.61 (sum: 90.45)", options=FIXED),
    "dtg-ff, no normalisation": dtg("90.53", network=vgg(lambda width: nn.Identity())),
    "dtg-ff, deep supervision": dtg("93.73", rule=BackpropDeepSupervision, options={}),
    "dtg-ff, backprop": dtg("94.80", rule=Backprop, options={}),
    "caw": caw("89.37", options={"aggregation": "training-loss", "settings": {"temperature": 10.0}}),
    "caw, static": caw("", options={"aggregation": "training-loss", "assignment": "static"}),
    "caw, frozen": caw("", options={"aggregation": "training-loss", "assignment": "frozen"}),
    "deeper-forward": System(CIFAR, "86.22", resnet(0.2), DeeperForward, {}, ADAMW, floor=0.1),
    "hff": System(CIFAR, "83.08", vgg(), Hyperspherical, {"margin": 0.1, "per_class": 4}, OURS),
    "asge": System(CIFAR, "90.62", patches, PatchEnergy, {}, replace(OURS, weight_decay=1e-4)),
}  # fmt: skip


class Pace(Callback):
    """How much of a training is done: of its steps, or of the seconds that it may take, where that is more."""

    def __init__(self, steps: int, seconds: float | None) -> None:
        self.steps, self.seconds, self.start = steps, seconds or math.inf, math.inf

    def done(self, step: int) -> float:
        return min(1.0, max(step / self.steps, (time.perf_counter() - self.start) / self.seconds))

    def on_start(self, run: Training) -> None:
        self.start = time.perf_counter()

    def on_step(self, run: Training) -> None:
        if self.done(0) >= 1:
            run.stop("out of time")


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Accuracies in percent (None where training breaks down), epochs done, seconds of one, and all settings."""
    system = SYSTEMS[run["system"]]
    recipe = replace(system.recipe, epochs=run["epochs"])
    torch.manual_seed(run["seed"])
    rule = system.rule(system.network(dataset, run.get("width", 1.0)), **system.options).to(device)
    for unit in rule.units[1:-1] if system.frozen else ():
        unit.module.requires_grad_(False)
    trained = {name: value for name, value in asdict(recipe).items() if name not in recipe.network}
    result: Result = {
        "settings": {
            **trained, "floor": system.floor, "clip": system.clip, "frozen": system.frozen,
            "rule": system.rule.__name__, "options": system.options, "widths": [unit.width for unit in rule.units],
            "dropout": max((module.p for module in rule.modules() if isinstance(module, nn.Dropout)), default=0.0),
        },
    }  # fmt: skip
    pace = Pace(run.get("steps") or recipe.epochs * -(-len(dataset.train.labels) // recipe.batch), run.get("seconds"))

    def schedule(optimizer: Optimizer) -> LambdaLR:
        if system.clip is not None:
            clip_layers(rule, optimizer, system.clip)
        factor = SCHEDULES[recipe.schedule]
        return LambdaLR(optimizer, lambda step: system.floor + (1 - system.floor) * factor(pace.done(step)))

    try:
        history = fit(
            rule, dataset, recipe=recipe, max_steps=run.get("steps"), scheduler=schedule, callbacks=[pace],
            seed=run["seed"], device=device, on_epoch=show, alignment_every=0,
        )  # fmt: skip
    except TrainingError as error:
        return {"accuracy": None, "why": str(error), **result}
    result |= {
        "validation": 100 * history.best.validation_accuracy,
        "epoch": history.best.epoch,
        "epochs": len(history.epochs),
        "seconds": mean(epoch.seconds for epoch in history.epochs),
    }
    seen = dataset.to(device, torch.float32, recipe.standardise)
    seen = seen.as_images() if rule.wants_images else seen
    return {"accuracy": 100 * history.test_accuracy, **result, **told(rule, seen.test)}


def clip_layers(rule: Rule, optimizer: Optimizer, most: float) -> None:
    """Before each step, the norm of each layer's gradient, its score's with it, is made no larger than that."""
    assert isinstance(rule, LocalClassifiers)
    layers = [[*unit.trained, *head.parameters()] for unit, head in zip(rule.units, rule.heads, strict=True)]
    optimizer.register_step_pre_hook(lambda *_: [nn.utils.clip_grad_norm_(layer, most) for layer in layers] and None)


@torch.no_grad()
def told(rule: Rule, test: Split) -> Result:
    """Further accuracies: of all layers' goodness or scores, of each layer; and temperatures."""
    rule.eval()
    found: Result = {}
    if isinstance(rule, ForwardForward):
        rule.first_layer = 0
        found["all"] = accuracies(lambda x: rule.scores(x)[None], test)[0]
    if isinstance(rule, LocalClassifiers):
        found["layers"] = accuracies(rule.layer_scores, test)
        found["all"] = accuracies(lambda x: rule.layer_scores(x).sum(dim=0, keepdim=True), test)[0]
    if isinstance(rule, DynamicTemperature):
        spans = ((head.lowest, head.highest - head.lowest, head.alpha) for head in rule.heads)
        found["temperatures"] = [low + span * alpha.sigmoid().item() for low, span, alpha in spans]
    return found


def accuracies(scores: Callable[[Tensor], Tensor], test: Split) -> list[float]:
    """In percent, of scores (layers, batch, K)."""
    pairs = zip(test.images.split(1000), test.labels.split(1000), strict=True)
    hits: Any = sum((scores(x).argmax(dim=2) == y).sum(dim=1) for x, y in pairs)
    return [100 * count / len(test.labels) for count in hits.tolist()]


def runs_of(system: str, part: str = "accuracy") -> list[Result]:
    """Stored runs, with another of their accuracies in the place of the first."""
    return [result | {"accuracy": result.get(part)} for result in stored("published/published", system=system)]


def of(system: str, part: str = "accuracy") -> list[Result]:
    """The same at the published widths."""
    return [result for result in runs_of(system, part) if "width" not in result["run"]]


def less(system: str, other: str, part: str = "accuracy", name: str = "published network") -> dict[str, list[float]]:
    """Stored runs of one system less another's, of the same widths, epochs and precision, `paired`.

    Of several such conditions, those of most seeds: no seed counts twice. They are called by that name, with the share
    of the widths where it is less than the whole, and epochs.
    """

    def conditions(result: Result) -> tuple[Any, ...]:
        run, epochs = result["run"], result.get("epochs", 0)
        return tuple(result["settings"]["widths"]), epochs, run.get("width", 1.0), run.get("precision")

    own, others = runs_of(system, part), runs_of(other, part)
    gaps = {
        alike: paired(*([result for result in found if conditions(result) == alike] for found in (own, others)))
        for alike in dict.fromkeys(map(conditions, own))
    }
    if not any(gaps.values()):
        return {}
    (_, epochs, width, _), most = max(gaps.items(), key=lambda of_condition: len(of_condition[1]))
    return {f"{name}{f', width × {width}' if width < 1 else ''}, {epochs} epochs": most}


def length(results: Iterable[Result]) -> str:
    """How many epochs they were trained for."""
    epochs = sorted({result["epochs"] for result in results if "epochs" in result})
    return f"{' to '.join(map(str, dict.fromkeys([epochs[0], epochs[-1]])))} epochs" if epochs else ""


def alike(results: Iterable[Result]) -> list[list[Result]]:
    """Runs that differ in their seeds alone, in the order of SYSTEMS."""
    groups: dict[tuple[tuple[str, Any], ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple((k, v) for k, v in result["run"].items() if k != "seed"), []).append(result)
    return sorted(groups.values(), key=lambda found: list(SYSTEMS).index(found[0]["run"]["system"]))


def summary(results: Iterable[Result]) -> str:
    """A row for each system and its settings of the command line."""
    rows = [["system", "data", "published, %", "of epochs", "epochs", "seeds", "test accuracy, %", "validation, %"]]
    rows[0] += ["all layers, %", "minutes", "device"]
    for found in alike(results):
        run, whole = found[0]["run"], [result for result in found if result["accuracy"] is not None]
        system = SYSTEMS[run["system"]]
        name = run["system"] + (f", width × {run['width']}" if "width" in run else "")
        row = [f"`{name}`", run["data"], system.published, str(system.recipe.epochs)]
        row += [
            ", ".join(sorted({str(result["epochs"]) for result in whole}, key=int)),
            str(len(found)),
            cell(found, 2),
        ]
        row += [
            cell([{"accuracy": result[part]} for result in whole if part in result], 2)
            for part in ("validation", "all")
        ]
        minutes = mean(result["made"]["seconds"] for result in found) / 60
        rows.append([*row, f"{minutes:.1f}", found[0]["made"].get("device", "CPU")])
    return markdown(rows)


def precision(name: str | None, device: str) -> contextlib.AbstractContextManager[Any]:
    """What training runs in; products of float32 are TF32 on a GPU unless the name is float32."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("highest" if name == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = name != "float32"
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=name == "bfloat16")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="MNIST or CIFAR-10, as `prograde train --data` takes them")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    names = "by default all for such images: " + ", ".join(f'"{name}"' for name in SYSTEMS)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), metavar="SYSTEM", help=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--epochs", type=int, help="by default as published")
    parser.add_argument("--steps", type=int, help="no more steps than that, over which rates fall")
    parser.add_argument(
        "--seconds", type=float, help="no longer than that, over which rates fall, where that is sooner"
    )
    parser.add_argument("--width", type=float, help="a share of the published widths, for a small machine")
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], help="on a GPU tf32 by default")
    arguments = arguments_of(parser)
    dataset = load(arguments.data)
    kind = MNIST if dataset.channels_first[0] == 1 else CIFAR
    chosen = arguments.systems or [name for name, system in SYSTEMS.items() if system.data == kind]
    if arguments.precision is None and arguments.device.startswith("cuda"):
        arguments.precision = "tf32"
    given = {name: getattr(arguments, name) for name in ("steps", "seconds", "width", "precision")}
    settings = {name: value for name, value in given.items() if value is not None}
    runs = [
        {"data": dataset.name, "system": name, "epochs": arguments.epochs or SYSTEMS[name].recipe.epochs, **settings}
        | {"seed": seed}
        for seed in arguments.seeds
        for name in chosen
    ]
    log, device = arguments.folder / "published.jsonl", arguments.device
    with precision(arguments.precision, device):
        results = run_all(runs, lambda run: train(run, dataset, device), log, device)
    print(summary(result for result in results if result["run"] in runs))
