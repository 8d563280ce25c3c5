"""Which rule trains which network, with which learning rate: every rule on every network, on the digits.

    python examples/experiments/which_rule.py FOLDER            (two to three hours on one core)
    python examples/experiments/which_rule.py FOLDER --quick    (half a minute: one seed, one rate, two epochs)

Every run is added to FOLDER/which_rule.jsonl as it ends; the command continues where it was stopped, and prints the
table at the end. Why a rule refuses a network stands in the file, as "refused". The rate is the best of the grid for
validation accuracy with seed 0, after the last epoch. SGD has momentum 0.9, and every rate falls to 0 as a cosine. Test
accuracies are of the last epoch.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from resumable import Result, Run, accuracies, cell, chosen, markdown, run_all
from torch import Tensor, nn

from prograde.accelerated import rules
from prograde.accelerated.local_classifiers import Shortcut
from prograde.accelerated.modules import OrthogonalConv2d, RecurrentNetwork, ScaledAvgPool2d, ShortcutNetwork
from prograde.accelerated.rules import CreditAssignment
from prograde.accelerated.training import Dataset, load

SEEDS = (0, 1, 2)
SGD = ("sgd", (1.0, 0.3, 0.1, 0.03, 0.01, 0.003))
ADAM = ("adam", (0.3, 0.1, 0.03, 0.01, 0.003, 0.001))
EPOCHS, BATCH = 15, 50
CHANCE = 20.0
"""Test accuracy in % below which a network counts as not trained; guessing gives 10."""


@dataclass(frozen=True)
class Candidate:
    """How a rule is made from a model, its optimizer, and the rates to choose from."""

    make: Callable[..., Any]
    grid: tuple[str, tuple[float, ...]] = SGD
    raw: bool = False
    """Whether pixels stay in 0..1, as rules want that write the label over them."""
    convolutional: dict[str, Any] | None = None
    """Options that the rule needs with Conv2d."""
    recurrent: Callable[..., Any] | None = None
    whole: Callable[..., Any] | None = None
    """What stands in for the rule where normalisation or shortcuts make it refuse."""
    row: str | None = None
    """What the table calls it, if not by the rule's name."""


RULES = {
    "Backprop": Candidate(
        rules.Backprop,
        recurrent=rules.BackpropThroughTime,
        whole=rules.Backprop,
        row="backpropagation",
    ),
    "Foton": Candidate(rules.Foton),
    "Foton, linear=True": Candidate(partial(rules.Foton, linear=True)),
    "Ftp": Candidate(
        rules.Ftp,
        recurrent=partial(rules.RecurrentFtp, inject="every", reduction="mean"),
    ),
    "Pepita": Candidate(rules.Pepita, raw=True),
    "FeedbackAlignment": Candidate(rules.FeedbackAlignment),
    "DirectFeedbackAlignment": Candidate(rules.DirectFeedbackAlignment),
    "DirectRandomTargetProjection": Candidate(rules.DirectRandomTargetProjection),
    "DifferenceTargetPropagation": Candidate(rules.DifferenceTargetPropagation),
    "ForwardForward": Candidate(rules.ForwardForward, ADAM, raw=True, convolutional={"goodness": "mean-square"}),
    "SymBa": Candidate(rules.SymBa, ADAM, raw=True),
    "MonoForward": Candidate(rules.MonoForward, ADAM),
    "Hyperspherical": Candidate(rules.Hyperspherical, ADAM),
    "DynamicTemperature": Candidate(rules.DynamicTemperature, ADAM, convolutional={"grid": 4}),
    "DeeperForward": Candidate(rules.DeeperForward, ADAM),
    "ChannelCompetition": Candidate(rules.ChannelCompetition, ADAM),
    "ChannelClassAssignment": Candidate(rules.ChannelClassAssignment, ADAM),
}


