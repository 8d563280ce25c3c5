"""A trained rule out of a checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rules import Rule
from . import checkpoint
from .recipes import ALL_PRESETS, Recipe, made_by

DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}


class Restored(NamedTuple):
    """A rule with the weights of its best epoch, and what its images are to be prepared with.

    `image_shape` are the images' without the batch, `mean` and `std` of the training pixels (0 and 1 where they were
    left raw), of a table (features,): a batch is `((images - mean) / std).flatten(1)`, pixels from 0 to 1.
    """

    rule: Rule
    recipe: Recipe
    image_shape: tuple[int, ...]
    mean: float | Tensor
    std: float | Tensor


def recipe_of(state: dict[str, Any], path: str | Path) -> Recipe:
    """What a loaded checkpoint's network was made and trained with. Raises CheckpointError."""
    try:
        settings = state["settings"]
        if settings["network"] is None:
            raise checkpoint.CheckpointError(
                f"checkpoint: '{path}' is of a model that no recipe made; build the rule, then load 'best' into it"
            )
        return Recipe(**settings["recipe"], **settings["network"])
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"checkpoint: '{path}' has no settings of a training") from error


def _number_or_tensor(value: float | tuple[float, ...], dtype: str) -> float | Tensor:
    return torch.tensor(value, dtype=DTYPES[dtype]) if isinstance(value, tuple) else value


def restore(path: str | Path) -> Restored:
    """The rule in a checkpoint of `fit`, in evaluation mode on the CPU.

    Raises CheckpointError for a damaged or foreign file, else OSError.
    """
    state = checkpoint.load(path)
    recipe = recipe_of(state, path)
    try:
        settings = state["settings"]
        rule_class = {preset.rule.__name__: preset.rule for preset in ALL_PRESETS.values()}[settings["rule"]]
        shape = tuple(settings["image_shape"])
        with torch.random.fork_rng(devices=[]):
            rule = made_by(rule_class, recipe, shape, settings["num_classes"], DTYPES[settings["dtype"]])
        rule.load_state_dict(state["best"])
        mean: float | Tensor = 0.0
        std: float | Tensor = 1.0
        if recipe.standardise or isinstance(settings["mean"], tuple):  # of a table always
            mean, std = (_number_or_tensor(settings[name], settings["dtype"]) for name in ("mean", "std"))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(
            f"checkpoint: '{path}' cannot be made a rule of ({type(error).__name__}: {error}); "
            "build the rule and load the file's 'best' into it"
        ) from error
    return Restored(rule.eval(), recipe, shape, mean, std)
