"""The hand-written backpropagation: twin against reference, autograd and finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from prograde.equivalence_tests.sides import Dense, Side
from prograde.equivalence_tests.strategies import Case, cases, reference_network, seeds
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import backprop, losses, network

pytestmark = pytest.mark.smoke


def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.backprop.updates(side.network(dense), x, labels, masks)


@given(case=cases())
def test_updates(twin: Side, compare: Comparison, case: Case):
    compare(twin, "backprop.updates", updates, *case)


@given(case=cases())
def test_activation_gradients(twin: Side, compare: Comparison, case: Case):
    def gradients(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        net = side.network(dense)
        clean = side.net.forward(net, x, masks)
        error = side.losses.squared_error_gradient(clean.scores, labels)
        return side.backprop.activation_gradients(net, clean, error, masks)

    compare(twin, "activation_gradients", gradients, *case)


@given(case=cases())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        return side.backprop.updates(side.network(dense), x, labels, masks, side.losses.squared_error_gradient)

    compare(twin, "backprop.updates", updates, *case)


TORCH_ACTIVATIONS = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "maxmin": lambda a: a.unflatten(1, (-1, 2)).sort(dim=2, descending=True).values.flatten(1),
}


@given(case=cases())
def test_the_reference_is_autograd(case: Case):
    """An independent forward pass in torch, differentiated by autograd."""
    weights, biases = (
        [None if p is None else torch.tensor(p, requires_grad=True) for p in part] for part in case.dense[:2]
    )
    dense = Dense(tuple(weights), tuple(biases), case.dense.activations)
    h = torch.tensor(case.x)
    for layer, (weight, bias, name) in enumerate(zip(*dense, strict=True)):
        h = TORCH_ACTIVATIONS[name](torch.nn.functional.linear(h, weight, bias))
        if case.masks is not None and case.masks[layer] is not None:
            h = h * torch.tensor(case.masks[layer])
    torch.nn.functional.cross_entropy(h, torch.tensor(case.labels)).backward()
    ours = backprop.updates(reference_network(case.dense), case.x, case.labels, case.masks)
    for layer, (weight, bias) in enumerate(zip(dense.weights, dense.biases, strict=True)):
        assert np.allclose(ours.weights[layer], weight.grad.cpu().numpy(), rtol=0, atol=1e-13), f"weights[{layer}]"
        if bias is not None:
            assert np.allclose(ours.biases[layer], bias.grad.cpu().numpy(), rtol=0, atol=1e-13), f"biases[{layer}]"


@given(case=cases(biases=True), rng=seeds())
def test_the_reference_is_the_slope_of_the_loss(case: Case, rng: np.random.Generator):
    """The change of the batch-mean loss along a random direction in parameter space, by central differences."""
    directions = [[rng.standard_normal(p.shape) for p in part] for part in case.dense[:2]]

    def loss(step: float) -> float:
        weights, biases = (
            tuple(p + step * d for p, d in zip(part, direction, strict=True))
            for part, direction in zip(case.dense[:2], directions, strict=True)
        )
        net = reference_network(Dense(weights, biases, case.dense.activations))
        return float(losses.cross_entropy(network.forward(net, case.x, case.masks).scores, case.labels).mean())

    ours = backprop.updates(reference_network(case.dense), case.x, case.labels, case.masks)
    slope = sum(
        np.sum(update * d) for part, direction in zip(ours, directions, strict=True)
        for update, d in zip(part, direction, strict=True)
    )  # fmt: skip
    step = 1e-6
    assert np.isclose((loss(step) - loss(-step)) / (2 * step), slope, rtol=1e-5, atol=1e-7)
