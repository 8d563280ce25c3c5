"""What papers claim, and what our stored runs and tests say of it: the table that RESULTS.md opens with.

A verdict comes from its runs by a rule in this file, so that new runs bring a new verdict.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log
from statistics import mean
from typing import NamedTuple

import any_model
import depth
import ftp
import hardware
import local_classifiers
import local_costs
import mnist
import published
import recurrent
import synthetic_teacher
import two_streams
from resumable import Result, accuracies, bounds, cell, chosen, interval, longest, markdown, paired, stored
from which_rule import EPOCHS, best_rate

VERDICTS = ("confirmed", "refuted", "mixed", "not decided", "not run", "out of reach")
SEEDS = 3
HALF_A_POINT = 0.5
HERE, RECONSTRUCTED = ", in our setting", ", as reconstructed"


class Found(NamedTuple):
    """One of VERDICTS, a figure, and the runs where they are not those of the claim."""

    verdict: str
    figure: str = ""
    runs: str = ""


class Claim(NamedTuple):
    """`found` may be a function of stored runs.

    `but` stands behind a verdict: RECONSTRUCTED where the paper's own code or text is not public, HERE where our
    network, length of training or data is not the paper's. `source` is what repeats it, or what it would take;
    `runs` are the folder of the stored runs or the test, as a path from the root.
    """

    paper: str
    claim: str
    found: Found | Callable[[], Found]
    source: str
    runs: str = ""
    but: str = ""


def above(gaps: Sequence[float], least: float = 0.0) -> str:
    """Whether the mean is above that: decided where its whole 95 % interval is on one side, by three seeds at least."""
    if len(gaps) < SEEDS:
        return "not decided" if gaps else "not run"
    low, high = bounds(gaps)
    return "confirmed" if low > least else "refuted" if high < least else "not decided"


def within(gaps: Sequence[float], most: float) -> str:
    """Whether the mean is at most that far from 0."""
    verdicts = {above(gaps, -most), above([-gap for gap in gaps], -most)}
    return verdicts.pop() if len(verdicts) == 1 else "refuted" if "refuted" in verdicts else "not decided"


def every(verdicts: Iterable[str]) -> str:
    """Of cases that were run: confirmed if all are, mixed if some are; refuted if some are and none is confirmed."""
    seen = set(verdicts) - {"not run"}
    if len(seen) <= 1:
        return seen.pop() if seen else "not run"
    return "mixed" if "confirmed" in seen else "refuted" if "refuted" in seen else "not decided"


def told(cases: Mapping[str, Sequence[float]], digits: int = 2) -> str:
    """The interval of each case; of two seeds, which decide nothing, that there are two."""
    few = " (two seeds)"
    return "; ".join(f"{name} {interval(gaps, digits)}{few * (len(gaps) == 2)}" for name, gaps in cases.items() if gaps)


def compared(cases: Mapping[str, Sequence[float]], least: float = 0.0, about: str = "", digits: int = 2) -> Found:
    """Whether the differences are above that in every case."""
    return Found(every(above(gaps, least) for gaps in cases.values()), f"{about}{told(cases, digits)}")


def reached(results: list[Result], figure: float, about: str, whole: bool = False) -> Found:
    """Whether an accuracy is the published one, or above it, to half a point.

    Less decides nothing unless it is of the `whole` of the published network and training.
    """
    verdict = above(accuracies(results), figure - HALF_A_POINT) if results else "not run"
    less = "refuted" if whole else "not decided"
    return Found(less if verdict == "refuted" else verdict, f"{about}: {cell(results, 2, 3)}" if results else "")


def at_scale(system: str, figure: float, part: str = "accuracy") -> Found:
    """The published network, with its settings as far as they are known, by the longest runs."""
    found = longest_of(system, part)
    whole = all(result["epochs"] == published.SYSTEMS[system].recipe.epochs for result in found)
    return reached(found, figure, published.length(found), whole) if found else OUT


def longest_of(system: str, part: str = "accuracy") -> list[Result]:
    """Runs of the published network that were trained for the most epochs."""
    found = published.of(system, part)
    most = max((result.get("epochs", 0) for result in found), default=0)
    return [result for result in found if result.get("epochs", 0) == most]


def systems_audit() -> Found:
    """Time and bytes held, to plain backpropagation's."""
    (result,) = stored("scaling/scaling", part="vgg11")
    steps = {step["name"]: step for step in result["steps"]}
    held = result["steps"][0]["held"]
    names = {"pipelined": "dynamic-temperature", "accumulated": "accumulated"}
    ratios = (f"{label} {steps[name]['ratio']:.2f}, {steps[name]['held'] / held:.2f}" for label, name in names.items())
    return Found("not decided", f"on a CPU not so: time and memory to backpropagation's: {'; '.join(ratios)}")


