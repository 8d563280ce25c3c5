"""Forward-Forward: twin against reference, closed-form gradients against autograd, and what the method promises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Dense, Side, TwinSide
from prograde.equivalence_tests.strategies import Streams, arrays, reference_network, seeds, streams
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import activations, cumulative_goodness, forward_forward, goodness, pair_losses

pytestmark = pytest.mark.smoke


SMOOTH_GOODNESS = ["sum-of-squares", "mean-square", "entmax", "kurtosis"]
"""Without kinks. The mean's gradient is the same in both streams, whose updates then cancel beyond any yardstick."""
LOSSES: dict[str, Callable[[Any], Any]] = {
    "threshold": lambda module: module.threshold(0.5),
    "symba": lambda module: module.symba(0.7),
    "collaboration": lambda module: module.collaboration(1.2),
}
"""Losses of one layer, and one that looks at the goodness of others, by the module of either side."""


@given(case=streams(), goodness=st.sampled_from(SMOOTH_GOODNESS), amplitude=st.sampled_from([1.0, 4.0]))
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prior", ["none", "before", "others"])
def test_updates(
    twin: Side, compare: Comparison, case: Streams, goodness: str, amplitude: float, loss: str, prior: Any
):
    def updates(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        return side.forward_forward.updates(
            side.network(dense), x, labels, negative, 5,
            side.goodness.GOODNESS[goodness], LOSSES[loss](side.pair_losses), prior, amplitude,
        )  # fmt: skip

    compare(twin, "forward_forward.updates", updates, *case)


@given(case=streams())
def test_losses_of_layers(twin: Side, compare: Comparison, case: Streams):
    def losses(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        layers = side.forward_forward.local_updates(side.network(dense), x, labels, negative, 5)
        return tuple(loss for _, loss in layers)

    compare(twin, "local_updates.loss", losses, *case)


@given(case=streams(), prior=st.sampled_from(["before", "others"]), normalised=st.booleans())
def test_updates_of_any_two_streams(twin: Side, compare: Comparison, case: Streams, prior: Any, normalised: bool):
    def updates(side: Side, dense: Any, positive: Any, negative: Any) -> Any:
        loss = side.pair_losses.collaboration(0.8)
        layers = side.forward_forward.stream_updates(
            side.network(dense), positive, negative, loss=loss, prior=prior, normalised=normalised
        )
        return tuple(layers)

    negative = case.x[::-1] + 0.5
    compare(twin, "stream_updates", updates, case.dense, case.x, negative)


@given(case=streams(), prior=st.sampled_from(["before", "others"]))
def test_goodness_of_any_two_streams(twin: Side, compare: Comparison, case: Streams, prior: Any):
    def told(side: Side, dense: Any, positive: Any, negative: Any) -> Any:
        found = side.forward_forward.stream_goodness(side.network(dense), positive, negative, prior=prior)
        seen = tuple((layer.positive, layer.negative) for layer in found)
        priors = tuple((layer.prior_positive, layer.prior_negative) for layer in found)
        return seen, priors[1:] if prior == "before" or case.depth == 1 else priors  # of the first layer 0

    compare(twin, "stream_goodness", told, case.dense, case.x, case.x[::-1] + 0.5)


@given(case=streams(), normalised=st.booleans())
def test_what_the_first_layer_takes(side: Side, case: Streams, normalised: bool):
    """Inputs that are said to be normalised as they are, whatever their length; others at a root mean square of 1."""
    module = side.forward_forward
    dense, x, y = side.operands((case.dense, case.x, 3 * case.x[::-1]))
    found = module.stream_goodness(side.network(dense), x, y, normalised=normalised)[0]
    weight, bias = (
        None if part is None else part.astype(float) for part in (case.dense.weights[0], case.dense.biases[0])
    )
    activation = activations.ACTIVATIONS[case.dense.activations[0]]
    for inputs, ours in ((case.x, found.positive), (3 * case.x[::-1], found.negative)):
        z = inputs if normalised else inputs / (np.sqrt(np.mean(inputs**2, axis=1, keepdims=True)) + 1e-8)
        h = activation.value(z @ weight.T + (0 if bias is None else bias))
        expected = np.sum(h**2, axis=1)
        assert rms(side.results(ours) - expected) <= 64 * side.eps * rms(expected), "goodness of the first layer"


@given(case=streams())
def test_labelled_inputs_are_streams_like_any_other(side: Side, case: Streams):
    """The shared first product is that of the overlaid inputs."""
    module = side.forward_forward
    dense, x, labels, negative = side.operands(tuple(case))
    network = side.network(dense)
    ours = list(module.local_updates(network, x, labels, negative, 5, amplitude=2.0))
    inputs = (module.overlay(x, of, 5, 2.0) for of in (labels, negative))
    for (update, loss), (expected, expected_loss) in zip(ours, module.stream_updates(network, *inputs), strict=True):
        for one, other in ((update.weight, expected.weight), (loss, expected_loss)):
            one, other = side.results((one, other))
            assert rms(one - other) <= 64 * case.depth * side.eps * max(rms(other), 1e-3)


@given(case=streams())
def test_what_a_loss_is_told(side: Side, case: Streams):
    """Layer and depth, theta's scale, and of other layers' goodness what the prior asks for: bit for bit for two."""
    dense, x, y = side.operands((case.dense, case.x, case.x[::-1].copy()))
    network, depth = side.network(dense), case.depth
    told = {
        prior: side.results(side.forward_forward.stream_goodness(network, x, y, prior=prior))
        for prior in ("none", "before", "others")
    }
    for prior, found in told.items():
        assert [(layer.layer, layer.depth) for layer in found] == [(i, depth) for i in range(depth)]
        assert [float(layer.scale) for layer in found] == [float(len(weight)) for weight in case.dense.weights]
        for layer, others in enumerate(found):
            chosen = {"none": [], "before": range(layer), "others": [t for t in range(depth) if t != layer]}[prior]
            for stream in ("positive", "negative"):
                expected = sum((getattr(found[t], stream) for t in chosen), np.zeros(len(case.x)))
                seen = getattr(others, f"prior_{stream}")
                assert rms(seen - expected) <= 4 * depth * side.eps * rms(expected), f"prior {prior} of layer {layer}"
                assert np.array_equal(getattr(others, stream), getattr(told["none"][layer], stream)), "own goodness"


@pytest.mark.parametrize("function", ["stream_goodness", "stream_updates"])
def test_another_prior_is_refused(side: Side, function: str):
    dense, x = side.operands((Dense((np.ones((4, 6)),), (None,), ("relu",)), np.ones((2, 6))))
    with pytest.raises(ValueError, match="prior: 'after', expected 'none', 'before' or 'others'"):
        list(getattr(side.forward_forward, function)(side.network(dense), x, x, prior="after"))


@given(case=streams(), goodness=st.sampled_from(SMOOTH_GOODNESS), amplitude=st.sampled_from([1.0, 4.0]))
def test_label_scores(twin: Side, compare: Comparison, case: Streams, goodness: str, amplitude: float):
    for first_layer in range(case.depth):

        def scores(side: Side, dense: Any, x: Any, first_layer: int = first_layer) -> Any:
            chosen = side.goodness.GOODNESS[goodness]
            return side.forward_forward.label_scores(side.network(dense), x, 5, chosen, amplitude, first_layer)

        compare(twin, "label_scores", scores, case.dense, case.x)


@given(case=streams())
def test_features(twin: Side, compare: Comparison, case: Streams):
    def neutral(side: Side, dense: Any, x: Any) -> Any:
        return side.forward_forward.neutral_features(side.network(dense), x, 5, 2.0, case.depth - 1)

    def plain(side: Side, dense: Any, x: Any) -> Any:
        return side.forward_forward.features(side.network(dense), x, 0)

    compare(twin, "neutral_features", neutral, case.dense, case.x)
    compare(twin, "features", plain, case.dense, case.x)


@given(h=arrays(), rng=seeds())
def test_readout_update(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator):
    readout, labels = rng.standard_normal((4, h.shape[1])), rng.integers(0, 4, len(h))
    compare(twin, "readout_update", lambda side, *o: side.forward_forward.readout_update(*o), readout, h, labels)


@given(h=arrays())
def test_parts(twin: Side, compare: Comparison, h: Any):
    compare(twin, "normalise", lambda side, h: side.forward_forward.normalise(h), h)


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


TORCH_ACTIVATIONS: dict[str, Any] = {
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "maxmin": lambda a: a.unflatten(1, (-1, 2)).sort(dim=2, descending=True).values.flatten(1),
}


def softplus(u: Any) -> Any:
    return torch.logaddexp(u, torch.zeros_like(u))


TORCH_LOSSES: dict[str, Any] = {
    "threshold": lambda theta, p, n, before_p, before_n: softplus(0.5 * theta - p) + softplus(n - 0.5 * theta),
    "symba": lambda theta, p, n, before_p, before_n: softplus(-0.7 * (p - n)),
    "collaboration": lambda theta, p, n, before_p, before_n: (
        softplus(1.2 * theta - p - before_p) + softplus(n + before_n - 1.2 * theta)
    ),
    "cumulative": lambda theta, p, n, before_p, before_n: softplus(-0.2 * (p + 0.7 * before_p - n - 0.7 * before_n)),
}
"""Written once more, in torch, for autograd to differentiate."""

TORCH_GOODNESS: dict[str, Any] = {
    "sum-of-squares": lambda h: h.pow(2).sum(1),
    "mean": lambda h: h.mean(1),
    "kurtosis": lambda h: ((h - h.mean(1, keepdim=True)).pow(4).mean(1) / (h.var(1, correction=0) + 1e-6).pow(2)) - 3,
}

REFERENCE_LOSSES: dict[str, Any] = {
    "threshold": lambda: pair_losses.threshold(0.5),
    "symba": lambda: pair_losses.symba(0.7),
    "collaboration": lambda: pair_losses.collaboration(1.2),
    "cumulative": lambda: cumulative_goodness.cumulative(gamma=0.7, beta=0.2),
}


def by_autograd(
    case: Streams, loss: str, prior: str, of: str = "sum-of-squares", detach: bool = True
) -> list[tuple[Any, Any]]:
    """Each layer's gradients. An independent forward pass in torch; inputs of layers detached, streams apart."""
    h = []
    for labels in (case.labels, case.negative_labels):
        x = torch.tensor(case.x)
        x[:, :5] = torch.eye(5, dtype=torch.float64)[labels]
        h.append(x)
    parameters, seen = [], []
    for weight, bias, name in zip(*case.dense, strict=True):
        w = torch.tensor(weight, requires_grad=True)
        b = None if bias is None else torch.tensor(bias, requires_grad=True)
        z = [(s / (s.pow(2).mean(1, keepdim=True).sqrt() + 1e-8)).detach() for s in h]
        h = [TORCH_ACTIVATIONS[name](torch.nn.functional.linear(s, w, b)) for s in z]
        parameters.append((w, b))
        seen.append([TORCH_GOODNESS[of](s) for s in h])
    for layer, (p, n) in enumerate(seen):
        others = {"before": range(layer), "others": [t for t in range(case.depth) if t != layer], "none": []}[prior]
        priors = [sum((seen[t][stream] for t in others), torch.zeros(len(p)).double()) for stream in (0, 1)]
        if detach:
            priors = [prior.detach() for prior in priors]
        scale = float(len(parameters[layer][0])) if of == "sum-of-squares" else 1.0
        TORCH_LOSSES[loss](scale, p, n, *priors).mean().backward(retain_graph=True)
    return [(w.grad.cpu().numpy(), None if b is None else b.grad.cpu().numpy()) for w, b in parameters]


@given(case=streams(), prior=st.sampled_from(["none", "before", "others"]), of=st.sampled_from([*TORCH_GOODNESS]))
@pytest.mark.parametrize("loss", TORCH_LOSSES)
def test_the_reference_is_autograd_of_each_layers_own_loss(case: Streams, loss: str, prior: Any, of: str):
    ours = forward_forward.updates(
        reference_network(case.dense), case.x, case.labels, case.negative_labels, 5,
        goodness.GOODNESS[of], REFERENCE_LOSSES[loss](), prior,
    )  # fmt: skip
    for layer, (weight, bias) in enumerate(by_autograd(case, loss, prior, of)):
        assert np.allclose(ours.weights[layer], weight, rtol=0, atol=1e-12), f"weights[{layer}]"
        if bias is not None:
            assert np.allclose(ours.biases[layer], bias, rtol=0, atol=1e-12), f"biases[{layer}]"


@pytest.mark.parametrize("prior", ["before", "others"])
@given(case=streams(min_layers=2))
def test_the_goodness_of_other_layers_is_a_constant_to_a_layer(case: Streams, prior: Any):
    """Were it none, a layer's update would have a part from the losses of others."""
    ours = forward_forward.updates(
        reference_network(case.dense), case.x, case.labels, case.negative_labels, 5,
        loss=REFERENCE_LOSSES["cumulative"](), prior=prior,
    )  # fmt: skip
    attached = by_autograd(case, "cumulative", prior, detach=False)
    assert rms(ours.weights[0] - attached[0][0]) > 1e-6 * rms(attached[0][0]), "prior detached"
    if prior == "before":
        assert np.allclose(ours.weights[-1], attached[-1][0], rtol=0, atol=1e-12), "no layer comes after the last"


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


@given(case=streams())
def test_scores_are_the_goodness_of_each_label_alone(side: Side, case: Streams):
    """One batched pass over all labels equals a pass of the layers for each label."""
    dense, x = side.operands((case.dense, case.x))
    network, module = side.network(dense), side.forward_forward
    scores = side.results(module.label_scores(network, x, 5, amplitude=2.0))
    for k in range(5):
        h = module.overlay(x, side.operands(np.full(len(case.x), k)), 5, 2.0)
        total = 0.0
        for weight, bias, activation in zip(*network, strict=True):
            h = activation.value(side.net.affine(weight, bias, module.normalise(h)))
            total = total + (side.results(h) ** 2).sum(axis=1)
        assert rms(scores[:, k] - total) <= 64 * case.depth * side.eps * rms(total), f"label {k}"


@given(case=streams(), candidates=st.sampled_from([1, 33, 70]))
def test_scores_in_parts_are_those_of_one_pass(twin: TwinSide, case: Streams, candidates: int):
    """Memory is bounded by letting as many candidate labels through at a time as fit. One layer: bit for bit."""
    if not twin.is_ours:
        pytest.skip("how a package bounds its memory is its own matter")
    dense, x = twin.operands((case.dense, case.x))
    module = twin.forward_forward
    for depth in range(1, case.depth + 1):
        network = twin.network(Dense(*(field[:depth] for field in dense)))
        whole = twin.results(module.label_scores(network, x, 5))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CANDIDATES", candidates)
            parts = twin.results(module.label_scores(network, x, 5))
        if depth == 1:
            assert np.array_equal(parts, whole), "in parts"
        assert rms(parts - whole) <= 64 * depth * twin.eps * rms(whole), "in parts"


@given(case=streams())
def test_a_small_step_lowers_each_layers_loss(case: Streams):
    network = reference_network(case.dense)

    def losses(weights: Any) -> list[float]:
        net = network._replace(weights=weights)
        layers = forward_forward.local_updates(net, case.x, case.labels, case.negative_labels, 5)
        return [float(loss) for _, loss in layers]

    before = losses(network.weights)
    updates = forward_forward.updates(network, case.x, case.labels, case.negative_labels, 5)
    for layer, update in enumerate(updates.weights):
        weights = list(network.weights)
        weights[layer] = weights[layer] - 1e-4 / (1 + np.square(update).sum()) * update
        assert losses(tuple(weights))[layer] < before[layer], f"layer {layer}"


@pytest.mark.parametrize("first_layer", [-1, 2])
def test_a_layer_that_is_not_there_is_refused(side: Side, first_layer: int):
    dense, x = side.operands(
        (Dense((np.ones((4, 6)), np.ones((4, 4))), (None, None), ("relu", "relu")), np.ones((2, 6)))
    )
    for function in (side.forward_forward.label_scores, side.forward_forward.neutral_features):
        with pytest.raises(ValueError, match=rf"first_layer: {first_layer}, expected 0\.\.1"):
            function(side.network(dense), x, 3, first_layer=first_layer)
