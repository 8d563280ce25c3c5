"""How a step's time and memory grow, and the audit of DTG-FF (arXiv 2606.06539, section 6.2) repeated on this machine.

    python examples/experiments/scaling.py FOLDER [--parts depth width batch classes vgg8 vgg11]

Each part is added to FOLDER/scaling.jsonl as it ends; one that stands there already is not repeated. `pages.py` makes
the tables of docs/scaling.md from it.

Sweeps are those of `prograde benchmark --sweep`, of SGD. The audit trains VGG8 on images of 32 x 32 and VGG11 on images
of 224 x 224 by the layers' own losses (Dynamic Temperature) beside backpropagation: plain, in micro-batches, and
checkpointed. "naive" runs every layer once more for what it passes on, as the paper's first release did; "pipelined" is
`rule.step`, "micro-batched" `accumulate`. All make the same number of samples a step.
"""

import argparse
import platform
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from resumable import Result, finished, markdown, run_all, stored
from torch import Tensor

from prograde.accelerated.command_line.benchmark import fits_of, settings_of
from prograde.accelerated.command_line.contenders import (
    BESIDE,
    PLAIN,
    Contender,
    Setting,
    backprop,
    contenders_for,
    measured,
    rule_contender,
)
from prograde.accelerated.training.diagnostics.costs import layer_costs

NETWORKS = {"depth": "784-256-10", "width": "784-256-256-256-10", "batch": "784-1024-1024-10"}
NETWORKS["classes"] = "1024-1024-1024-10"
"""What is varied in each sweep."""

VALUES = {
    "depth": "4,16,64,256",
    "width": "128,256,512,1024,2048,4096",
    "batch": "32,128,512,2048,4096",
    "classes": "10,100,1000",
}
RULES = ("foton", "ftp", "forward-forward", "mono-forward")
WIDEST_HELD = 1024
"""The widest layers that FOTON is timed on: its constraint takes cubes of the width."""

AUDITED = {"vgg8": ("3x32x32", 8, 2), "vgg11": ("3x224x224", 4, 1)}
"""Shape of samples, samples of a step, and of a micro-batch."""


def setting(network: str, batch: int = 128, **others: Any) -> Setting:
    device = torch.device("cpu")
    return replace(Setting(network, "3x32x32", 10, batch, "sgd", 1e-4, 0, device, torch.float32), **others)


def swept(part: str, values: str, steps: int) -> list[dict[str, Any]]:
    """Records of all values of a sweep."""
    records = []
    for value, each in settings_of(setting(NETWORKS[part]), part, values):
        rules = [rule for rule in RULES if rule != "foton" or part != "width" or value is None or value <= WIDEST_HELD]
        found = measured(each, contenders_for(each, rules, ["stepping"]), steps, steps)
        records += [{**record, "sweep": part, "value": value} for record in found]
    return records


def naive(each: Setting, rule: str) -> Contender:
    """Each layer run once more for what the next one gets."""
    found = rule_contender(each, rule)
    step, module = found.step, found.module

    def again(x: Tensor, y: Tensor) -> Tensor:
        loss = step(x, y)
        deque(module.activities(x, y), maxlen=0)
        return loss

    found.name, found.step = f"{rule}, naive", again
    return found


def audited(part: str, steps: int, shrink: int) -> list[dict[str, Any]]:
    """Records of the audit on that network; every channel count is divided by `shrink`, for a trial."""
    sample, batch, micro_batch = AUDITED[part]
    widths = (128, 256, 256, 512, 512, 512, 512) if part == "vgg8" else (64, 128, 256, 256, 512, 512, 512, 512)
    network = f"{part}:channels={tuple(width // shrink for width in widths)}"
    each = setting(network, batch, sample=sample, micro_batch=micro_batch)
    rule = "dynamic-temperature"
    of_rule = [naive(each, rule), rule_contender(each, rule), rule_contender(each, rule, "accumulated")]
    accumulated = backprop(each, "accumulated", micro_batch=micro_batch)
    ways = [backprop(each), accumulated, BESIDE["checkpointed"](each, "checkpointed"), *of_rule]
    return measured(each, ways, steps, steps)


def measure(run: dict[str, Any], shrink: int) -> Result:
    part, steps = run["part"], run["steps"]
    found = swept(part, run["values"], steps) if part in VALUES else audited(part, steps, shrink)
    return {"accuracy": None, "machine": platform.machine(), "steps": found}


LABELS = {
    PLAIN: "backpropagation",
    "stepping": "the same, stepping within",
    "dynamic-temperature, naive": "Dynamic Temperature, naive",
    "dynamic-temperature": "Dynamic Temperature, pipelined",
    "dynamic-temperature, accumulated": "Dynamic Temperature, micro-batched",
    "accumulated": "backpropagation, accumulated",
    "checkpointed": "backpropagation, checkpointed",
}


