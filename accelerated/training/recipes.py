"""The default settings of each rule, and how a network and its rule are made from them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..activations import ACTIVATIONS
from ..modules import MaxMin
from ..network import he_uniform
from ..rules import RULES, Rule
from .data import Dataset
from .errors import UserError
from .schedules import SCHEDULES

OPTIMIZERS = ("sgd", "adam", "adamw")

MODULES: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "maxmin": MaxMin,
}
"""The activations' modules; the names are those of `ACTIVATIONS`."""

NORMALISATIONS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "direction": partial(nn.RMSNorm, elementwise_affine=False),
    "layer": partial(nn.LayerNorm, elementwise_affine=False),
}
"""What makes the normalisation of so many units: nothing learned; a mean square of 1, or a mean of 0 besides."""


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained. `hidden` are the widths of the hidden layers; `options` go to the rule.

    Training images are moved by up to `shift` pixels, and with `flip` half of them mirrored, anew in every epoch.
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

    def __post_init__(self) -> None:
        """Raises UserError for what no network or optimizer could be made from."""
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation: '{self.activation}', expected one of {', '.join(ACTIVATIONS)}")
        for width in self.hidden:
            if width < 1:
                raise UserError(f"hidden: width {width}, expected positive integers")
            if self.activation == "maxmin" and width % 2:
                raise UserError(f"hidden: width {width}, expected an even number, since activation maxmin pairs units")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.normalisation not in NORMALISATIONS:
            raise UserError(f"normalisation: '{self.normalisation}', expected one of {', '.join(NORMALISATIONS)}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer: '{self.optimizer}', expected one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule: '{self.schedule}', expected one of {', '.join(SCHEDULES)}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning rate: {self.learning_rate}, expected a positive number")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}, expected 0 <= {name} < 1")
        if type(self.shift) is not int or self.shift < 0:
            raise UserError(f"shift: {self.shift!r}, expected a number of pixels, 0 or more")
        if type(self.flip) is not bool:
            raise UserError(f"flip: {self.flip!r}, expected True or False")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"weight decay: {self.weight_decay}, expected 0 or a positive number")


FORWARD_FORWARD = Recipe(
    hidden=(1000, 1000, 1000),
    epochs=20,
    optimizer="adam",
    learning_rate=1e-3,
    momentum=0.0,
    schedule="linear-tail",
    standardise=False,
    options={"amplitude": 4.0},
)

LOCAL = Recipe(
    hidden=(1000, 1000, 1000),
    epochs=8,
    optimizer="adam",
    learning_rate=1e-3,
    momentum=0.0,
    dropout=0.1,
)

METHODS: dict[str, tuple[type[Rule], Recipe]] = {
    "backprop": (RULES["backprop"], Recipe(learning_rate=0.05)),
    "backprop-orthogonal": (RULES["backprop"], Recipe(learning_rate=0.05, options={"orthogonal": True})),
    "foton": (RULES["foton"], Recipe()),
    "foton-linear": (RULES["foton"], Recipe(options={"linear": True})),
    "ftp": (RULES["ftp"], Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.02)),
    "fa": (RULES["fa"], Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.02)),
    "dfa": (RULES["dfa"], Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.02)),
    "drtp": (RULES["drtp"], Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.005)),
    "dtp": (RULES["dtp"], Recipe(hidden=(1024, 128), activation="tanh", learning_rate=0.02)),
    "pepita": (
        RULES["pepita"],
        Recipe(hidden=(1024,), epochs=30, schedule="steps", standardise=False, dropout=0.1),
    ),
    "forward-forward": (RULES["forward-forward"], FORWARD_FORWARD),
    "symba": (RULES["symba"], FORWARD_FORWARD),
    "layer-collaboration": (RULES["layer-collaboration"], FORWARD_FORWARD),
    "cumulative": (RULES["cumulative"], FORWARD_FORWARD),
    "mono-forward": (RULES["mono-forward"], LOCAL),
    "hyperspherical": (RULES["hyperspherical"], replace(LOCAL, normalisation="direction")),
    "dynamic-temperature": (RULES["dynamic-temperature"], replace(LOCAL, normalisation="layer")),
    "backprop-deep-supervision": (RULES["backprop-deep-supervision"], LOCAL),
}
"""What can be trained, by the names that the command line uses: a rule and its recipe."""

DIGITS: dict[str, dict[str, Any]] = {
    "backprop": {"epochs": 30, "learning_rate": 0.1},
    "backprop-orthogonal": {"epochs": 30, "learning_rate": 0.1},
    "foton": {"epochs": 30},
    "foton-linear": {"epochs": 30},
    "ftp": {"epochs": 30, "learning_rate": 0.05},
    "fa": {"epochs": 30, "learning_rate": 0.05},
    "dfa": {"epochs": 30, "learning_rate": 0.05},
    "drtp": {"epochs": 30, "learning_rate": 0.01},
    "dtp": {"epochs": 30, "learning_rate": 0.05},
    "pepita": {"epochs": 80, "learning_rate": 0.3},
    "forward-forward": {"epochs": 60, "learning_rate": 1e-2},
    "symba": {"epochs": 60, "learning_rate": 1e-2},
    "layer-collaboration": {"epochs": 60, "learning_rate": 1e-2},
    "cumulative": {"epochs": 60, "learning_rate": 1e-2},
    "mono-forward": {"epochs": 30, "learning_rate": 3e-3},
    "hyperspherical": {"epochs": 30, "learning_rate": 3e-3},
    "dynamic-temperature": {"epochs": 30, "learning_rate": 3e-3},
    "backprop-deep-supervision": {"epochs": 30, "learning_rate": 3e-3},
}
"""What the digits, small and few, are trained with instead; chosen on their validation samples."""

OPTIMIZER_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def default_recipe(method: str, data: str, **changes: Any) -> Recipe:
    """The recipe of a method for that data set, with changes. Another optimizer brings its own usual learning rate.

    Raises UserError for an impossible recipe.
    """
    recipe = METHODS[method][1]
    if data == "digits":
        recipe = replace(recipe, hidden=(128, 64), **DIGITS[method])
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
    """
    layers: list[nn.Module] = []
    for n_in, n_out in zip((features, *hidden), hidden, strict=False):
        layers += [_linear(n_in, n_out), MODULES[activation]()]
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


def network(recipe: Recipe, features: int, num_classes: int) -> nn.Sequential:
    """The network that a recipe names."""
    return mlp(features, tuple(recipe.hidden), num_classes, recipe.activation, recipe.dropout, recipe.normalisation)


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
    """
    rule_class, _ = METHODS[method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = network(recipe, dataset.features, dataset.num_classes)
            rule = rule_class(model.to(dtype), **recipe.options)
        except ValueError as error:
            raise UserError(f"{method}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"hidden: {recipe.hidden}, too wide for the memory at hand; expected less") from error
    rule.generator = torch.Generator(device).manual_seed(seed)
    return rule.to(device)
