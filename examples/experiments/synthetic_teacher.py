"""Layers that guess labels beside backpropagation, on labels of a random network: the synthetic study of DTG-FF.

Every run is added to FOLDER/synthetic_teacher.jsonl as it ends. One that stands there already is not repeated, so that
the command goes on where it was stopped. Last it draws FOLDER/synthetic_teacher.png and prints tables.

As in the study (arXiv 2606.06539, 3.2 and app. E): a teacher of three layers with ReLU, 50 Gaussian inputs, hidden
widths of 128 and K random outputs, of which the greatest is the label; another one for every seed; 20,000 samples to
train, 5,000 to test; students of four layers of 128 with biases; Adam at 1e-3, batches of 256, 8000 steps; five seeds;
5 to 50 classes. Four methods: "dtg", every layer apart with a cross-entropy of its own, on a fixed random read-out of
its squares at a learned temperature; "deep supervision", a linear map at every layer, the sum of the losses by
backpropagation; "backprop", one linear map behind the last layer; "ensemble", four of these, whose probabilities are
averaged. The first two add up the scores of all layers. Differences are paired: same K, same seed.

Not said there, and chosen here:
- The teacher: 50-128-128-K, He's normal weights, no biases. Its outputs have means of their own, so that classes are of
  very different sizes, and some are empty: the table says how much. `--teacher centred` takes each output's mean over
  the samples off, after which classes are about equal; `--teacher pytorch` has the weights and biases of nn.Linear.
- A seed's inputs and hidden layers are the same for every K; the first 20,000 samples are for training. Its students
  start from nn.Linear's weights drawn from the same seed, and all see the same batches: each epoch in a new order,
  without the incomplete batch. Nets of the ensemble differ in their first weights alone.
- Temperatures lie between 0.1 and 2, the bounds of the paper's dense networks, whose layers have another loss. The loss
  here is that of its convolutional ones, with bounds of 0.5 and 2.
- What a layer of "dtg" passes on is normalised over its units, as in the paper's convolutional networks; the other
  students have no normalisation, unless `--normalise all` gives it to them too, or `--normalise none` takes it from
  "dtg". The published numbers of parameters leave room only for one without parameters.
- Accuracies are those after the last step, on all samples of a part; nothing is chosen on the test samples. Of its
  networks for images, the paper too evaluates the last epoch.

The study specifies beforehand that K of 30 and 50 are compared with K of 5 to 20: the mean difference between dtg and
deep supervision in the 10 runs there, less that in the 20 runs here. Two 95 % bootstrap intervals are printed. One is
the published one: it resamples the runs of each group with replacement, 10,000 times, from seed 42, here of NumPy's
default generator. It takes runs for independent; those of one seed are not, which share inputs and the teacher's hidden
layers here. The other resamples the seeds, each with all of its K: of five there are 3125 resamples, and all are taken.
Five seeds are few for either.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from resumable import Result, Run, cell, chosen, interval, markdown, run_all
from torch import Tensor, nn

from prograde.accelerated.modules import ChannelNorm
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEnsemble,
    DynamicTemperature,
    Rule,
)

INPUTS, WIDTH, DEPTH = 50, 128, 4
TRAIN, TEST, BATCH, RATE = 20_000, 5_000, 256, 1e-3
NETS = 4
SEEDS = [42, 123, 456, 789, 1024]
CLASSES = [5, 10, 15, 20, 30, 50]
LOW, HIGH = [5, 10, 15, 20], [30, 50]
METHODS = {"dtg": "#d9611e", "deep supervision": "#0b6fb8", "backprop": "#222222", "ensemble": "#9a9a9a"}
"""With their colours."""
PUBLISHED = {5: -0.23, 10: 0.84, 50: 2.00}
"""Points by which dtg is above deep supervision."""
PUBLISHED_MEANS = "+0.41 at low K, +1.78 at high K: +1.37 [0.59, 2.15]"
MEASURED_EVERY = 1000
RESAMPLES, RESAMPLING_SEED = 10_000, 42
"""As published."""
ALL_RESAMPLES = 5
"""Seeds of which every resample is taken, 3125; of more it is RESAMPLES of them."""


class Data(NamedTuple):
    """The first TRAIN samples, and the others."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def teacher_data(classes: int, seed: int, teacher: str) -> Data:
    generator = torch.Generator().manual_seed(seed)
    h = x = torch.randn(TRAIN + TEST, INPUTS, generator=generator)
    for n_in, n_out in ((INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, classes)):
        if teacher == "pytorch":
            weight, bias = ((2 * torch.rand(n_out, n, generator=generator) - 1) * n_in**-0.5 for n in (n_in, 1))
            h = h @ weight.T + bias.T
        else:
            h = h @ torch.randn(n_out, n_in, generator=generator).T * (2 / n_in) ** 0.5
        h = h.relu() if n_out == WIDTH else h
    y = (h - h.mean(dim=0) if teacher == "centred" else h).argmax(dim=1)
    return Data(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def hidden(normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in in (INPUTS, *[WIDTH] * (DEPTH - 1)):
        layers += [nn.Linear(n_in, WIDTH), nn.ReLU()]
        if normalised:
            layers.append(ChannelNorm())
    return nn.Sequential(*layers[: len(layers) - normalised])


def student(method: str, classes: int, normalise: str) -> Rule:
    """Weights are drawn from PyTorch's generator."""

    def whole() -> nn.Sequential:
        return nn.Sequential(*hidden(normalise == "all"), nn.Linear(WIDTH, classes))

    match method:
        case "dtg":
            return DynamicTemperature(hidden(normalise != "none"), lowest=0.1, highest=2.0, num_classes=classes)
        case "deep supervision":
            return BackpropDeepSupervision(hidden(normalise == "all"), num_classes=classes)
        case "backprop":
            return Backprop(whole())
        case _:
            return BackpropEnsemble([whole() for _ in range(NETS)])


def batches(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(TRAIN, generator=generator)[: TRAIN // BATCH * BATCH].split(BATCH)


@torch.no_grad()
def accuracy(rule: Rule, x: Tensor, y: Tensor) -> float:
    guesses = torch.cat([rule(part).argmax(dim=1) for part in x.split(1000)])
    return 100 * (guesses == y).double().mean().item()


def train(run: Run) -> Result:
    """Accuracies in percent on test and training samples, every so many steps too, and what the labels are like."""
    data = teacher_data(run["classes"], run["seed"], run["teacher"])
    torch.manual_seed(run["seed"])
    rule = student(run["method"], run["classes"], run["normalise"])
    optimizer = torch.optim.Adam(rule.parameters(), lr=RATE, fused=True)
    curve, seconds, start = [], 0.0, time.perf_counter()
    for step, batch in zip(range(1, run["steps"] + 1), batches(run["seed"]), strict=False):
        rule.assign_credit(data.x[batch], data.y[batch])
        optimizer.step()
        if step % MEASURED_EVERY == 0 or step == run["steps"]:
            seconds += time.perf_counter() - start
            curve.append([step, accuracy(rule, data.x, data.y), accuracy(rule, data.x_test, data.y_test)])
            start = time.perf_counter()
    shares = torch.bincount(data.y, minlength=run["classes"]) / TRAIN
    return {
        "accuracy": curve[-1][2],
        "train": curve[-1][1],
        "curve": curve,
        "parameters": sum(parameter.numel() for parameter in rule.parameters()),
        "milliseconds": 1e3 * seconds / run["steps"],
        "largest": shares.max().item(),
        "empty": int((shares == 0).sum()),
        "equal": torch.special.entr(shares).sum().exp().item(),
    }


def differences(results: Sequence[Result], other: str = "deep supervision") -> dict[int, dict[int, float]]:
    """By K and seed, in points of test accuracy, where both have run."""
    found: dict[int, dict[int, float]] = {}
    for result in chosen(results, method="dtg"):
        classes, seed = result["run"]["classes"], result["run"]["seed"]
        for control in chosen(results, method=other, classes=classes, seed=seed):
            found.setdefault(classes, {})[seed] = result["accuracy"] - control["accuracy"]
    return found


def intervals(table: NDArray[np.float64], high: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the mean at high K less that at low K, of (seeds, classes), by what is resampled.

    One seed leaves nothing to resample: NaN.
    """
    seeds = len(table)
    groups = [table[:, high].ravel(), table[:, ~high].ravel()]
    generator = np.random.default_rng(RESAMPLING_SEED)
    runs = [generator.choice(group, (RESAMPLES, len(group))).mean(axis=1) for group in groups]
    of_seeds = np.array([table[:, part].mean(axis=1) for part in (high, ~high)])  # (2, seeds)
    drawn = generator.integers(seeds, size=(RESAMPLES, seeds))
    if seeds <= ALL_RESAMPLES:
        drawn = np.array(list(product(range(seeds), repeat=seeds)))
    resampled = {"runs": runs, "seeds": of_seeds[:, drawn].mean(axis=2) if seeds > 1 else [np.nan, np.nan]}
    return {
        name: (float(low), float(top))
        for name, (above, below) in resampled.items()
        for low, top in [np.percentile(np.subtract(above, below), [2.5, 97.5])]
    }


def signed(values: Sequence[float]) -> str:
    return f"{mean(values):+.2f} ({sum(value > 0 for value in values)} of {len(values)} above)"


def compared(results: list[Result]) -> str:
    """Accuracies by K, and dtg less each of the others."""
    used = [k for k in CLASSES if chosen(results, classes=k)]
    found = {other: differences(results, other) for other in METHODS if other != "dtg"}
    heads = ["K", *(f"{method}, %" for method in METHODS), "dtg less deep supervision", "published"]
    rows = [[*heads, "dtg less backprop", "dtg less ensemble"]]
    for k in used:
        row = [str(k), *(cell(chosen(results, classes=k, method=method), 2) for method in METHODS)]
        for other, by_class in found.items():
            row.append(signed(list(by_class[k].values())) if k in by_class else "")
            if other == "deep supervision":
                row.append(f"{PUBLISHED[k]:+.2f}" if k in PUBLISHED else "")
        rows.append(row)
    return markdown(rows)


def is_normalised(run: Run) -> bool:
    return run["normalise"] == "all" or (run["normalise"] == "dtg" and run["method"] == "dtg")


NORMALISED = {"both normalised": (True, True), "neither": (False, False), "dtg normalised alone": (True, False)}
"""Whether dtg is, and deep supervision."""


def gaps_by_normalisation(results: list[Result]) -> dict[str, dict[int, dict[int, float]]]:
    """dtg less deep supervision by normalisation, K and seed, where both are stored.

    After as many steps as the shortest runs have: a longer run goes through the same.
    """
    steps = min(result["run"]["steps"] for result in results)

    def by_seed(k: int, method: str, normalised: bool) -> dict[int, float]:
        runs = [r for r in chosen(results, method=method, classes=k) if is_normalised(r["run"]) == normalised]
        return {r["run"]["seed"]: test for r in runs for step, _, test in r["curve"] if step == steps}

    found: dict[str, dict[int, dict[int, float]]] = {name: {} for name in NORMALISED}
    for name, (first, second) in NORMALISED.items():
        for k in CLASSES:
            own, other = by_seed(k, "dtg", first), by_seed(k, "deep supervision", second)
            found[name][k] = {seed: own[seed] - other[seed] for seed in own if seed in other}
    return found


def contrasts(results: list[Result]) -> dict[str, list[float]]:
    """By normalisation and seed: that difference at the most classes less the one at the fewest."""
    gaps = gaps_by_normalisation(results)
    ends = {name: (by_class[CLASSES[0]], by_class[CLASSES[-1]]) for name, by_class in gaps.items()}
    return {name: [many[seed] - few[seed] for seed in few if seed in many] for name, (few, many) in ends.items()}


def by_normalisation(results: list[Result]) -> str:
    """In points with intervals over the seeds, of the K that were run in more than one way."""
    gaps = gaps_by_normalisation(results)
    rows = [[f"K, {min(result['run']['steps'] for result in results)} steps", *NORMALISED]]
    used = [k for k in CLASSES if gaps["both normalised"][k] or gaps["neither"][k]]
    rows += [[str(k), *(interval(list(by_class[k].values())) for by_class in gaps.values())] for k in used]
    ends = contrasts(results)
    if any(ends.values()):
        rows.append([f"{CLASSES[-1]} less {CLASSES[0]}", *map(interval, ends.values())])
    return markdown(rows)


def summary(results: list[Result]) -> str:
    """What is compared by K; then the labels, the sizes, gaps and times of students; then high K against low."""
    used = [k for k in CLASSES if chosen(results, classes=k)]
    tables = [compared(results)]
    heads = ["K", "largest class, %", "empty classes", "classes, if equal", *(f"{m}, parameters" for m in METHODS)]
    heads += [f"{method}, train less test" for method in METHODS]
    rows = [[*heads, *(f"{method}, ms a step" for method in METHODS)]]
    for k in used:
        here = chosen(results, classes=k)
        row = [str(k), f"{100 * mean(r['largest'] for r in here):.0f}"]
        row += [f"{mean(r[name] for r in here):.1f}" for name in ("empty", "equal")]
        of_methods = [chosen(here, method=method) for method in METHODS]
        row += [f"{runs[0]['parameters']:,}" if runs else "" for runs in of_methods]
        row += [f"{mean(r['train'] - r['accuracy'] for r in runs):.1f}" if runs else "" for runs in of_methods]
        row += [f"{mean(r['milliseconds'] for r in runs):.2f}" if runs else "" for runs in of_methods]
        rows.append(row)
    tables.append(markdown(rows))
    by_class = differences(results)
    complete = [k for k in used if by_class.get(k, {}).keys() == by_class.get(used[0], {}).keys() != set()]
    if any(k in LOW for k in complete) and any(k in HIGH for k in complete):
        table = np.array([[by_class[k][seed] for k in complete] for seed in sorted(by_class[complete[0]])])
        high = np.array([k in HIGH for k in complete])
        means = table[:, ~high].mean(), table[:, high].mean()
        low_used, high_used = (", ".join(str(k) for k in complete if k in part) for part in (LOW, HIGH))
        text = f"{means[0]:+.2f} at low K ({low_used}), {means[1]:+.2f} at high K ({high_used})"
        spans = {name: f"[{low:.2f}, {top:.2f}]" for name, (low, top) in intervals(table, high).items()}
        text = f"dtg less deep supervision: {text}: {means[1] - means[0]:+.2f} {spans['runs']} resampling runs, as "
        text += f"published ({PUBLISHED_MEANS})"
        if len(table) > 1:
            text += f"; {spans['seeds']} resampling seeds, each with all its K"
        tables.append(text)
    return "\n\n".join(tables)


def draw(results: list[Result], path: Path) -> None:
    """The paired differences by K, seed by seed; test accuracy; and by how much it is below that in training."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    found = differences(results)
    used = [k for k in CLASSES if k in found]
    for k in used:
        first.plot([k] * len(found[k]), list(found[k].values()), "o", color=METHODS["dtg"], markersize=4, alpha=0.5)
    first.plot(used, [mean(found[k].values()) for k in used], color=METHODS["dtg"], label="mean; points are seeds")
    first.plot(list(PUBLISHED), list(PUBLISHED.values()), "D", color="#222222", markersize=6, label="published")
    first.axhline(0, color="#888888", linewidth=0.8)
    first.set(title="dtg less deep supervision, points", xlabel="classes")
    for method, colour in METHODS.items():
        runs = {k: chosen(results, method=method, classes=k) for k in CLASSES}
        seen = [k for k, of_class in runs.items() if of_class]
        values = [[r["accuracy"] for r in runs[k]] for k in seen]
        spreads = [np.std(v) for v in values]  # as many seeds of one K as there are
        second.errorbar(seen, [mean(v) for v in values], spreads, color=colour, label=method, marker=".", capsize=2)
        gaps = [mean(r["train"] - r["accuracy"] for r in runs[k]) for k in seen]
        third.plot(seen, gaps, color=colour, marker="o", markersize=3, label=method)
    second.set(title="Test accuracy, %", xlabel="classes")
    third.set(title="Training less test accuracy, points", xlabel="classes")
    for axes in (first, second, third):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, choices=CLASSES, metavar="K")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--teacher", default="he", choices=["he", "centred", "pytorch"])
    parser.add_argument("--normalise", default="dtg", choices=["dtg", "all", "none"])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in ("teacher", "normalise", "steps")}
    runs = [
        {**settings, "seed": seed, "classes": classes, "method": method}
        for seed in arguments.seeds
        for classes in arguments.classes
        for method in arguments.methods
    ]
    every = run_all(runs, train, arguments.folder / "synthetic_teacher.jsonl")
    results = [result for result in every if result["run"] in runs]
    draw(results, arguments.folder / "synthetic_teacher.png")
    print(summary(results))
    print(f"\n{by_normalisation(chosen(every, teacher=arguments.teacher))}")
