"""Samples a second of two processes against one, in rounds that alternate: data- and layer-parallel, and a pipeline.

The network is a multilayer perceptron of ReLU. Mono-Forward trains it in one process, in two with a batch each, and in
two with layers of their own; backpropagation in one, and in two by `torch.distributed.pipelining`, whose microbatches
leave a bubble of (P - 1) / (M + P - 1) of the time, for P processes and M microbatches. One thread a process. Ratios
are medians of those of each round. The last column counts the processors' time, of the busier process, in place of
time: what waiting for each other adds is left out, and so is what else the machine does.
"""

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
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


def measure(rank: int, options: Any) -> None:
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
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, PyTorch {torch.__version__}\n")
        print("| training | samples a second | against one | by processors' time |\n| --- | --- | --- | --- |")
        for name, (_, *rounds) in found.items():
            _, *base = found["backpropagation" if name.startswith(("back", "pipe")) else "Mono-Forward"]
            ratios = [median(own[i] / other[i] for own, other in zip(rounds, base, strict=True)) for i in (0, 1)]
            print(f"| {name} | {median(rate for rate, _ in rounds):.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 2048, 2048, 2048, 2048, 10])
    parser.add_argument("--batch", type=int, default=256, help="of each process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=29517)
    processes.spawn(measure, (parser.parse_args(),), nprocs=2)