def dense(widths: tuple[int, ...], activation: type[nn.Module], normalise: bool = False) -> nn.Sequential:
    """He's initial weights with ReLU, orthogonal ones with Tanh."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip((64, *widths), widths, strict=False):
        layers += [started(nn.Linear(n_in, n_out), activation)]
        layers += [nn.BatchNorm1d(n_out), activation()] if normalise else [activation()]
    return nn.Sequential(*layers, started(nn.Linear(widths[-1], 10), nn.ReLU))


def started(layer: nn.Linear | nn.Conv2d, activation: type[nn.Module]) -> nn.Module:
    initialise = (
        nn.init.orthogonal_ if activation is nn.Tanh else partial(nn.init.kaiming_uniform_, nonlinearity="relu")
    )
    initialise(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def convolution(n_in: int, n_out: int) -> nn.Module:
    return started(nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU)


def head() -> list[nn.Module]:
    return [nn.Flatten(), started(nn.Linear(40 * 4, 10), nn.ReLU)]


def cnn(normalise: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in ((1, 20), (20, 40)):
        layers += [
            convolution(n_in, n_out),
            *([nn.BatchNorm2d(n_out)] if normalise else []),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, *head())


def orthogonal_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.PixelUnshuffle(2), OrthogonalConv2d(4, 20, 3), nn.Tanh(), ScaledAvgPool2d(2),
        OrthogonalConv2d(20, 40, 3), nn.Tanh(), *head(),
    )  # fmt: skip


class Residual(nn.Module):
    """A residual block of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(convolution(20, 20), nn.ReLU(), convolution(20, 20))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual_block() -> nn.Sequential:
    return nn.Sequential(
        convolution(1, 20), nn.ReLU(), Residual(), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(80, 10)
    )


def shortcuts() -> ShortcutNetwork:
    widths = ((1, 20), (20, 20), (20, 20), (20, 40), (40, 40), (40, 40))
    blocks = [nn.Sequential(convolution(*pair), nn.ReLU(), nn.BatchNorm2d(pair[1])) for pair in widths]
    blocks[2].append(nn.MaxPool2d(2))
    joins = [Shortcut(0, 1, "add"), Shortcut(3, 5, "add")]
    return ShortcutNetwork(nn.Identity(), blocks, joins, nn.Sequential(nn.MaxPool2d(2), *head()))


def transformer() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (8, 8)), layer, nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP, ReLU": partial(dense, (120, 60), nn.ReLU),
    "MLP, Tanh": partial(dense, (120, 60), nn.Tanh),
    "20 layers, ReLU": partial(dense, (60,) * 19, nn.ReLU),
    "20 layers, Tanh": partial(dense, (60,) * 19, nn.Tanh),
    "CNN": cnn,
    "CNN, orthogonal": orthogonal_cnn,
    "MLP, BatchNorm": partial(dense, (120, 60), nn.ReLU, normalise=True),
    "CNN, BatchNorm": partial(cnn, normalise=True),
    "residual block": residual_block,
    "ShortcutNetwork": shortcuts,
    "transformer": transformer,
    "RecurrentNetwork": partial(RecurrentNetwork, 8, 32, 10),
}
IMAGES = ("CNN", "CNN, orthogonal", "CNN, BatchNorm", "residual block", "ShortcutNetwork")


def build(name: str, network: str, example: Tensor) -> CreditAssignment:
    """Raises ValueError where the rule can't train the network. Sizes are those of the example, a batch."""
    candidate, model = RULES[name], NETWORKS[network]()
    if network == "RecurrentNetwork" and candidate.recurrent is not None:
        return candidate.recurrent(model)
    options = dict(candidate.convolutional or {}) if network in IMAGES else {}
    if "example" in signature(candidate.make).parameters:
        options["example"] = example
    try:
        return candidate.make(model, **options)
    except ValueError:
        if candidate.whole is None:
            raise
        return candidate.whole(model)


def inputs(images: Tensor, network: str) -> Tensor:
    """(batch, 1, 8, 8), rows as steps, or flat."""
    if network == "RecurrentNetwork":
        return images.flatten(1).unflatten(1, (8, 8))
    return images.flatten(1).unflatten(1, (1, 8, 8)) if network in IMAGES else images.flatten(1)


