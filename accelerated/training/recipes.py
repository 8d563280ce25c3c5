"""The default settings of each rule, and how a network and its rule are made from them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from numbers import Integral, Real
from sys import float_info
from typing import Any

import torch
from torch import nn

from ..activations import ACTIVATIONS
from ..layers import he_uniform
from ..modules.activations import MODULES
from ..rules import (
    RULES,
    Backprop,
    BackpropDeepSupervision,
    BackpropThroughTime,
    ChannelClassAssignment,
    ChannelCompetition,
    CumulativeForwardForward,
    DeeperForward,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    DynamicTemperature,
    FeedbackAlignment,
    ForwardForward,
    Foton,
    Ftp,
    HybridDynamicTemperature,
    Hyperspherical,
    LayerCollaboration,
    MonoForward,
    PatchEnergy,
    Pepita,
    RecurrentFtp,
    Rule,
    SymBa,
)
from .data import Dataset
from .errors import UserError, unknown
from .networks import MLP, Made, made, named, widths
from .schedules import SCHEDULES

OPTIMIZERS = ("sgd", "adam", "adamw")

NORMALISATIONS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "direction": partial(nn.RMSNorm, elementwise_affine=False),
    "layer": partial(nn.LayerNorm, elementwise_affine=False),
}
"""What makes the normalisation of so many units: nothing learned; a mean square of 1, or a mean of 0 besides."""


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained. `options` go to the rule.

    `model` is "mlp", with `hidden` the widths of its hidden layers, or a name of `training.networks`, which has
    activations, dropout and normalisation of its own. "mlp:512-256" stands for "mlp" and `hidden`.
    Training images are moved by up to `shift` pixels, with `flip` half of them mirrored, a square of `cutout` pixels
    filled with the mean, and colours changed by factors from 1 - jitter to 1 + jitter, anew in every epoch.

    >>> Recipe(model="mlp:8-4").hidden
    (8, 4)
    """

    hidden: tuple[int, ...] = (512, 256)
    activation: str = "relu"
    epochs: int = 15
    batch: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    standardise: bool = True
    dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: str = "none"
    shift: int = 0
    flip: bool = False
    cutout: int = 0
    jitter: float = 0.0
    model: str = MLP

    def __post_init__(self) -> None:
        """Raises UserError for what no network or optimizer could be made from."""
        self._check_model()
        _check_hidden(self.hidden)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name, known in NAMES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name, (least, most) in RANGES.items():
            value: float = getattr(self, name)
            kind: type[int] | type[float] = type(getattr(Recipe, name))
            fits = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
            if not (fits and least <= value < most):
                expected = f"an integer, {least} or more" if kind is int else f"a finite number, {least:g} or more"
                if least == TINIEST:
                    expected = "a positive number"
                below = f" and below {most:g}" if most < float("inf") else ""
                raise UserError(f"{name.replace('_', ' ')}: {value!r}, expected {expected}{below}")
            object.__setattr__(self, name, kind(value))  # a checkpoint holds no numbers of NumPy
        for name in ("standardise", "flip"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name}: {getattr(self, name)!r}, expected True or False")
        if not isinstance(self.options, dict) or not all(isinstance(name, str) for name in self.options):
            raise UserError(f"options: {self.options!r}, expected a dict of the rule's options by name")
        for width in self.hidden:
            if self.activation == "maxmin" and width % 2:
                raise UserError(f"hidden: width {width}, expected an even number, since activation maxmin pairs units")

    def _check_model(self) -> None:
        """Takes widths out of the model's name. Raises UserError for a model that is none, or for parts of another."""
        kind, colon, own = self.model.partition(":") if isinstance(self.model, str) else (self.model, "", "")
        if kind == MLP:
            object.__setattr__(self, "model", MLP)
            if colon:
                object.__setattr__(self, "hidden", widths(own, "model"))
            return
        named(self.model)
        for name in MLP_PARTS:
            if (value := getattr(self, name)) not in ((), [], Recipe.__dataclass_fields__[name].default):
                raise UserError(f"{name}: {value!r}, but model '{self.model}' has its own; expected model mlp")
        object.__setattr__(self, "hidden", ())

    @property
    def network(self) -> dict[str, Any]:
        """The part that makes the model and its rule; the rest is how these are trained."""
        return {name: getattr(self, name) for name in NETWORK}

    @property
    def augmentation(self) -> dict[str, Any]:
        """What becomes of training images, as `Augmentation.of` takes it."""
        return {name: getattr(self, name) for name in AUGMENTATION}


