"""What is not run, and what it would take: the list at the end of RESULTS.md.

Seconds an epoch, or a run, are medians of the stored runs on a CPU that are most alike; where none has its time, the
list says so. They are of one core or two, most beside other work.
"""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import NamedTuple

import any_model
import convolutions
import depth
import free_riding
import ftp
import hardware
import local_classifiers
import local_costs
import mnist
import processes
import published
import recurrent
import synthetic_teacher
import two_streams
from resumable import Result, Run, longest, markdown, stored

SEEDS = (0, 1, 2)
EPOCHS = 5
"""Of convolutions, and of what has no stored run that says how many."""


class Wanted(NamedTuple):
    """Runs, of which those of `results` are there; a run takes `share` of the seconds an epoch of the runs that are."""

    what: str
    command: str
    runs: list[Run]
    results: list[Result]
    share: Callable[[Run], float] = lambda run: 1.0


def seconds(result: Result) -> float | None:
    """Of an epoch, or of a run without any; None where it was not noted, or is that of a GPU."""
    if "device" in result.get("made", {}):
        return None
    if "seconds" in result and "epochs" in result["run"] and "made" not in result:
        return result["seconds"]
    return result["made"]["seconds"] / result["run"].get("epochs", 1) if "made" in result else None


def takes(wanted: Wanted) -> str:
    """How many runs are not there, and how long they take by those that are; nothing where all are there."""
    there = [result["run"] for result in wanted.results]
    left = [run for run in wanted.runs if run not in there]
    noted = [each for each in map(seconds, wanted.results) if each is not None]
    if not left:
        return ""
    if not noted:
        return f"{len(left)} runs, no time known"
    minutes = sum(wanted.share(run) * run.get("epochs", 1) for run in left) * median(noted) / 60
    return f"{len(left)} runs, {minutes / 60:.1f} hours" if minutes > 90 else f"{len(left)} runs, {minutes:.0f} minutes"


def of_hardware() -> Wanted:
    runs = hardware.wanted("mnist", SEEDS, [1024, 128], 2)
    return Wanted("five to eight bits, noise of reading and of programming", "`hardware.py`", runs, hardware.kept())


def of_convolutions() -> Wanted:
    results = longest(stored("convolutions/convolutions", data="mnist"))
    plain = {"data": "mnist", "epochs": results[0]["run"]["epochs"] if results else EPOCHS}
    runs = [{**plain, "seed": seed, "rule": rule} for seed in SEEDS for rule in convolutions.RULES]
    return Wanted("convolutions on MNIST, all rules", "`convolutions.py`", runs, results)


def of_two_streams() -> Wanted:
    plain = {"data": "mnist", "hidden": [1000] * 4, "epochs": 30}
    runs: list[Run] = [
        {**plain, **moved, "seed": seed, "rule": rule}
        for moved in ({}, {"shift": 1})
        for seed in SEEDS
        for rule in two_streams.RULES
    ]
    results = stored("two-streams/two_streams", data="mnist")
    return Wanted("two streams, images as they are and moved", "`two_streams.py`, `--shift 1`", runs, results)


def of_free_riding(data: str) -> Wanted:
    runs = free_riding.wanted(data, SEEDS, (4, 8), 200, 5)
    results = stored("free-riding/free_riding", depth=4)
    results += stored("free-riding/free_riding", depth=8)
    what = f"cumulative goodness on {data}, 4 and 8 layers"
    return Wanted(what, f"`free_riding.py data/{data}`", runs, results, lambda run: run["depth"] / 4)


def of_ftp() -> Wanted:
    results = stored("ftp/ftp", data="mnist", epochs=5)
    return Wanted(
        "FTP's relatives by depth, laws and scales of its feedback", "`ftp.py`", ftp.wanted("mnist", SEEDS, 5), results
    )


def of_dense(data: str, rules: Iterable[str], **settings: object) -> Wanted:
    """By `mnist.py`; settings of the rules where none are given."""
    runs = [{"data": data, "seed": seed, "rule": rule, **settings} for seed in SEEDS for rule in rules]
    results = mnist.of_settings(stored("mnist/mnist", data="mnist"), settings)
    results += mnist.of_settings(stored("mnist/mnist", data="fashion-mnist"), settings)
    options = " --hidden 1024 128 --activation tanh --epochs 8" * bool(settings)
    return Wanted(f"{', '.join(rules)} on {data}", f"`mnist.py data/{data}{options}`", runs, results)


def of_local_classifiers(data: str, epochs: int) -> Wanted:
    results = stored(f"{data}/local_classifiers", epochs=epochs)
    rules = [rule for rule in local_classifiers.RULES if "backprop, " not in rule]
    plain = {"data": data, "epochs": epochs}
    runs = [{**plain, "seed": s, "network": "convolutional", "rule": rule} for s in SEEDS for rule in rules]
    epochs_too = f" --epochs {epochs}" if epochs != 7 else ""
    return Wanted(
        f"local classifiers on {data}, three seeds", f"`local_classifiers.py data/{data}{epochs_too}`", runs, results
    )


