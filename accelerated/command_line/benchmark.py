"""`prograde benchmark`: what a training step costs beside plain backpropagation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from ..orthogonality import defect
from ..rules import RULES, Foton, Rule
from ..training import PRESETS, UserError, load, mlp
from ..training.networks import widths as widths_of
from . import options, report

PLAIN = "PyTorch backprop"
STEPPING = "stepping within"
WARM_UP = 3
BATCHES = 8
CLUSTER_NOISE = 1.0


@dataclass
class Contender:
    """A way to train, its step, and what was seen of it."""

    name: str
    step: Callable[[Tensor, Tensor], Tensor]
    parameters: list[Tensor]
    learning_rate: float
    foton: Foton | None = None
    rounds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    defect: float = 0.0


def benchmark(
    network: Annotated[str, typer.Option(help="Widths from pixels to classes.", metavar="WIDTHS")] = "784-1024-1024-10",
    batch: Annotated[int, typer.Option(help="Samples in a step.", min=1)] = 128,
    rules: Annotated[
        str, typer.Option(help="Rules, joined by commas.", metavar="RULES")
    ] = "backprop,foton,ftp,pepita,dfa,forward-forward",
    learning_rate: Annotated[
        float | None, typer.Option(help="Of plain SGD, for all.", show_default="each rule's own, as for train")
    ] = None,
    steps: Annotated[int, typer.Option(help="Timed steps of each.", min=1)] = 60,
    rounds: Annotated[int, typer.Option(help="Rounds that these are divided into.", min=1)] = 6,
    data: Annotated[
        str | None,
        typer.Option(help="Data as for train, pixels standardised.", metavar="DATA", show_default="random clusters"),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Time a training step of each rule against plain backpropagation in PyTorch.

    All train the same network with the same batches and plain SGD, taking turns in rounds, so that whatever else the
    machine does hits all of them. A step is everything from batch to changed weights, re-orthogonalisation included;
    that of a rule is rule.step. "Stepping within" is backpropagation that steps within the backward pass.
    Ratios are medians of the rounds' ratios. The defect is the largest entry of |W W^T - I| (W^T W where W is tall)
    over FOTON's hidden weights after any step.
    """
    widths = widths_of(network, "--network")
    if len(widths) < 3:
        raise UserError(f"--network: '{network}', expected pixels, one hidden width or more, classes")
    names = options.rule_names(rules)
    for name in names:
        if name not in RULES:
            options.method(name)
            raise UserError(f"rule: '{name}' has no benchmark; expected some of {', '.join(RULES)}")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise UserError(f"--learning-rate: {learning_rate}, expected a positive number")
    where, precision = options.device_and_dtype(device, dtype)
    batches = batches_for(data, widths, batch, seed, where, precision)
    plain = widths, seed, where, precision, learning_rate
    contenders = [plain_contender(*plain), stepping_contender(*plain)]
    contenders += [rule_contender(name, widths, seed, where, precision, learning_rate) for name in names]
    take_turns(contenders, batches, steps, min(rounds, steps), where)
    report.console().print(_table(contenders, f"{network}, batch {batch}, SGD, {where}, {dtype}"))