MLP_PARTS = ("hidden", "activation", "dropout", "normalisation")
NETWORK = ("model", *MLP_PARTS, "options")
AUGMENTATION = ("shift", "flip", "cutout", "jitter")
NAMES: dict[str, Sequence[str]] = {
    "activation": list(ACTIVATIONS),
    "optimizer": OPTIMIZERS,
    "schedule": list(SCHEDULES),
    "normalisation": list(NORMALISATIONS),
}
TINIEST = float_info.min  # not the least of all, which is 0 where denormal numbers are flushed
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, float("inf")),
    "batch": (1, float("inf")),
    "learning_rate": (TINIEST, float("inf")),
    "momentum": (0, 1),
    "weight_decay": (0, float("inf")),
    "dropout": (0, 1),
    "shift": (0, float("inf")),
    "cutout": (0, float("inf")),
    "jitter": (0, 1),
}
"""From the first to below the second."""


def _check_hidden(hidden: Any) -> None:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise UserError(f"hidden: {hidden!r}, expected a tuple of widths, such as (512, 256)")
    for width in hidden:
        if type(width) is not int or width < 1:
            raise UserError(f"hidden: width {width!r}, expected positive integers")


@dataclass(frozen=True)
class Preset:
    """A rule, its family, its recipe, and what of that is changed for the digits (chosen on validation samples)."""

    rule: type[Rule]
    family: str = "Other rules"
    recipe: Recipe = Recipe()  # frozen
    digits: dict[str, Any] = field(default_factory=lambda: {"epochs": 30})


BACKPROP = Preset(Backprop, "Backpropagation", Recipe(learning_rate=0.05), {"epochs": 30, "learning_rate": 0.1})
FOTON = Preset(Foton, "A second pass with the error")
FTP = Preset(
    Ftp,
    "Feedback and targets",
    Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.02),
    {"epochs": 30, "learning_rate": 0.05},
)
FORWARD_FORWARD = Preset(
    ForwardForward,
    "Forward-Forward",
    Recipe(
        hidden=(1000, 1000, 1000),
        epochs=20,
        optimizer="adam",
        learning_rate=1e-3,
        momentum=0.0,
        schedule="linear-tail",
        standardise=False,
        options={"amplitude": 4.0},
    ),
    {"epochs": 60, "learning_rate": 1e-2},
)
MONO_FORWARD = Preset(
    MonoForward,
    "Layers that are classifiers",
    Recipe(hidden=(1000, 1000, 1000), epochs=8, optimizer="adam", learning_rate=1e-3, momentum=0.0, dropout=0.1),
    {"epochs": 30, "learning_rate": 3e-3},
)