def of_depth() -> Wanted:
    results = stored("depth/depth", data="mnist", epochs=3, depth=50)
    runs = depth.wanted("mnist", (50, 100), SEEDS, 3)
    what = "50 layers by every rule and activation, 100 layers"
    return Wanted(what, "`depth.py --depths 50 100`", runs, results, lambda run: run["depth"] / 50)


def of_network(network: str, full: bool) -> Wanted:
    results = stored(f"any-model/{'in_full' if full else 'any_model'}", network=network)
    scale, option, in_full = (any_model.FULL, " --full", ", in full") if full else (any_model.SMALL, "", "")
    runs = [run for rule in any_model.RULES for run in any_model.row_of(results, network, rule, scale.samples)]
    command = f"`any_model.py{option} --networks {network}`"
    return Wanted(f"networks of today{in_full}: {network}", command, runs, results)


def of_recurrent() -> Wanted:
    lengths, adding, cells = [10, 20, 30, 50, 100], [10, 30, 50], recurrent.CELLS
    runs = recurrent.wanted(lengths, adding, cells, recurrent.RULES, SEEDS, recurrent.STEPS, "mnist")
    return Wanted("recurrent networks, three seeds", "`recurrent.py`", runs, stored("recurrent/recurrent"))


def of_teachers() -> Wanted:
    runs: list[Run] = [
        {"teacher": teacher, "normalise": kind, "steps": 8000, "seed": seed, "classes": classes, "method": method}
        for teacher, kind in (("he", "all"), ("he", "none"), ("centred", "dtg"))
        for seed in synthetic_teacher.SEEDS
        for classes in synthetic_teacher.CLASSES
        for method in ("dtg", "deep supervision")
        if (kind, method) not in (("all", "dtg"), ("none", "deep supervision"))
    ]
    what = "synthetic labels: 10 to 30 classes with equal normalisation, a centred teacher"
    command = "`synthetic_teacher.py --normalise all`, `none`, `--teacher centred`"
    return Wanted(what, command, runs, stored("synthetic/synthetic_teacher"))


WANTED = [
    of_hardware,
    of_convolutions,
    of_two_streams,
    lambda: of_free_riding("mnist"),
    lambda: of_free_riding("fashion-mnist"),
    of_ftp,
    lambda: of_dense("mnist", ["forward-forward"]),
    lambda: of_dense("fashion-mnist", ["backprop", "backprop-orthogonal", "foton", "foton-linear", "pepita"]),
    lambda: of_dense(
        "fashion-mnist", ["backprop", "ftp", "dfa", "pepita"], hidden=[1024, 128], activation="tanh", epochs=8
    ),
    lambda: of_local_classifiers("mnist", 7),
    lambda: of_local_classifiers("fashion-mnist", 7),
    lambda: of_local_classifiers("cifar10-jpeg", 8),
    of_depth,
    *(partial(of_network, network, full=False) for network in any_model.NETWORKS),
    *(partial(of_network, network, full=True) for network in any_model.NETWORKS if network != any_model.TEXT),
    of_recurrent,
    of_teachers,
]


def of_systems() -> list[str]:
    """Published systems without a run, and those whose runs are shorter than the paper's."""
    none = [f"`{name}`" for name in published.SYSTEMS if not published.of(name)]
    short = [
        f"`{name}`"
        for name, system in published.SYSTEMS.items()
        if (found := published.of(name)) and max(run.get("epochs", 0) for run in found) < system.recipe.epochs
    ]
    whole = f"{', '.join(none)}; of fewer epochs than published: {', '.join(short)}"
    return [f"published systems: {whole}", "`published.py --device cuda`", "a GPU: hours for each on CIFAR-10"]


def of_times() -> list[list[str]]:
    """Without stored runs."""
    rows = []
    if not local_costs.kept():
        rows.append(["costs of local classifiers", "`local_costs.py`", "two minutes of an idle machine"])
    if not processes.kept():
        rows.append(["two processes against one", "`processes.py`", "two minutes of an idle machine"])
    return rows


def table() -> str:
    rows = [[wanted.what, wanted.command, takes(wanted)] for wanted in (make() for make in WANTED)]
    tests = [
        "equivalence tests on a GPU in float64 and bfloat16, and beyond the smoke tier's first 90 seconds",
        "`make gpu`",
        "a GPU",
    ]
    rows = [row for row in rows if row[-1]] + [*of_times(), of_systems(), tests]
    return markdown([["what", "command", "what it would take"], *rows])