def exponents(results: Sequence[Result]) -> str:
    """Of each rule the exponents of time in each sweep, and of the bytes held in depth."""
    fits = {result["run"]["part"]: fits_of(result["steps"], result["run"]["part"]) for result in results}
    rows = [["step", *(f"{part}, time" for part in fits), "depth, memory"]]
    names = dict.fromkeys(fit["name"] for found in fits.values() for fit in found)
    for name in names:
        row = [LABELS.get(name, f"`{name}`")]
        for found in fits.values():
            fit = next((fit["time"] for fit in found if fit["name"] == name and "time" in fit), None)
            row.append("" if fit is None else f"{fit['exponent']:.2f} ({100 * fit['off']:.0f} %)")
        memory = [fit["memory"]["exponent"] for fit in fits.get("depth", []) if fit["name"] == name and "memory" in fit]
        rows.append([*row, *(f"{exponent:.2f}" for exponent in memory)])
    return markdown(rows)


def ends(results: Sequence[Result]) -> str:
    """Of each rule the time of a step to plain backpropagation's at the ends of each sweep, and the bytes in depth."""
    heads, columns = [], []
    for result in results:
        part, steps = result["run"]["part"], result["steps"]
        for value in (min(step["value"] for step in steps), max(step["value"] for step in steps)):
            heads.append(f"{part} {value:,}")
            columns.append({step["name"]: f"{step['ratio']:.2f}" for step in steps if step["value"] == value})
            if part == "depth":
                held = {step["name"]: step["held"] for step in steps if step["value"] == value}
                heads.append("held")
                columns.append({name: f"{number / held[PLAIN]:.2f}" for name, number in held.items()})
    rows = [["step", *heads]]
    for name in columns[0] if columns else ():
        rows.append([LABELS.get(name, f"`{name}`"), *(column.get(name, "") for column in columns)])
    return markdown(rows)


def audit(results: Sequence[Result]) -> str:
    """Time and memory of each way, beside plain backpropagation's."""
    heads = [head for result in results for head in (f"{result['run']['part']}, time", "from, to", "held")]
    rows = [["step", *heads]]
    for steps in zip(*(result["steps"] for result in results), strict=True):
        row = [LABELS[steps[0]["name"]]]
        for step, result in zip(steps, results, strict=True):
            low, high = min(step["ratios"]), max(step["ratios"])
            row += [f"{step['ratio']:.2f}", f"{low:.2f}, {high:.2f}"]
            row.append(f"{step['held'] / result['steps'][0]['held']:.2f}")
        rows.append(row)
    return markdown(rows)


WIRED = {
    "784-2048-2048-2048-2048-10": "3x32x32",
    "vgg8": "3x32x32",
    "vgg11": "3x224x224",
    "resnet18": "3x32x32",
}


def wires() -> str:
    """By formula, in float32: bytes that training sends, data-parallel a step and layer-parallel a sample."""
    rows = [["network", "weights, MB", "data-parallel, MB a step", "products a weight", "layer-parallel, kB a sample"]]
    for network, sample in WIRED.items():
        each = setting(network, sample=sample)
        made = each.made()
        layers = layer_costs(made.model, tuple(made.example.shape[1:]))
        numbers = sum(p.numel() for p in made.model.parameters())
        products = sum(layer.update for layer in layers) / numbers
        between = max(before.activations for before, layer in pairwise(layers) if layer.update)
        row = [f"{4 * numbers / 1e6:.1f}", f"{8 * numbers / 1e6:.1f} (N - 1) / N", f"{products:.1f}"]
        rows.append([network, *row, f"{4 * between / 1e3:.1f}"])
    return markdown(rows)


def of(*parts: str) -> list[Result]:
    """The stored runs of these parts, in order."""
    results = stored("scaling/scaling")
    return [next(result for result in results if result["run"]["part"] == part) for part in parts]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", default=[*VALUES, *AUDITED], choices=[*VALUES, *AUDITED], metavar="PART")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--values", help="of a sweep, in place of its own")
    parser.add_argument("--shrink", type=int, default=1, help="divides the channels of the audit's networks")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    wanted, threads = [], torch.get_num_threads()
    for part in options.parts:
        values = {"values": options.values or VALUES[part]} if part in VALUES else {"shrink": options.shrink}
        wanted.append({"part": part, "steps": options.steps, "threads": threads, "seed": 0, **values})
    log = options.folder / "scaling.jsonl"
    run_all(wanted, lambda run: measure(run, options.shrink), log)
    results = finished(log)
    print(f"\n{exponents([result for result in results if result['run']['part'] in VALUES])}\n")
    print(f"{audit([result for result in results if result['run']['part'] in AUDITED])}\n\n{wires()}")
