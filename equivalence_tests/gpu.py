"""What a GPU shows: the tests in four precisions, FOTON's constraint after every step, and what steps take.

    python -m prograde.equivalence_tests.gpu FOLDER [DEVICE [PART ...]]

In a checkout, as `make gpu OUT=FOLDER` does, in under ten minutes. A part is tests, constraint or steps; each writes a
file into the folder.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prograde.accelerated.orthogonality import defect
from prograde.accelerated.rules import RULES, Foton
from prograde.accelerated.training import mlp

PRECISIONS = ("float64", "float32", "tf32", "bfloat16")
NETWORKS = (((64, 128, 64, 10), 128), ((784, 1024, 1024, 10), 128), ((784, *[4096] * 4, 10), 1024))
"""Widths and batch sizes, of which a CPU has the first."""


def tests(device: torch.device, folder: Path) -> Iterator[str]:
    """All precisions at once, since tests wait for the host; a log of each in the folder."""
    command = [sys.executable, "-P", "-m", "pytest", "--pyargs", str(__package__), "--profile", "smoke", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "--device", str(device)]
    if find_spec("xdist") is not None:
        command += ["-n", str(max(1, (os.cpu_count() or 1) // len(PRECISIONS))), "--dist", "worksteal"]
    running = []
    for dtype in PRECISIONS:
        with (folder / f"tests-{dtype}.log").open("w") as log:
            options = {"stdout": log, "stderr": log, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
            running.append(subprocess.Popen([*command, "--dtype", dtype], **options))
    for dtype, process in zip(PRECISIONS, running, strict=True):
        process.wait()
        yield f"{dtype}: {(folder / f'tests-{dtype}.log').read_text().strip().splitlines()[-1].strip(' =')}"


def constraint(device: torch.device, folder: Path) -> Iterator[str]:
    """The largest defect of FOTON's hidden weights after any step, whose limit is its tolerance, 5e-3."""
    settings = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    settings += (torch.optim.Adam, {"lr": 1e-3}), (torch.optim.Adam, {"lr": 1e-2})
    for width in (64, 512, 2048) if device.type == "cuda" else (64,):
        for kind, options in settings:
            torch.manual_seed(0)
            rule = Foton(mlp(width, (width, width), 10, "relu", 0.0).to(device))
            optimizer, worst = kind(rule.parameters(), **options), torch.zeros((), device=device).double()
            x, y = torch.randn(8, 128, width, device=device), torch.randint(10, (8, 128), device=device)
            for step in range(100):
                rule.assign_credit(x[step % 8], y[step % 8])
                optimizer.step()
                rule.constrain(optimizer)
                for unit in rule.units[:-1]:
                    worst = torch.maximum(worst, defect(unit.module.get_parameter("weight").detach().double()))
            rule.calibrate([])  # raises for what was not restored
            yield f"width {width}, {kind.__name__} {options}: {worst.item():.1e}"


def steps(device: torch.device, folder: Path) -> Iterator[str]:
    """Milliseconds of every rule's whole step, from batch to changed weights: eager, and replayed from a CUDA graph."""
    for widths, batch in NETWORKS if device.type == "cuda" else NETWORKS[:1]:
        yield f"{'-'.join(map(str, widths))}, batch {batch}"
        x, y = torch.randn(batch, widths[0], device=device), torch.randint(10, (batch,), device=device)
        for name in ("PyTorch backprop", *RULES):
            model = mlp(widths[0], widths[1:-1], widths[-1], "relu", 0.0).to(device)
            generator = torch.Generator(device).manual_seed(0)
            step = plain_step(model, x, y) if name not in RULES else rule_step(RULES[name], model, x, y, generator)
            yield f"  {name:26s} eager {milliseconds(step, device):8.3f}   captured {captured(step, generator, device)}"


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def rule_step(kind: Any, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Callable[[], Any]:
    rule = kind(model, generator=generator).to(x.device)
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-3)
    return lambda: (rule.assign_credit(x, y), optimizer.step(), rule.constrain(optimizer))


def milliseconds(step: Callable[[], Any], device: torch.device) -> float:
    """The median of five rounds of ten steps, after one that warms up."""
    found = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(10):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(100 * (time.perf_counter() - start))
    return float(np.median(found[1:]))


def captured(step: Callable[[], Any], generator: torch.Generator, device: torch.device) -> str:
    """Milliseconds of a replayed step, or why there is none."""
    if device.type != "cuda":
        return "on a GPU alone"
    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    graph.register_generator_state(generator)
    try:
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            step()
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return str(error).partition("\n")[0]
    return f"{milliseconds(graph.replay, device):8.3f}"


def main(out: str, device: str = "cuda", *parts: str) -> None:
    folder, place = Path(out), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name(place) if place.type == "cuda" else device
    for part in (tests, constraint, steps):
        if not parts or part.__name__ in parts:
            with (folder / f"{part.__name__}.txt").open("w") as file:
                print(f"{card}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}", file=file)
                for line in part(place, folder):
                    print(line, flush=True)
                    print(line, file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
