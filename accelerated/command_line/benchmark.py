"""`prograde benchmark`: what a training step costs beside backpropagation, and how that grows."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table

from ..training import UserError, files
from . import options, own_steps, report
from .contenders import (
    BESIDE,
    OPTIMIZERS,
    PLAIN,
    Classes,
    Network,
    Sample,
    Setting,
    contenders_for,
    measured,
)
from .pictures import sweep_curves

SWEEPS: dict[str, tuple[int, ...]] = {
    "depth": (4, 8, 16, 32, 64),
    "width": (128, 256, 512, 1024, 2048),
    "batch": (32, 128, 512, 2048),
    "classes": (10, 100, 1000),
}
"""What can be varied, and its values unless others are given."""

FILES = "benchmark.jsonl", "benchmark.png"


def benchmark(
    network: Network = "784-1024-1024-10",
    sample: Sample = "3x32x32",
    classes: Classes = 10,
    batch: Annotated[int, typer.Option(help="Samples in a step.", min=1)] = 128,
    rules: Annotated[
        str, typer.Option(help="Rules, joined by commas.", metavar="RULES")
    ] = "backprop,foton,ftp,pepita,dfa,forward-forward,mono-forward",
    beside: Annotated[
        str,
        typer.Option(
            help=f"Further ways of backpropagation, of {', '.join(BESIDE)}, and package.module:function, steps of your "
            "own code.",
            metavar="NAMES",
        ),
    ] = "stepping",
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples of a micro-batch: backpropagation and every rule once more, with a step of as many samples "
            "accumulated from those.",
            min=1,
            show_default="none",
        ),
    ] = None,
    compile_rules: Annotated[
        bool, typer.Option("--compile", help="Every rule once more, its steps compiled: half a minute each.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.", metavar="NAME")] = "sgd",
    learning_rate: Annotated[
        float | None, typer.Option(help="Of all.", show_default="each rule's own, as for train")
    ] = None,
    steps: Annotated[int, typer.Option(help="Timed steps of each.", min=1)] = 60,
    rounds: Annotated[int, typer.Option(help="Rounds that these are divided into.", min=1)] = 6,
    sweep: Annotated[
        str | None,
        typer.Option(help=f"Vary one of {', '.join(SWEEPS)}; depth is layers.", metavar="NAME", show_default="none"),
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="What it takes.", metavar="4,8,16", show_default="five, of depth 4 to 64")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data as for train, pixels standardised.", metavar="DATA", show_default="random clusters"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for benchmark.jsonl and, of a sweep, benchmark.png.", show_default="none written"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Time a training step of each rule against plain backpropagation in PyTorch, and count the memory that it takes.

    All train the same network with the same batches and optimizer (momentum is SGD's, 0.9), taking turns in rounds, so
    that whatever else the machine does hits all of them. A step is everything from batch to changed weights,
    re-orthogonalisation included; that of a rule is rule.step. "x backprop" is the median of the rounds' ratios to
    plain backpropagation, "rounds" the least and greatest of these.

    "x floor" is the time over that of the products alone (counted as by `prograde costs`, at the rate of the network's
    own forward products here) and of the optimizer's numbers (read and written, at the rate of a copy). "held" is what
    is alive at most in a step beside parameters and the optimizer's state, gradients included.

    Beside: PyTorch's foreach and fused optimizers; stepping is backpropagation that steps each parameter within the
    backward pass; compiled is torch.compile with the fused optimizer, minutes of it; checkpointed holds the inputs of
    segments and computes the rest again. The defect is the largest entry of |W W^T - I| (W^T W where W is tall) over
    FOTON's hidden weights after any step.

    A function of yours, in a module that Python finds (PYTHONPATH=.), gives step(x, y), which takes one training step
    of your own code or of somebody's, and returns the loss or None. It is given what it names: model, the network that
    all train, a copy of its own; widths, sample_shape, num_classes, batch, device, dtype; learning_rate, and
    make_optimizer, which makes the optimizer of parameters. Its own arguments stand behind a colon, as in
    peers:pepita:dropout=0.1. "held" is what its tensors add in a step to those that are there between steps.
    """
    names = [options.method(name) for name in options.rule_names(rules)]
    others = own_steps.names(beside)
    own = [own_steps.read(name) for name in others if name not in BESIDE]
    if optimizer not in OPTIMIZERS:
        raise UserError(f"--optimizer: '{optimizer}', expected one of {', '.join(OPTIMIZERS)}")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise UserError(f"--learning-rate: {learning_rate}, expected a positive number")
    where, precision = options.device_and_dtype(device, dtype)
    setting = Setting(
        network, sample, classes, batch, optimizer, learning_rate, seed, where, precision, micro_batch, compile_rules
    )
    swept = list(settings_of(setting, sweep, values))
    _claim(output, overwrite)
    described = {**setting.described(), "command": "benchmark", "data": data, "sweep": sweep, "steps": steps}
    records = [{**described, "rounds": min(rounds, steps)}]
    for value, each in swept:
        ways = contenders_for(each, names, [name for name in others if name in BESIDE])
        found = measured(each, [*ways, *(step.contender(each) for step in own)], steps, rounds, data)
        records += [{**record, "sweep": sweep, "value": value} for record in found]
        if sweep is None:
            report.console().print(_table(found, f"{network}, batch {batch}, {optimizer}, {where}, {dtype}"))
        else:
            print(f"{sweep} {value}: done", flush=True)
    if sweep is not None:
        fits = fits_of(records, sweep)
        records += fits
        report.console().print(_sweep_table(records, fits, f"{network}, {optimizer}, {where}, {dtype}", sweep))
    if output is not None:
        files.write(output / FILES[0], "".join(f"{json.dumps(record)}\n" for record in records).encode())
        print(output / FILES[0])
        if sweep is not None:
            files.write(output / FILES[1], sweep_curves(records, sweep))
            print(output / FILES[1])


