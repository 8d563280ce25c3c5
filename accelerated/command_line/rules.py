"""`prograde rules`: what each rule supports."""

import inspect
from collections.abc import Callable
from doctest import DocTestParser
from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table
from torch import nn

from ..modules import OrthogonalConv2d, RecurrentNetwork, ScaledAvgPool2d, resnet18, vgg8, vit
from ..rules import Rule
from ..training.recipes import ALL_PRESETS, mlp, preset_named
from . import options, report

CLASSES, SIDE = 10, 16


def orthogonal_cnn() -> nn.Sequential:
    """Convolutions that FOTON takes."""
    return nn.Sequential(
        nn.PixelUnshuffle(2), OrthogonalConv2d(4, 4, 3), nn.ReLU(), ScaledAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


def plain_cnn() -> nn.Sequential:
    """A convolution, ReLU and a pool, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, CLASSES, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(640, CLASSES)
    )


def norm_mlp() -> nn.Sequential:
    """Linear, batch normalisation, GELU."""
    return nn.Sequential(
        nn.Linear(SIDE**2, 20), nn.BatchNorm1d(20), nn.GELU(), nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 10)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: mlp(SIDE**2, (20, 20), CLASSES, "relu", 0.0), (SIDE**2,)),
    "with norms": (norm_mlp, (SIDE**2,)),
    "CNN": (plain_cnn, (1, SIDE, SIDE)),
    "orthogonal CNN": (orthogonal_cnn, (1, SIDE, SIDE)),
    "VGG": (partial(vgg8, image_channels=1, dropout=0.0, channels=[CLASSES] * 7), (1, SIDE, SIDE)),
    "ResNet": (partial(resnet18, image_channels=1, widths=(CLASSES, CLASSES)), (1, SIDE, SIDE)),
    "ViT": (partial(vit, CLASSES, 1, SIDE, 8, 20, 2, 2), (1, SIDE, SIDE)),
    "RNN": (partial(RecurrentNetwork, SIDE, 8, CLASSES), (SIDE, SIDE)),
}
"""A small network of each kind, and the shape of its samples."""


def tried(rule: type[Rule], kind: str, **settings: Any) -> Rule | str:
    """The rule on a network of that kind after a step, or the sentence by which it refuses it."""
    make, shape = MODELS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        units: Any = getattr(model, "units", None)
        given = {"units": units() if callable(units) else units, "example": torch.randn(2, *shape), **settings}
        known = inspect.signature(rule).parameters
        try:
            found = rule(model, **{name: value for name, value in given.items() if name in known})
            found.assign_credit(torch.randn(4, *shape), torch.arange(4))
        except ValueError as error:
            return str(error)
    return found


def answer(found: Rule | str) -> str:
    """Yes and the layers that the rule leaves out, or no, and why."""
    if isinstance(found, str):
        return f"no; {found}"
    layers: dict[str, dict[str, None]] = {}
    for name, why in found.left_out.items():
        layers.setdefault(why, {})[name.removeprefix("model.").rpartition(".")[0]] = None
    return "yes" + "".join(f"; leaves out {', '.join(names)} ({why})" for why, names in layers.items())


def description(rule: type[Rule]) -> str:
    """Its docstring without the examples, which are for who calls it in Python."""
    parts = DocTestParser().parse(inspect.getdoc(rule) or "")
    return "".join(part for part in parts if isinstance(part, str)).strip()


def rules(
    rule: Annotated[
        str | None,
        typer.Argument(
            help="A rule to tell more of.", show_default="a table of all", autocompletion=lambda: list(ALL_PRESETS)
        ),
    ] = None,
) -> None:
    """Say which networks each rule trains; of one also its settings and options, and what it leaves out or refuses.

    Each cell is tried: the rule is built on a small network of that kind and takes a step.
    """
    if rule is None:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("rule", no_wrap=True)
        table.add_column("in Python", no_wrap=True)
        for kind in MODELS:
            table.add_column(kind, justify="center", no_wrap=True)
        for name, preset in ALL_PRESETS.items():
            settings = preset.recipe.options
            cells = ["yes" if isinstance(tried(preset.rule, kind, **settings), Rule) else "–" for kind in MODELS]
            table.add_row(name, preset.rule.__name__, *cells)
        report.console().print(table)
        return
    preset = preset_named(rule)
    output = report.console()
    output.print(f"{rule}, in Python prograde.accelerated.rules.{preset.rule.__name__}\n", markup=False)
    output.print(description(preset.rule), markup=False)
    output.print(f"\nSettings unless given: {options.own_settings(rule)}", markup=False)
    output.print("\nNetworks:", markup=False)
    for kind in MODELS:
        output.print(f"  {kind}: {answer(tried(preset.rule, kind, **preset.recipe.options))}", markup=False)
    output.print("\nOptions, as --option NAME=VALUE:", markup=False)
    parameters = inspect.signature(preset.rule).parameters
    for name, kinds in options.rule_options(rule).items():
        values = " or ".join(dict.fromkeys(options.PLAIN.get(kind, str(kind)) for kind in kinds))
        default = preset.recipe.options.get(name, parameters[name].default)
        output.print(f"  {name}: {values}; {default!r} unless given", markup=False)
