"""Networks that people have, without a backward pass: what each rule learns in them beside backpropagation.

    python examples/experiments/any_model.py data/mnist FOLDER          (two hours on one core)
    python examples/experiments/any_model.py data/mnist FOLDER --full   (nine hours, the dense network ten minutes)

Every run is added to FOLDER/any_model.jsonl as it ends, or to FOLDER/in_full.jsonl. One that stands there already is
not repeated, so that the command goes on where it was stopped. Last it prints the tables of `any_model.md`.

5,000 samples, two epochs of batches of 50, and the same five learning rates of Adam for each rule, the rate falling
to 0 as a cosine. Seed 0 runs at all five; the others run at the one that is best by seed 0 on held-out samples. "last
layer alone" trains the output on the hidden layers as they were drawn: what a rule must pass to have taught them
anything. "deep supervision" is Mono-Forward whose losses go through all layers. Images are MNIST's, averaged to
16 x 16; characters are those of Python's help topics, a text that comes with Python.

In full, there are 55,000 images as they are, in batches of 128; ResNet and vision transformer are twice as wide.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean
from typing import NamedTuple

import torch
from resumable import Result, Run, arguments_of, cell, chosen, finished, interval, markdown, paired, run_all
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from prograde.accelerated.modules import ResNet, char_transformer, vit
from prograde.accelerated.rules import (
    Backprop,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    DynamicTemperature,
    Ftp,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    Pepita,
    Rule,
)
from prograde.accelerated.training import alignment, load

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
EPOCHS = 2
CONTEXT = 16
"""Characters of a sample, each to be told from those before it."""
PROBED = 200
"""Held-out samples on whose gradient units are compared with backpropagation."""


class Scale(NamedTuple):
    """Of an experiment; an image has `size` x `size` pixels, and `width` multiplies the widths of networks."""

    samples: int
    held: int
    tested: int
    batch: int
    size: int
    width: int


SMALL = Scale(samples=5_000, held=1_000, tested=5_000, batch=50, size=16, width=1)
FULL = Scale(samples=55_000, held=5_000, tested=10_000, batch=128, size=28, width=2)


class Samples(NamedTuple):
    """Of an image its label; of a row of characters that after each."""

    x: Tensor
    y: Tensor


class Parts(NamedTuple):
    train: Samples
    held: Samples
    test: Samples


def text() -> Tensor:
    """Python's help topics as numbers of their characters."""
    whole = "\n".join(topics[name] for name in sorted(topics))
    numbers = {character: i for i, character in enumerate(sorted(set(whole)))}
    return torch.tensor([numbers[character] for character in whole])


def characters() -> Parts:
    """The first samples of the text, those after them held out, and those after these to test."""
    rows = text().unfold(0, CONTEXT + 1, CONTEXT)
    counts = [SMALL.samples, SMALL.held, SMALL.tested]
    parts = rows[: sum(counts)].split(counts)
    return Parts(*(Samples(part[:, :-1], part[:, 1:]) for part in parts))


def images(folder: str, scale: Scale) -> Parts:
    dataset = load(folder).to("cpu", torch.float32, standardise=True)
    parts = (dataset.train, scale.samples), (dataset.validation, scale.held), (dataset.test, scale.tested)
    return Parts(
        *(
            Samples(adaptive_avg_pool2d(part.images[:count].view(-1, 1, 28, 28), scale.size), part.labels[:count])
            for part, count in parts
        )
    )


