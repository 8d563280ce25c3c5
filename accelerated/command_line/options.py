"""The options that commands share, and what their values mean."""

import ast
import difflib
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

import torch
import typer

from ..training import Recipe, UserError, default_recipe
from ..training.errors import unknown
from ..training.networks import MLP, NETWORKS, widths
from ..training.recipes import ALL_PRESETS, OPTIMIZER_RATES, OPTIMIZERS, preset_named

OWN = "the rule's own"
IMAGES, RECIPE, RUNS = "Training images", "Further settings", "Further options"
"""Panels of help pages, after that of the options most used."""


DATA_HELP = (
    "'digits', a folder of MNIST's four IDX files (or .gz) or of CIFAR's, a folder with train and test (or .tar.gz) "
    "and in them a folder of images for each class, an .npz file, or a table, as in iris.csv:species for its labels."
)
Data: TypeAlias = Annotated[str, typer.Option(help=DATA_HELP, metavar="DATA")]
DataOrDigits: TypeAlias = Annotated[str | None, typer.Option(help=DATA_HELP, metavar="DATA", show_default="digits")]
Hidden: TypeAlias = Annotated[
    str | None, typer.Option(help="Widths of the hidden layers.", metavar="512-256", show_default=OWN)
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"mlp, mlp:512-256 with its widths, {', '.join(NETWORKS)}, or package.module:factory, yours; "
        "their arguments behind a colon, as in vit:patch=7,depth=2.",
        metavar="NAME",
        show_default=OWN,
        autocompletion=lambda: [MLP, *NETWORKS],
    ),
]
TrustedModel: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The name of the checkpoint's model, where that is package.module:factory, code that is run only so.",
        metavar="NAME",
        show_default="none",
    ),
]
Activation: TypeAlias = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RECIPE,
        help="relu, leaky_relu, tanh, gelu, silu, identity or maxmin.",
        metavar="NAME",
        show_default=OWN,
    ),
]
Epochs: TypeAlias = Annotated[int | None, typer.Option(help="Passes over the training data.", show_default=OWN)]
Batch: TypeAlias = Annotated[int | None, typer.Option(help="Samples in a step.", show_default="128")]
Optimizer: TypeAlias = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.", metavar="NAME", show_default=OWN)
]
LearningRate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="At the start of training. Another --optimizer than the rule's own brings "
        + ", ".join(f"{name} {rate:g}" for name, rate in OPTIMIZER_RATES.items())
        + ".",
        show_default=OWN,
    ),
]
Momentum: TypeAlias = Annotated[
    float | None, typer.Option(rich_help_panel=RECIPE, help="For rules trained with sgd.", show_default="0.9")
]
WeightDecay: TypeAlias = Annotated[
    float | None, typer.Option(rich_help_panel=RECIPE, help="The optimizer's weight decay.", show_default="0")
]
Dropout: TypeAlias = Annotated[
    float | None,
    typer.Option(rich_help_panel=RECIPE, help="Share of hidden units dropped in a step.", show_default="0; pepita 0.1"),
]
Shift: TypeAlias = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Move each training image at random by up to so many pixels, its border repeated.",
        metavar="PIXELS",
        show_default="0",
    ),
]
Flip: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip", rich_help_panel=IMAGES, help="Mirror half of the training images.", show_default="no-flip"
    ),
]
Cutout: TypeAlias = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Fill a square of so many pixels, at a random place of each training image, with the mean.",
        metavar="PIXELS",
        show_default="0",
    ),
]
Jitter: TypeAlias = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=IMAGES,
        help="Change brightness, contrast and saturation of each training image by random factors from 1 - SHARE to "
        "1 + SHARE.",
        metavar="SHARE",
        show_default="0",
    ),
]


def _with_the_files(
    context: typer.Context, parameter: typer.CallbackParam, given: list[str] | None
) -> list[str] | None:
    """NAME=VALUE of the line, and of `--config` those of other names."""
    names = {text.partition("=")[0] for text in given or ()}
    of_file = [text for text in context.meta.get(parameter.name, ()) if text.partition("=")[0] not in names]
    return [*of_file, *(given or ())] or None


