"""Dense networks: the clean pass, the modulated pass, and updates from errors and inputs of layers; see the reference.

The modulated pass carries the difference to the clean one, u_l = W_l d_(l-1), d_l = sigma_l(a_l) - sigma_l(a_l - u_l),
instead of a second set of activations: equal in exact arithmetic, with no cancellation in the products, and its first
product has K rows in place of the batch: u_1 = (W_1 F) e.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torch.nn import functional

from ._arrays import Array, check_batch, check_shape
from .activations import Activation

__all__ = [
    "ForwardPass",
    "LayerUpdate",
    "Masks",
    "Network",
    "Updates",
    "activation_differences",
    "affine",
    "batch_mean_updates",
    "collect",
    "forward",
    "layer_update",
    "scores",
]

Masks: TypeAlias = Sequence[Array | None] | None
"""One dropout mask per layer, None for a layer without dropout; None for a network without."""


class Network(NamedTuple):
    """A dense network: one weight matrix, bias (or None) and activation per layer."""

    weights: tuple[Array, ...]
    biases: tuple[Array | None, ...]
    activations: tuple[Activation, ...]


class ForwardPass(NamedTuple):
    """What a forward pass computes: inputs h_0..h_(L-1), preactivations a_1..a_L and scores h_L."""

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]
    scores: Array


class LayerUpdate(NamedTuple):
    """What an optimizer is to subtract from one layer's weight and bias (or None)."""

    weight: Array
    bias: Array | None


class Updates(NamedTuple):
    """What an optimizer is to subtract: shaped like the parameters, scaled like a batch-mean gradient."""

    weights: tuple[Array, ...]
    biases: tuple[Array | None, ...]


def affine(weight: Array, bias: Array | None, z: Array) -> Array:
    """W z + b for every sample z: (batch, n_out)."""
    return functional.linear(z, weight, bias)


def _check_layer(layer: int, weight: Array, bias: Array | None, h: Array) -> None:
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weights[{layer}]: shape {tuple(weight.shape)}, expected (n_out, n_in), at least one of each")
    if h.shape[1] != weight.shape[1]:
        raise ValueError(f"weights[{layer}] has {weight.shape[1]} columns, but its input has {h.shape[1]} units")
    if bias is not None:
        check_shape(f"biases[{layer}]", bias, weight.shape[:1])


def forward(network: Network, x: Array, masks: Masks = None) -> ForwardPass:
    """The clean pass. Raises ValueError where the widths of x and the layers do not fit."""
    check_batch("x", x, "n_0")
    if masks is not None and len(masks) != len(network.weights):
        raise ValueError(f"masks: {len(masks)}, expected {len(network.weights)}, a mask or None for each layer")
    inputs, preactivations = [], []
    h = x
    for layer, (weight, bias, activation) in enumerate(zip(*network, strict=True)):
        _check_layer(layer, weight, bias, h)
        a = affine(weight, bias, h)  # (batch, n_l)
        inputs.append(h)
        preactivations.append(a)
        h = _mask(masks, layer, activation.value(a))
    return ForwardPass(tuple(inputs), tuple(preactivations), h)


def _mask(masks: Masks, layer: int, h: Array) -> Array:
    mask = masks[layer] if masks is not None else None
    if mask is None:
        return h
    check_shape(f"masks[{layer}]", mask, h.shape)
    return mask * h


def scores(network: Network, x: Array, masks: Iterable[Array | None] | None = None) -> Array:
    """The scores of the clean pass alone, no layer held for longer than the next one needs it.

    `masks` has one entry a layer, taken when its turn comes.
    """
    h = x
    if x.ndim != 2:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, n_0)")
    if masks is None:
        masks = [None] * len(network.weights)
    for layer, (weight, bias, activation, mask) in enumerate(zip(*network, masks, strict=True)):
        _check_layer(layer, weight, bias, h)
        h = activation.value(affine(weight, bias, h))
        if mask is not None:
            h = mask * h
    return h


def activation_differences(
    network: Network, clean: ForwardPass, error: Array, projection: Array, masks: Masks = None
) -> Iterator[Array]:
    """h_l - h~_l of the hidden layers l = 1..L-1 in turn, by difference propagation."""
    u = error @ (projection.T @ network.weights[0].T)  # rows for columns: thin products are fast with few rows
    return propagated_differences(network, clean, u, masks)


def propagated_differences(network: Network, clean: ForwardPass, u: Array, masks: Masks = None) -> Iterator[Array]:
    """`activation_differences` from u, what the first pre-activation loses in the modulated pass."""
    for layer, (activation, a) in enumerate(zip(network.activations[:-1], clean.preactivations[:-1], strict=True)):
        difference = _mask(masks, layer, activation.difference(a, u))
        yield difference
        if layer < len(network.weights) - 2:
            u = difference @ network.weights[layer + 1].T


def layer_update(delta: Array, z: Array, bias: Array | None) -> LayerUpdate:
    """1/B delta^T z for one layer, and its bias's where it has one."""
    check_batch("delta", delta)
    check_shape("z", z, (len(delta), z.shape[-1]))
    scaled = delta / len(delta)  # the batch mean costs n_l, not n_l n_(l-1), divisions a sample
    return LayerUpdate(scaled.T @ z, None if bias is None else scaled.sum(dim=0))


def batch_mean_updates(network: Network, factors: Iterable[tuple[Array, Array]]) -> Updates:
    """G_l for every layer, from its factors delta_l and z_l."""
    return collect(layer_update(delta, z, bias) for (delta, z), bias in zip(factors, network.biases, strict=True))


def collect(layers: Iterable[LayerUpdate]) -> Updates:
    """The layers' updates, first layer first, as the network's."""
    weights, biases = zip(*layers, strict=True)
    return Updates(weights, biases)
