"""Steps of other people's public code beside the same rule here, and both beside PyTorch's backpropagation.

    python examples/experiments/beside_peers.py FOLDER --parts pepita

wants the repository of the part in PYTHONPATH, and what it imports; peers.py has the steps. Each part is
`prograde benchmark --beside` of one network and is added to FOLDER/beside_peers.jsonl as it ends; one that stands there
already is not repeated.
"""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from resumable import Result, finished, markdown, run_all, stored

from prograde.accelerated.command_line import own_steps
from prograde.accelerated.command_line.contenders import Setting, contenders_for, measured


class Part(NamedTuple):
    """A repository, its function in peers.py, the rule that does the same, and a network that both train."""

    repository: str
    function: str
    rule: str
    network: str
    batch: int


PARTS = {
    "pepita": Part("ravifrancesco/PEPITA", "pepita", "pepita", "784-1024-10", 64),
    "pepita-deep": Part("ravifrancesco/PEPITA", "pepita", "pepita", "784-1024-1024-1024-10", 64),
    "foton": Part("p0lcAi/FOTON", "foton", "foton", "784-256-256-10", 256),
    "forward-forward": Part(
        "mpezeshki/pytorch_forward_forward", "forward_forward", "forward-forward", "784-500-500-10", 1000
    ),
    "forward-forward-and-head": Part(
        "loeweX/Forward-Forward", "forward_forward_and_head", "forward-forward", "784-1000-1000-1000-10", 100
    ),
    "feedback-alignment": Part("jsalbert/biotorch", "feedback_alignment", "fa", "784-1024-10", 64),
}
ROUNDS = 6


def measure(run: dict[str, Any]) -> Result:
    part = PARTS[run["part"]]
    device = torch.device("cpu")
    setting = Setting(part.network, "1x28x28", 10, part.batch, "momentum", None, run["seed"], device, torch.float32)
    peer = own_steps.read(f"peers:{part.function}").contender(setting)
    contenders = [*contenders_for(setting, [part.rule], ["stepping"]), peer]
    return {
        "accuracy": None,
        "machine": platform.machine(),
        "steps": measured(setting, contenders, run["steps"], ROUNDS),
    }


def table(results: Sequence[Result]) -> str:
    """Time and memory of the peer and of the rule, to plain backpropagation's in the same rounds."""
    rows = [["code", "network", "batch", "time", "from, to", "held", "rule here", "time", "from, to", "held"]]
    for result in results:
        part, (plain, _, rule, peer) = PARTS[result["run"]["part"]], result["steps"]
        row = [part.repository, part.network, str(part.batch)]
        for step in (peer, rule):
            row += [f"`{part.rule}`"] if step is rule else []
            row += [f"{step['ratio']:.2f}", f"{min(step['ratios']):.2f}, {max(step['ratios']):.2f}"]
            row.append(f"{step['held'] / plain['held']:.2f}")
        rows.append(row)
    return markdown(rows)


def kept() -> list[Result]:
    """The stored runs, in the order of PARTS."""
    results = stored("beside-peers/beside_peers")
    return [result for part in PARTS for result in results if result["run"]["part"] == part]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", required=True, choices=[*PARTS], metavar="PART")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    wanted = [
        {"part": part, "steps": options.steps, "threads": torch.get_num_threads(), "seed": 0} for part in options.parts
    ]
    log = options.folder / "beside_peers.jsonl"
    run_all(wanted, measure, log)
    print(f"\n{table(finished(log))}")