def of_best_rate(rule: str, network: str) -> list[Result]:
    results = stored("which-rule/which_rule", epochs=EPOCHS)
    return chosen(results, rule=rule, network=network, rate=best_rate(results, rule, network))


def digits_less(rule: str, other: str) -> dict[str, list[float]]:
    """The rule less the other, seed by seed, each at its own rate of the grid."""
    return {network: paired(of_best_rate(rule, network), of_best_rate(other, network)) for network in DIGITS}


def on_digits(rule: str, other: str) -> Found:
    return compared(digits_less(rule, other), about="digits: ", digits=1)


def in_networks(
    rule: str, other: str, least: float = 0.0, beside: Mapping[str, Sequence[float]] | None = None
) -> Found:
    """On the digits, and in the networks of `any_model`, and what is known beside these."""
    cases = {"": beside or {}, "digits: ": digits_less(rule, other)}
    for name, scale in (("any_model", any_model.SMALL), ("in_full", any_model.FULL)):
        runs = stored(f"any-model/{name}", samples=scale.samples)
        found = {shown: any_model.less(runs, network, ROWS[rule], ROWS[other]) for network, shown in MODERN.items()}
        cases[f"{scale.samples:,} samples: "] = found
    verdict = every(above(gaps, least) for found in cases.values() for gaps in found.values())
    return Found(
        verdict, "; ".join(f"{where}{told(found, 1)}" for where, found in cases.items() if any(found.values()))
    )


def three_layers() -> Found:
    """The claim is of MNIST; the figure has Fashion-MNIST too."""

    def both(data: str) -> list[list[Result]]:
        runs = mnist.of_settings(stored("mnist/mnist", data=data), {})
        return [chosen(runs, rule=rule) for rule in ("foton", "backprop")]

    own, other = both("mnist")
    if not own:
        return Found("not run")
    gaps = paired(own, other)
    figure = f"784-512-256-10: {cell(own, 2)} beside {cell(other, 2)}; difference {interval(gaps)}"
    if elsewhere := paired(*both("fashion-mnist")):
        figure += f", on Fashion-MNIST {interval(elsewhere)}"
    if authors := longest_of("foton"):
        figure += f"; authors' settings, 784-256-256-10, {published.length(authors)}: {cell(authors, 2, 3)}"
    return Found(within(gaps, HALF_A_POINT), figure)


def fifty_layers() -> Found:
    """Less hidden layers frozen."""
    gaps = {
        "MNIST": depth_less("foton", "frozen", [50])["50 layers"],
    } | published.less("foton, 50 layers, slower", "foton, 50 layers, frozen", name=NAMES["cifar10-jpeg"])
    accuracy = cell(published.of("foton, 50 layers, slower"), 2, 3)
    return compared(gaps, about=f"{accuracy} on the JPEG copy; " * bool(accuracy) + "less hidden layers frozen: ")


