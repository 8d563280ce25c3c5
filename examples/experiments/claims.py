"""What papers claim, and what our stored runs and tests say of it: the table that RESULTS.md opens with."""

from collections.abc import Callable
from typing import NamedTuple

import synthetic_teacher
from resumable import Result, cell, chosen, interval, markdown, paired, stored
from which_rule import best_rate

VERDICTS = ("confirmed", "refuted", "mixed", "not decided", "not run", "out of reach")


class Claim(NamedTuple):
    """A verdict is one of VERDICTS; "as reconstructed" where the paper's own code or text is not public.

    The figure is a text, or made from stored runs. `source` is what repeats it, or what it would take; `runs` are the
    folder of the stored runs or the test, as a path from the root, and empty where there is none.
    """

    paper: str
    claim: str
    verdict: str
    figure: str | Callable[[], str]
    source: str
    runs: str = ""


def systems_audit() -> str:
    """Time and bytes held, to plain backpropagation's."""
    (result,) = stored("scaling/scaling", part="vgg11")
    steps = {step["name"]: step for step in result["steps"]}
    held = result["steps"][0]["held"]
    names = {"pipelined": "dynamic-temperature", "accumulated": "accumulated"}
    told = (f"{label} {steps[name]['ratio']:.2f}, {steps[name]['held'] / held:.2f}" for label, name in names.items())
    return f"on a CPU not so: time and memory to backpropagation's: {'; '.join(told)}"


def of_best_rate(rule: str, network: str) -> list[Result]:
    results = stored("which-rule/which_rule")
    return chosen(results, rule=rule, network=network, rate=best_rate(results, rule, network))


def on_digits(rule: str, other: str) -> str:
    """The rule less the other, seed by seed, each at its own rate of the grid."""
    gaps = {n: paired(of_best_rate(rule, n), of_best_rate(other, n)) for n in DIGITS}
    return "digits: " + "; ".join(f"{network} {interval(gap, 1)}" for network, gap in gaps.items())


def channels(other: str) -> str:
    runs = stored("mnist/local_classifiers", epochs=7, network="convolutional")
    gaps = paired(chosen(runs, rule="assignment"), chosen(runs, rule=other))
    return f"MNIST, less {other.removeprefix('assignment, ')}: {interval(gaps)}, {len(gaps)} seeds"


def channel_weights() -> str:
    runs = stored("mnist/local_classifiers", epochs=7, network="convolutional", rule="assignment")
    return f"MNIST, weighted less even sum: {interval([run['accuracy'] - run['all'] for run in runs])}"


def deep_supervision_on_cifar() -> str:
    runs = stored("cifar10-jpeg/local_classifiers", epochs=8, network="convolutional")
    dtg, other = (chosen(runs, rule=rule) for rule in ("dynamic temperature", "deep supervision"))
    last = [run["study"]["accuracies"][-1] for run in (*dtg, *other)]
    gap = 100 * (last[0] - last[1])
    return f"JPEG copy, small network: sum of layers {interval(paired(dtg, other))}; last layer {gap:+.2f}"


def information() -> str:
    (run,) = stored("cifar10-jpeg/local_classifiers", rule="dynamic temperature")
    layers = run["study"]["layers"]
    scalar = ", ".join(f"{layer['goodness']['nearest neighbours']['bits']:.2f}" for layer in layers)
    vector = ", ".join(f"{layer['vector']['at_least']:.2f}" for layer in layers)
    return f"JPEG copy, small network, layers 1 to 4: {scalar} bits in the scalar, at least {vector} in the vector"


def synthetic_contrast() -> str:
    gaps = synthetic_teacher.differences(stored("synthetic/synthetic_teacher", normalise="dtg"))
    change = [gaps[50][seed] - gaps[5][seed] for seed in gaps[5]]
    return f"from 5 to 50 classes {interval(change)}, but dtg alone is normalised: confounded"


def synthetic_ranks(other: str, classes: list[int]) -> str:
    by_class = synthetic_teacher.differences(stored("synthetic/synthetic_teacher", normalise="dtg"), other)
    return "; ".join(f"K = {k}: {interval(list(by_class[k].values()))}" for k in classes)


def symba_moved() -> str:
    errors = [{"accuracy": 100 - run["accuracy"]} for run in stored("two-streams/two_streams", shift=1)]
    return f"error on images moved by a pixel: {cell(errors, 2)}; as published, on images as they are: not run"


DIGITS = ("MLP, ReLU", "CNN", "CNN, BatchNorm", "transformer")
"""Networks of `which_rule` on which rules are compared."""

