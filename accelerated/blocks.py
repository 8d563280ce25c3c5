"""Chains of layers as one layer, with a shortcut around them or without; see the reference for their equations.

`adjoint` and `update` each run the chain anew, since a layer keeps nothing of a pass. With `value` they take about
twice the time of an autograd graph of the block, which keeps it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ._arrays import Array, check_shape
from .layers import Layer, Step, Update, activity, changed, pulled_back

__all__ = ["Block", "Residual"]


def _value(layers: Sequence[Layer], z: Array) -> Array:
    """C(z). Raises ValueError, with the index of the layer inside, where sizes do not fit."""
    for index, layer in enumerate(layers):
        try:
            z = activity((*layer.steps, *layer.outlet), layer.value(z))
        except ValueError as error:
            raise ValueError(f"inside, layers[{index}]: {error}") from error
    return z


def _difference(layers: Sequence[Layer], z: Array, u: Array) -> Array:
    """C(z) - C(z - u)."""
    for number, layer in enumerate(layers, 1):
        steps = (*layer.steps, *layer.outlet)
        last = number == len(layers)  # whose value nobody needs, but for its own steps
        u = layer.difference(z, u)
        a = z if last and not steps else layer.value(z)
        u = changed(steps, a, u)
        z = a if last else activity(steps, a)
    return u


def _deltas(layers: Sequence[Layer], z: Array, d: Array) -> tuple[list[Array], list[Array]]:
    """z_l and delta_l of every layer."""
    inputs, preactivations = [], []
    for number, layer in enumerate(layers, 1):
        steps = (*layer.steps, *layer.outlet)
        last = number == len(layers)
        inputs.append(z)
        preactivations.append(z if last and not steps else layer.value(z))
        z = z if last else activity(steps, preactivations[-1])
    deltas = []
    for index in reversed(range(len(layers))):
        layer = layers[index]
        delta = pulled_back((*layer.steps, *layer.outlet), preactivations[index], d)
        deltas.append(delta)
        if index:
            d = layer.adjoint(inputs[index], delta)
    return inputs, deltas[::-1]


def _adjoint(layers: Sequence[Layer], z: Array, d: Array) -> Array:
    """C'(z)^T d."""
    if not layers:
        return d
    _, deltas = _deltas(layers, z, d)
    return layers[0].adjoint(z, deltas[0])


def _update(layers: Sequence[Layer], z: Array, d: Array) -> Update:
    """G_l of every layer in order."""
    inputs, deltas = _deltas(layers, z, d)
    found = (layer.update(z, delta) for layer, z, delta in zip(layers, inputs, deltas, strict=True))
    return tuple(g for update in found for g in update)


class Block(NamedTuple):
    """A chain of layers; its parameters are theirs, in order."""

    layers: tuple[Layer, ...]
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """C(z). Raises ValueError, with the index of the layer inside, where sizes do not fit."""
        return _value(self.layers, z)

    def difference(self, z: Array, u: Array) -> Array:
        """C(z) - C(z - u), layer by layer."""
        return _difference(self.layers, z, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """C'(z)^T d."""
        return _adjoint(self.layers, z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """G_l of every layer inside."""
        return _update(self.layers, z, delta)


class Residual(NamedTuple):
    """A chain with a shortcut around it; its parameters are those of the chain, then the shortcut's."""

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """S(z) + C(z). Raises ValueError unless both have one shape, and as `Block`."""
        a, past = _value(self.layers, z), _value(self.shortcut, z)
        check_shape("what passes by the shortcut", past, a.shape)
        return past + a

    def difference(self, z: Array, u: Array) -> Array:
        """The sum of both differences."""
        return _difference(self.shortcut, z, u) + _difference(self.layers, z, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """S'(z)^T d + C'(z)^T d."""
        return _adjoint(self.shortcut, z, d) + _adjoint(self.layers, z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """G_l of the layers of the chain, then of the shortcut's."""
        return (*_update(self.layers, z, delta), *_update(self.shortcut, z, delta))
