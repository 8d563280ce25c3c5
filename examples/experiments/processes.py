"""Samples a second of two processes against one, in rounds that alternate: data- and layer-parallel, and a pipeline.

    python examples/experiments/processes.py FOLDER

The run is added to FOLDER/processes.jsonl as it ends, and not repeated where it stands there already. Last it prints
the table. It takes under two minutes; run it with nothing beside it.

The network is a multilayer perceptron of ReLU. Mono-Forward trains it in one process, in two with a batch each, and in
two with layers of their own; backpropagation in one, and in two by `torch.distributed.pipelining`, whose microbatches
leave a bubble of (P - 1) / (M + P - 1) of the time, for P processes and M microbatches. One thread a process. Ratios
are medians of those of each round. The last column counts the processors' time, of the busier process, in place of
time: what waiting for each other adds is left out, and so is what else the machine does.
"""

import argparse
import itertools
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from resumable import Result, finished, markdown, run_all, stored
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from prograde.accelerated.parallel import DataParallel, LayerParallel
from prograde.accelerated.rules import Backprop, MonoForward, Rule

MICROBATCHES = (4, 8)


def network(widths: list[int]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stepper(rule: Rule, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.01)

    def step() -> None:
        rule.assign_credit(x, y)
        optimizer.step()

    return step


def pipeline(model: nn.Sequential, x: Tensor, y: Tensor, microbatches: int, rank: int) -> Callable[[], None]:
    """Half of the layers in each process, as `LayerParallel` splits them."""
    cut = 2 * (len(model) // 4)
    part = model[:cut] if rank == 0 else model[cut:]
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=nn.functional.cross_entropy)
    optimizer = torch.optim.SGD(part.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=y)
        optimizer.step()

    return step


def measure(rank: int, options: argparse.Namespace, answer: Any) -> None:
    """In each process; the first puts samples a second, by time and by processors' time, of every round."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*each of which trains alone")  # what two are compared with
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)  # the same batch in both, as layer-parallel training wants it
    x, y = torch.randn(options.batch, options.widths[0]), torch.randint(options.widths[-1], (options.batch,))
    layered = LayerParallel(MonoForward(network(options.widths)))
    alone: dict[str, Callable[[], None]] = {}
    if rank == 0:
        alone["Mono-Forward"] = stepper(MonoForward(network(options.widths)), x, y)
        alone["backpropagation"] = stepper(Backprop(network(options.widths)), x, y)
    together = {
        "data-parallel": stepper(DataParallel(MonoForward(network(options.widths))), x, y),
        "layer-parallel": stepper(layered, x, y),
        **{f"pipeline of {m}": pipeline(network(options.widths), x, y, m, rank) for m in MICROBATCHES},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("Mono-Forward", "backpropagation", *together)}
    for _round in range(options.rounds + 1):  # the first warms up
        for name, seen in found.items():
            dist.barrier()
            began, busy = time.perf_counter(), time.process_time()
            step = together.get(name) or alone.get(name)
            for _ in range(options.steps if step else 0):
                step()
            if name == "layer-parallel":
                layered.wait()
            used = torch.tensor(time.process_time() - busy)
            dist.all_reduce(used, dist.ReduceOp.MAX)  # which also waits for both
            samples = options.batch * options.steps * (2 if name == "data-parallel" else 1)
            seen.append((samples / (time.perf_counter() - began), samples / used.item()))
    if rank == 0:
        answer.put({name: rounds for name, (_, *rounds) in found.items()})
    dist.destroy_process_group()


def both(run: dict[str, Any], port: int) -> Result:
    answer = processes.get_context("spawn").SimpleQueue()
    load = os.getloadavg()[0]
    processes.spawn(measure, (argparse.Namespace(**run, port=port), answer), nprocs=2)
    about = {"machine": platform.machine(), "load": load, "cores": os.cpu_count()}
    return {"accuracy": None, **about, "rates": answer.get()}


LABELS = {
    "Mono-Forward": "Mono-Forward, one process",
    "backpropagation": "backpropagation, one process",
    **{f"pipeline of {m}": f"`torch.distributed.pipelining`, 1F1B, {m} microbatches" for m in MICROBATCHES},
}


def table(results: Sequence[Result]) -> str:
    """Medians of samples a second, and of their ratios to one process in the same round."""
    rows = [["training", "samples a second", "against one", "by processors' time"]]
    for result in results:
        for name, rounds in result["rates"].items():
            base = result["rates"]["backpropagation" if name.startswith(("back", "pipe")) else "Mono-Forward"]
            ratios = [median(own[i] / other[i] for own, other in zip(rounds, base, strict=True)) for i in (0, 1)]
            rate = f"{median(rate for rate, _ in rounds):.0f}"
            rows.append([LABELS.get(name, name), rate, *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(rows)


def kept() -> list[Result]:
    return stored("processes/processes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where results go")
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 2048, 2048, 2048, 2048, 10])
    parser.add_argument("--batch", type=int, default=256, help="of each process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--port", type=int, default=29517)
    options = parser.parse_args()
    run = {name: getattr(options, name) for name in ("widths", "batch", "steps", "rounds")} | {"seed": 0}
    log = options.folder / "processes.jsonl"
    run_all([run], lambda run: both(run, options.port), log)
    print(f"\n{table(finished(log))}")
