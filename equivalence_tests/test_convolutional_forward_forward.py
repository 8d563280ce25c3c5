"""Forward-Forward through convolutions: twin against reference, autograd, and the dense form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prograde.equivalence_tests.sides import Dense, Images, Padded, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Streams, seeds, streams
from prograde.equivalence_tests.test_convolutional_network import PaddedCase, padded_cases
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolutional_forward_forward, forward_forward

pytestmark = pytest.mark.smoke

K = 4
places = st.sampled_from(["pixels", "planes"])


class ImageStreams(NamedTuple):
    """A network of hidden layers for K labels at that place, a labelled batch and wrong labels for it."""

    images: Images
    x: Any
    labels: Any
    negative_labels: Any

    @property
    def depth(self) -> int:
        return len(self.images.layers) + len(self.images.dense.weights)


@st.composite
def image_streams(draw: st.DrawFn, place: str) -> ImageStreams:
    """One or two convolutions, and at most one dense layer, all hidden; channels for the planes added to the first."""
    case: PaddedCase = draw(padded_cases(activations=("tanh",)))
    rng = draw(seeds())
    first, *others = case.images.layers
    if place == "planes":
        shape = (len(first.kernel), K, *first.kernel.shape[2:])
        first = first._replace(kernel=np.concatenate([first.kernel, rng.standard_normal(shape) / 2], axis=1))
    dense = Dense(*(field[:-1] for field in case.images.dense))
    negative = forward_forward.wrong_labels(case.labels, K, rng)
    return ImageStreams(Images((first, *others), dense), case.x, case.labels, negative)


LOSSES: dict[str, Callable[[Side], Any]] = {
    "threshold": lambda side: side.pair_losses.threshold(0.5),
    "collaboration": lambda side: side.pair_losses.collaboration(1.2),
}


@given(data=st.data(), goodness=st.sampled_from(["sum-of-squares", "kurtosis"]), amplitude=st.sampled_from([1.0, 4.0]))
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", ["pixels", "planes"])
def test_updates(
    twin: Side, compare: Comparison, data: st.DataObject, goodness: str, amplitude: float, loss: str, place: str
):
    case = data.draw(image_streams(place))

    def updates(side: Side, images: Any, x: Any, labels: Any, negative: Any) -> Any:
        return side.convolutional_forward_forward.updates(
            side.padded_network(images), x, labels, negative, K,
            side.goodness.GOODNESS[goodness], LOSSES[loss](side), "others", amplitude, place,
        )  # fmt: skip

    compare(twin, "convolutional_forward_forward.updates", updates, *case)


@given(data=st.data())
@pytest.mark.parametrize("place", ["pixels", "planes"])
def test_scores_and_features(twin: Side, compare: Comparison, data: st.DataObject, place: Any):
    case = data.draw(image_streams(place))
    for first_layer in range(case.depth):

        def scores(side: Side, images: Any, x: Any, first_layer: int = first_layer) -> Any:
            module, network = side.convolutional_forward_forward, side.padded_network(images)
            return module.label_scores(network, x, K, side.goodness.mean_square, 2.0, first_layer, place)

        def features(side: Side, images: Any, x: Any, first_layer: int = first_layer) -> Any:
            module, network = side.convolutional_forward_forward, side.padded_network(images)
            return module.neutral_features(network, x, K, 2.0, first_layer, place)

        compare(twin, "label_scores", scores, case.images, case.x)
        compare(twin, "neutral_features", features, case.images, case.x)


@given(rng=seeds())
@pytest.mark.parametrize("groups", [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("place", ["pixels", "planes"])
def test_grouped_convolutions(
    twin: Side, compare: Comparison, rng: np.random.Generator, place: Any, groups: tuple[int, int]
):
    """With planes in a first convolution of two groups, one sees the image and two labels, the other two labels."""
    channels = 2 + (K if place == "planes" else 0)
    layers, seen = [], channels
    for n, c_out in zip(groups, (4, 6), strict=True):
        kernel = rng.standard_normal((c_out, seen // n, 3, 2)) / np.sqrt(seen)
        layers.append(Padded(kernel, 0.3 * rng.standard_normal(c_out), "tanh", (1, 1), (1, 0), 1, n))
        seen = c_out
    dense = Dense((rng.standard_normal((5, 6 * 5 * 4)) / 8,), (0.3 * rng.standard_normal(5),), ("tanh",))
    x, labels = rng.standard_normal((3, 2, 5, 6)), np.array([1, 3, 0])

    def found(side: Side, images: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, network = side.convolutional_forward_forward, side.padded_network(images)
        updates = module.updates(network, x, labels, negative, K, amplitude=2.0, place=place)
        return updates, module.label_scores(network, x, K, amplitude=2.0, place=place)

    operands = Images(tuple(layers), dense), x, labels, np.array([0, 1, 2])
    compare(twin, "groups", found, *operands)


@given(case=image_streams("pixels"), prior=st.sampled_from(["before", "others"]), normalised=st.booleans())
def test_any_two_streams(twin: Side, compare: Comparison, case: ImageStreams, prior: Any, normalised: bool):
    def found(side: Side, images: Any, x: Any, other: Any) -> Any:
        module, network = side.convolutional_forward_forward, side.padded_network(images)
        told = module.stream_goodness(network, x, other, prior=prior, normalised=normalised)
        layers = tuple(module.stream_updates(network, x, other, prior=prior, normalised=normalised))
        return layers, tuple((layer.positive, layer.negative) for layer in told), module.features(network, x, 0)

    compare(twin, "streams", found, case.images, case.x, case.x[::-1] + 0.5)


@given(case=image_streams("pixels"))
def test_normalised_streams_are_taken_as_they_are(side: Side, case: ImageStreams):
    """Of inputs normalised beforehand nothing changes; without biases and kinks length squares goodness."""
    module = side.convolutional_forward_forward
    images, x = side.operands((case.images, case.x))
    linear = side.padded_network(
        Images((images.layers[0]._replace(bias=None, activation="identity"),), Dense((), (), ()))
    )
    z = module.normalise(x)
    for network in (linear, side.padded_network(images)):
        expected = side.results(module.stream_goodness(network, x, x)[0].positive)
        taken = side.results(module.stream_goodness(network, z, z, normalised=True)[0].positive)
        assert rms(taken - expected) <= 64 * side.eps * rms(expected), "normalised beforehand"
    once, thrice = (side.results(layer) for layer in module.stream_goodness(linear, z, 3 * z, normalised=True)[0][3:5])
    assert rms(thrice - 9 * once) <= 64 * side.eps * rms(thrice), "length"


@given(data=st.data(), place=places)
def test_overlays(twin: Side, compare: Comparison, data: st.DataObject, place: Any):
    case = data.draw(image_streams(place))

    def overlays(side: Side, x: Any, labels: Any) -> Any:
        module = side.convolutional_forward_forward
        return module.overlay(x, labels, K, 3.0, place), module.overlay_neutral(x, K, 3.0, place)

    compare(twin, "overlays", overlays, case.x, case.labels)


def test_where_the_label_is(side: Side):
    """The first pixels, row by row, and nothing else; or one plane of ones among K, behind the image."""
    module = side.convolutional_forward_forward
    x, labels = side.operands((np.arange(24.0).reshape(2, 2, 2, 3) + 1, np.array([1, 3])))
    kept = side.results(x)
    pixels = side.results(module.overlay(x, labels, K))
    assert pixels.reshape(2, -1)[:, :4].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]], "label pixels"
    assert np.array_equal(pixels.reshape(2, -1)[:, 4:], kept.reshape(2, -1)[:, 4:]), "the other pixels"
    planes = side.results(module.overlay(x, labels, K, 2.0, "planes"))
    assert np.array_equal(planes[:, :2], kept), "the image"
    assert [sample[2:, row, column].tolist() for sample in planes for row in (0, 1) for column in (0, 2)] == [
        *[[0, 2, 0, 0]] * 4,
        *[[0, 0, 0, 2]] * 4,
    ], "planes"
    neutral = side.results(module.overlay_neutral(x, K, 2.0, "planes"))
    assert np.allclose(neutral[:, 2:], 0.5, rtol=side.eps), "neutral planes"


@given(data=st.data(), place=places)
def test_planes_and_pixels_are_inputs_like_any_other(side: Side, data: st.DataObject, place: Any):
    """What is shared and never formed gives the updates and scores of images with their labels put in."""
    case = data.draw(image_streams(place))
    module = side.convolutional_forward_forward
    images, x, labels, negative = side.operands(tuple(case))
    network, goodness = side.padded_network(images), side.goodness.mean_square
    ours = list(module.local_updates(network, x, labels, negative, K, goodness, amplitude=2.0, place=place))
    inputs = [module.overlay(x, of, K, 2.0, place) for of in (labels, negative)]
    formed = list(module.stream_updates(network, *inputs, goodness))
    for (update, loss), (expected, expected_loss) in zip(ours, formed, strict=True):
        for one, other in ((update.weight, expected.weight), (loss, expected_loss)):
            one, other = side.results((one, other))
            assert rms(one - other) <= 128 * case.depth * side.eps * max(rms(other), 1e-3), f"{place} put in"
    scores = side.results(module.label_scores(network, x, K, goodness, 2.0, 0, place))
    for k in range(K):
        candidate = module.overlay(x, side.operands(np.full(len(case.x), k)), K, 2.0, place)
        told = side.results(module.stream_goodness(network, candidate, candidate, goodness))
        total = sum(layer.positive for layer in told)
        assert rms(scores[:, k] - total) <= 128 * case.depth * side.eps * rms(total), f"{place} of label {k}"


@given(case=streams(num_classes=4))
def test_over_one_pixel_it_is_the_dense_form(side: Side, compare: Comparison, case: Streams):
    """Layers as convolutions of one tap over images of one pixel, the label over the first channels."""
    layers = tuple(
        Padded(weight[:, :, None, None], bias, activation, (1, 1), (0, 0), 1)
        for weight, bias, activation in zip(*case.dense, strict=True)
    )
    images = Images(layers, Dense((), (), ()))

    def convolved(side: Side, dense: Any, images: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, network = side.convolutional_forward_forward, side.padded_network(images)
        loss = side.pair_losses.collaboration(1.0)
        found = module.updates(network, x[:, :, None, None], labels, negative, K, loss=loss, prior="before")
        weights = tuple(layer.weight[:, :, 0, 0] for layer in found.layers)
        return weights, module.label_scores(network, x[:, :, None, None], K)

    def theirs(side: Side, dense: Any, images: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, network = side.forward_forward, side.network(dense)
        loss = side.pair_losses.collaboration(1.0)
        return module.updates(network, x, labels, negative, K, loss=loss).weights, module.label_scores(network, x, K)

    compare(side, "as dense", convolved, case.dense, images, *case[1:], expected=theirs)


def by_autograd(case: ImageStreams, place: str) -> list[tuple[Any, Any]]:
    """Each layer's gradients. An independent forward pass in torch; inputs of layers detached, streams apart."""
    h = []
    for labels in (case.labels, case.negative_labels):
        x, code = torch.tensor(case.x), torch.eye(K, dtype=torch.float64)[labels]
        if place == "planes":
            h.append(torch.cat([x, code[:, :, None, None] * torch.ones_like(x[:, :1])], dim=1))
        else:
            h.append(torch.cat([code, x.flatten(1)[:, K:]], dim=1).view_as(x))
    found = []
    for layer in [*case.images.layers, *zip(*case.images.dense, strict=True)]:
        z = [(s / (s.pow(2).flatten(1).mean(1).sqrt() + 1e-8).view(-1, *[1] * (s.dim() - 1))).detach() for s in h]
        w = torch.tensor(layer[0], requires_grad=True)
        b = None if layer[1] is None else torch.tensor(layer[1], requires_grad=True)
        if isinstance(layer, Padded):
            y = [torch.tanh(functional.conv2d(s, w, b, layer.stride, layer.padding)) for s in z]
            h = [functional.max_pool2d(s, layer.pool) for s in y]
        else:
            y = h = [torch.tanh(functional.linear(s.flatten(1), w, b)) for s in z]
        positive, negative = (s.pow(2).flatten(1).sum(1) for s in y)
        theta = 0.5 * y[0][0].numel()
        zero = torch.zeros(1, dtype=torch.float64)
        loss = torch.logaddexp(theta - positive, zero) + torch.logaddexp(negative - theta, zero)
        loss.mean().backward()
        assert w.grad is not None
        found.append((w.grad.cpu().numpy(), None if b is None or b.grad is None else b.grad.cpu().numpy()))
    return found