def of_depth(rule: str, layers: int = depth.VARIED_DEPTH, **wanted: int) -> list[Result]:
    return depth.of(stored("depth/depth", data="mnist", epochs=3), rule=rule, depth=layers, **wanted)


def depth_less(rule: str, other: str, depths: Iterable[int], sign: int = 1) -> dict[str, list[float]]:
    return {
        f"{layers} layers": [sign * gap for gap in paired(of_depth(rule, layers), of_depth(other, layers))]
        for layers in depths
    }


def pepita_fails() -> Found:
    """Below the last layer alone, which says nothing of three layers where it holds there, too."""
    few, more = (depth_less("pepita", "last-layer", depths, -1) for depths in ([3], [10, 50]))
    accuracy = cell(of_depth("pepita"))
    figure = f"MNIST, ten layers: {accuracy}; the last layer alone is above it by: {told({**few, **more})}"
    return Found(every(map(above, more.values())), figure)


def orthogonal_convolutions() -> Found:
    """The longest of our own runs; else those of `published.py`, which shares network and settings."""
    own = longest(stored("convolutions/convolutions", data="mnist", rule="foton"))
    timed = published.of("foton, convolutional")
    shown = {f"`published.py`, {published.length(timed)}": timed} | {
        f"{found['run']['epochs']} epochs": own for found in own
    }
    figure = "; ".join(f"{epochs}: {cell(found, 2, 3)}" for epochs, found in reversed(shown.items()) if found)
    return Found(reached(own or timed, 90.69, "").verdict, figure, "" if own else PUBLISHED)


def cosines() -> Found:
    """By seed the least cosine of a layer, after the last epoch."""
    least = [min(result["cosines"][-1]) for result in of_depth("foton") if "cosines" in result]
    linear = [min(result["cosines"][-1]) for result in of_depth("foton-linear") if "cosines" in result]
    figure = f"least of ten layers, MNIST: {interval(least)}; with the linear second pass {interval(linear)}"
    return Found(above(least, 0.1), figure)


def renewed(option: str, steps: Iterable[int]) -> dict[str, list[float]]:
    """What accuracy falls by when that is renewed every so many steps."""
    often = of_depth("foton")
    return {f"every {n}": [-gap for gap in paired(of_depth("foton", **{option: n}), often)] for n in steps}


def collapses() -> Found:
    """By more than ten points beyond 50 steps, and not before."""
    gaps = renewed("orthogonality_every", [30, 100])
    fewer, more = gaps.values()
    verdict = every([above(more, 10.0), above([-gap for gap in fewer], -10.0)])
    return Found(verdict, f"ten layers, MNIST, points lost: {told(gaps)}")


def ftp_less(other: str) -> dict[str, list[float]]:
    """On equal networks: the paper's, and the shallowest and the deepest of `ftp.py`."""
    gaps = {}
    for data in ("mnist", "fashion-mnist"):
        runs = mnist.of_settings(stored("mnist/mnist", data=data), FTP_SETTINGS)
        gaps[NAMES[data]] = paired(chosen(runs, rule="ftp"), chosen(runs, rule=other))
    runs = stored("ftp/ftp", data="mnist", epochs=5)
    for n in (min(ftp.HIDDEN_LAYERS), max(ftp.HIDDEN_LAYERS)):
        gaps[f"MNIST, {n} hidden layers of 256"] = paired(ftp.of_depth(runs, n, "ftp"), ftp.of_depth(runs, n, other))
    return {about: each for about, each in gaps.items() if each}


def near_backprop() -> Found:
    """Within a point."""
    gaps = ftp_less("backprop")
    return Found(every(within(each, 1.0) for each in gaps.values()), told(gaps))


def quantised() -> Found:
    runs = hardware.kept()
    by_bits = {bits: chosen(runs, **{**hardware.EXACT, "bits": bits}) for bits in hardware.VARIED["bits"]}
    gaps = {f"{n} bits": paired(chosen(of, rule="ftp"), chosen(of, rule="backprop")) for n, of in by_bits.items()}
    return compared(gaps, about="dense, MNIST: ", digits=1)


