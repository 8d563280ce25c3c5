"""What a learning rule costs, counted: multiply-accumulates and bytes of activations for one training sample.

The counts are those of the published table of Forward Target Propagation (arXiv 2506.11030), by the formulas of its
authors' spreadsheet, which hold for any chain of layers. With F the products of a forward pass, F_1 those up to the
first layer's activation, U those of the weights' updates, K the classes, n_0 the inputs, n_1 the units of the first
layer, A the activations:

| rule | multiply-accumulates |
| --- | --- |
| backprop, fa | F + (F - F_1) + U + K |
| ftp | F + (F - F_1) + U + K + 2 K n_1 |
| pepita | 2 F + U + K + K n_0 |
| forward-forward, symba, layer-collaboration, cumulative | 2 (F + U + 2 A), of the layers with weights |
| dtp | F + (F - F_1) + 2 U + K |
| mono-forward, hyperspherical | F' + U' + 3 K A' |
| dynamic-temperature | F' + U' + 2 K A' |
| backprop-deep-supervision | F' + (F' - F_1) + U' + 3 K A' |

A `RecurrentNetwork` is a chain of its steps, which "backprop" and "ftp" train: the first of them has the products with
the inputs of all steps, which no error and no target goes through, and each has those with the state before it.

The table has no FOTON and no direct feedback; these are counted by what they do: foton F + (F - F_1) + U + K + K n_1,
its projection and constraint being a matter of the batch and not of the sample; dfa and drtp F + U + K + K times the
hidden units. Nor has it rules whose layers are classifiers: F', U' and A' leave the last layer out, as they do; each
layer's scores are K products an activation, their gradient as many, and as many that of what they have learned. Biases
and batch normalisation are not billed, pooling at its inputs; a product with a one-hot label is billed in full.

Bytes are those of activations held until they are used: all for backprop, fa, dfa, ftp, pepita, foton and
layer-collaboration, twice that for dtp, the largest neighbouring pair (the input counts) for the others, whose layers
wait for none behind them.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...modules import OrthogonalConv2d, RecurrentNetwork, Rotation, ScaledAvgPool2d
from ..errors import UserError


class LayerCost(NamedTuple):
    """A layer's counts for one sample. `update` is 0 without weights; `activations` is how many numbers it gives.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> layer_costs(model, (2,))[0]
    LayerCost(name='0', forward=8, update=8, activations=4)
    """

    name: str
    forward: int
    update: int
    activations: int


class Cost(NamedTuple):
    """A rule's counts for one sample: multiply-accumulates, and bytes of activations that are held.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> costs(model, (2,))["backprop"]
    Cost(macs=55, activation_bytes=28)
    """

    macs: int
    activation_bytes: int


def layer_costs(model: nn.Module, image_shape: Sequence[int]) -> list[LayerCost]:
    """The counts of every layer that multiplies, for samples of that shape (without the batch).

    Linear, convolutions (groups, strides and padding included), pooling, and nn.RNN, nn.GRU and nn.LSTM (of one
    direction, batch first; a count for each step of each layer) are counted, whatever else the model has costs nothing.
    Nothing is computed. Raises UserError where samples of that shape do not pass through the model.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> [cost.forward for cost in layer_costs(model, (2,))]
    [8, 12]
    """
    found: list[LayerCost] = []
    ghost = copy.deepcopy(model).to("meta").eval()

    def bill(name: str, module: nn.Module, x: Tensor, y: Any) -> None:
        if isinstance(module, nn.RNN | nn.GRU | nn.LSTM):
            length, sizes = x.shape[1], [(w_x.numel(), w_h.numel()) for w_x, w_h, *_ in module.all_weights]
            for t in range(length):
                for layer, (of_input, of_state) in enumerate(sizes):
                    # The lowest layer's products with all inputs come first; no error goes back through them.
                    macs = of_state + (of_input if layer else length * of_input * (t == 0))
                    place = f", layer {layer + 1}" * (len(sizes) > 1)
                    found.append(LayerCost(f"{name}, step {t + 1}{place}", macs, macs, module.hidden_size))
            return
        outputs = prod(y.shape[1:])
        if isinstance(module, nn.Linear):
            macs = module.in_features * outputs
        elif isinstance(module, nn.Conv2d):
            macs = prod(module.kernel_size) * module.in_channels // module.groups * outputs
        elif isinstance(module, OrthogonalConv2d):
            macs = module.kernel_size**2 * module.in_channels * outputs
        elif isinstance(module, Rotation):
            macs = prod(module.skew().shape[1:]) * outputs
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | ScaledAvgPool2d):
            found.append(LayerCost(name, prod(x.shape[1:]), 0, outputs))
            return
        else:
            return
        found.append(LayerCost(name, macs, macs, outputs))

    for name, module in ghost.named_modules():
        module._forward_hooks.clear()  # those of one's own, which may read values: the meta device has none
        module._forward_pre_hooks.clear()
        if not list(module.children()) or isinstance(module, OrthogonalConv2d | Rotation):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: bill(name, module, inputs[0], output)
            )
    try:
        with torch.no_grad():
            ghost(torch.empty(1, *image_shape, device="meta", dtype=next(model.parameters()).dtype))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"image_shape: {tuple(image_shape)} does not pass through the model ({error})") from error
    return found


def costs(model: nn.Module, image_shape: Sequence[int], bytes_each: int | None = None) -> dict[str, Cost]:
    """The counts of every rule on a model, by its name in the command line. Raises UserError as `layer_costs` does.

    Samples of a `RecurrentNetwork` are (steps, features); the rules that train one are counted.

    `bytes_each` is the size of an activation, that of the model's dtype unless given.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> costs(model, (2,))["backprop"].macs, costs(model, (2,), bytes_each=2)["backprop"].activation_bytes
    (55, 14)
    """
    layers = layer_costs(model, image_shape)
    weighted = [layer for layer in layers if layer.update]
    if not weighted:
        raise UserError("model: no layer with weights")
    size = bytes_each or next(model.parameters()).element_size()
    n_in, n_1, k = prod(image_shape), weighted[0].activations, weighted[-1].activations
    forward = sum(layer.forward for layer in layers)
    first = sum(layer.forward for layer in layers[: layers.index(weighted[0]) + 1])
    update = sum(layer.update for layer in layers)
    own = sum(layer.activations for layer in weighted)
    hidden = own - k
    held = size * sum(layer.activations for layer in layers)
    sizes = [n_in, *(layer.activations for layer in layers)]
    pair = size * max(a + b for a, b in pairwise(sizes))
    backprop = 2 * forward - first + update + k
    direct = forward + update + k + k * hidden
    streams = 2 * (forward + update + 2 * own)
    last = weighted[-1]
    local = forward - last.forward + update - last.update
    chained = {"backprop": Cost(backprop, held), "ftp": Cost(backprop + 2 * k * n_1, held)}
    if isinstance(model, RecurrentNetwork):
        return chained
    return {
        **chained,
        "foton": Cost(backprop + k * n_1, held),
        "pepita": Cost(2 * forward + update + k + k * n_in, held),
        "forward-forward": Cost(streams, pair),
        "symba": Cost(streams, pair),
        "layer-collaboration": Cost(streams, held),
        "cumulative": Cost(streams, pair),
        "fa": Cost(backprop, held),
        "dfa": Cost(direct, held),
        "drtp": Cost(direct, pair),
        "dtp": Cost(backprop + update, 2 * held),
        "mono-forward": Cost(local + 3 * k * hidden, pair),
        "hyperspherical": Cost(local + 3 * k * hidden, pair),
        "dynamic-temperature": Cost(local + 2 * k * hidden, pair),
        "backprop-deep-supervision": Cost(local + forward - last.forward - first + 3 * k * hidden, held),
    }
