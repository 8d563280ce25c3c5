"""`prograde costs`: what a rule costs, counted and measured."""

import statistics
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from ..rules import RULES
from ..training import UserError
from ..training.diagnostics.costs import costs as counted
from . import options, report
from .contenders import (
    PLAIN,
    Classes,
    Network,
    Sample,
    Setting,
    backprop,
    batches_for,
    peak,
    rule_contender,
    take_turns,
)

COUNTED = tuple(RULES)


def costs(
    network: Network = "784-1024-128-10",
    sample: Sample = "3x32x32",
    classes: Classes = 10,
    batch: Annotated[int, typer.Option(help="Samples in a measured step.", min=1)] = 128,
    rules: Annotated[str, typer.Option(help="Rules, joined by commas.", metavar="RULES")] = ",".join(COUNTED),
    steps: Annotated[int, typer.Option(help="Timed steps of each; 0 to count only.", min=0)] = 30,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Count the multiply-accumulates and activation bytes of each rule, and measure time and memory beside them.

    Counts are for one sample, by the rules of the published table of Forward Target Propagation. Measured are a
    training step (the median of ratios to plain backpropagation in PyTorch, in turns) and the most bytes of tensors
    that are alive at one time in it, parameters left out, for the whole batch.
    """
    names = options.rule_names(rules)
    for name in names:
        if name not in COUNTED:
            options.method(name)
            raise UserError(f"rule: '{name}' is not counted; expected some of {', '.join(COUNTED)}")
    where, precision = options.device_and_dtype(device, dtype)
    setting = Setting(network, sample, classes, batch, "sgd", None, seed, where, precision)
    made = setting.made()
    found = counted(made.model, made.example.shape[1:])
    contenders = [backprop(setting), *(rule_contender(setting, name) for name in names)]
    peaks: dict[str, int | None] = {}
    if steps:
        batches = batches_for(setting)
        take_turns(contenders, batches, steps, min(6, steps), where)
        peaks = {contender.name: peak(contender, *batches[0]) for contender in contenders}
    table = Table(title=f"{network}, {dtype}", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("rule", no_wrap=True)
    for heading in ("MACs a sample", "x backprop", "activations, bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    if steps:
        for heading in (f"ms a step of {batch}", "x PyTorch", "peak, MB"):
            table.add_column(heading, justify="right", no_wrap=True)
        plain = contenders[0]
        milliseconds = f"{1000 * statistics.median(plain.rounds):.3g}"
        table.add_row(PLAIN, "", "", "", milliseconds, "1", f"{(peaks[PLAIN] or 0) / 1e6:.3g}")
    for name in names:
        cost = found.get(name)
        cells = [name, "–", "–", "–"]  # for a rule that no formula counts
        if cost is not None:
            ratio = f"{cost.macs / found['backprop'].macs:.3f}"
            cells = [name, f"{cost.macs:,}", ratio, f"{cost.activation_bytes:,}"]
        if steps:
            contender = next(contender for contender in contenders if contender.name == name)
            ratios = [a / b for a, b in zip(contender.rounds, contenders[0].rounds, strict=True)]
            cells += [f"{1000 * statistics.median(contender.rounds):.3g}", f"{statistics.median(ratios):.2f}"]
            cells.append(f"{(peaks[name] or 0) / 1e6:.3g}")
        table.add_row(*cells)
    report.console().print(table)