def long_dependencies() -> Found:
    """More of 100 steps than what is learned from the last ten by backpropagation through time."""
    runs = stored("recurrent/recurrent", problem="order", length=100, cell="elman", steps=recurrent.STEPS)
    gaps = {
        rule: paired(chosen(runs, rule=rule), chosen(runs, rule="truncated")) for rule in ("ftp-first", "ftp-every")
    }
    solved = sum(result["validation"] >= recurrent.SOLVED for result in runs if result["run"]["rule"] in gaps)
    about = f"order over 100 steps, {solved} runs solved it; less backpropagation through ten steps: "
    return compared(gaps, about=about, digits=1)


def forward_forward_error() -> Found:
    plain, moved = (published.of(system) for system in ("forward-forward", "forward-forward, moved"))
    shown = f"{published.length(plain)}: {cell(two_streams.errors(plain), 2, 3)}"
    if moved:
        shown += f"; moved by two pixels, {published.length(moved)}: {cell(two_streams.errors(moved), 2, 3)}"
    return Found(reached(plain, 100 - 1.36, "")[0], shown)


def fewer_errors(system: str) -> Found:
    """Than Forward-Forward in the same network, of as many epochs, scored by all layers too."""
    found = published.of(system)
    runs = [run for run in stored("two-streams/two_streams", data="mnist") if "shift" not in run["run"]]
    own = longest(chosen(runs, rule=system))
    epochs = own[0]["run"]["epochs"] if own else 0
    gaps = published.less(system, "forward-forward", "all") | {
        f"784-1000x4, {epochs} epochs": paired(own, chosen(runs, rule="forward-forward", epochs=epochs)),
    }
    shown = [f"{published.length(found)}: {cell(two_streams.errors(found), 2, 3)}"] if found else []
    shown += [f"{epochs} epochs, 784-1000x4: {cell(two_streams.errors(own), 2, 3)}"] if own else []
    shown += [f"fewer than Forward-Forward's by: {told(gaps)}"] if told(gaps) else []
    verdict = every(map(above, gaps.values()))
    undecided = verdict == "not run" and (found or own)
    return Found("not decided" if undecided else verdict, "; ".join(shown), f"{EXPERIMENTS}/two-streams" if own else "")


def riding(loss: str, data: str = "mnist", layers: int = 4) -> list[Result]:
    return stored("free-riding/free_riding", data=data, width=200, epochs=5, depth=layers, loss=loss)


def separations(loss: str) -> dict[int, list[float]]:
    """By seed, those of each layer."""
    runs = {result["run"]["seed"]: result for result in riding(loss)}
    return {seed: [layer["separation"] for layer in runs[seed]["layers"]] for seed in sorted(runs)}


def later_layers() -> Found:
    """The separation of the fourth layer is below a tenth of the first's."""
    shares = [100 * layers[-1] / layers[0] for layers in separations("cumulative, gamma 1").values()]
    verdict = above([-share for share in shares], -10.0)
    return Found(verdict, f"fourth layer's separation, in % of the first's, MNIST: {interval(shares)}")


def remedies_separate() -> Found:
    """At least four times in every layer, by geometric means; of a layer without separation there is no ratio."""
    without, verdicts, figures = separations("cumulative, gamma 1"), [], []
    for remedy, name in REMEDIES.items():
        found, times = separations(remedy), []
        seeds = sorted(found.keys() & without.keys())
        for layer in range(1, 4) if seeds else ():
            if all(runs[seed][layer] > 0 for runs in (found, without) for seed in seeds):
                ratios = [log(found[seed][layer] / without[seed][layer]) for seed in seeds]
                verdicts.append(above(ratios, log(4)))
                times.append(f"{exp(mean(ratios)):.2g}")
            else:
                times.append("–")
        figures += [f"{name} {', '.join(times)}"] if times else []
    return Found(every(verdicts), f"times in layers 2, 3 and 4, MNIST: {'; '.join(figures)}")


