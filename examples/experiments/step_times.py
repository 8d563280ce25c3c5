"""What a step of each rule takes beside PyTorch's backpropagation: the table of RESULTS.md, "Time".

    OMP_NUM_THREADS=2 python examples/experiments/step_times.py FOLDER [--parts small middle large] [--repeats 3]

Each part is `prograde benchmark` of one network and is added to FOLDER/step_times.jsonl as it ends; one that stands
there already is not repeated. Rules have their own learning rates and random clusters to learn; in `small` each is
timed once more with its steps compiled. Run it with nothing beside it; it repeats everything, hours apart if you can,
since machines have slower times than others.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from resumable import Result, finished, markdown, run_all, stored

from prograde.accelerated.command_line.contenders import PLAIN, Setting, contenders_for, measured

LOCAL = ("mono-forward", "hyperspherical", "dynamic-temperature")
TWO_PASSES = ("ftp", "pepita", "foton", "forward-forward")


class Part(NamedTuple):
    """A network and its batch, the rules that are timed on it, and how many steps of each."""

    head: str
    network: str
    steps: int
    rules: tuple[str, ...] = (*LOCAL, "dfa", *TWO_PASSES)
    batch: int = 128
    optimizer: str = "sgd"
    compiles: bool = False


PARTS = {
    "small": Part("64-128-64-10", "64-128-64-10", 300, compiles=True),
    "middle": Part("784-1024-1024-10", "784-1024-1024-10", 60),
    "large": Part("784-2048x4-10", "784-2048-2048-2048-2048-10", 18),
    "adamw": Part("the same, AdamW", "784-2048-2048-2048-2048-10", 12, (*LOCAL, "ftp"), optimizer="adamw"),
    "vgg8": Part("VGG8, batch 32", "vgg8", 6, (*LOCAL, "ftp"), batch=32),
}
ROUNDS = 6
BESIDE = {"adamw": ["fused", "stepping"]}


def measure(run: dict[str, Any]) -> Result:
    part, steps = PARTS[run["part"]], run["steps"]
    device = torch.device("cpu")
    setting = Setting(part.network, "3x32x32", 10, part.batch, part.optimizer, None, run["seed"], device, torch.float32)
    contenders = contenders_for(
        replace(setting, compiles=part.compiles), part.rules, BESIDE.get(run["part"], ["stepping"])
    )
    return {"accuracy": None, "machine": platform.machine(), "steps": measured(setting, contenders, steps, ROUNDS)}


def table(results: Sequence[Result]) -> str:
    """Ratios to plain backpropagation: medians of all repeats' rounds, and the extremes of the repeats' medians."""
    by_part: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        found = by_part.setdefault(result["run"]["part"], {})
        for step in result["steps"]:
            found.setdefault(step["name"], []).append(step)
    names = dict.fromkeys(name for found in by_part.values() for name in found)
    rows = [["step", *(PARTS[part].head for part in by_part)]]
    for name in names:
        row = [{PLAIN: "backpropagation, ms"}.get(name, f"`{name}`")]
        for found in by_part.values():
            steps = found.get(name, [])
            of = "milliseconds" if name == PLAIN else "ratios"
            rounds, medians = [n for step in steps for n in step[of]], [median(step[of]) for step in steps]
            digits = ".3g" if name == PLAIN else ".2f"
            cell = f"{{:{digits}}} ({{:{digits}}} to {{:{digits}}})"
            row.append(cell.format(median(rounds), min(medians), max(medians)) if steps else "")
        rows.append(row)
    return markdown(rows)


def kept() -> list[Result]:
    """The stored runs, in the order of PARTS."""
    results = stored("step-times/step_times")
    return [result for part in PARTS for result in results if result["run"]["part"] == part]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS], metavar="PART")
    parser.add_argument("--steps", type=int, help="of each, in place of the part's own")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    threads = torch.get_num_threads()
    wanted = [
        {"part": part, "steps": options.steps or PARTS[part].steps, "threads": threads, "seed": 0, "repeat": repeat}
        for repeat in range(options.repeats)
        for part in options.parts
    ]
    log = options.folder / "step_times.jsonl"
    run_all(wanted, measure, log)
    print(f"\n{table(finished(log))}")
