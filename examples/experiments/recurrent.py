"""Forward Target Propagation through time, beside backpropagation through time and its truncated form.

Three problems. `order`: two of six symbols, X or Y each, stand among distractors, and their order is one of four
classes (Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997; the places are those of
Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013: the first in the
second tenth of the sequence, the second in the fifth). `adding`: the sum of the two marked ones among uniform numbers,
one mark in either half; to say 1 always has the squared error 1/6, the sum's variance. `rows`: images of DATA row by
row.

Every run is added to FOLDER/recurrent.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the tables of `recurrent.md`.

Networks have 64 units; Adam, batches of 32 new sequences, gradients clipped to the norm 1, the rate falling to 0 as a
line. A run of `order` ends when 99 % of 1000 held-out sequences are right, all runs after --steps batches; the best of
the states that are looked at, every 250 batches, is tested on 2000 other ones. Elman's matrix of the state starts
orthogonal; under `ftp-every` and `bptt-identity` as the identity (Le, Jaitly and Hinton, arXiv 1504.00941), with three
tenths of PyTorch's input weights, so that what is kept of many steps stays clear of the ends of tanh. Rates, that
start, and the feedback's scale were chosen on held-out sequences with seed 0.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from resumable import Result, Run, cell, chosen, markdown, run_all
from torch import Tensor, nn
from torch.nn import functional

from prograde.accelerated.modules import RecurrentNetwork
from prograde.accelerated.rules import BackpropThroughTime, RecurrentFtp, RecurrentRule
from prograde.accelerated.training import load

UNITS = 64
BATCH = 32
STEPS = 3000  # batches a run, unless another number is given
LOOK = 250  # batches between two looks at held-out data
SOLVED = 99.0
CLOSE = 0.04  # a sum is right within this, Hochreiter and Schmidhuber's criterion
TRUNCATION = 10
RULES: dict[str, Callable[..., RecurrentRule]] = {
    "bptt": BackpropThroughTime,
    "bptt-identity": BackpropThroughTime,
    "truncated": lambda model, **options: BackpropThroughTime(model, truncation=TRUNCATION, **options),
    "ftp-first": RecurrentFtp,
    "ftp-every": lambda model, **options: RecurrentFtp(
        model, inject="every", scale=0.1 if isinstance(model.recurrent, nn.RNN) else 0.5, **options
    ),
}
RATES = {"elman": dict.fromkeys(RULES, 1e-3) | {"ftp-every": 3e-4}, "gru": dict.fromkeys(RULES, 1e-3)}
FROM_IDENTITY = ("bptt-identity", "ftp-every")
CELLS = ("elman", "gru")

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


class Problem(NamedTuple):
    """Sizes, and how so many sequences and what is to be said of them are drawn: for training, and held out."""

    inputs: int
    outputs: int
    loss: str
    draw: Draw
    held: Draw
    test: Draw


def order(length: int) -> Problem:
    """Temporal order: distractors 0..3, X is 4, Y is 5."""

    def draw(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(4, (samples, length), generator=generator)
        relevant = torch.randint(2, (samples, 2), generator=generator)
        for column, share in enumerate((0.1, 0.4)):
            place = share * length + 0.1 * length * torch.rand(samples, generator=generator)
            symbols[torch.arange(samples), place.long()] = 4 + relevant[:, column]
        return functional.one_hot(symbols, 6).float(), 2 * relevant[:, 0] + relevant[:, 1]

    return Problem(6, 4, "cross_entropy", draw, draw, draw)


def adding(length: int) -> Problem:
    """The adding problem: numbers and marks, and the sum of the marked ones."""

    def draw(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(samples, length, generator=generator)
        marks = torch.zeros(samples, length)
        for start, end in ((0, length // 2), (length // 2, length)):
            marks[torch.arange(samples), torch.randint(start, end, (samples,), generator=generator)] = 1
        return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1, keepdim=True)

    return Problem(2, 1, "squared_error", draw, draw, draw)


def rows(data: str) -> Problem:
    """Images row by row; the samples of the training part are drawn with replacement."""
    dataset = load(data).to("cpu", torch.float32, standardise=True)
    height, width = dataset.image_shape

    def of(part: Any, whole: bool) -> Draw:
        images = part.images.unflatten(1, (height, width))

        def draw(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            if whole:
                return images, part.labels
            found = torch.randint(len(images), (samples,), generator=generator)
            return images[found], part.labels[found]

        return draw

    held, test = of(dataset.validation, True), of(dataset.test, True)
    return Problem(width, dataset.num_classes, "cross_entropy", of(dataset.train, False), held, test)


def start_as_identity(model: RecurrentNetwork) -> None:
    """Gives Elman's cell a state that keeps itself."""
    weight_ih, weight_hh, *biases = model.recurrent.parameters()
    with torch.no_grad():
        weight_hh.copy_(torch.eye(UNITS))
        weight_ih.mul_(0.3)
        for bias in biases:
            bias.zero_()