PRESETS: dict[str, Preset] = {
    "backprop": BACKPROP,
    "backprop-orthogonal": replace(BACKPROP, recipe=replace(BACKPROP.recipe, options={"orthogonal": True})),
    "backprop-deep-supervision": replace(MONO_FORWARD, rule=BackpropDeepSupervision, family=BACKPROP.family),
    "foton": FOTON,
    "foton-linear": replace(FOTON, recipe=Recipe(options={"linear": True})),
    "pepita": Preset(
        Pepita,
        FOTON.family,
        Recipe(hidden=(1024,), epochs=30, schedule="steps", standardise=False, dropout=0.1),
        {"epochs": 80, "learning_rate": 0.3},
    ),
    "ftp": FTP,
    "fa": replace(FTP, rule=FeedbackAlignment),
    "dfa": replace(FTP, rule=DirectFeedbackAlignment),
    "drtp": replace(
        FTP,
        rule=DirectRandomTargetProjection,
        recipe=replace(FTP.recipe, learning_rate=0.005),
        digits={"epochs": 30, "learning_rate": 0.01},
    ),
    "dtp": replace(FTP, rule=DifferenceTargetPropagation),
    "forward-forward": FORWARD_FORWARD,
    "symba": replace(FORWARD_FORWARD, rule=SymBa),
    "layer-collaboration": replace(FORWARD_FORWARD, rule=LayerCollaboration),
    "cumulative": replace(FORWARD_FORWARD, rule=CumulativeForwardForward),
    "mono-forward": MONO_FORWARD,
    "hyperspherical": replace(
        MONO_FORWARD, rule=Hyperspherical, recipe=replace(MONO_FORWARD.recipe, normalisation="direction")
    ),
    "dynamic-temperature": replace(
        MONO_FORWARD, rule=DynamicTemperature, recipe=replace(MONO_FORWARD.recipe, normalisation="layer")
    ),
}
PRESETS |= {name: Preset(rule) for name, rule in RULES.items() if name not in PRESETS}
"""What trains a dense network, by the names that the command line uses. A rule not named has the default recipe."""

OF_CHANNELS = Recipe(
    model="small-cnn:channels=(20,40,80,80)", epochs=8, optimizer="adam", learning_rate=1e-3, momentum=0.0
)
OF_SEQUENCES = Recipe(model="rnn", epochs=8, optimizer="adam", learning_rate=1e-3, momentum=0.0)
FURTHER_PRESETS: dict[str, Preset] = {
    "patch-energy": Preset(PatchEnergy, MONO_FORWARD.family, OF_CHANNELS),
    "deeper-forward": Preset(DeeperForward, MONO_FORWARD.family, OF_CHANNELS),
    "channel-competition": Preset(ChannelCompetition, MONO_FORWARD.family, OF_CHANNELS),
    "channel-class-assignment": Preset(ChannelClassAssignment, MONO_FORWARD.family, OF_CHANNELS),
    "hybrid-dynamic-temperature": Preset(
        HybridDynamicTemperature, recipe=replace(MONO_FORWARD.recipe, dropout=0.0), digits=MONO_FORWARD.digits
    ),
    "bptt": Preset(BackpropThroughTime, BACKPROP.family, OF_SEQUENCES),
    "recurrent-ftp": Preset(RecurrentFtp, FTP.family, OF_SEQUENCES),
}
"""What trains other networks, or not by layers alone: the command line trains these too, where they are named."""

ALL_PRESETS = PRESETS | FURTHER_PRESETS

OPTIMIZER_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def preset_named(name: str) -> Preset:
    """Raises UserError, with close names, for one that is not in ALL_PRESETS."""
    if name not in ALL_PRESETS:
        given = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
        raise unknown("rule", given, ALL_PRESETS)
    return ALL_PRESETS[name]


def preset_of(rule: str, options: dict[str, Any]) -> str:
    """The name of the preset for a class of that name with those options. Raises UserError where there is none."""
    of_class = {name: preset.recipe.options for name, preset in ALL_PRESETS.items() if preset.rule.__name__ == rule}
    fitting = [name for name, own in of_class.items() if own.items() <= options.items()]
    if not of_class:
        raise UserError(f"rule: {rule}, which the command line does not train")
    return max(fitting or of_class, key=lambda name: len(of_class[name]))