def batches_for(
    data: str | None, widths: tuple[int, ...], batch: int, seed: int, device: torch.device, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Whole batches, of random clusters where no data are named. Raises UserError where the data do not fit."""
    generator = torch.Generator().manual_seed(seed)
    n_in, num_classes = widths[0], widths[-1]
    if data is None:
        labels = torch.randint(num_classes, (BATCHES * batch,), generator=generator)
        centres = torch.randn(num_classes, n_in, generator=generator)
        noise = CLUSTER_NOISE * torch.randn(len(labels), n_in, generator=generator)
        images = (centres[labels] + noise) / (1 + CLUSTER_NOISE**2) ** 0.5  # (samples, n_in), unit variance
        images, labels = images.to(device, dtype), labels.to(device)
    else:
        dataset = load(data).to(device, dtype, standardise=True)
        if (dataset.features, dataset.num_classes) != (n_in, num_classes):
            raise UserError(
                f"--network: {n_in} pixels and {num_classes} classes, "
                f"but {dataset.name} has {dataset.features} and {dataset.num_classes}"
            )
        order = torch.randperm(len(dataset.train.labels), generator=generator).to(device)
        images, labels = dataset.train.images[order], dataset.train.labels[order]
    whole = [pair for pair in zip(images.split(batch), labels.split(batch), strict=True) if len(pair[1]) == batch]
    if not whole:
        raise UserError(f"--batch: {batch}, but there are {len(labels)} training samples")
    return whole


def model_for(widths: tuple[int, ...], seed: int, dtype: torch.dtype) -> nn.Sequential:
    """The network that all contenders train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(widths[0], widths[1:-1], widths[-1], "relu", 0.0).to(dtype)


def plain_contender(
    widths: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype, learning_rate: float | None = None
) -> Contender:
    """Backpropagation as one writes it in PyTorch, at its own learning rate unless one is given."""
    learning_rate = PRESETS["backprop"].recipe.learning_rate if learning_rate is None else learning_rate
    model = model_for(widths, seed, dtype).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contender(PLAIN, step, list(model.parameters()), learning_rate)


def stepping_contender(
    widths: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype, learning_rate: float | None = None
) -> Contender:
    """Backpropagation that steps each parameter within the backward pass, as soon as its gradient is known."""
    contender = plain_contender(widths, seed, device, dtype, learning_rate)
    model = model_for(widths, seed, dtype).to(device)

    @torch.no_grad()
    def descend(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.add_(parameter.grad, alpha=-contender.learning_rate)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return Contender(STEPPING, step, list(model.parameters()), contender.learning_rate)


def rule_contender(
    name: str,
    widths: tuple[int, ...],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    learning_rate: float | None = None,
) -> Contender:
    """A rule, at its own learning rate unless one is given. Raises UserError where it can't train the network."""
    learning_rate = PRESETS[name].recipe.learning_rate if learning_rate is None else learning_rate
    try:
        rule: Rule = RULES[name](model_for(widths, seed, dtype), generator=torch.Generator().manual_seed(seed))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    rule.to(device)
    rule.generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.SGD(rule.parameters(), lr=learning_rate)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return rule.step(x, y, optimizer)

    parameters = [*rule.parameters(), *rule.buffers()]
    return Contender(name, step, parameters, learning_rate, rule if isinstance(rule, Foton) else None)


def take_turns(
    contenders: list[Contender], batches: list[tuple[Tensor, Tensor]], steps: int, rounds: int, device: torch.device
) -> None:
    """Fills in what is seen of the contenders; they change places from round to round."""
    taken = {contender.name: 0 for contender in contenders}

    def one_step(contender: Contender) -> float:
        x, y = batches[taken[contender.name] % len(batches)]
        taken[contender.name] += 1
        _wait(device)
        start = time.perf_counter()
        try:
            loss = contender.step(x, y)
        except FloatingPointError as error:
            raise UserError(f"{contender.name}: {error}") from error
        _wait(device)
        seconds = time.perf_counter() - start
        contender.losses.append(loss)
        if contender.foton is not None:
            weights = [unit.weights[0].detach() for unit in contender.foton.units[:-1]]
            contender.defect = max(contender.defect, *(defect(weight).item() for weight in weights))
        return seconds

    for contender in contenders:
        for _ in range(WARM_UP):
            one_step(contender)
    sizes = [steps * (i + 1) // rounds - steps * i // rounds for i in range(rounds)]
    for i, size in enumerate(sizes):
        shift = i % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.rounds.append(statistics.median(one_step(contender) for _ in range(size)))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _table(contenders: list[Contender], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("rule", no_wrap=True)
    for name in ("rate", "ms a step", "x PyTorch backprop", "least to greatest", "loss, start to end", "defect"):
        table.add_column(name, justify="right", no_wrap=True)
    plain = contenders[0]
    for contender in contenders:
        ratios = [a / b for a, b in zip(contender.rounds, plain.rounds, strict=True)]
        first, last = contender.losses[0].item(), contender.losses[-1].item()
        table.add_row(
            contender.name,
            f"{contender.learning_rate:g}",
            f"{1000 * statistics.median(contender.rounds):.3g}",
            f"{statistics.median(ratios):.2f}" if contender is not plain else "1",
            f"{min(ratios):.2f} to {max(ratios):.2f}" if contender is not plain else "–",
            f"{first:.3g} to {last:.3g}",
            f"{contender.defect:.1e}" if contender.foton is not None else "–",
        )
    return table
