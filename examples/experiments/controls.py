"""Small controls on scikit-learn's digits: initial weights, kernels left as drawn, and pretrained weights under FOTON.

    python examples/experiments/controls.py FOLDER

Every run is added to FOLDER/controls.jsonl as it ends; what stands there already is not repeated. Last it prints the
tables. It takes two minutes on one core.

- weights: 20 layers of Tanh as in `which_rule.py`, at the rates chosen there, with PyTorch's own initial weights.
- kernels: the CNN of `which_rule.py`, of which the last layer alone is trained, at each of its rates with seed 0, then
  at the best on validation data.
- pretrained: networks that backpropagation trained for 15 epochs, given to `Foton(model, linear=True)`, whose
  constraint replaces hidden weights by their polar factors; SGD at 0.1 with momentum 0.9, batches of 50.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import which_rule
from resumable import Result, Run, cell, chosen, interval, markdown, paired, run_all, stored
from torch import nn

from prograde.accelerated.rules import Backprop, Foton
from prograde.accelerated.training import Dataset, load

DEEP, CNN, DEFAULT, LAST = "20 layers, Tanh", "CNN", "20 layers, Tanh, PyTorch's weights", "last layer alone"
WEIGHED = ("Backprop", "DirectFeedbackAlignment", "Foton, linear=True")


def with_own_weights() -> nn.Module:
    """As PyTorch draws them."""
    model = which_rule.NETWORKS[DEEP]()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


def of_last_layer(model: nn.Sequential) -> Backprop:
    model[:-1].requires_grad_(False)
    return Backprop(model)


PRETRAINED: dict[str, tuple[tuple[int, ...], type[nn.Module]]] = {
    "128-64, ReLU": ((128, 64), nn.ReLU),
    "64-64-64-64, ReLU": ((64,) * 4, nn.ReLU),
    "128-64, Tanh": ((128, 64), nn.Tanh),
    "64-64-64-64, Tanh": ((64,) * 4, nn.Tanh),
}
RATE, BATCH, EPOCHS = 0.1, 50, 15
FEW = 3
"""Epochs of FOTON."""


def epochs_of(rule: Backprop | Foton, digits: Dataset, epochs: int) -> list[float]:
    """Test accuracy in percent after each."""
    optimizer = torch.optim.SGD(rule.parameters(), lr=RATE, momentum=0.9)
    (x, y), found = digits.train, []
    for _epoch in range(epochs):
        for batch in torch.randperm(len(y)).split(BATCH):
            rule.assign_credit(x[batch], y[batch])
            optimizer.step()
            rule.constrain(optimizer)
        found.append(which_rule.accuracy(rule, *digits.test))
    return found


def pretrained(run: Run, digits: Dataset) -> Result:
    """Accuracies of the pretrained network, after the projection, and after epochs of FOTON on it and from scratch."""
    torch.manual_seed(run["seed"])
    widths, activation = PRETRAINED[run["network"]]
    model = which_rule.dense(widths, activation)
    scratch = Foton(which_rule.dense(widths, activation), linear=True)
    (*_, before) = epochs_of(Backprop(model), digits, EPOCHS)
    weights = [p.detach().clone() for p in model.parameters() if p.ndim == 2][:-1]
    rule = Foton(model, linear=True)
    held = [p.detach() for p in model.parameters() if p.ndim == 2][:-1]
    moved = [((new - old).norm() / old.norm()).item() for new, old in zip(held, weights, strict=True)]
    return {
        "accuracy": before,
        "moved": moved,
        "projected": which_rule.accuracy(rule, *digits.test),
        "foton": epochs_of(rule, digits, FEW),
        "scratch": epochs_of(scratch, digits, FEW),
    }


def weights_table(results: list[Result]) -> str:
    """Of 20 layers: accuracies with the weights of `which_rule.py`, which are stored, and with PyTorch's own."""
    rows = [["rule", "these weights", "PyTorch's default"]]
    for rule in WEIGHED:
        found = chosen(results, rule=rule, network=DEFAULT)
        rows.append([f"`{rule}`", cell(best(rule, DEEP), seeds=3), cell(found, seeds=3)])
    return markdown(rows)


def best(rule: str, network: str) -> list[Result]:
    """The stored runs of `which_rule.py` at the best rate."""
    known = stored("which-rule/which_rule")
    return chosen(known, rule=rule, network=network, rate=which_rule.best_rate(known, rule, network))


def kernels_table(results: list[Result]) -> str:
    """Of the CNN: each rule at its best rate, and what it is less the last layer alone."""
    last = chosen(results, rule=LAST, rate=which_rule.best_rate(results, LAST, CNN))
    rows = [["rule", "test accuracy, %", "less the last layer alone"]]
    for name, found in {"`Backprop`": best("Backprop", CNN), "`Ftp`": best("Ftp", CNN), LAST: last}.items():
        rows.append([name, cell(found, seeds=3), interval(paired(found, last), 1) if found is not last else ""])
    return markdown(rows)


def pretrained_table(results: list[Result]) -> str:
    heads = ["weights moved by, % of their norm", "pretrained", "after the projection", "one epoch of FOTON"]
    rows = [["hidden layers", *heads, f"{FEW} epochs", f"{FEW} epochs from scratch", "less from scratch"]]
    for network in PRETRAINED:
        found = chosen(results, network=network)
        of_each = [
            (100 * mean(r["moved"]), r["accuracy"], r["projected"], r["foton"][0], r["foton"][-1], r["scratch"][-1])
            for r in found
        ]
        columns = zip(*of_each, strict=True)
        cells = [cell([{"accuracy": value} for value in column], seeds=3) for column in columns]
        rows.append([network, *cells, interval([r["foton"][-1] - r["scratch"][-1] for r in found], 1)])
    return markdown(rows)


def kept() -> list[Result]:
    return stored("controls/controls")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=which_rule.EPOCHS, help="of initial weights and of kernels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    which_rule.NETWORKS[DEFAULT] = with_own_weights
    which_rule.RULES[LAST] = which_rule.Candidate(of_last_layer)
    digits, log = load("digits"), arguments.folder / "controls.jsonl"
    flat = digits.to("cpu", torch.float32, standardise=True)

    def train(run: Run) -> Result:
        return which_rule.train(run, digits) if "rule" in run else pretrained(run, flat)

    def all_of(rule: str, network: str, rates: tuple[Any, ...], seeds: list[int]) -> list[Result]:
        plain = {"rule": rule, "network": network, "epochs": arguments.epochs}
        return run_all([{**plain, "rate": rate, "seed": seed} for rate in rates for seed in seeds], train, log)

    known = stored("which-rule/which_rule")
    for rule in WEIGHED:
        all_of(rule, DEFAULT, (which_rule.best_rate(known, rule, DEEP),), arguments.seeds)
    seen = all_of(LAST, CNN, which_rule.SGD[1], arguments.seeds[:1])
    all_of(LAST, CNN, (which_rule.best_rate(seen, LAST, CNN),), arguments.seeds)
    results = run_all([{"network": name, "seed": seed} for name in PRETRAINED for seed in arguments.seeds], train, log)
    print("\n\n".join(table(results) for table in (weights_table, kernels_table, pretrained_table)))
