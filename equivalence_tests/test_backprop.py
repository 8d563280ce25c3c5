"""The hand-written backpropagation: twin against reference, autograd and finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Convolution, Dense, Images, ReferenceSide, Side, map_arrays
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.test_convolutional_network import PaddedCase, padded_cases
from prograde.equivalence_tests.test_foton import ImageCase, image_cases
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import backprop, layers, losses

pytestmark = pytest.mark.smoke


def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.backprop.updates(side.chain(dense, masks), x, labels)


@given(case=cases())
def test_updates(twin: Side, compare: Comparison, case: Case):
    compare(twin, "backprop.updates", updates, *case)


def image_updates(side: Side, images: Any, x: Any, labels: Any) -> Any:
    if isinstance(images.layers[0], Convolution):
        x = side.unshuffled(images, x)
    return side.backprop.updates(side.chain(images), x, labels)


@given(case=padded_cases(groups=True))
def test_updates_of_padded_convolutions(twin: Side, compare: Comparison, case: PaddedCase):
    compare(twin, "backprop.updates", image_updates, *case)


@given(case=image_cases())
def test_updates_of_circular_convolutions(twin: Side, compare: Comparison, case: ImageCase):
    compare(twin, "backprop.updates", image_updates, *case[:3])


@given(case=cases())
def test_activity_gradients(twin: Side, compare: Comparison, case: Case):
    def gradients(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        chain = side.chain(dense, masks)
        clean = side.layers.forward(chain, x)
        error = side.losses.squared_error_gradient(clean.scores, labels)
        return side.backprop.activity_gradients(chain, clean, error)

    compare(twin, "activity_gradients", gradients, *case)


@given(case=cases())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        return side.backprop.updates(side.chain(dense, masks), x, labels, side.losses.squared_error_gradient)

    compare(twin, "backprop.updates", updates, *case)


TORCH_ACTIVATIONS = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "maxmin": lambda a: a.unflatten(1, (-1, 2)).sort(dim=2, descending=True).values.flatten(1),
}


def torch_scores(network: Dense | Images, x: torch.Tensor, masks: Any) -> torch.Tensor:
    """An independent forward pass in torch."""
    f = torch.nn.functional
    convolutions, dense = ((), network) if isinstance(network, Dense) else network
    for layer in convolutions:
        activation = TORCH_ACTIVATIONS[layer.activation]
        if isinstance(layer, Convolution):
            a = circular(layer, f.pixel_unshuffle(x, layer.factor))
            x = layer.pool * f.avg_pool2d(activation(a), layer.pool)
        else:
            a = f.conv2d(x, layer.kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups)
            x = f.max_pool2d(activation(a), layer.pool)
    h = x.flatten(1)
    for weight, bias, name, mask in zip(*dense, masks or [None] * len(dense.weights), strict=True):
        h = TORCH_ACTIVATIONS[name](f.linear(h, weight, bias))
        h = h if mask is None else h * mask
    return h


def circular(layer: Any, z: torch.Tensor) -> torch.Tensor:
    """A circular convolution, tap by tap."""
    size = layer.kernel.shape[2]
    taps = [
        torch.einsum("oc,bchw->bohw", layer.kernel[:, :, p, q], z.roll((size // 2 - p, size // 2 - q), (2, 3)))
        for p in range(size)
        for q in range(size)
    ]
    a = torch.stack(taps).sum(dim=0)
    return a if layer.bias is None else a + layer.bias[:, None, None]


def parameters(network: Dense | Images) -> list[tuple[Any, ...]]:
    """Those of each layer, in order."""
    convolutions, dense = ((), network) if isinstance(network, Dense) else network
    pairs = [*((layer.kernel, layer.bias) for layer in convolutions), *zip(dense.weights, dense.biases, strict=True)]
    return [tuple(p for p in pair if p is not None) for pair in pairs]


@given(case=st.one_of(cases(), padded_cases(groups=True), image_cases(dropout=False)))
def test_the_reference_is_autograd(case: Any):
    network, x, labels, *masks = map_arrays(torch.tensor, tuple(case))
    network = map_arrays(lambda p: p.requires_grad_(), network)
    torch.nn.functional.cross_entropy(torch_scores(network, x, *(masks or [None])), labels).backward()
    side = ReferenceSide()
    ours = updates(side, *case) if isinstance(case, Case) else image_updates(side, *case[:3])
    theirs = parameters(network)
    assert [len(found) for found in ours] == [len(expected) for expected in theirs]
    for layer, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
        for name, g, p in zip(("weights", "biases"), found, expected, strict=False):
            assert np.allclose(g, p.grad.cpu().numpy(), rtol=0, atol=1e-13), f"{name}[{layer}]"


@given(case=cases(biases=True), rng=seeds())
def test_the_reference_is_the_slope_of_the_loss(case: Case, rng: np.random.Generator):
    """The change of the batch-mean loss along a random direction in parameter space, by central differences."""
    chain = ReferenceSide().chain(case.dense, case.masks)
    directions = [tuple(rng.standard_normal(p.shape) for p in pair) for pair in parameters(case.dense)]

    def loss(step: float) -> float:
        moved = tuple(
            layer._replace(weight=layer.weight + step * weight, bias=layer.bias + step * bias)
            for layer, (weight, bias) in zip(chain, directions, strict=True)
        )
        return float(losses.cross_entropy(layers.scores(moved, case.x), case.labels).mean())

    ours = backprop.updates(chain, case.x, case.labels)
    slope = sum(
        np.sum(g * d) for pair, along in zip(ours, directions, strict=True) for g, d in zip(pair, along, strict=True)
    )
    step = 1e-6
    assert np.isclose((loss(step) - loss(-step)) / (2 * step), slope, rtol=1e-5, atol=1e-7)
