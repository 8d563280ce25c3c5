"""What a GPU shows: how rules are used, FOTON's constraint, what steps and epochs take, the tests in four precisions.

    python -m prograde.equivalence_tests.gpu FOLDER [DEVICE [PART ...]]

In a checkout, as `make gpu OUT=FOLDER` does, in under ten minutes. A part is uses, constraint, steps, epochs or tests;
each writes a file into the folder. With DATA in the environment, a folder of CIFAR-10 as `load` takes it, epochs are
of that. A CPU has each part with less of everything.
"""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prograde.accelerated.modules import resnet17, vgg8
from prograde.accelerated.orthogonality import defect
from prograde.accelerated.parallel import DataParallel
from prograde.accelerated.rules import (
    RULES,
    ChannelClassAssignment,
    DynamicTemperature,
    Foton,
    Ftp,
    MonoForward,
    Pepita,
    Rule,
)
from prograde.accelerated.training import Callback, Recipe, fit, load, mlp
from prograde.accelerated.training.data.augmentation import Augmentation
from prograde.accelerated.training.diagnostics.costs import costs
from prograde.accelerated.training.run import Run

PRECISIONS = ("float64", "float32", "tf32", "bfloat16")
NETWORKS = (((64, 128, 64, 10), 128), ((784, 1024, 1024, 10), 128), ((784, *[4096] * 4, 10), 1024))
"""Widths and batch sizes, of which a CPU has the first."""
LIMIT = 60.0
"""Seconds after which a training is cut short."""
PATIENCE = 240.0
"""Seconds after which tests are stopped, and tell what they found so far."""


