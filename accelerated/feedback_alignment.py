"""Feedback alignment: backpropagation through fixed random weights; see the reference."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from . import backprop
from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, Update, forward, he_uniform
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(
    shapes: Sequence[tuple[int, ...]],
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array, ...]:
    """B_l for weights of these shapes, drawn as He draws weights."""
    return tuple(he_uniform(shape, generator, device=device, dtype=dtype) for shape in shapes)


def _mirrored(layer: Any, matrix: Array, name: str) -> Layer:
    """The layer with another weight, which is the first of its fields."""
    weight, *others = layer
    check_shape(name, matrix, weight.shape)
    return type(layer)(matrix, *others)


def update_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, feedback: Sequence[Array]
) -> Iterator[tuple[Array, Array]]:
    """s_l'(a_l)^T delta_l and z_l of every layer, first layer first."""
    if len(feedback) != len(layers) - 1:
        raise ValueError(f"feedback: {len(feedback)} arrays, expected {len(layers) - 1}, one a layer but the first")
    later = [
        _mirrored(layer, matrix, f"feedback[{index}]")
        for index, (layer, matrix) in enumerate(zip(layers[1:], feedback, strict=True))
    ]
    return backprop.update_factors((layers[0], *later), clean, error)


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> tuple[Update, ...]:
    """The updates of all layers."""
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return layer_updates(layers, update_factors(layers, clean, error, feedback))