@given(data=st.data(), place=places)
def test_the_reference_is_autograd_of_each_layers_own_loss(data: st.DataObject, place: Any):
    case = data.draw(image_streams(place))
    side = ReferenceSide()
    ours = convolutional_forward_forward.updates(
        side.padded_network(case.images), case.x, case.labels, case.negative_labels, K,
        loss=side.pair_losses.threshold(0.5), place=place,
    )  # fmt: skip
    updates = [*ours.layers, *zip(*ours.dense, strict=True)]
    for i, ((weight, bias), (w, b)) in enumerate(zip(updates, by_autograd(case, place), strict=True)):
        assert np.allclose(weight, w, rtol=0, atol=1e-12), f"weight of layer {i}"
        if b is not None:
            assert np.allclose(bias, b, rtol=0, atol=1e-12), f"bias of layer {i}"


@given(case=image_streams("pixels"))
def test_goodness_is_taken_before_pooling(side: Side, case: ImageStreams):
    """A layer's goodness and its theta do not depend on how it is pooled."""
    images, x = side.operands((case.images, case.x))
    told = []
    for pool in (1, 2):
        first = images.layers[0]._replace(pool=pool)
        network = side.padded_network(Images((first,), Dense((), (), ())))
        told.append(side.results(side.convolutional_forward_forward.stream_goodness(network, x, x))[0])
    assert np.array_equal(told[0].positive, told[1].positive), "goodness before pooling"
    assert told[0].scale == told[1].scale, "units before pooling"


