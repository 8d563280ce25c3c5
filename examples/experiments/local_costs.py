"""What layers that are classifiers cost: a step beside backpropagation's, and scores of many classes.

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
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
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


def steps(network: str, rounds: int) -> list[str]:
    make, shape, rules = NETWORKS[network]
    x, y = torch.randn(shape), torch.randint(10, shape[:1])

    def of(rule: Callable[[nn.Module], Rule]) -> Callable[[], None]:
        torch.manual_seed(0)
        return step_of(rule(make().to(memory_format=torch.channels_last)), x, y)

    found = in_turns({name: of(rule) for name, rule in {"backprop": Backprop, **rules}.items()}, rounds)
    lines = []
    for name, seconds in found.items():
        low, median, high = np.percentile(np.divide(seconds, found["backprop"]), [25, 50, 75])
        lines.append(f"| {network} | {name} | {1e3 * min(seconds):.1f} | {median:.2f} | {low:.2f} to {high:.2f} |")
    return lines


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


def scores(classes: int, rounds: int) -> str:
    torch.manual_seed(0)
    x = torch.rand(128, 784)
    local = Hyperspherical(dense(784, 1000, 1000, 1000, classes))
    streams = ForwardForward(dense(784, 1000, 1000, 1000, classes))
    assert torch.allclose(one_by_one(streams, x), streams(x), rtol=1e-4)
    with torch.no_grad():
        tasks = {"local": lambda: local(x), "batch": lambda: streams(x), "each": lambda: one_by_one(streams, x)}
        seconds = {name: min(found) for name, found in in_turns(tasks, rounds).items()}
    local_time, batch, each = (1e3 * seconds[name] for name in ("local", "batch", "each"))
    return (
        f"| {classes} | {local_time:.1f} | {batch:.0f} | {each:.0f} | {batch / local_time:.0f} | "
        f"{each / local_time:.0f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 50, 100], metavar="K")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.networks:
        print("| network | rule | least, ms | of backpropagation's, median | quartiles |")
        print("| --- | --- | --- | --- | --- |")
        for network in arguments.networks:
            print("\n".join(steps(network, arguments.rounds)), flush=True)
        print()
    if arguments.classes:
        heads = ["K", "hyperspherical, ms", "forward-forward in a batch, ms", "one by one, ms", "ratio", "ratio"]
        print(f"| {' | '.join(heads)} |\n|" + " --- |" * len(heads))
        for classes in arguments.classes:
            print(scores(classes, max(3, arguments.rounds // 4)), flush=True)
