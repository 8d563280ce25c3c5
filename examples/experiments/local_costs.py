"""What layers that are classifiers cost: a step beside backpropagation's, and scores of many classes.

    python examples/experiments/local_costs.py FOLDER

Each network's steps, and the scores of each number of classes, are added to FOLDER/local_costs.jsonl as they end; what
stands there already is not repeated. Last it prints the tables. It takes two minutes; run it with nothing beside it.

Steps: each rule and backpropagation on the same network and batch, SGD, in turns within one run; printed are the least
time of each, and the median and quartiles of its ratio to backpropagation's time in the same round. "dense" is
784-2000-2000-2000-2000-10 with batches of 128; "small" and "vgg8" are `small_cnn` and `vgg8` of
`prograde.accelerated.modules`, batches of 64 images of 28 x 28 and of 16 of 32 x 32. "in groups", "of each channel" and
"over the batch" are small ones with 40, 80, 120 and 120 channels and the normalisation of the rule's paper. All weights
have their channels last in memory, and so has what backpropagation is given: that is its faster format.

Scores: cosines to prototypes, one pass for all classes, beside Forward-Forward's goodness of each candidate label, on
784-1000-1000-1000: "one by one" takes a whole pass for each label, "in a batch" is `ForwardForward`'s own way, where
candidates share the first layer's product.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from resumable import Result, finished, markdown, run_all, stored
from torch import Tensor, nn

from prograde.accelerated.forward_forward import overlay
from prograde.accelerated.layers import activity
from prograde.accelerated.modules import small_cnn, vgg8
from prograde.accelerated.normalisations import rms_norm
from prograde.accelerated.rules import (
    Backprop,
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    ForwardForward,
    Hyperspherical,
    MonoForward,
    PatchEnergy,
    Rule,
)

Rules: TypeAlias = dict[str, Callable[[nn.Module], Rule]]
RULES: Rules = {
    "mono-forward": MonoForward,
    "hyperspherical": Hyperspherical,
    "dynamic temperature": DynamicTemperature,
    "patch energy": PatchEnergy,
}


def dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def of_classes(normalisation: Callable[[int], nn.Module], after_last: bool = False) -> Callable[[], nn.Module]:
    """A small network whose channels belong to classes."""
    return partial(small_cnn, (40, 80, 120, 120), normalisation=normalisation, normalise_last=after_last)


SMALL = (64, 1, 28, 28)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Rules]] = {
    "dense": (partial(dense, 784, 2000, 2000, 2000, 2000, 10), (128, 784), RULES),
    "small": (small_cnn, SMALL, RULES),
    "in groups": (of_classes(partial(nn.GroupNorm, 10, affine=False)), SMALL, {"deeper-forward": DeeperForward}),
    "of each channel": (of_classes(nn.InstanceNorm2d), SMALL, {"assignment": ChannelClassAssignment}),
    "over the batch": (of_classes(nn.BatchNorm2d, True), SMALL, {"channel competition": ChannelCompetition}),
    "vgg8": (partial(vgg8, dropout=0.0), (16, 3, 32, 32), RULES),
}


def in_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every task in every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def step_of(rule: Rule, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-3)

    def step() -> None:
        rule.assign_credit(x, y)
        optimizer.step()

    return step


def steps(network: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each rule, backpropagation's first."""
    make, shape, rules = NETWORKS[network]
    x, y = torch.randn(shape), torch.randint(10, shape[:1])

    def of(rule: Callable[[nn.Module], Rule]) -> Callable[[], None]:
        torch.manual_seed(0)
        return step_of(rule(make().to(memory_format=torch.channels_last)), x, y)

    return in_turns({name: of(rule) for name, rule in {"backprop": Backprop, **rules}.items()}, rounds)


@torch.no_grad()
def one_by_one(rule: ForwardForward, x: Tensor) -> Tensor:
    """The goodness of every label, a pass each: (batch, K)."""
    scores = []
    for label in range(rule.num_classes):
        z = rms_norm(overlay(x, torch.full((len(x),), label), rule.num_classes, rule.amplitude))
        goodness = torch.zeros(len(x))
        for layer in rule.layers():
            h = activity(layer.steps, layer.value(z))
            goodness += rule.goodness.value(h)
            z = rms_norm(activity(layer.outlet, h))
        scores.append(goodness)
    return torch.stack(scores, dim=1)


def scores(classes: int, rounds: int) -> dict[str, list[float]]:
    torch.manual_seed(0)
    x = torch.rand(128, 784)
    local = Hyperspherical(dense(784, 1000, 1000, 1000, classes))
    streams = ForwardForward(dense(784, 1000, 1000, 1000, classes))
    assert torch.allclose(one_by_one(streams, x), streams(x), rtol=1e-4)
    with torch.no_grad():
        tasks = {"local": lambda: local(x), "batch": lambda: streams(x), "each": lambda: one_by_one(streams, x)}
        return in_turns(tasks, rounds)


def measure(run: dict[str, Any]) -> Result:
    torch.set_num_threads(run["threads"])
    rounds = run["rounds"]
    found = scores(run["classes"], rounds) if "classes" in run else steps(run["network"], rounds)
    return {"accuracy": None, "machine": platform.machine(), "seconds": found}


def step_table(results: Sequence[Result]) -> str:
    rows = [["network", "rule", "least, ms", "of backpropagation's, median", "quartiles"]]
    for result in results:
        if network := result["run"].get("network"):
            first = result["seconds"]["backprop"]
            for name, seconds in result["seconds"].items():
                low, median, high = np.percentile(np.divide(seconds, first), [25, 50, 75])
                cells = [f"{1e3 * min(seconds):.1f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}"]
                rows.append([network, name, *cells])
    return markdown(rows)


def ratios(result: Result, way: str) -> list[float]:
    """By round, Forward-Forward's time to score to that of cosines to prototypes."""
    return [own / local for own, local in zip(*(result["seconds"][name] for name in (way, "local")), strict=True)]


def score_table(results: Sequence[Result]) -> str:
    ways = {"batch": "Forward-Forward, candidates in a batch", "each": "one by one"}
    rows = [["K", "hyperspherical, ms", *(f"{head}, ms" for head in ways.values())]]
    rows[0] += ["ratio to the batch, median (least to greatest)", "ratio to one by one"]
    for result in results:
        if classes := result["run"].get("classes"):
            row = [str(classes), *(f"{1e3 * min(result['seconds'][name]):.1f}" for name in ("local", *ways))]
            seen = [ratios(result, way) for way in ways]
            row += [f"{np.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in seen]
            rows.append(row)
    return markdown(rows)


def kept() -> list[Result]:
    return stored("local-costs/local_costs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where results go")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 50, 100], metavar="K")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    arguments = parser.parse_args()
    plain = {"rounds": arguments.rounds, "threads": arguments.threads, "seed": 0}
    runs: list[dict[str, Any]] = [{"network": network, **plain} for network in arguments.networks]
    runs += [{"classes": classes, **plain} for classes in arguments.classes]
    log = arguments.folder / "local_costs.jsonl"
    run_all(runs, measure, log)
    print(f"\n{step_table(finished(log))}\n\n{score_table(finished(log))}")