def tests(device: torch.device, folder: Path) -> Iterator[str]:
    """All precisions at once, since tests wait for the host; a log of each in the folder."""
    command = [sys.executable, "-P", "-m", "pytest", "--pyargs", str(__package__), "-m", "smoke", "--profile", "smoke"]
    command += ["--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark", "--device", str(device)]
    if find_spec("xdist") is not None:
        command += ["-n", str(max(1, (os.cpu_count() or 1) // len(PRECISIONS))), "--dist", "worksteal"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_LAUNCH_BLOCKING": "1"}  # errors come where they are made
    running = []
    for dtype in PRECISIONS:
        with (folder / f"tests-{dtype}.log").open("w") as log:
            running.append(subprocess.Popen([*command, "--dtype", dtype], stdout=log, stderr=log, env=environment))
    end = time.monotonic() + PATIENCE
    for dtype, process in zip(PRECISIONS, running, strict=True):
        try:
            process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        yield f"{dtype}: {(folder / f'tests-{dtype}.log').read_text().strip().splitlines()[-1].strip(' =')}"


def constraint(device: torch.device, folder: Path) -> Iterator[str]:
    """The largest defect of FOTON's hidden weights after any step, whose limit is its tolerance, 5e-3."""
    settings: list[tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 1e-3}),
        (torch.optim.Adam, {"lr": 1e-2}),
    ]
    for width in (64, 512, 2048) if device.type == "cuda" else (64,):
        for kind, options in settings:
            torch.manual_seed(0)
            rule = Foton(mlp(width, (width, width), 10, "relu", 0.0).to(device))
            optimizer, worst = kind(rule.parameters(), **options), torch.zeros((), device=device).double()
            x, y = torch.randn(8, 128, width, device=device), torch.randint(10, (8, 128), device=device)
            for step in range(100 if device.type == "cuda" else 20):
                rule.assign_credit(x[step % 8], y[step % 8])
                optimizer.step()
                rule.constrain(optimizer)
                for unit in rule.units[:-1]:
                    worst = torch.maximum(worst, defect(unit.module.get_parameter("weight").detach().double()))
            rule.calibrate([])  # raises for what was not restored
            yield f"width {width}, {kind.__name__} {options}: {worst.item():.1e}"


class Precision(NamedTuple):
    """How products are rounded: of float32 by TF32 or not, or in an autocast region."""

    name: str
    tf32: bool = False
    lowered: torch.dtype | None = None

    def region(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.lowered is None:
            return nullcontext()
        return torch.autocast(device.type, self.lowered, cache_enabled=False)

    def rate(self, device: torch.device) -> float:
        """Multiply-accumulates a second of one large product of matrices."""
        n = 8192 if device.type == "cuda" else 256
        a = torch.randn(n, n, device=device, dtype=self.lowered)
        return n**3 / (1e-3 * milliseconds(lambda: a @ a, device))


def steps(device: torch.device, folder: Path) -> Iterator[str]:
    """Of every rule's whole step, from batch to changed weights: milliseconds, eager and replayed from a CUDA graph.

    And the most memory that it takes beside what is there between steps; and the multiply-accumulates that `costs`
    counts, without FOTON's constraint, as a share of what one large product has in the time of the faster step.
    """
    precisions = Precision("float32"), Precision("TF32", tf32=True), Precision("bfloat16", lowered=torch.bfloat16)
    for widths, batch in NETWORKS if device.type == "cuda" else NETWORKS[:1]:
        for precision in precisions if max(widths) >= 4096 else precisions[:1]:
            torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
            rate = precision.rate(device)
            network = "-".join(map(str, widths))
            yield f"{network}, batch {batch}, {precision.name}, {2e-12 * rate:.1f} TFLOPS by one product"
            x, y = torch.randn(batch, widths[0], device=device), torch.randint(10, (batch,), device=device)
            for name in ("PyTorch backprop", *RULES):
                model = mlp(widths[0], widths[1:-1], widths[-1], "relu", 0.0).to(device)
                macs = batch * costs(model, widths[:1])["backprop" if name not in RULES else name].macs
                generator = torch.Generator(device).manual_seed(0)
                step = plain_step(model, x, y) if name not in RULES else rule_step(RULES[name], model, x, y, generator)
                with precision.region(device):
                    eager, held = milliseconds(step, device), gigabytes(step, model, device)
                    replayed, why = captured(step, generator, device)
                share = macs / (1e-3 * min(eager, replayed or eager) * rate)
                replays = f"{replayed:8.3f}" if replayed else why
                yield f"  {name:26s} eager {eager:8.3f} ms   {held}   share {share:.2f}   captured {replays}"
    torch.set_float32_matmul_precision("highest")


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
    return lambda: rule.step(x, y, optimizer)


def milliseconds(step: Callable[[], Any], device: torch.device) -> float:
    """The median of five rounds of ten steps, after one that warms up; on a CPU, which is for trying, of one."""
    found = []
    for _ in range(6 if device.type == "cuda" else 2):
        start = time.perf_counter()
        for _ in range(10):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(100 * (time.perf_counter() - start))
    return float(np.median(found[1:]))


def gigabytes(step: Callable[[], Any], model: nn.Module, device: torch.device) -> str:
    """What a step allocates at most, gradients included."""
    if device.type != "cuda":
        return "- GB"
    model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return f"{1e-9 * (torch.cuda.max_memory_allocated(device) - before):6.3f} GB"


def captured(step: Callable[[], Any], generator: torch.Generator, device: torch.device) -> tuple[float | None, str]:
    """Milliseconds of a replayed step, or why there is none."""
    if device.type != "cuda":
        return None, "on a GPU alone"
    try:
        return milliseconds(graph_of(step, generator).replay, device), ""
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return None, str(error).partition("\n")[0]


def graph_of(step: Callable[[], Any], generator: torch.Generator | None = None) -> "torch.cuda.CUDAGraph":
    """The step as a graph, after one on a stream beside."""
    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    if generator is not None:
        graph.register_generator_state(generator)
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        step()
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        step()
    return graph


class Limit(Callback):
    """Ends training after so many seconds."""

    def on_start(self, run: Run) -> None:
        self.end = time.monotonic() + LIMIT

    def on_step(self, run: Run) -> None:
        if time.monotonic() > self.end:
            run.stop(f"{LIMIT:.0f} seconds")


def epochs(device: torch.device, folder: Path) -> Iterator[str]:
    """Of DTG-FF's VGG8 and CAW-Conv's ResNet-17 on CIFAR-10, two each, in TF32."""
    large, path = device.type == "cuda", os.environ.get("DATA")
    if path:
        data = load(path)
    else:
        n, random = (10_000 if large else 48), np.random.default_rng(0)
        draws = [(random.random((m, 3, 32, 32), np.float32), np.arange(m) % 10) for m in (n, n // 2)]
        data = load(*draws)
        yield "random images: set DATA to a folder of CIFAR-10"
    small: tuple[dict[str, Any], dict[str, Any]] = {"channels": (8,) * 7}, {"planes": (10, 20, 40, 80)}
    vgg, resnet = ({}, {}) if large else small
    rules: dict[str, Callable[[], Rule]] = {
        "DTG-FF, VGG8": lambda: DynamicTemperature(vgg8(**vgg).to(device), grid=4),
        "CAW-Conv, ResNet-17": lambda: ChannelClassAssignment(resnet17(**resnet).to(device)),
    }
    torch.set_float32_matmul_precision("high")
    for name, make in rules.items():
        torch.manual_seed(0)
        recipe = Recipe(
            epochs=2 if large else 1, batch=128 if large else 24, optimizer="adam", learning_rate=2e-3,
            shift=4, flip=True,
        )  # fmt: skip
        history = fit(make(), data, recipe=recipe, callbacks=(Limit(),))
        for epoch in history.epochs:
            yield (
                f"{name}, epoch {epoch.epoch}: {epoch.samples} images in {epoch.seconds:.1f} s, loss {epoch.loss:.3f}, "
                f"validation {100 * (epoch.validation_accuracy or 0):.1f} %"
            )
        yield f"{name}: test {100 * (history.test_accuracy or 0):.1f} %{(history.stopped and ', cut short') or ''}"
    torch.set_float32_matmul_precision("highest")


def uses(device: torch.device, folder: Path) -> Iterator[str]:
    """What users do with a rule, once each: "ok", or what was raised."""
    for use in (no_waiting, in_regions, in_one, augmented, fitted, in_a_process, repeated_by_a_graph):
        torch.manual_seed(0)
        try:
            found = use(device, folder) or "ok"
        except Exception as error:
            found = f"FAILED: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield f"{use.__name__.replace('_', ' ')}: {found}"


def batch_of(device: torch.device, samples: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 64, device=device), torch.randint(10, (samples,), device=device)


def network(device: torch.device) -> nn.Module:
    return mlp(64, (64, 64), 10, "relu", 0.0).to(device)


def no_waiting(device: torch.device, folder: Path) -> str | None:
    """PyTorch raises for an operation that it knows to wait, in the second step of every rule."""
    if device.type != "cuda":
        return "on a GPU alone"
    waiting = []
    for name, kind in RULES.items():
        step = rule_step(kind, network(device), *batch_of(device), torch.Generator(device))
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            waiting.append(f"{name} ({str(error).partition(chr(10))[0]})")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not waiting, f"waits: {', '.join(waiting)}"
    return None


def in_regions(device: torch.device, folder: Path) -> None:
    """Updates in autocast, near those without: by a tenth of their norm."""
    x, y = batch_of(device)
    for kind in (MonoForward, Ftp, Pepita, Foton):
        for dtype in (torch.bfloat16, torch.float16):
            rule = kind(network(device), generator=torch.Generator(device))
            rule.assign_credit(x, y)
            exact = torch.cat([p.grad.flatten() for p in rule.parameters() if p.grad is not None])
            with torch.autocast(device.type, dtype):
                rule.assign_credit(x, y)
            found = torch.cat([p.grad.flatten() for p in rule.parameters() if p.grad is not None])
            gap = torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact)
            assert gap < 0.1, f"{kind.__name__} in {dtype}: {gap:.2g} off"


def in_one(device: torch.device, folder: Path) -> None:
    """`rule.step` is the three calls: to 1e-4, of float32."""
    for kind in (MonoForward, Ftp, Foton):
        for make in (
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
            lambda p: torch.optim.AdamW(p, fused=True),
        ):
            rule = kind(network(device), generator=torch.Generator(device))
            other = copy.deepcopy(rule)
            optimizers = make(rule.parameters()), make(other.parameters())
            for _ in range(3):
                x, y = batch_of(device)
                rule.step(x, y, optimizers[0])
                other.assign_credit(x, y)
                optimizers[1].step()
                other.constrain(optimizers[1])
            for one, three in zip(rule.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-4)


def augmented(device: torch.device, folder: Path) -> None:
    """Images are changed on the device as they are on the CPU."""
    change, images = Augmentation((3, 32, 32), 4, True, 8, 0.2), torch.rand(16, 3, 32, 32)
    here, there = (change(x, torch.Generator().manual_seed(0)) for x in (images, images.to(device)))
    torch.testing.assert_close(there.cpu(), here)


def fitted(device: torch.device, folder: Path) -> None:
    """An epoch, measured, with its checkpoint, and resumed for another."""
    x, y = torch.randn(256, 64), torch.arange(256) % 10
    data, file = load((x, y), (x, y)), folder / "fitted.safetensors"
    rule = MonoForward(network(device), generator=torch.Generator(device))
    fit(rule, data, epochs=1, batch=32, checkpoint=file, overwrite=True)
    history = fit(rule, data, epochs=2, batch=32, checkpoint=file, resume=file)
    file.unlink()
    assert len(history.epochs) == 2


def in_a_process(device: torch.device, folder: Path) -> None:
    """Data-parallel by NCCL, in one process: the step without."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = folder / "process-group"
    store.unlink(missing_ok=True)
    dist.init_process_group(backend, init_method=f"file://{store.resolve()}", rank=0, world_size=1)
    try:
        alone = Ftp(network(device), generator=torch.Generator(device))
        together, (x, y) = DataParallel(copy.deepcopy(alone)), batch_of(device)
        for rule in (alone, together):
            rule.assign_credit(x, y)
        for one, other in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    finally:
        dist.destroy_process_group()
        store.unlink(missing_ok=True)


def repeated_by_a_graph(device: torch.device, folder: Path) -> str | None:
    """FOTON's step, constraint and all, replayed: the eager one, and its tolerance."""
    if device.type != "cuda":
        return "on a GPU alone"
    (x, y), rule = batch_of(device), Foton(network(device))
    other = copy.deepcopy(rule)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in (rule, other)]
    graph = graph_of(lambda: rule.step(x, y, optimizers[0]))
    for _ in range(5):
        graph.replay()
    for _ in range(6):
        other.step(x, y, optimizers[1])
    rule.calibrate([])
    for one, eager in zip(rule.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, eager, rtol=1e-3, atol=1e-4)
    return None


def main(out: str, device: str = "cuda", *parts: str) -> None:
    folder, place = Path(out), torch.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name(place) if place.type == "cuda" else device
    for part in (uses, constraint, steps, epochs, tests):
        if not parts or part.__name__ in parts:
            with (folder / f"{part.__name__}.txt").open("w") as file:
                print(f"{card}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}", file=file)
                for line in part(place, folder):
                    print(line, flush=True)
                    print(line, file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