Option: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=RECIPE,
        callback=_with_the_files,
        help="A setting of the rule itself, as in --option remedy=hardness-gated --option gamma=0.7, for rules that "
        "have it; may be given several times. `prograde rules NAME` has their names.",
        metavar="NAME=VALUE",
        show_default=OWN,
    ),
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        rich_help_panel=RECIPE,
        callback=_with_the_files,
        help="A part of the recipe, as in --set schedule=constant --set standardise=false; may be given several times.",
        metavar="NAME=VALUE",
        show_default=OWN,
    ),
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        rich_help_panel=RUNS,
        help="Fixes initial weights, batches, moves of images, masks and negatives.",
        min=0,
        max=2**63 - 1,
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option(rich_help_panel=RUNS, help="A device of PyTorch: cpu, cuda, cuda:1, mps.", metavar="DEVICE")
]
Dtype: TypeAlias = Annotated[str, typer.Option(rich_help_panel=RUNS, help="float32 or float64.", metavar="DTYPE")]
Validation: TypeAlias = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=RUNS,
        help="Training samples held out, evenly by class, to choose the best epoch on.",
        show_default="one in 12; 288 of the digits",
    ),
]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Job(NamedTuple):
    """One network and rule to be trained."""

    method: str
    recipe: Recipe

    @property
    def hidden(self) -> str:
        """The network's name, of an mlp its widths."""
        if self.recipe.model != MLP:
            return self.recipe.model
        return "-".join(map(str, self.recipe.hidden)) or "none"

    @property
    def name(self) -> str:
        return f"{self.method}:{self.hidden}"


def own_settings(method: str) -> str:
    """The settings of a rule's recipe, in one line."""
    preset = ALL_PRESETS[method]
    recipe = preset.recipe
    changed = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in preset.digits.items())
    extras = [
        recipe.activation,
        f"momentum {recipe.momentum:g}" if recipe.optimizer == "sgd" else "",
        f"dropout {recipe.dropout:g}" if recipe.dropout else "",
        f"{recipe.normalisation} normalisation" if recipe.normalisation != "none" else "",
        "standardised pixels" if recipe.standardise else "raw pixels",
    ]
    own = f"hidden 128-64, {changed}" if recipe.model == MLP else changed
    return (
        f"{network(recipe)}, {recipe.epochs} epochs, {recipe.optimizer} {recipe.learning_rate:g}, "
        f"{recipe.schedule} schedule, {', '.join(filter(None, extras))} (digits: {own})"
    )


def network(recipe: Recipe) -> str:
    """What a recipe's network is called in help pages."""
    return f"hidden {'-'.join(map(str, recipe.hidden))}" if recipe.model == MLP else f"model {recipe.model}"


def rule_names(text: str) -> list[str]:
    """`foton,ftp` as names, each once. Raises UserError for none."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"--rules: '{text}', expected names of rules joined by commas, such as foton,ftp")
    return names


def method(name: str) -> str:
    """The name, if it is a method's. Raises UserError with close names."""
    preset_named(name)
    return name


PLAIN: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a name",
    tuple: "a tuple",
    NoneType: "None",
}
"""What can be given for an option, and what it is called."""


def _kinds(annotation: Any) -> list[Any]:
    """What may be given for a parameter: keys of PLAIN, and the values of a Literal."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if origin is Literal:
        return [repr(value) for value in get_args(annotation)]
    kind = {Sequence: tuple, None: NoneType}.get(origin, origin)
    return [kind] if kind in PLAIN else []


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return repr(value) == kind if isinstance(kind, str) else type(value) is kind


def rule_options(method: str) -> dict[str, list[Any]]:
    """The options of a rule that `--option` can set: names, and the values of each."""
    parameters = list(inspect.signature(ALL_PRESETS[method].rule).parameters.values())[1:]
    found = {parameter.name: _kinds(parameter.annotation) for parameter in parameters}
    return {name: kinds for name, kinds in found.items() if set(kinds) - {NoneType}}


def parsed(texts: Iterable[str], argument: str = "--option") -> dict[str, Any]:
    """`["gamma=0.7"]` as {"gamma": 0.7}: literals of Python and TOML as such, others as strings. Raises UserError."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise UserError(f"{argument}: '{text}', expected NAME=VALUE, such as gamma=0.7")
        if name in values:
            raise UserError(f"{argument}: '{name}' is given twice, the second time as '{text}'; expected it once")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = {"true": True, "false": False}.get(value, value)
    return values


