"""Forward-Forward: twin against reference, closed-form gradients against autograd, and what the method promises."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Dense, Side
from prograde.equivalence_tests.strategies import Streams, arrays, reference_network, seeds, streams
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import forward_forward

pytestmark = pytest.mark.smoke


@given(case=streams(), threshold=st.sampled_from([0.5, 1.0]), amplitude=st.sampled_from([1.0, 4.0]))
def test_updates(twin: Side, compare: Comparison, case: Streams, threshold: float, amplitude: float):
    def updates(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        return side.forward_forward.updates(side.network(dense), x, labels, negative, 5, threshold, amplitude)

    compare(twin, "forward_forward.updates", updates, *case, depth=3 * case.depth)


@given(case=streams())
def test_losses_of_layers(twin: Side, compare: Comparison, case: Streams):
    def losses(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        layers = side.forward_forward.local_updates(side.network(dense), x, labels, negative, 5)
        return tuple(loss for _, loss in layers)

    compare(twin, "local_updates.loss", losses, *case, depth=3 * case.depth)


@given(case=streams(), amplitude=st.sampled_from([1.0, 4.0]))
def test_label_scores(twin: Side, compare: Comparison, case: Streams, amplitude: float):
    for first_layer in range(case.depth):

        def scores(side: Side, dense: Any, x: Any, first_layer: int = first_layer) -> Any:
            return side.forward_forward.label_scores(side.network(dense), x, 5, amplitude, first_layer)

        compare(twin, "label_scores", scores, case.dense, case.x, depth=2 * case.depth)


@given(case=streams())
def test_neutral_features(twin: Side, compare: Comparison, case: Streams):
    def features(side: Side, dense: Any, x: Any) -> Any:
        return side.forward_forward.neutral_features(side.network(dense), x, 5, 2.0, case.depth - 1)

    compare(twin, "neutral_features", features, case.dense, case.x, depth=2 * case.depth)


@given(h=arrays(), rng=seeds())
def test_readout_update(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator):
    readout, labels = rng.standard_normal((4, h.shape[1])), rng.integers(0, 4, len(h))
    compare(
        twin, "readout_update", lambda side, *o: side.forward_forward.readout_update(*o), readout, h, labels, depth=3
    )


@given(h=arrays(), rng=seeds())
def test_parts(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator):
    negative = h + rng.standard_normal(h.shape)
    compare(twin, "normalise", lambda side, h: side.forward_forward.normalise(h), h, depth=2)
    compare(twin, "goodness", lambda side, h: side.forward_forward.goodness(h), h, depth=2)

    def loss(side: Side, h: Any, n: Any) -> Any:
        module = side.forward_forward
        return module.threshold_loss(module.goodness(h), module.goodness(n), 3.0)

    def gradient(side: Side, h: Any, n: Any) -> Any:
        module = side.forward_forward
        return module.threshold_loss_gradient(module.goodness(h), module.goodness(n), 3.0)

    compare(twin, "threshold_loss", loss, h, negative, depth=2)
    compare(twin, "threshold_loss_gradient", gradient, h, negative, depth=2)


@given(case=streams())
def test_overlays(twin: Side, compare: Comparison, case: Streams):
    compare(twin, "overlay", lambda side, x, y: side.forward_forward.overlay(x, y, 5, 4.0), case.x, case.labels)
    compare(twin, "overlay_neutral", lambda side, x: side.forward_forward.overlay_neutral(x, 5, 4.0), case.x)


@given(case=streams())
def test_overlay_writes_the_label_and_leaves_the_rest(side: Side, case: Streams):
    x, labels = side.operands((case.x, case.labels))
    out, kept = side.results((side.forward_forward.overlay(x, labels, 5, 4.0), x))
    assert np.array_equal(out[:, :5], 4.0 * np.eye(5)[case.labels])
    assert np.array_equal(out[:, 5:], kept[:, 5:])
    neutral = side.results(side.forward_forward.overlay_neutral(x, 5, 4.0))
    assert np.allclose(neutral[:, :5], 0.8, rtol=side.eps)
    assert np.array_equal(neutral[:, 5:], kept[:, 5:])


@given(case=streams(), threshold=st.sampled_from([0.5, 1.0]))
def test_the_reference_is_autograd_of_each_layers_own_loss(case: Streams, threshold: float):
    """An independent forward pass in torch; inputs of layers detached, streams apart, each loss on its own layer."""
    torch_activations = {
        "relu": torch.relu,
        "leaky_relu": torch.nn.functional.leaky_relu,
        "tanh": torch.tanh,
        "maxmin": lambda a: a.unflatten(1, (-1, 2)).sort(dim=2, descending=True).values.flatten(1),
    }
    ours = forward_forward.updates(
        reference_network(case.dense), case.x, case.labels, case.negative_labels, 5, threshold
    )
    h = []
    for labels in (case.labels, case.negative_labels):
        x = torch.tensor(case.x)
        x[:, :5] = torch.eye(5, dtype=torch.float64)[labels]
        h.append(x)
    for layer, (weight, bias, name) in enumerate(zip(*case.dense, strict=True)):
        w = torch.tensor(weight, requires_grad=True)
        b = None if bias is None else torch.tensor(bias, requires_grad=True)
        z = [(s / (s.pow(2).mean(1, keepdim=True).sqrt() + 1e-8)).detach() for s in h]
        h = [torch_activations[name](torch.nn.functional.linear(s, w, b)) for s in z]
        positive, negative = (s.pow(2).sum(1) for s in h)
        theta = threshold * len(weight)
        zero = torch.zeros(1, dtype=torch.float64)
        loss = torch.logaddexp(theta - positive, zero) + torch.logaddexp(negative - theta, zero)
        loss.mean().backward()
        assert np.allclose(ours.weights[layer], w.grad.numpy(), rtol=0, atol=1e-12), f"weights[{layer}]"
        if b is not None:
            assert np.allclose(ours.biases[layer], b.grad.numpy(), rtol=0, atol=1e-12), f"biases[{layer}]"


@given(case=streams())
def test_layers_are_local(side: Side, case: Streams):
    """Bit for bit: a layer's update does not depend on the layers above it."""
    dense, x, labels, negative = side.operands(tuple(case))
    whole = side.results(side.forward_forward.updates(side.network(dense), x, labels, negative, 5))
    for depth in range(1, case.depth):
        part = side.network(Dense(*(field[:depth] for field in dense)))
        lower = side.results(side.forward_forward.updates(part, x, labels, negative, 5))
        for layer in range(depth):
            assert np.array_equal(whole.weights[layer], lower.weights[layer]), f"weights[{layer}] below layer {depth}"