def measure(rule: RecurrentRule, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Percent right, and the mean loss (of a sum: the squared error)."""
    with torch.no_grad():
        outputs = torch.cat([rule(part) for part in x.split(500)])
    if y.is_floating_point():
        errors = (outputs - y).abs()
        return 100 * (errors < CLOSE).float().mean().item(), errors.square().mean().item()
    return 100 * (outputs.argmax(dim=1) == y).float().mean().item(), rule.output_loss(outputs, y).item()


def train(run: Run, data: str | None) -> Result:
    """Percent right and the loss on test sequences, and the batches until that state of the network."""
    problem = {"order": order, "adding": adding}[run["problem"]](run["length"]) if run["length"] else rows(str(data))
    torch.manual_seed(run["seed"])
    model = RecurrentNetwork(problem.inputs, UNITS, problem.outputs, run["cell"])
    if run["rule"] in FROM_IDENTITY and run["cell"] == "elman":
        start_as_identity(model)
    rule = RULES[run["rule"]](model, loss=problem.loss)
    optimizer = torch.optim.Adam(rule.parameters(), lr=RATES[run["cell"]][run["rule"]])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, run["steps"])
    generator = torch.Generator().manual_seed(run["seed"])
    held = problem.held(1000, torch.Generator().manual_seed(1000))
    best, steps, state, start = -float("inf"), 0, copy.deepcopy(rule.state_dict()), time.perf_counter()
    for step in range(1, run["steps"] + 1):
        rule.assign_credit(*problem.draw(BATCH, generator))
        torch.nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimizer.step()
        rule.constrain(optimizer)
        schedule.step()
        if step % LOOK == 0:
            right, loss = measure(rule, *held)
            score = -loss if run["problem"] == "adding" else right
            if score > best:
                best, steps, state = score, step, copy.deepcopy(rule.state_dict())
            if run["problem"] == "order" and right >= SOLVED:
                break
    seconds = (time.perf_counter() - start) / step
    rule.load_state_dict(state)
    validation, _ = measure(rule, *held)
    right, loss = measure(rule, *problem.test(2000, torch.Generator().manual_seed(2000)))
    return {"accuracy": right, "loss": loss, "validation": validation, "steps": steps, "seconds": seconds}


def wanted(
    lengths: Iterable[int],
    adding_lengths: Iterable[int],
    cells: Iterable[str],
    rules: Iterable[str],
    seeds: Iterable[int],
    steps: int,
    data: str | None,
) -> list[Run]:
    """All runs by what sets them apart, one seed after another."""
    problems: list[Run] = [{"problem": "order", "length": length} for length in lengths]
    problems += [{"problem": "adding", "length": length} for length in adding_lengths]
    if data is not None:
        problems.append({"problem": Path(data).name, "length": 0})
    return [
        {**problem, "cell": kind, "rule": rule, "steps": steps, "seed": seed}
        for seed in seeds
        for problem in problems
        for kind in cells
        for rule in rules
        if kind == "elman" or rule != "bptt-identity"
    ]


def summary(results: list[Result], cells: Iterable[str]) -> str:
    """A table a problem."""
    problems = dict.fromkeys(result["run"]["problem"] for result in results)
    return "\n\n".join(table(results, problem, cells) for problem in problems)


def table(results: list[Result], problem: str, cells: Iterable[str] = CELLS) -> str:
    """Test accuracy on a problem by rule and length; of sums the squared error, too."""
    found = chosen(results, problem=problem)
    lengths = sorted({result["run"]["length"] for result in found})
    titles = [f"{length} steps" if length else "row by row" for length in lengths]
    rows = [[f"{problem}, % right", *titles]]
    for kind in cells:
        for rule in RULES:
            ours = [chosen(found, cell=kind, rule=rule, length=length) for length in lengths]
            shown = [cell(each, seeds=None if problem == "order" else 3) + solved(each) for each in ours]
            if any(shown):
                rows.append([f"{kind}, {rule}", *shown])
    return markdown(rows)


def solved(results: list[Result]) -> str:
    """How many runs solved the problem of order, after how many batches; of sums, the squared error."""
    if results and results[0]["run"]["problem"] == "order":
        steps = [result["steps"] for result in results if result["validation"] >= SOLVED]
        return f" ({len(steps)} of {len(results)} solved" + (f", {mean(steps):.0f} batches)" if steps else ")")
    if results and results[0]["run"]["problem"] == "adding":
        return f" (error {mean(result['loss'] for result in results):.4f})"
    return ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("--lengths", type=int, nargs="*", default=[10, 20, 30, 50, 100], help="of `order`")
    parser.add_argument("--adding-lengths", type=int, nargs="*", default=[10, 30, 50], help="of `adding`")
    parser.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--steps", type=int, default=STEPS, help="batches a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runs = wanted(
        arguments.lengths,
        arguments.adding_lengths,
        arguments.cells,
        arguments.rules,
        arguments.seeds,
        arguments.steps,
        arguments.data,
    )
    every = run_all(runs, lambda run: train(run, arguments.data), arguments.folder / "recurrent.jsonl")
    print(summary([result for result in every if result["run"] in runs], arguments.cells))
