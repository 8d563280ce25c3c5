"""Networks that people have, without a backward pass: what each rule learns in them beside backpropagation.

Every run is added to FOLDER/any_model.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the table of `any_model.md`.

Each rule has the same five learning rates of Adam, the rate falling to 0 as a cosine; the rate is chosen on the 5,000
images that are held out. "last layer alone" trains the output on the hidden layers as they were drawn: what a rule must
pass to have taught them anything.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from resumable import Result, Run, cell, chosen, markdown, run_all
from torch import nn

from prograde.accelerated.modules import ResNet, vit
from prograde.accelerated.rules import (
    Backprop,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    Ftp,
    MonoForward,
    Pepita,
    Rule,
)
from prograde.accelerated.training import load

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def mlp() -> nn.Sequential:
    """784-256-256-10 with GELU and LayerNorm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256), nn.GELU(), nn.LayerNorm(256),
        nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256),
        nn.Linear(256, 10),
    )  # fmt: skip


def resnet() -> nn.Module:
    """Nine convolutions of 16, 32 and 64 channels, with batch normalisation."""
    return ResNet(num_classes=10, image_channels=1, widths=(16, 32, 64), depths=(1, 1, 2))


def transformer() -> nn.Module:
    """Sixteen patches of 7 x 7, three blocks of width 64."""
    return vit(image_channels=1, image_size=28, patch=7, width=64, depth=3, heads=4)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "resnet": resnet, "vit": transformer}

RULES: dict[str, Callable[..., Rule]] = {
    "backprop": Backprop,
    "last layer alone": Backprop,
    "mono-forward": MonoForward,
    "dfa": DirectFeedbackAlignment,
    "drtp": DirectRandomTargetProjection,
    "drtp, centred": partial(DirectRandomTargetProjection, centred=True),
    "ftp": Ftp,
    "pepita": Pepita,
}


def accuracy(rule: Rule, images: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent."""
    rule.eval()
    with torch.no_grad():
        guesses = torch.cat([rule(x).argmax(dim=1) for x in images.split(500)])
    rule.train()
    return 100 * (guesses == labels).float().mean().item()


def train(run: Run, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> Result:
    """Accuracies on held-out and on test images, None where training breaks down; seconds an epoch."""
    (x, y), held, test = parts
    torch.manual_seed(run["seed"])
    model = NETWORKS[run["network"]]()
    kind, options = RULES[run["rule"]], {}
    if kind is not Backprop:  # which takes the model as a whole
        options = {"units": model.units() if hasattr(model, "units") else None, "example": x[:2]}
    rule = kind(model, **options)
    if run["rule"] == "last layer alone":
        *hidden, _, _ = model.parameters()
        for parameter in hidden:
            parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(rule.parameters(), run["rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["epochs"] * -(-len(y) // 128))
    start = time.perf_counter()
    for _ in range(run["epochs"]):
        for batch in torch.randperm(len(y)).split(128):
            loss = rule.assign_credit(x[batch], y[batch])
            optimizer.step()
            rule.constrain(optimizer)
            schedule.step()
        if not loss.isfinite():
            return {"accuracy": None, "validation": None}
    seconds = (time.perf_counter() - start) / run["epochs"]
    return {"accuracy": accuracy(rule, *test), "validation": accuracy(rule, *held), "seconds": seconds}


def summary(results: list[Result]) -> str:
    """Test accuracy in percent at each rule's best rate by validation, that rate, and how many were run if not all.

    A rate at which a run broke down is not taken. Rules and networks without a run are left out.
    """
    networks = [network for network in NETWORKS if chosen(results, network=network)]
    rows = [["rule", *networks]]
    for rule in (rule for rule in RULES if chosen(results, rule=rule)):
        cells = []
        for network in networks:
            found = chosen(results, rule=rule, network=network)
            by_rate = {rate: of_rate for rate in RATES if (of_rate := chosen(found, rate=rate))}
            means = {
                rate: sum(r["validation"] for r in of_rate) / len(of_rate)
                for rate, of_rate in by_rate.items()
                if all(r["accuracy"] is not None for r in of_rate)
            }
            tried = "" if len(by_rate) == len(RATES) else f"; {len(by_rate)} of {len(RATES)} rates"
            best = max(means, key=lambda rate: means[rate], default=None)
            if best is None:
                cells.append(f"broke down{tried}" if by_rate else "")
            else:
                cells.append(f"{cell(by_rate[best], digits=1)} ({best:g}{tried})")
        rows.append([rule, *cells])
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    plain = {"data": Path(arguments.data).name, "epochs": arguments.epochs}
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = load(arguments.data).to("cpu", torch.float32, standardise=True)
    parts = [
        (part.images.unflatten(1, (1, *dataset.image_shape)), part.labels)
        for part in (dataset.train, dataset.validation, dataset.test)
    ]
    runs = [
        {**plain, "seed": seed, "network": network, "rule": rule, "rate": rate}
        for seed in arguments.seeds
        for network in arguments.networks
        for rule in arguments.rules
        for rate in arguments.rates
    ]
    results = run_all(runs, lambda run: train(run, parts), arguments.folder / "any_model.jsonl")
    print(summary(chosen(results, **plain)))