def default_recipe(method: str, data: str, **changes: Any) -> Recipe:
    """The recipe of a method for that data set, with changes. Another optimizer brings its own usual learning rate.

    Raises UserError for an unknown method and an impossible recipe.

    >>> default_recipe("foton", "digits", epochs=3).epochs
    3
    """
    recipe = preset_named(method).recipe
    for name in changes:
        if name not in Recipe.__dataclass_fields__:
            raise unknown("recipe", name, Recipe.__dataclass_fields__)
    if recipe.model != MLP and (str(changes.get("model", "")).startswith(MLP) or set(changes) & set(MLP_PARTS)):
        recipe = replace(recipe, model=MLP, hidden=Recipe.hidden)
    if data == "digits":
        small = {"hidden": (128, 64)} if recipe.model == MLP else {}
        recipe = replace(recipe, **{**small, **preset_named(method).digits})
    if not str(changes.get("model", recipe.model)).startswith(MLP):
        plain = Recipe()
        recipe = replace(recipe, **{name: getattr(plain, name) for name in MLP_PARTS})
    optimizer = changes.get("optimizer", recipe.optimizer)
    if optimizer != recipe.optimizer and optimizer in OPTIMIZER_RATES:
        recipe = replace(recipe, learning_rate=OPTIMIZER_RATES[optimizer])
    return replace(recipe, **changes)


def mlp(
    features: int,
    hidden: tuple[int, ...],
    num_classes: int,
    activation: str,
    dropout: float,
    normalisation: str = "none",
) -> nn.Sequential:
    """Linear, activation, Dropout where its rate is not 0, and a normalisation if any; then a Linear to the scores.

    He's initial weights, zero biases: PEPITA and Forward-Forward learn much worse from PyTorch's smaller weights.

    >>> [type(module).__name__ for module in mlp(2, (4,), 3, "relu", dropout=0.1)]
    ['Linear', 'ReLU', 'Dropout', 'Linear']
    """
    layers: list[nn.Module] = []
    for n_in, n_out in zip((features, *hidden), hidden, strict=False):
        layers += [_linear(n_in, n_out), MODULES.get(activation, nn.Identity)()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        normalise = NORMALISATIONS[normalisation]
        if normalise is not None:
            layers.append(normalise(n_out))
    return nn.Sequential(*layers, _linear((features, *hidden)[-1], num_classes))


def _linear(n_in: int, n_out: int) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.weight.copy_(he_uniform((n_out, n_in)))
    return linear


def build(
    method: str,
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rule:
    """The network and its rule; the same seed gives the same initial weights on every device.

    Raises UserError where the rule can't train such a network.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> rule = build("foton", data, Recipe(hidden=(4,)), seed=0)
    >>> type(rule).__name__, [tuple(unit.weights[0].shape) for unit in rule.units]
    ('Foton', [(4, 2), (2, 4)])
    """
    rule_class = preset_named(method).rule
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            rule = made_by(rule_class, recipe, dataset.image_shape, dataset.num_classes, dtype)
        except ValueError as error:
            raise UserError(f"{method}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            what = f"hidden: {recipe.hidden}" if recipe.model == MLP else f"model: '{recipe.model}'"
            raise UserError(f"{what}, too wide for the memory at hand; expected less") from error
    rule.generator = torch.Generator(device).manual_seed(seed)
    return rule.to(device)


def network(recipe: Recipe, sample: tuple[int, ...], num_classes: int, dtype: torch.dtype) -> Made:
    """The recipe's network for such samples. Raises UserError."""
    if recipe.model != MLP:
        return made(recipe.model, sample, num_classes, dtype)
    model = mlp(prod(sample), recipe.hidden, num_classes, recipe.activation, recipe.dropout, recipe.normalisation)
    return Made(model.to(dtype), None, torch.zeros(2, prod(sample), dtype=dtype))


def made_by(
    rule_class: type[Rule], recipe: Recipe, sample: tuple[int, ...], num_classes: int, dtype: torch.dtype
) -> Rule:
    """The rule around the recipe's network for such samples, which remembers what made it. Raises ValueError."""
    known = list(inspect.signature(rule_class).parameters)[1:]
    for name in recipe.options:
        if name not in known:
            raise unknown("options", name, known)
    found = network(recipe, sample, num_classes, dtype)
    given = {} if recipe.model == MLP else {"units": found.units, "example": found.example}
    given |= recipe.options
    rule = rule_class(found.model, **{name: value for name, value in given.items() if name in known})
    rule.made_by = recipe.network  # type: ignore[assignment]
    return rule
