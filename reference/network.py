"""Dense networks: the clean pass, the modulated pass, and updates from errors and inputs of layers.

    (1)  h_0 = x,    a_l = W_l h_(l-1) + b_l,    h_l = m_l * sigma_l(a_l),    scores = h_L
    (2)  h_l - h~_l, where h~_l is h_l of the same network and masks for the modulated input h~_0 = x - F e
    (3)  G_l = 1/B sum_samples delta_l z_l^T,    and for b_l the same without z

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, n_0) | input |
| W_l | weights[l-1] | (n_l, n_(l-1)) | weights of layer l = 1..L |
| b_l | biases[l-1] | (n_l,) or None | biases |
| sigma_l | activations[l-1] | | activation; the identity at the output of a classifier |
| m_l | masks[l-1] | (batch, n_l) or None | inverted-dropout mask, entries 0 or 1/(1-p) |
| a_l | preactivations[l-1] | (batch, n_l) | pre-activation |
| h_l | inputs[l], scores | (batch, n_l) | activation: the next layer's input, or the scores |
| e, F | error, projection | (batch, K), (n_0, K) | what modulates the input |
| delta_l, z_l | factors | (batch, n_l), (batch, n_(l-1)) | error factor, and the input of layer l |

The mask follows the activation, as torch.nn.Dropout does. FOTON's authors mask before it, which is the same for
activations with sigma(m a) = m sigma(a) for m >= 0: identity, relu and leaky relu.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

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
    return z @ weight.T if bias is None else z @ weight.T + bias


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
        a = affine(weight, bias, h)
        inputs.append(h)
        preactivations.append(a)
        h = activation.value(a)
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            check_shape(f"masks[{layer}]", mask, h.shape)
            h = mask * h
    return ForwardPass(tuple(inputs), tuple(preactivations), h)


def scores(network: Network, x: Array, masks: Iterable[Array | None] | None = None) -> Array:
    """The scores of the clean pass alone. `masks` has one entry a layer, taken when its turn comes."""
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
    """h_l - h~_l of the hidden layers l = 1..L-1 in turn, equation (2), by a second pass and subtraction."""
    modulated = forward(network, clean.inputs[0] - error @ projection.T, masks)
    for h, h_modulated in zip(clean.inputs[1:], modulated.inputs[1:], strict=True):
        yield h - h_modulated


def layer_update(delta: Array, z: Array, bias: Array | None) -> LayerUpdate:
    """G_l of equation (3) for one layer, and its bias's where it has one."""
    check_batch("delta", delta)
    check_shape("z", z, (len(delta), z.shape[-1]))
    return LayerUpdate(delta.T @ z / len(delta), None if bias is None else delta.mean(axis=0))


def batch_mean_updates(network: Network, factors: Iterable[tuple[Array, Array]]) -> Updates:
    """G_l of equation (3) for every layer, from its factors delta_l and z_l."""
    return collect(layer_update(delta, z, bias) for (delta, z), bias in zip(factors, network.biases, strict=True))


def collect(layers: Iterable[LayerUpdate]) -> Updates:
    """The layers' updates, first layer first, as the network's."""
    weights, biases = zip(*layers, strict=True)
    return Updates(weights, biases)
