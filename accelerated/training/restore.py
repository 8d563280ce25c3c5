"""A trained rule out of a checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rules import Rule
from . import checkpoint
from .data import Dataset
from .data.dataset import LARGEST
from .data.parts import check_names, listed
from .errors import UserError
from .networks import MLP, named
from .recipes import ALL_PRESETS, Recipe, made_by, network

DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}

BY_HAND = "build the rule, then rule.load_state_dict(checkpoint.load(path)['best'])"


class Restored(NamedTuple):
    """A rule with the weights of its best epoch, and what its images are to be prepared with.

    `image_shape` are the images' without the batch, `mean` and `std` of the training pixels (0 and 1 where they were
    left raw), of a table (features,), which `prepare` does. `classes` are the names of labels, `columns` those of a
    table's features.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> recipe = Recipe(hidden=(4,), epochs=1)
    >>> rule = build("mono-forward", data, recipe, seed=0)
    >>> history = fit(rule, data, recipe=recipe, checkpoint="toy.safetensors")
    >>> restored = restore("toy.safetensors")
    >>> restored.classes, restored.rule(restored.prepare(torch.ones(3, 2))).shape
    (('0', '1'), torch.Size([3, 2]))
    """

    rule: Rule
    recipe: Recipe
    image_shape: tuple[int, ...]
    mean: float | Tensor
    std: float | Tensor
    classes: tuple[str, ...]
    columns: tuple[str, ...]

    def check(self, dataset: Dataset) -> None:
        """Raises UserError for samples of another shape, or of features in another order."""
        if dataset.image_shape != self.image_shape:
            raise UserError(
                f"data: {dataset.name} has samples of shape {dataset.image_shape}, but the network was trained on "
                f"{self.image_shape}"
            )
        if self.columns and dataset.columns not in ((), self.columns):
            raise UserError(
                f"data: {dataset.name} has columns {listed(dataset.columns)}, expected {listed(self.columns)}, in this "
                "order, as in training"
            )

    def prepare(self, samples: Tensor, name: str = "data") -> Tensor:
        """Samples, (n, ...), as the rule takes them: standardised as in training, images and sequences in their shape.

        Bytes become 0..1, other numbers stay. Raises UserError, with the name, for samples of another shape than those
        of the training, and for images whose values are far from theirs.
        """
        samples = torch.as_tensor(samples)
        if samples.shape[1:].numel() != torch.Size(self.image_shape).numel() or not len(samples):
            raise UserError(
                f"{name}: shape {tuple(samples.shape)}, expected (n, {', '.join(map(str, self.image_shape))})"
            )
        values = samples.flatten(1).to(next(self.rule.parameters()).dtype)
        if samples.dtype == torch.uint8:
            values = values / 255
        if len(self.image_shape) > 1 and values.abs().max() > LARGEST:
            raise UserError(
                f"{name}: values to {samples.abs().max():g}, far from those that the network was trained on; expected "
                "0..1 for images, or bytes"
            )
        x = (values - self.mean) / self.std
        if self.rule.wants_images:
            return x.unflatten(1, (1, *self.image_shape)[-3:])
        return x.unflatten(1, self.image_shape) if self.rule.wants_sequences else x


def recipe_of(state: dict[str, Any], path: str | Path) -> Recipe:
    """What a loaded checkpoint's network was made and trained with. Raises CheckpointError."""
    try:
        settings = state["settings"]
        if settings["network"] is None:
            raise checkpoint.CheckpointError(f"checkpoint: '{path}' is of a model that no recipe made; {BY_HAND}")
        return Recipe(**settings["recipe"], **settings["network"])
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"checkpoint: '{path}' has no settings of a training") from error


def check_model(recipe: Recipe, model: str | None, path: str | Path) -> None:
    """Raises CheckpointError for a model that is code of somebody's, unless its name is given too: it would be run."""
    if recipe.model != MLP and named(recipe.model).is_code and model != recipe.model:
        raise checkpoint.CheckpointError(
            f"checkpoint: '{path}' is of model '{recipe.model}', code that would be run; give this name too, as model "
            "or --model, if you trust it"
        )


def _number_or_tensor(value: float | tuple[float, ...], dtype: str) -> float | Tensor:
    return torch.tensor(value, dtype=DTYPES[dtype]) if isinstance(value, tuple) else value


def restore(path: str | Path, model: str | None = None) -> Restored:
    """The rule in a checkpoint of `fit`, in evaluation mode on the CPU.

    A model that a function of yours made, `package.module:factory`, is made only where `model` is that very name:
    nothing that a file alone names is imported.
    Raises CheckpointError for a damaged or foreign file, else OSError.

    >>> data = load((torch.arange(24.0).view(12, 2) / 24, torch.arange(12) % 2))
    >>> recipe = Recipe(hidden=(4,), epochs=1)
    >>> rule = build("mono-forward", data, recipe, seed=0)
    >>> history = fit(rule, data, recipe=recipe, checkpoint="toy.safetensors")
    >>> torch.equal(restore("toy.safetensors").rule.model[0].weight, rule.model[0].weight)
    True
    """
    state = checkpoint.load(path)
    recipe = recipe_of(state, path)
    check_model(recipe, model, path)
    try:
        settings = state["settings"]
        check_names([*settings["classes"], *settings["columns"]], f"'{path}'")
        rule_class = {preset.rule.__name__: preset.rule for preset in ALL_PRESETS.values()}[settings["rule"]]
        shape = tuple(settings["image_shape"])
        if model is None:  # a file may name a network that no memory holds
            with torch.device("meta"):
                expected = network(recipe, shape, settings["num_classes"], torch.float32).model
            for name, weight in expected.named_parameters():
                if state["best"][f"model.{name}"].shape != weight.shape:
                    raise ValueError(f"model.{name} is not of shape {tuple(weight.shape)}")
        with torch.random.fork_rng(devices=[]):
            rule = made_by(rule_class, recipe, shape, settings["num_classes"], DTYPES[settings["dtype"]])
        rule.load_state_dict(state["best"])
        mean: float | Tensor = 0.0
        std: float | Tensor = 1.0
        if recipe.standardise or isinstance(settings["mean"], tuple):  # of a table always
            mean, std = (_number_or_tensor(settings[name], settings["dtype"]) for name in ("mean", "std"))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(
            f"checkpoint: '{path}' cannot be made a rule of ({type(error).__name__}: {error}); {BY_HAND}"
        ) from error
    names = tuple(settings["classes"]), tuple(settings["columns"])
    return Restored(rule.eval(), recipe, shape, mean, std, *names)