TESTS = "equivalence_tests/test_foton.py"
RIDING_TESTS = "equivalence_tests/test_cumulative_goodness.py"
WHICH = "examples/experiments/results/which-rule"
MNIST, CIFAR = (f"examples/experiments/results/{name}" for name in ("mnist", "cifar10-jpeg"))
TEACHER = "examples/experiments/results/synthetic"
SCALING = "examples/experiments/results/scaling"
FOTON, FTP, DTG, CAW, HFF = "FOTON", "Forward Target Propagation", "DTG-FF", "CAW-Conv", "HFF"
RIDING = "cumulative goodness"

CLAIMS = [
    Claim(FOTON, "equals backpropagation in linear networks with orthogonal weights that never widen", "confirmed",
          "relative error below 1e-12", "`python examples/foton_is_backprop.py`", TESTS),
    Claim(FOTON, "the same with GroupSort (MaxMin)", "refuted",
          "relative error above 0.5 with the published projection", "`pytest test_foton.py -k maxmin`", TESTS),
    Claim(FOTON, "three layers on MNIST: as backpropagation (98.5)", "not run",
          "without stored runs: 98.33 ± 0.01 beside 98.41 ± 0.04", "`prograde compare`, as in mnist.md: 25 minutes"),
    Claim(FOTON, "50 layers train (75.06 on CIFAR-10)", "not run",
          "without stored runs, MNIST: 50.6 ± 11.8; hidden layers frozen 94.0", "`depth.py --depths 50`: 1 hour"),
    Claim(FOTON, "PEPITA fails beyond three layers", "not run",
          "without stored runs: 87.1 ± 0.5 through ten layers", "`depth.py --depths 10`: half an hour"),
    Claim(FOTON, "two orthogonal convolutions: 90.69 on MNIST", "not run",
          "without stored runs: 97.90 ± 0.11", "`convolutions.py`: 1 hour"),
    Claim(FOTON, "cosine with backpropagation above 0.1 in all of ten layers", "not run",
          "without stored runs: 0.51 in the mean", "`depth.py --depths 10`: half an hour"),
    Claim(FOTON, "training collapses past some 50 steps between orthogonalisations", "not run",
          "without stored runs: every 100 steps 24.8 ± 21.4", "`depth.py --depths 10`: half an hour"),
    Claim(FOTON, "accuracy falls the less often the projection is renewed", "not run",
          "without stored runs: no fall up to 30 steps", "`depth.py --depths 10`: half an hour"),
    Claim(FOTON, "needs less memory than backpropagation", "confirmed",
          "with `recompute=True`, through 64 layers with Dropout, less than a tenth of what autograd saves",
          "`test_memory_does_not_grow_with_depth`", "equivalence_tests/test_streaming.py"),
    Claim("PEPITA", "98.0 on MNIST with 1024 units", "not run",
          "without stored runs, 30 epochs: 97.39 ± 0.07", "100 epochs with its dropout and decay: 20 minutes a seed"),
    Claim(FTP, "near backpropagation", "not run",
          "without stored runs, MNIST: 97.55 ± 0.11 beside 97.97 ± 0.04", "`compare` as in ftp.md: 15 minutes"),
    Claim(FTP, "above PEPITA", "mixed, as reconstructed",
          lambda: on_digits("Ftp", "Pepita"), "`which_rule.py`", WHICH),
    Claim(FTP, "better than backpropagation when quantised", "not run",
          "without stored runs: behind it from 3 bits on, dense networks", "`hardware.py`: 2 hours"),
    Claim(FTP, "its counts of multiplications (1.01 of backpropagation's)", "confirmed",
          "equal, but for one entry of the published sheet", "`prograde costs`", "tests/test_costs.py"),
    Claim(FTP, "learns long dependencies", "not run",
          "without stored runs: 84.7 ± 9.7 over 100 steps, solved by no seed", "`recurrent.py`: 40 minutes"),
    Claim("Forward-Forward", "1.36 % error on MNIST", "not run",
          "without stored runs, half the width and epochs: 1.69 ± 0.15", "4 layers of 2000, 60 epochs: hours a seed"),
    Claim("Layer collaboration", "fewer errors than Forward-Forward (2.1 and 3.3 % on MNIST)", "not run",
          "", "`two_streams.py --rules forward-forward layer-collaboration`: an hour a run"),
    Claim("Goodness functions", "the largest units' energy is far above the sum of squares (98.2 on MNIST)", "not run",
          "", "four layers of 2000 under each `goodness`: hours a run"),
    Claim("SymBa", "1.42 % error on MNIST, less than Forward-Forward", "not decided",
          symba_moved, "`two_streams.py --shift 1`", "examples/experiments/results/two-streams"),
    Claim(RIDING, "a layer's gradient decays exponentially in P, the margin of the layers before", "confirmed",
          "for margins that are not negative it is at most 2 exp(-βγP) of the layer's own",
          "`pytest test_cumulative_goodness.py -k bounds`", RIDING_TESTS),
    Claim(RIDING, "so that later layers hardly learn", "not run",
          "without stored runs: gradients follow the bound over seven orders", "`free_riding.py`: half an hour"),
    Claim(RIDING, "remedies make separation 4 to 45 times as large", "not run",
          "without stored runs: 10 to 93 times", "`free_riding.py`: half an hour"),
    Claim(RIDING, "remedies cost less than a point of accuracy", "not run",
          "without stored runs: up to 1.1 points", "`free_riding.py`: half an hour"),
    Claim("Mono-Forward", "equals backpropagation or beats it", "mixed",
          lambda: on_digits("MonoForward", "Backprop"), "`which_rule.py`", WHICH),
    Claim(HFF, "beats Forward-Forward", "mixed, as reconstructed",
          lambda: on_digits("Hyperspherical", "ForwardForward"), "`which_rule.py`", WHICH),
    Claim(HFF, "scores 100 classes 40 times as fast as Forward-Forward", "not run",
          "without stored runs: 57 times", "`local_costs.py` on an idle machine"),
    Claim(HFF, "83.08 on CIFAR-10", "out of reach", "", "a GPU: margin and several prototypes, a larger network"),
    Claim(CAW, "learned classes of channels beat contiguous groups", "not decided",
          lambda: channels("assignment, static"), "`local_classifiers.py`", MNIST),
    Claim(CAW, "learned classes of channels beat channels as drawn", "not decided",
          lambda: channels("assignment, frozen"), "`local_classifiers.py`", MNIST),
    Claim(CAW, "weights of layers matter", "not decided", channel_weights, "`local_classifiers.py`", MNIST),
    Claim(CAW, "89.37 on CIFAR-10 by ResNet-17", "out of reach", "", "a GPU: ResNet-17, 150 epochs, its regularisers"),
    Claim(DTG, "2.4 points below deep supervision on CIFAR-10", "not decided",
          deep_supervision_on_cifar, "`local_classifiers.py`: one seed", CIFAR),
    Claim(DTG, "gains on deep supervision as classes become more (+1.37)", "not decided",
          synthetic_contrast, "`synthetic_teacher.py`; `--normalise all` and `none`", TEACHER),
    Claim(DTG, "above backpropagation from 15 classes on", "confirmed",
          lambda: synthetic_ranks("backprop", [15, 20, 30, 50]), "`synthetic_teacher.py`", TEACHER),
    Claim(DTG, "below an ensemble of four at every number of classes", "confirmed",
          lambda: synthetic_ranks("ensemble", synthetic_teacher.CLASSES), "`synthetic_teacher.py`", TEACHER),
    Claim(DTG, "a vector of goodness says more of the label (1.1 to 2.5 bits) than the scalar (0.24)", "confirmed",
          information, "`local_classifiers.py`: one seed", CIFAR),
    Claim(DTG, "a learned temperature beats T = 1", "not run", "", "`local_classifiers.py` with T fixed: 2 hours"),
    Claim(DTG, "accumulated backpropagation beats layers in memory and time (VGG11, 224 x 224)", "not decided",
          systems_audit, "`scaling.py`; its like on a GPU of 8 GB", SCALING),
    Claim(DTG, "91.79 on CIFAR-10 by VGG8", "out of reach", "", "a GPU: 400 epochs, cutout"),
    Claim("CwComp", "99.42 on MNIST", "not decided",
          lambda: f"{cell(stored('mnist/local_classifiers', rule='channel competition'), 2)}, two seeds, 7 epochs",
          "`local_classifiers.py`", MNIST),
    Claim("ASGE", "90.62 on CIFAR-10", "out of reach", "", "a GPU: VGG11, augmentation"),
    Claim("DeeperForward", "86.22 on CIFAR-10 by ResNet-17", "out of reach", "", "a GPU: ResNet-17, 150 epochs"),
]  # fmt: skip


def table() -> str:
    rows = [["paper", "claim", "verdict", "our figure, with 95 % intervals over seeds", "command", "runs"]]
    for claim in CLAIMS:
        figure = claim.figure if isinstance(claim.figure, str) else claim.figure()
        runs = f"[{claim.runs.split('/')[-1]}]({claim.runs})" if claim.runs else ""
        rows.append([claim.paper, claim.claim, claim.verdict, figure, claim.source, runs])
    return markdown(rows)