def mlp(scale: Scale) -> nn.Module:
    """Two hidden layers of 256 with GELU and LayerNorm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(scale.size**2, 256), nn.GELU(), nn.LayerNorm(256),
        nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256),
        nn.Linear(256, 10),
    )  # fmt: skip


def resnet(scale: Scale) -> nn.Module:
    """Nine convolutions of 8, 16 and 32 channels, with batch normalisation."""
    widths = [scale.width * channels for channels in (8, 16, 32)]
    return ResNet(num_classes=10, image_channels=1, widths=widths, depths=(1, 1, 2))


def transformer(scale: Scale) -> nn.Module:
    """Sixteen patches, three blocks of width 32."""
    size, patch = scale.size, scale.size // 4
    return vit(image_channels=1, image_size=size, patch=patch, width=scale.width * 32, depth=3, heads=4)


def speller(scale: Scale) -> nn.Module:
    """Three causal blocks of width 32."""
    return char_transformer(int(text().max()) + 1, CONTEXT, width=scale.width * 32, depth=3, heads=4)


NETWORKS: dict[str, Callable[[Scale], nn.Module]] = {
    "mlp": mlp,
    "resnet": resnet,
    "vit": transformer,
    "characters": speller,
}
TEXT = "characters"
"""The network whose data are a text."""

RULES: dict[str, Callable[..., Rule]] = {
    "backprop": Backprop,
    "last layer alone": Backprop,
    "deep supervision": partial(MonoForward, detach=False),
    "mono-forward": MonoForward,
    "hyperspherical": Hyperspherical,
    "dynamic-temperature": partial(DynamicTemperature, grid=4),
    "ftp": Ftp,
    "pepita": Pepita,
    "dfa": DirectFeedbackAlignment,
    "drtp, centred": partial(DirectRandomTargetProjection, centred=True),
}


def accuracies(rule: Rule, samples: Samples) -> list[float]:
    """In percent: of the rule, and of each layer's scores where it has those."""
    hits = []
    with torch.no_grad():
        for x, y in zip(samples.x.split(500), samples.y.split(500), strict=True):
            if isinstance(rule, LocalClassifiers):
                _, layers, own = rule.layer_outputs(x)
            else:
                layers, own = [], rule(x)
            hits.append(
                torch.stack([(scores.argmax(dim=-1).flatten() == y.flatten()).sum() for scores in (own, *layers)])
            )
    return (100 * torch.stack(hits).sum(dim=0) / samples.y.numel()).tolist()