def remedies_cost() -> Found:
    names = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
    gaps = {
        f"{names[data]}, {layers} layers, {name}": paired(
            riding(remedy, data, layers), riding("cumulative, gamma 1", data, layers)
        )
        for data in names
        for layers in (4, 8)
        for remedy, name in REMEDIES.items()
    }
    return compared(gaps, -1.0, "less cumulative: ")


def local(data: str, **wanted: object) -> list[Result]:
    epochs = 8 if data == "cifar10-jpeg" else 7
    runs = local_classifiers.of_settings(stored(f"{data}/local_classifiers"), {"data": data, "epochs": epochs})
    return chosen(runs, network="convolutional", **wanted)


def speed_of_scores() -> Found:
    """By the geometric mean over rounds, beside candidates in a batch, Forward-Forward's faster way."""
    found = [result for result in local_costs.kept() if result["run"].get("classes") == 100]
    logs = [log(ratio) for result in found for ratio in local_costs.ratios(result, "batch")]
    if len(logs) < SEEDS:
        return Found("not run")
    centre, low, high = (exp(value) for value in (mean(logs), *bounds(logs)))
    return Found(above(logs, log(40)), f"on a CPU {centre:.0f} times [{low:.0f}, {high:.0f}], over {len(logs)} rounds")


def channels(other: str) -> Found:
    gaps = {
        name: paired(local(data, rule="assignment"), local(data, rule=f"assignment, {other}"))
        for data, name in NAMES.items()
    }
    return compared(gaps | published.less("caw", f"caw, {other}", name="ResNet-17"))


def channel_weights() -> Found:
    """Weighted less even sum."""
    runs = {name: local(data, rule="assignment") for data, name in NAMES.items()}
    return compared({name: [run["accuracy"] - run["all"] for run in found] for name, found in runs.items()})


def last_layer(results: list[Result]) -> list[Result]:
    return [result | {"accuracy": 100 * result["study"]["accuracies"][-1]} for result in results if "study" in result]


def deep_supervision_on_cifar() -> Found:
    own, other = (local("cifar10-jpeg", rule=rule) for rule in ("dynamic temperature", "deep supervision"))
    gaps = {
        "sum of layers": paired(own, other),
        "last layer": paired(last_layer(own), last_layer(other)),
    } | published.less("dtg-ff", "dtg-ff, deep supervision", "all", "VGG8, sum of layers")
    verdict = every(above([-gap for gap in each]) for each in gaps.values())
    return Found(verdict, f"JPEG copy, small network, dtg less deep supervision: {told(gaps)}")


def information() -> Found:
    """By layer, bits that the vector has at least beyond those of the scalar; means over seeds."""
    studies = [run["study"]["layers"] for run in local("cifar10-jpeg", rule="dynamic temperature") if "study" in run]
    by_layer = list(zip(*studies, strict=True))
    scalar = [[layer["goodness"]["nearest neighbours"]["bits"] for layer in layers] for layers in by_layer]
    vector = [[layer["vector"]["at_least"] for layer in layers] for layers in by_layer]
    pairs = [[b - a for a, b in zip(*each, strict=True)] for each in zip(scalar, vector, strict=True)]
    shown = [", ".join(f"{mean(bits):.2f}" for bits in each) for each in (scalar, vector)]
    figure = (
        f"JPEG copy, small network, layers 1 to 4: {shown[0]} bits in the scalar, at least {shown[1]} in the vector"
    )
    return Found(every(map(above, pairs)), figure)


def synthetic_contrast() -> Found:
    """From 5 to 50 classes, in networks that are normalised alike."""
    gaps = synthetic_teacher.contrasts(stored("synthetic/synthetic_teacher", teacher="he", steps=8000))
    alike = {name: gaps[name] for name in ("both normalised", "neither")}
    return compared(alike, about="from 5 to 50 classes: ")


