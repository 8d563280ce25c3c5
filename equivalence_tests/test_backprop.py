"""The hand-written backpropagation: twin against reference, autograd and finite differences."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Convolution, Dense, Images, ReferenceSide, Side, map_arrays
from prograde.equivalence_tests.strategies import Case, cases, padded_cases, seeds
from prograde.equivalence_tests.test_foton import image_cases
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import backprop, layers, losses

pytestmark = pytest.mark.smoke


class ChainCase(NamedTuple):
    """Any network with a batch, and a dropout mask or None for each of its layers, or None."""

    network: Dense | Images
    x: Any
    labels: Any
    masks: Any

    @property
    def num_classes(self) -> int:
        return len((self.network.dense if isinstance(self.network, Images) else self.network).weights[-1])

    def clean(self) -> Any:
        """The reference's forward pass."""
        side = ReferenceSide()
        return side.layers.forward(side.chain(self.network, self.masks), side.unshuffled(self.network, self.x))


@st.composite
def chain_cases(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("dense", "padded", "circular"), plain: bool = False
) -> ChainCase:
    """Dense layers, or convolutions before them, with masks and groups or `plain`, without."""
    kind = draw(st.sampled_from(kinds), label="kind")
    if kind == "dense":
        return ChainCase(*draw(cases(dropout=False if plain else None)))
    if kind == "circular":
        return ChainCase(*draw(image_cases(dropout=not plain)))
    case = ChainCase(*draw(padded_cases(groups=not plain)), None)
    if plain or not draw(st.booleans(), label="masks"):
        return case
    rng = draw(seeds())
    hidden = [(rng.random(h.shape) < 0.7) / 0.7 for h in case.clean().activities[:-1]]
    return case._replace(masks=(*hidden, None))


def chain_of(side: Side, network: Any, x: Any, masks: Any) -> tuple[Any, Any]:
    """The layers, and x as the first of them takes it."""
    return side.chain(network, masks), side.unshuffled(network, x)


def updates(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.backprop.updates(*chain_of(side, network, x, masks), labels)


@given(case=chain_cases())
def test_updates(twin: Side, compare: Comparison, case: ChainCase) -> None:
    compare(twin, "backprop.updates", updates, *case)


@given(case=cases(dropout=False), rng=seeds())
def test_labels_that_are_ignored_count_as_if_they_were_not_there(
    side: Side, compare: Comparison, case: Case, rng: np.random.Generator
) -> None:
    """Nor are their samples: the mean is over the N labels that are known, in updates as in torch's loss."""
    known = rng.random(len(case.labels)) < 0.6
    known[0] = True
    labels = np.where(known, case.labels, -1)

    def of_known(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        chain = side.chain(dense)
        clean = side.layers.forward(chain, x)
        error = side.losses.cross_entropy_gradient(clean.scores, labels, ignore_index=-1)
        count = side.losses.counted(clean.scores, labels, -1)
        return side.layers.updates(chain, side.backprop.update_factors(chain, clean, error), count)

    def without_others(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        return side.backprop.updates(side.chain(dense), x[known], labels[known])

    compare(side, "updates of known labels", of_known, case.dense, case.x, labels, expected=without_others)


@given(case=chain_cases())
def test_activity_gradients(twin: Side, compare: Comparison, case: ChainCase) -> None:
    def gradients(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
        chain, x = chain_of(side, network, x, masks)
        clean = side.layers.forward(chain, x)
        error = side.losses.squared_error_gradient(clean.scores, labels)
        return side.backprop.activity_gradients(chain, clean, error)

    compare(twin, "activity_gradients", gradients, *case)


@given(case=cases())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case) -> None:
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        return side.backprop.updates(side.chain(dense, masks), x, labels, side.losses.squared_error_gradient)

    compare(twin, "backprop.updates", updates, *case)


TORCH_ACTIVATIONS = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "maxmin": lambda a: a.unflatten(1, (-1, 2)).sort(dim=2, descending=True).values.flatten(1),
}


def torch_scores(network: Dense | Images, x: torch.Tensor, masks: Any) -> torch.Tensor:
    """An independent forward pass in torch."""
    f = torch.nn.functional
    convolutions, dense = ((), network) if isinstance(network, Dense) else network
    masks = list(masks or [None] * (len(convolutions) + len(dense.weights)))
    for layer in convolutions:
        if isinstance(layer, Convolution):
            a = circular(layer, f.pixel_unshuffle(x, layer.factor))
        else:
            a = f.conv2d(x, layer.kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups)
        h = masked(TORCH_ACTIVATIONS[layer.activation](a), masks.pop(0))
        x = layer.pool * f.avg_pool2d(h, layer.pool) if isinstance(layer, Convolution) else f.max_pool2d(h, layer.pool)
    h = x.flatten(1)
    for weight, bias, name in zip(*dense, strict=True):
        h = masked(TORCH_ACTIVATIONS[name](f.linear(h, weight, bias)), masks.pop(0))
    return h


def masked(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return h if mask is None else h * mask


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


@given(case=chain_cases())
def test_the_reference_is_autograd(case: ChainCase) -> None:
    network, x, labels, masks = map_arrays(torch.tensor, tuple(case))
    network = map_arrays(lambda p: p.requires_grad_(), network)
    torch.nn.functional.cross_entropy(torch_scores(network, x, masks), labels).backward()
    ours = updates(ReferenceSide(), *case)
    theirs = parameters(network)
    assert [len(found) for found in ours] == [len(expected) for expected in theirs]
    for layer, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
        for name, g, p in zip(("weights", "biases"), found, expected, strict=False):
            assert np.allclose(g, p.grad.cpu().numpy(), rtol=0, atol=1e-13), f"{name}[{layer}]"


@given(case=cases(biases=True), rng=seeds())
def test_the_reference_is_the_slope_of_the_loss(case: Case, rng: np.random.Generator) -> None:
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