def train(run: Run, data: Dataset) -> Result:
    """Validation and test accuracy in %; None and why, where the rule refuses the network or training breaks down."""
    candidate, network = RULES[run["rule"]], run["network"]
    data = data.to("cpu", torch.float32, standardise=not candidate.raw)
    x, y = inputs(data.train.images, network), data.train.labels
    torch.manual_seed(run["seed"])
    try:
        rule = build(run["rule"], network, x[:2])
    except ValueError as error:
        return {"accuracy": None, "refused": str(error)}
    optimizer: torch.optim.Optimizer
    if candidate.grid[0] == "sgd":
        optimizer = torch.optim.SGD(rule.parameters(), lr=run["rate"], momentum=0.9)
    else:
        optimizer = torch.optim.Adam(rule.parameters(), lr=run["rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["epochs"])
    held = inputs(data.validation.images, network), data.validation.labels
    try:
        for _epoch in range(run["epochs"]):
            for batch in torch.randperm(len(y)).split(BATCH):
                if len(batch) == BATCH:
                    rule.assign_credit(x[batch], y[batch])
                    optimizer.step()
                    rule.constrain(optimizer)
            schedule.step()
            rule.calibrate([held])
    except (FloatingPointError, ValueError) as error:
        return {"accuracy": 10.0, "validation": 10.0, "why": str(error)}
    rule.eval()
    return {
        "accuracy": accuracy(rule, inputs(data.test.images, network), data.test.labels),
        "validation": accuracy(rule, *held),
    }


@torch.no_grad()
def accuracy(rule: CreditAssignment, x: Tensor, y: Tensor) -> float:
    return 100 * (rule(x).argmax(dim=1) == y).float().mean().item()


def best_rate(results: list[Result], rule: str, network: str) -> float | None:
    """None where the rule refuses the network."""
    trained = [r for r in chosen(results, rule=rule, network=network, seed=0) if r["accuracy"] is not None]
    return max(trained, key=lambda r: r["validation"])["run"]["rate"] if trained else None


def summary(results: list[Result], names: list[str], networks: list[str]) -> str:
    """Test accuracy in %, and the rate; "no" is a refusal, "fails" less than CHANCE at every rate."""
    rows = [["rule", "optimizer", *networks]]
    for name in names:
        cells = []
        for network in networks:
            rate = best_rate(results, name, network)
            found = [] if rate is None else chosen(results, rule=name, network=network, rate=rate)
            if not found:
                cells.append("no")
            elif max(accuracies(found)) < CHANCE:
                cells.append("fails")
            else:
                cells.append(f"{cell(found)} ({rate:g})")
        optimizer = {"sgd": "SGD, momentum 0.9", "adam": "Adam"}[RULES[name].grid[0]]
        rows.append([RULES[name].row or f"`{name}`", optimizer, *cells])
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--quick", action="store_true", help="one seed, one rate, two epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits, epochs = load("digits"), 2 if options.quick else EPOCHS

    def run_pairs(rates: Callable[[str, str], tuple[float, ...]], seeds: tuple[int, ...]) -> list[Result]:
        runs = [
            {"rule": name, "network": network, "rate": rate, "seed": seed, "epochs": epochs}
            for network in options.networks
            for name in options.rules
            for rate in rates(name, network)
            for seed in seeds
        ]
        found = run_all(runs, lambda run: train(run, digits), options.folder / "which_rule.jsonl")
        return chosen(found, epochs=epochs)

    def chosen_rate(name: str, network: str) -> tuple[float, ...]:
        rate = best_rate(seen, name, network)
        return () if rate is None else (rate,)

    seen = run_pairs(lambda name, network: RULES[name].grid[1][3:4] if options.quick else RULES[name].grid[1], (0,))
    if not options.quick:
        seen = run_pairs(chosen_rate, SEEDS)
    print(summary(seen, options.rules, options.networks))