def synthetic_ranks(other: str, classes: list[int], sign: int = 1) -> Found:
    by_class = synthetic_teacher.differences(stored("synthetic/synthetic_teacher", **TEACHER_SETTINGS), other)
    gaps = {f"K = {k}:": list(by_class[k].values()) for k in classes}
    figure = f"dtg's layers normalised alone: {told(gaps)}"
    return Found(every(above([sign * gap for gap in each]) for each in gaps.values()), figure)


TEACHER_SETTINGS = {"teacher": "he", "normalise": "dtg", "steps": 8000}
FTP_SETTINGS = {"hidden": [1024, 128], "activation": "tanh", "epochs": 8}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10-jpeg": "CIFAR-10 (JPEG copy)"}
MODERN = {"mlp": "MLP, GELU", "resnet": "ResNet", "vit": "ViT", "characters": "character transformer"}
"""Networks of `any_model`, by what the table calls them."""
ROWS = {"Backprop": "backprop", "MonoForward": "mono-forward", "Ftp": "ftp", "Pepita": "pepita"}
"""Rules of `which_rule`, by their names in `any_model`."""
REMEDIES = {
    "per-block": "each layer alone",
    "hardness-gated": "hardness-gated",
    "compensated": "compensated",
    "depth-scaled": "depth-scaled",
}
"""The paper's, as `free_riding` has them, by what the table calls them."""
DIGITS = ("MLP, ReLU", "CNN", "CNN, BatchNorm", "transformer")
"""Networks of `which_rule` on which rules are compared."""

EXPERIMENTS = "examples/experiments/results"
TESTS = "equivalence_tests/test_foton.py"
RIDING_TESTS = "equivalence_tests/test_cumulative_goodness.py"
WHICH, DEPTH, MNIST = (f"{EXPERIMENTS}/{name}" for name in ("which-rule", "depth", "mnist"))
CIFAR, TEACHER, SCALING = (f"{EXPERIMENTS}/{name}" for name in ("cifar10-jpeg", "synthetic", "scaling"))
PUBLISHED, FREE_RIDING = (f"{EXPERIMENTS}/{name}" for name in ("published", "free-riding"))
FOTON, FTP, DTG, CAW, HFF = "FOTON", "Forward Target Propagation", "DTG-FF", "CAW-Conv", "HFF"
RIDING = "cumulative goodness"
OUT = Found("out of reach")
SCALE = "`published.py`, a GPU"
SMALLER = "`published.py --width`"