def recipe_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Parts of a recipe by name, as `--set` gives them. Raises UserError for what is none."""
    values = parsed(texts, "--set")
    for name, value in values.items():
        if name == "options":
            raise UserError("--set: 'options', expected --option NAME=VALUE for a setting of the rule itself")
        if name not in Recipe.__dataclass_fields__:
            raise unknown("--set", name, Recipe.__dataclass_fields__)
        if name == "hidden" and isinstance(value, str):
            values[name] = widths(value, "--set hidden")
    return values


def chosen_options(methods: Sequence[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    """The values that each rule takes. Raises UserError for a name that no rule has, or a bad value."""
    known = [rule_options(method) for method in methods]
    for name, value in values.items():
        if not any(name in names for names in known):
            listed = "; ".join(f"{m} has {', '.join(names)}" for m, names in zip(methods, known, strict=True))
            listed = listed if len(methods) == 1 else "none of these rules has it"
            close = difflib.get_close_matches(name, [name for names in known for name in names], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"--option: '{name}' is unknown, given as {value!r}; {hint}{listed}")
        for method, names in zip(methods, known, strict=True):
            kinds = names.get(name, [])
            if kinds and not any(_fits(value, kind) for kind in kinds):
                expected = " or ".join(PLAIN.get(kind, str(kind)) for kind in kinds)
                raise UserError(f"--option: {name} is {value!r}, expected {expected}; {method} has {', '.join(names)}")
    return [{name: value for name, value in values.items() if name in names} for names in known]


def jobs(
    rules: Sequence[str],
    data: str,
    hidden: str | None,
    base: Recipe | None = None,
    option: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
    **changes: Any,
) -> list[Job]:
    """What to train: rules as `pepita`, `pepita:1024` or `mono-forward:lenet`, their recipes changed by each option.

    An option that is None changes nothing. `base` is a recipe to change in place of the rules' own; `option` are
    settings of the rules themselves, each for the rules that have it; `settings` are further parts of the recipe.
    Raises UserError for unknown rules, impossible recipes and rules given twice.
    """
    told = chosen_options([method(text.partition(":")[0]) for text in rules], parsed(option or ()))
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, value in recipe_settings(settings or ()).items():
        if name in changes or (name == "hidden" and hidden is not None):
            raise UserError(f"--set: {name} is {value!r}, but --{name.replace('_', '-')} is given too")
        changes[name] = value
    momentum = changes.pop("momentum", None)
    if hidden is not None and str(changes.get("model", MLP)) != MLP:
        raise UserError(f"--hidden: '{hidden}', but --model is '{changes['model']}'; expected one of them")
    if hidden is not None:
        changes["hidden"] = widths(hidden, "--hidden")
    found: list[Job] = []
    for text, own_options in zip(rules, told, strict=True):
        name, colon, own = text.partition(":")
        changed = dict(changes)
        if colon:
            changed = {part: value for part, value in changes.items() if part not in ("model", "hidden")}
            changed |= {"model": own} if own[:1].isalpha() else {"model": MLP, "hidden": widths(own, f"rule '{text}'")}
        recipe = default_recipe(method(name), data, **changed) if base is None else replace(base, **changed)
        job = Job(name, replace(recipe, options={**recipe.options, **own_options}))
        if momentum is not None and job.recipe.optimizer == "sgd":
            job = job._replace(recipe=replace(job.recipe, momentum=momentum))
        if any(other.name == job.name for other in found):
            raise UserError(f"rule: '{text}' is given twice; expected different rules or widths")
        found.append(job)
    if momentum is not None and all(job.recipe.optimizer != "sgd" for job in found):
        raise UserError(f"--momentum: {momentum}, but none of these rules is trained with sgd")
    return found


def device_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Both, once a number has made the way there and back. Raises UserError."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype: '{dtype}', expected one of {', '.join(DTYPES)}")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found, dtype=DTYPES[dtype]).item()
    except Exception as error:  # each backend has its own way to say that it is missing
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--device: '{device}' is not available for {dtype} ({reason}); expected one of this machine, such as cpu"
        ) from error
    return found, DTYPES[dtype]


def output_folder(output: Path | None, data: str, stamp: str) -> Path:
    """The folder that results go to unless one is named."""
    return output if output is not None else Path("runs") / f"{Path(data).resolve().stem}-{stamp}"