def settings_of(setting: Setting, sweep: str | None, values: str | None) -> Iterator[tuple[int | None, Setting]]:
    """The settings that are measured, each with the value that tells it apart. Raises UserError."""
    if sweep is None:
        if values is not None:
            raise UserError(f"--values: '{values}', expected with --sweep, one of {', '.join(SWEEPS)}")
        yield None, setting
        return
    if sweep not in SWEEPS:
        raise UserError(f"--sweep: '{sweep}', expected one of {', '.join(SWEEPS)}")
    texts = [] if values is None else values.split(",")
    if not all(text.strip().isdigit() and int(text) > (sweep == "depth") for text in texts):
        raise UserError(f"--values: '{values}', expected positive integers joined by commas, such as 4,8,16")
    widths = setting.widths
    if widths is None and sweep in ("depth", "width"):
        raise UserError(f"--sweep: '{sweep}', but --network is '{setting.network}'; expected widths, as in 784-256-10")
    for value in [int(text) for text in texts] or SWEEPS[sweep]:
        if sweep == "batch":
            yield value, replace(setting, batch=value)
        elif widths is None:
            yield value, replace(setting, classes=value)
        else:
            first, *hidden, last = widths
            hidden = [hidden[0]] * (value - 1) if sweep == "depth" else hidden
            hidden = [value] * len(hidden) if sweep == "width" else hidden
            last = value if sweep == "classes" else last
            yield value, replace(setting, network="-".join(map(str, (first, *hidden, last))))


def _claim(folder: Path | None, overwrite: bool) -> None:
    """Makes the folder. Raises UserError where results stand there already."""
    if folder is None:
        return
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--output: '{folder}' is a file, expected a folder")
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(f"--output: '{folder}' has {there[0]} already; expected another folder, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)


def _empty(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("rule", no_wrap=True)
    return table


def _table(records: list[dict[str, Any]], title: str) -> Table:
    table = _empty(title)
    for name in ("rate", "ms a step", "x backprop", "rounds", "x floor", "held, MB", "loss, start to end", "defect"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        first, last = record["losses"]
        is_plain, ratios = record["name"] == PLAIN, record["ratios"]
        table.add_row(
            record["name"],
            "–" if record["learning_rate"] is None else f"{record['learning_rate']:g}",
            f"{record['median']:.3g}",
            "1" if is_plain else f"{record['ratio']:.2f}",
            "–" if is_plain else f"{min(ratios):.2f} to {max(ratios):.2f}",
            "–" if record["floor"] is None else f"{record['median'] / record['floor']:.2f}",
            "–" if record["held"] is None else f"{record['held'] / 1e6:.3g}",
            "–" if first is None else f"{first:.3g} to {last:.3g}",
            "–" if record["defect"] is None else f"{record['defect']:.1e}",
        )
    return table


def of_steps(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of steps by what made them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == "step":
            found.setdefault(record["name"], []).append(record)
    return found


def fits_of(records: list[dict[str, Any]], sweep: str) -> list[dict[str, Any]]:
    """Exponents of time and memory in what was varied, by least squares of the logarithms, and how far they are off."""
    fits = []
    for name, steps in of_steps(records).items():
        fit: dict[str, Any] = {"kind": "fit", "sweep": sweep, "name": name}
        for quantity, part in (("time", "median"), ("memory", "held")):
            pairs = [(step["value"], step[part]) for step in steps if step[part]]
            if len(pairs) > 1:
                x, y = np.log(np.array(pairs, dtype=float)).T
                exponent, offset = np.polyfit(x, y, 1)
                off = float(np.exp(np.abs(y - exponent * x - offset).max()) - 1)
                fit[quantity] = {"exponent": float(exponent), "off": off}
        fits.append(fit)
    return fits


def _sweep_table(records: list[dict[str, Any]], fits: list[dict[str, Any]], title: str, sweep: str) -> Table:
    """Milliseconds and megabytes at each value, and their exponents."""
    table = _empty(f"{title}: ms a step, MB held, against {sweep}")
    by_name = of_steps(records)
    for step in by_name[PLAIN]:
        table.add_column(f"{step['value']}", justify="right", no_wrap=True)
    for name in ("ms ~", "off by", "MB ~"):
        table.add_column(name, justify="right", no_wrap=True)
    for fit in fits:
        cells = []
        for step in by_name[fit["name"]]:
            held = "–" if step["held"] is None else f"{step['held'] / 1e6:.3g}"
            cells.append(f"{step['median']:.3g}, {held}")
        seen = [fit.get(quantity) for quantity in ("time", "memory")]
        exponents = ["–" if found is None else f"{sweep}^{found['exponent']:.2f}" for found in seen]
        off = "–" if seen[0] is None else f"{100 * seen[0]['off']:.0f} %"
        table.add_row(fit["name"], *cells, exponents[0], off, exponents[1])
    return table