def train(run: Run, parts: Parts, scale: Scale) -> Result:
    """Accuracies on held-out and on test samples, and of each layer; the cosine of each unit, none for backpropagation.

    None where training breaks down, or where the rule refuses the network, and then why.
    """
    (x, y), held, test = parts
    torch.manual_seed(run["seed"])
    model, kind = NETWORKS[run["network"]](scale), RULES[run["rule"]]
    whole = kind is Backprop or not hasattr(model, "units")
    try:
        rule = kind(model, units=None if whole else model.units(), example=x[:2])
    except ValueError as error:
        return {"accuracy": None, "validation": None, "refused": str(error)}
    if run["rule"] == "last layer alone":
        *hidden, _, _ = model.parameters()
        for parameter in hidden:
            parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(rule.parameters(), run["rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run["epochs"] * -(-len(y) // scale.batch))
    for _ in range(run["epochs"]):
        for batch in torch.randperm(len(y)).split(scale.batch):
            loss = rule.assign_credit(x[batch], y[batch])
            optimizer.step()
            rule.constrain(optimizer)
            schedule.step()
        if not loss.isfinite():
            return {"accuracy": None, "validation": None}
    rule.eval()
    accuracy, *layers = accuracies(rule, test)
    found = {"accuracy": accuracy, "validation": accuracies(rule, held)[0]}
    if layers:
        found["layers"] = layers
    if kind is not Backprop:
        found["cosines"] = alignment(rule, held.x[:PROBED], held.y[:PROBED])
    return found


def best_rate(results: Iterable[Result], **row: str) -> float | None:
    """By seed 0 on held-out samples, of equals the smallest; None where no run of the row came through."""
    ended = [result for result in chosen(results, seed=0, **row) if result["validation"] is not None]
    return min((-result["validation"], result["run"]["rate"]) for result in ended)[1] if ended else None


def of_best_rate(results: list[Result], network: str, rule: str) -> list[Result]:
    rate = best_rate(results, network=network, rule=rule)
    return [] if rate is None else chosen(results, network=network, rule=rule, rate=rate)


def row_of(results: Iterable[Result], network: str, rule: str, samples: int = SMALL.samples) -> list[Run]:
    """Seed 0 at all rates, then the others at its best, or at the last of the rates where none is known."""
    plain: Run = {"samples": samples, "epochs": EPOCHS, "network": network, "rule": rule}
    best = best_rate(results, network=network, rule=rule) or RATES[-1]
    first = [{**plain, "rate": rate, "seed": SEEDS[0]} for rate in RATES]
    return first + [{**plain, "rate": best, "seed": seed} for seed in SEEDS[1:]]


def run_row(log: Path, network: str, rule: str, parts: Parts, scale: Scale) -> None:
    step = partial(train, parts=parts, scale=scale)
    found = run_all(row_of([], network, rule, scale.samples)[: len(RATES)], step, log)
    if best_rate(found, network=network, rule=rule) is not None:
        run_all(row_of(found, network, rule, scale.samples), step, log)


def of_networks(results: list[Result], about: Callable[[str, str], str]) -> str:
    """A row for each rule, a column for each network; those without a run are left out."""
    networks = [network for network in NETWORKS if chosen(results, network=network)]
    rules = [rule for rule in RULES if chosen(results, rule=rule)]
    cells = [[rule, *(about(network, rule) for network in networks)] for rule in rules]
    return markdown([["rule", *networks], *(row for row in cells if any(row[1:]))])


def summary(results: list[Result]) -> str:
    """Test accuracy in percent at each rule's best rate, and that rate; of how many rates, if not of all."""

    def about(network: str, rule: str) -> str:
        found = chosen(results, network=network, rule=rule)
        best = of_best_rate(results, network, rule)
        rates = {result["run"]["rate"] for result in found}
        tried = f"{len(rates)} of {len(RATES)} rates" if len(rates) < len(RATES) else ""
        if not best:
            refused = any("refused" in result for result in found)
            return "no" if refused else "; ".join(filter(None, ["broke down", tried])) if found else ""
        seeds = len(best)
        few = f"{seeds} seed{'s' * (seeds > 1)}" if seeds < len(SEEDS) else ""
        return f"{cell(best)} ({'; '.join(filter(None, [format(best[0]['run']['rate'], 'g'), few, tried]))})"

    return of_networks(results, about)


def differences(results: list[Result], other: str, rules: Sequence[str] = tuple(RULES)) -> str:
    """Each rule less the other, seed by seed, in points with a 95 % interval."""

    def about(network: str, rule: str) -> str:
        if rule == other or rule not in rules:
            return ""
        return interval(less(results, network, rule, other), 1)

    return of_networks(results, about)


def less(results: list[Result], network: str, rule: str, other: str) -> list[float]:
    """The rule less the other, by seed, each at its own best rate."""
    return paired(of_best_rate(results, network, rule), of_best_rate(results, network, other))


def cosines(results: list[Result]) -> str:
    """Of the first, the middle and the last hidden unit with backpropagation's gradient, means over seeds."""

    def about(network: str, rule: str) -> str:
        found = [result["cosines"] for result in of_best_rate(results, network, rule) if "cosines" in result]
        if not found:
            return ""
        names = hidden_units(results, network)
        shown = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
        return ", ".join(f"{mean(of_run[name] for of_run in found):.2f}" for name in shown)

    return of_networks(results, about)


def hidden_units(results: list[Result], network: str) -> list[str]:
    """The units that all rules have: local classifiers have scores of their own in the output's place."""
    units = [list(result["cosines"]) for result in chosen(results, network=network) if "cosines" in result]
    return [name for name in units[0] if all(name in names for names in units)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST as IDX files")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--full", action="store_true", help="all images and wider networks, of images alone")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    arguments = arguments_of(parser)
    scale, name = (FULL, "in_full") if arguments.full else (SMALL, "any_model")
    log = arguments.folder / f"{name}.jsonl"
    networks = arguments.networks or [network for network in NETWORKS if not (arguments.full and network == TEXT)]
    if arguments.full and TEXT in networks:
        parser.error(f"--full is of images, and the network {TEXT} of a text")
    of_images, of_text = images(arguments.data, scale), characters()
    for network in networks:
        for rule in arguments.rules:
            run_row(log, network, rule, of_text if network == TEXT else of_images, scale)
    results = finished(log)
    for table in (summary(results), differences(results, "backprop"), cosines(results)):
        print(f"\n{table}")
