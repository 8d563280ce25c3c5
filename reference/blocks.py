"""Chains of layers as one layer, with a shortcut around them or without.

    (1)  Block:     A(z) = C(z),            C the chain of the layers inside, their steps and outlets among it
    (2)  Residual:  A(z) = S(z) + C(z),     S the chain of the shortcut, the identity where it has no layers
    (3)  C(z) - C(z - u):  u_1 = u,    u_(l+1) = (p_l s_l A_l)(z_l) - (p_l s_l A_l)(z_l - u_l), layer by layer
    (4)  C'(z)^T d:        d_(L+1) = d,    delta_l = s_l'(a_l)^T p_l'(h_l)^T d_(l+1),    d_l = A_l'(z_l)^T delta_l
    (5)  G_l = 1/B sum_samples of the gradient of <delta_l, A_l(z_l)> by A_l's parameters

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z, u | z, u | (batch, ...) | input, and what is taken from it |
| d | d | (batch, ...) | a cotangent of the output |
| z_l, a_l, h_l | z, a, h | (batch, ...) | input, pre-activation and activity of layer l inside; see `layers` |

An algorithm sees one layer: what it sends to A(z) is pulled back through all of the chain. Networks of residual
blocks are those of He, Zhang, Ren and Sun (2016); a transformer's block (Vaswani et al., 2017) is two of them.
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
    """C(z) - C(z - u), equation (3)."""
    for layer in layers:
        a, u = layer.value(z), layer.difference(z, u)
        steps = (*layer.steps, *layer.outlet)
        z, u = activity(steps, a), changed(steps, a, u)
    return u


def _deltas(layers: Sequence[Layer], z: Array, d: Array) -> tuple[list[Array], list[Array]]:
    """z_l and delta_l of every layer, equation (4)."""
    inputs, preactivations = [], []
    for layer in layers:
        inputs.append(z)
        preactivations.append(layer.value(z))
        z = activity((*layer.steps, *layer.outlet), preactivations[-1])
    deltas = []
    for index in reversed(range(len(layers))):
        layer = layers[index]
        delta = pulled_back((*layer.steps, *layer.outlet), preactivations[index], d)
        deltas.append(delta)
        if index:
            d = layer.adjoint(inputs[index], delta)
    return inputs, deltas[::-1]


def _adjoint(layers: Sequence[Layer], z: Array, d: Array) -> Array:
    """C'(z)^T d, equation (4)."""
    if not layers:
        return d
    _, deltas = _deltas(layers, z, d)
    return layers[0].adjoint(z, deltas[0])


def _update(layers: Sequence[Layer], z: Array, d: Array) -> Update:
    """G_l of every layer in order, equation (5)."""
    inputs, deltas = _deltas(layers, z, d)
    found = (layer.update(z, delta) for layer, z, delta in zip(layers, inputs, deltas, strict=True))
    return tuple(g for update in found for g in update)


class Block(NamedTuple):
    """A chain of layers, equation (1); its parameters are theirs, in order.

    >>> block = Block((Dense(np.array([[2.0]]), None), Dense(np.array([[3.0]]), None)))
    >>> block.adjoint(np.array([[1.0]]), np.array([[1.0]])).tolist()
    [[6.0]]
    """

    layers: tuple[Layer, ...]
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """C(z): (batch, ...). Raises ValueError, with the index of the layer inside, where sizes do not fit."""
        return _value(self.layers, z)

    def difference(self, z: Array, u: Array) -> Array:
        """C(z) - C(z - u), equation (3): shaped as C(z)."""
        return _difference(self.layers, z, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """C'(z)^T d, equation (4): shaped as z."""
        return _adjoint(self.layers, z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Equation (5), shaped as the parameters."""
        return _update(self.layers, z, delta)


class Residual(NamedTuple):
    """A chain with a shortcut around it, equation (2); its parameters are those of the chain, then the shortcut's.

    >>> Residual((Dense(np.zeros((2, 2)), None),)).value(np.array([[1.0, 2.0]])).tolist()  # the shortcut alone
    [[1.0, 2.0]]
    """

    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """S(z) + C(z): (batch, ...). Raises ValueError unless both have one shape, and as `Block`."""
        a, past = _value(self.layers, z), _value(self.shortcut, z)
        check_shape("what passes by the shortcut", past, a.shape)
        return past + a

    def difference(self, z: Array, u: Array) -> Array:
        """The sum of both differences, equation (3): shaped as the value."""
        return _difference(self.shortcut, z, u) + _difference(self.layers, z, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """S'(z)^T d + C'(z)^T d, equation (4): shaped as z."""
        return _adjoint(self.shortcut, z, d) + _adjoint(self.layers, z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Equation (5), shaped as the parameters."""
        return (*_update(self.layers, z, delta), *_update(self.shortcut, z, delta))