@given(h=arrays(), factor=st.sampled_from([1e-3, 7.0, 1e3]))
def test_normalisation_hides_goodness_and_keeps_direction(side: Side, h: Any, factor: float):
    """Mean square 1 for every sample, whatever its goodness was; a rescaled sample gives the same."""
    h = h + np.sign(h) * 0.1
    ours = side.results(side.forward_forward.normalise(side.operands(h)))
    scaled = side.results(side.forward_forward.normalise(side.operands(factor * h)))
    assert np.allclose((ours**2).mean(axis=1), 1, atol=32 * side.eps + 1e-6)
    assert np.allclose(ours, scaled, atol=(32 * side.eps + 1e-4) * np.abs(ours).max())


def test_a_silent_sample_stays_silent(side: Side):
    silent = side.results(side.forward_forward.normalise(side.operands(np.zeros((2, 3)))))
    assert np.array_equal(silent, np.zeros((2, 3)))


@pytest.mark.parametrize("goodness", [0.0, 1e4, 1e30])
def test_the_loss_is_finite_for_any_goodness(side: Side, goodness: float):
    g = side.operands(np.array([goodness]))
    zero = side.operands(np.array([0.0]))
    for positive, negative in ((g, zero), (zero, g)):
        loss = side.results(side.forward_forward.threshold_loss(positive, negative, 2.0))
        slopes = side.results(side.forward_forward.threshold_loss_gradient(positive, negative, 2.0))
        assert np.isfinite(loss).all()
        assert np.isfinite(slopes).all()


def test_good_positives_and_quiet_negatives_teach_nothing(side: Side):
    """And the wrong way round teaches at full strength, downhill."""
    high, low = side.operands((np.array([1e4]), np.array([0.0])))
    settled = side.results(side.forward_forward.threshold_loss_gradient(high, low, 100.0))
    wrong = side.results(side.forward_forward.threshold_loss_gradient(low, high, 100.0))
    assert max(abs(float(s[0])) for s in settled) < 1e-40
    assert [float(s[0]) for s in wrong] == [-1.0, 1.0]


@given(case=streams())
def test_scores_are_the_goodness_of_each_label_alone(side: Side, case: Streams):
    """One batched pass over all labels equals a pass of the layers for each label."""
    dense, x = side.operands((case.dense, case.x))
    network, module = side.network(dense), side.forward_forward
    scores = side.results(module.label_scores(network, x, 5, 2.0))
    for k in range(5):
        h = module.overlay(x, side.operands(np.full(len(case.x), k)), 5, 2.0)
        total = 0.0
        for weight, bias, activation in zip(*network, strict=True):
            h = activation.value(side.net.affine(weight, bias, module.normalise(h)))
            total = total + side.results(module.goodness(h))
        assert rms(scores[:, k] - total) <= 64 * case.depth * side.eps * rms(total), f"label {k}"


@given(case=streams())
def test_a_small_step_lowers_each_layers_loss(case: Streams):
    network = reference_network(case.dense)

    def losses(weights: Any) -> list[float]:
        net = network._replace(weights=weights)
        layers = forward_forward.local_updates(net, case.x, case.labels, case.negative_labels, 5)
        return [float(loss) for _, loss in layers]

    before = losses(network.weights)
    updates = forward_forward.updates(network, case.x, case.labels, case.negative_labels, 5)
    first = network.weights[0] - 1e-4 * updates.weights[0]
    assert losses((first, *network.weights[1:]))[0] < before[0]


@pytest.mark.parametrize("first_layer", [-1, 2])
def test_a_layer_that_is_not_there_is_refused(side: Side, first_layer: int):
    dense, x = side.operands(
        (Dense((np.ones((4, 6)), np.ones((4, 4))), (None, None), ("relu", "relu")), np.ones((2, 6)))
    )
    for function in (side.forward_forward.label_scores, side.forward_forward.neutral_features):
        with pytest.raises(ValueError, match=rf"first_layer: {first_layer}, expected 0\.\.1"):
            function(side.network(dense), x, 3, 1.0, first_layer)