CLAIMS = [
    Claim(FOTON, "equals backpropagation in linear networks with orthogonal weights that never widen",
          Found("confirmed", "relative error below 1e-12"), "`python examples/foton_is_backprop.py`", TESTS),
    Claim(FOTON, "the same with GroupSort (MaxMin)",
          Found("refuted", "relative error above 0.5 with the published projection"),
          "`pytest test_foton.py -k maxmin`", TESTS),
    Claim(FOTON, "three layers on MNIST: as backpropagation (98.5)", three_layers, "`mnist.py`",
          MNIST, HERE),
    Claim(FOTON, "50 layers train (75.06 on CIFAR-10)",
          fifty_layers, "`depth.py --depths 50`; `published.py`", DEPTH, HERE),
    Claim(FOTON, "PEPITA fails beyond three layers", pepita_fails, "`depth.py --depths 10`", DEPTH, HERE),
    Claim(FOTON, "two orthogonal convolutions: 90.69 on MNIST", orthogonal_convolutions, "`convolutions.py`",
          f"{EXPERIMENTS}/convolutions", HERE),
    Claim(FOTON, "cosine with backpropagation above 0.1 in all of ten layers", cosines,
          "`depth.py --depths 10`", DEPTH, HERE),
    Claim(FOTON, "training collapses past some 50 steps between orthogonalisations", collapses,
          "`depth.py --depths 10`", DEPTH, HERE),
    Claim(FOTON, "accuracy falls the less often the projection is renewed",
          lambda: compared(renewed("projection_every", [3, 10, 30, 100]), about="ten layers, MNIST, points lost: "),
          "`depth.py --depths 10`", DEPTH, HERE),
    Claim(FOTON, "needs less memory than backpropagation",
          Found("confirmed", "with `recompute=True`, through 64 layers with Dropout, less than a tenth of what "
                "autograd saves"), "`test_memory_does_not_grow_with_depth`", "equivalence_tests/test_streaming.py"),
    Claim("PEPITA", "98.0 on MNIST with 1024 units",
          lambda: at_scale("pepita", 98.0), "`published.py --systems pepita`", PUBLISHED),
    Claim(FTP, "near backpropagation", near_backprop, "`mnist.py`, `ftp.py`, as in ftp.md", MNIST, RECONSTRUCTED),
    Claim(FTP, "above PEPITA", lambda: in_networks("Ftp", "Pepita", beside=ftp_less("pepita")),
          "the same, `which_rule.py`, `any_model.py`", WHICH, RECONSTRUCTED),
    Claim(FTP, "better than backpropagation when quantised", quantised, "`hardware.py`",
          f"{EXPERIMENTS}/hardware", RECONSTRUCTED),
    Claim(FTP, "its counts of multiplications (1.01 of backpropagation's)",
          Found("confirmed", "equal, but for one entry of the published sheet"), "`prograde costs`",
          "tests/test_costs.py"),
    Claim(FTP, "learns long dependencies", long_dependencies, "`recurrent.py`",
          f"{EXPERIMENTS}/recurrent", RECONSTRUCTED),
    Claim("Forward-Forward", "1.36 % error on MNIST", forward_forward_error,
          SCALE, PUBLISHED, HERE),
    Claim("Layer collaboration", "fewer errors than Forward-Forward (2.1 and 3.3 % on MNIST)",
          lambda: fewer_errors("layer-collaboration"), SMALLER, PUBLISHED, HERE),
    Claim("Goodness functions", "the largest units' energy is far above the sum of squares (98.2 on MNIST)",
          lambda: compared(published.less("top-k", "forward-forward", name="without the first layer")
                           | published.less("top-k", "forward-forward", "all", "all layers"), 10.0),
          SMALLER, PUBLISHED, HERE),
    Claim("SymBa", "1.42 % error on MNIST, less than Forward-Forward", lambda: fewer_errors("symba"),
          SCALE, PUBLISHED, HERE),
    Claim(RIDING, "a layer's gradient decays exponentially in P, the margin of the layers before",
          Found("confirmed", "for margins that are not negative it is at most 2 exp(-βγP) of the layer's own"),
          "`pytest test_cumulative_goodness.py -k bounds`", RIDING_TESTS),
    Claim(RIDING, "so that later layers hardly learn", later_layers, "`free_riding.py`",
          FREE_RIDING, HERE),
    Claim(RIDING, "remedies make separation 4 to 45 times as large", remedies_separate,
          "`free_riding.py`", FREE_RIDING, HERE),
    Claim(RIDING, "remedies cost less than a point of accuracy", remedies_cost, "`free_riding.py`",
          FREE_RIDING, HERE),
    Claim("Mono-Forward", "equals backpropagation or beats it",
          lambda: in_networks("MonoForward", "Backprop", -1.0), "`which_rule.py`, `any_model.py`", WHICH, HERE),
    Claim(HFF, "beats Forward-Forward", lambda: on_digits("Hyperspherical", "ForwardForward"), "`which_rule.py`", WHICH,
          RECONSTRUCTED),
    Claim(HFF, "scores 100 classes 40 times as fast as Forward-Forward",
          speed_of_scores, "`local_costs.py`", f"{EXPERIMENTS}/local-costs", HERE),
    Claim(HFF, "83.08 on CIFAR-10", lambda: at_scale("hff", 83.08), SCALE, PUBLISHED, RECONSTRUCTED),
    Claim(CAW, "learned classes of channels beat contiguous groups", lambda: channels("static"),
          "`local_classifiers.py`", MNIST, HERE),
    Claim(CAW, "learned classes of channels beat channels as drawn", lambda: channels("frozen"),
          "`local_classifiers.py`", MNIST, HERE),
    Claim(CAW, "weights of layers matter", channel_weights, "`local_classifiers.py`", MNIST, HERE),
    Claim(CAW, "89.37 on CIFAR-10 by ResNet-17", lambda: at_scale("caw", 89.37), SCALE, PUBLISHED),
    Claim(DTG, "2.4 points below deep supervision on CIFAR-10", deep_supervision_on_cifar, "`local_classifiers.py`",
          CIFAR, HERE),
    Claim(DTG, "gains on deep supervision as classes become more (+1.37)", synthetic_contrast,
          "`synthetic_teacher.py`; `--normalise all` and `none`", TEACHER),
    Claim(DTG, "above backpropagation from 15 classes on", lambda: synthetic_ranks("backprop", [15, 20, 30, 50]),
          "`synthetic_teacher.py`", TEACHER),
    Claim(DTG, "below an ensemble of four at every number of classes",
          lambda: synthetic_ranks("ensemble", synthetic_teacher.CLASSES, -1), "`synthetic_teacher.py`", TEACHER),
    Claim(DTG, "a vector of goodness says more of the label (1.1 to 2.5 bits) than the scalar (0.24)", information,
          "`local_classifiers.py`", CIFAR, HERE),
    Claim(DTG, "a learned temperature beats T = 1",
          lambda: compared(published.less("dtg-ff", "dtg-ff, T = 1", name="classifier")
                           | published.less("dtg-ff", "dtg-ff, T = 1", "all", "sum of layers")),
          SMALLER, PUBLISHED, HERE),
    Claim(DTG, "accumulated backpropagation beats layers in memory and time (VGG11, 224 x 224)", systems_audit,
          "`scaling.py`; its like on a GPU of 8 GB", SCALING),
    Claim(DTG, "91.79 on CIFAR-10 by VGG8", lambda: at_scale("dtg-ff", 91.79, "all"), SCALE, PUBLISHED),
    Claim("CwComp", "99.42 on MNIST",
          lambda: reached(local("mnist", rule="channel competition"), 99.42, "7 epochs"), "`local_classifiers.py`",
          MNIST, HERE),
    Claim("ASGE", "90.62 on CIFAR-10", lambda: at_scale("asge", 90.62), SCALE, PUBLISHED, RECONSTRUCTED),
    Claim("DeeperForward", "86.22 on CIFAR-10 by ResNet-17", lambda: at_scale("deeper-forward", 86.22), SCALE,
          PUBLISHED),
]  # fmt: skip


def judged(claim: Claim) -> tuple[str, str, str]:
    """The verdict with what it holds for, the figure, and the runs; no runs where there are none yet."""
    found = claim.found if isinstance(claim.found, Found) else claim.found()
    verdict = found.verdict + claim.but * (found.verdict in ("confirmed", "refuted", "mixed"))
    if found.verdict in ("not run", "out of reach"):
        return verdict, found.figure if found is claim.found else "", ""
    return verdict, found.figure, found.runs or claim.runs


def table() -> str:
    rows = [["paper", "claim", "verdict", "our figure, with 95 % intervals over seeds", "command", "runs"]]
    for claim in CLAIMS:
        verdict, figure, runs = judged(claim)
        link = f"[{runs.split('/')[-1]}]({runs})" if runs else ""
        rows.append([claim.paper, claim.claim, verdict, figure, claim.source, link])
    return markdown(rows)
