"""Convolutional networks without a backward pass: FOTON and Forward Target Propagation beside backpropagation.

Every run is added to FOLDER/convolutions.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the table of `convolutions.md`.

FOTON's network is unshuffled by 2, OrthogonalConv2d 4 to 24, MaxMin, averages of 2 x 2, OrthogonalConv2d 24 to 24,
MaxMin, and a linear layer to the scores; "maxima" has MaxPool2d in the place of the averages. The network of Forward
Target Propagation has the paper's shapes: 32 kernels of 5 x 5, ReLU, maxima of 2 x 2, and a linear layer. "ftp-frozen"
trains that layer alone, on the kernels as they were drawn. SGD with momentum 0.9, the rate falling to 0 as a cosine;
the epoch is chosen on validation data. Rates, and FTP's scales, are those of RULES, chosen there with seed 0; the rates
of "maxima" are those of the averages.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from resumable import Result, Run, arguments_of, cell, chosen, interval, markdown, paired, run_all
from torch import Tensor, nn

from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.rules import Backprop, Foton, Ftp
from prograde.accelerated.rules.rule import Rule
from prograde.accelerated.training import Dataset, alignment, load


def orthogonal(dataset: Dataset, pooling: type[nn.Module] = ScaledAvgPool2d) -> nn.Sequential:
    height, width = dataset.image_shape
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        OrthogonalConv2d(4, 24, 3),
        MaxMin(),
        pooling(2),
        OrthogonalConv2d(24, 24, 3),
        MaxMin(),
        nn.Flatten(),
        nn.Linear(24 * (height // 4) * (width // 4), dataset.num_classes),
    )


def maxima(dataset: Dataset) -> nn.Sequential:
    return orthogonal(dataset, nn.MaxPool2d)


def plain(dataset: Dataset) -> nn.Sequential:
    height, width = ((side - 4) // 2 for side in dataset.image_shape)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * height * width, dataset.num_classes),
    )


class Setting(NamedTuple):
    """A network, what makes its rule, the learning rate and the batch."""

    network: Callable[[Dataset], nn.Sequential]
    rule: Callable[[nn.Module, tuple[int, int]], Rule]
    rate: float
    batch: int


RULES = {
    "backprop": Setting(orthogonal, lambda model, size: Backprop(model), 0.01, 64),
    "backprop-orthogonal": Setting(orthogonal, lambda model, size: Backprop(model, orthogonal=True), 0.05, 64),
    "foton": Setting(orthogonal, lambda model, size: Foton(model), 0.02, 64),
    "foton-linear": Setting(orthogonal, lambda model, size: Foton(model, linear=True), 0.03, 64),
    "backprop-orthogonal, maxima": Setting(maxima, lambda model, size: Backprop(model, orthogonal=True), 0.05, 64),
    "foton, maxima": Setting(maxima, lambda model, size: Foton(model), 0.02, 64),
    "foton-linear, maxima": Setting(maxima, lambda model, size: Foton(model, linear=True), 0.03, 64),
    "backprop, 5 x 5": Setting(plain, lambda model, size: Backprop(model), 0.02, 128),
    "ftp": Setting(plain, lambda model, size: Ftp(model, image_size=size, scale=1.2, by_channel=False), 0.02, 128),
    "ftp, G by channel": Setting(plain, lambda model, size: Ftp(model, image_size=size, scale=17.28), 0.02, 128),
    "ftp-frozen": Setting(plain, lambda model, size: Ftp(model, image_size=size), 0.02, 128),
}


YARDSTICKS = ("backprop-orthogonal", "backprop-orthogonal, maxima", "backprop, 5 x 5")
"""By backpropagation, one of each network."""


def accuracy(rule: Rule, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        guesses = torch.cat([rule(x).argmax(dim=1) for x in images.split(500)])
    return 100 * (guesses == labels).float().mean().item()


def train(run: Run, dataset: Dataset, device: str) -> Result:
    """Test accuracy in percent at the best epoch (None where training breaks down), and cosines at the end."""
    setting, epochs = RULES[run["rule"]], run["epochs"]
    torch.manual_seed(run["seed"])
    rule = setting.rule(setting.network(dataset), dataset.image_shape).to(device)
    optimizer = torch.optim.SGD(rule.parameters(), lr=setting.rate, momentum=0.9)
    shape = (1, *dataset.image_shape)
    (x, y), (x_held, y_held), (x_test, y_test) = (
        (part.images.unflatten(1, shape), part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(y) // setting.batch))
    frozen = [p for unit in rule.units if unit.has_maps for p in unit.parameters if run["rule"] == "ftp-frozen"]
    best, state = -1.0, copy.deepcopy(rule.state_dict())
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(setting.batch):
            rule.assign_credit(x[batch], y[batch])
            for parameter in frozen:
                parameter.grad = None
            optimizer.step()
            try:
                rule.constrain(optimizer)
            except FloatingPointError as error:
                return {"accuracy": None, "why": str(error)}
            schedule.step()
        held = accuracy(rule, x_held, y_held)
        if held > best:
            best, state = held, copy.deepcopy(rule.state_dict())
    cosines = list(alignment(rule, x[:512], y[:512]).values())
    rule.load_state_dict(state)
    return {"accuracy": accuracy(rule, x_test, y_test), "validation": best, "cosines": cosines}


def summary(results: list[Result]) -> str:
    """By the number of epochs: accuracies, what they are less backpropagation's in the same network, and cosines."""
    rows = [["rule", "epochs", "test accuracy, %", "less backpropagation", "cosine with backprop, layer by layer"]]
    for epochs in sorted({result["run"]["epochs"] for result in results}):
        alike = chosen(results, epochs=epochs)
        for rule, setting in RULES.items():
            found = chosen(alike, rule=rule)
            (first,) = (chosen(alike, rule=name) for name in YARDSTICKS if RULES[name].network is setting.network)
            if found:
                layers = zip(*(result["cosines"] for result in found if "cosines" in result), strict=True)
                cosines = ", ".join(f"{mean(layer):.2f}" for layer in layers)
                gaps = interval(paired(found, first)) if found != first else ""
                rows.append([rule, str(epochs), cell(found, 2, 3), gaps, cosines])
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    arguments = arguments_of(parser)
    dataset = load(arguments.data).to(arguments.device, torch.float32, standardise=True)
    name = Path(arguments.data).name
    plain_run = {"data": name, "epochs": arguments.epochs}
    runs = [{**plain_run, "seed": seed, "rule": rule} for seed in arguments.seeds for rule in arguments.rules]
    log, device = arguments.folder / "convolutions.jsonl", arguments.device
    results = run_all(runs, lambda run: train(run, dataset, device), log, device)
    print(summary(chosen(results, **plain_run)))