@given(case=image_streams("planes"))
def test_layers_are_local(side: Side, case: ImageStreams):
    """Bit for bit: a layer's update does not depend on the layers above it."""
    images, x, labels, negative = side.operands(tuple(case))

    def updates(images: Images) -> Any:
        network = side.padded_network(images)
        layers = side.convolutional_forward_forward.local_updates(network, x, labels, negative, K, place="planes")
        return [side.results(update.weight) for update, _ in layers]

    whole = updates(images)
    nothing = Dense((), (), ())
    for depth in range(1, len(images.layers) + 1):
        part = updates(Images(images.layers[:depth], nothing))
        for layer in range(depth):
            assert np.array_equal(whole[layer], part[layer]), f"layer {layer} below layer {depth}"


@given(data=st.data(), place=places, candidates=st.sampled_from([1, 7]))
def test_scores_in_parts_are_those_of_one_pass(twin: TwinSide, data: st.DataObject, place: Any, candidates: int):
    if not twin.is_ours:
        pytest.skip("how a package bounds its memory is its own matter")
    case = data.draw(image_streams(place))
    images, x = twin.operands((case.images, case.x))
    module, network = twin.convolutional_forward_forward, twin.padded_network(images)
    whole = twin.results(module.label_scores(network, x, K, place=place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", candidates)
        parts = twin.results(module.label_scores(network, x, K, place=place))
    assert rms(parts - whole) <= 128 * case.depth * twin.eps * rms(whole), "in parts"


@pytest.mark.parametrize("function", ["label_scores", "neutral_features"])
def test_a_layer_that_is_not_there_is_refused(side: Side, function: str):
    layer = Padded(np.ones((2, 1, 2, 2)), None, "relu", (1, 1), (0, 0), 1)
    images, x = side.operands((Images((layer,), Dense((), (), ())), np.ones((2, 1, 4, 4))))
    with pytest.raises(ValueError, match=r"first_layer: 1, expected 0\.\.0"):
        getattr(side.convolutional_forward_forward, function)(side.padded_network(images), x, 3, first_layer=1)
