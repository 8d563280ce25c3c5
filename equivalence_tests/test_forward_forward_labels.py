"""Labels in Forward-Forward: at the input, as candidates whose goodness are scores, and in the read-out of features."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.accelerated import forward_forward
from prograde.accelerated.forward_forward import layer_passes
from prograde.equivalence_tests.sides import Dense, Images, Padded, Side, TwinSide
from prograde.equivalence_tests.strategies import Streams, arrays, seeds, streams
from prograde.equivalence_tests.test_forward_forward import KINDS, NOTHING, K, Labelled, first_layers, labelled
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.smoke


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_overlays(twin: Side, compare: Comparison, data: st.DataObject, kind: str) -> None:
    case = data.draw(labelled(kind))

    def overlays(side: Side, x: Any, labels: Any) -> Any:
        module = side.forward_forward
        return module.overlay(x, labels, K, 3.0, case.place), module.overlay_neutral(x, K, 3.0, case.place)

    compare(twin, "overlays", overlays, case.x, case.labels)


@pytest.mark.parametrize("shape", [(2, 12), (2, 2, 2, 3)], ids=["vectors", "images"])
def test_where_the_label_is(side: Side, shape: tuple[int, ...]) -> None:
    """The first pixels, row by row, and nothing else; or one plane of ones among K, behind the sample."""
    module = side.forward_forward
    x, labels = side.operands((np.arange(24.0).reshape(shape) + 1, np.array([1, 3])))
    kept = side.results(x)
    pixels = side.results(module.overlay(x, labels, K))
    assert pixels.reshape(2, -1)[:, :4].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]], "label pixels"
    assert np.array_equal(pixels.reshape(2, -1)[:, 4:], kept.reshape(2, -1)[:, 4:]), "the other pixels"
    neutral = side.results(module.overlay_neutral(x, K, 2.0))
    assert np.allclose(neutral.reshape(2, -1)[:, :4], 0.5, rtol=side.eps), "neutral pixels"
    assert np.array_equal(neutral.reshape(2, -1)[:, 4:], kept.reshape(2, -1)[:, 4:]), "the other pixels"
    planes = side.results(module.overlay(x, labels, K, 2.0, "planes"))
    assert np.array_equal(planes[:, : shape[1]], kept), "the sample"
    for sample, code in zip(planes[:, shape[1] :], ([0, 2, 0, 0], [0, 0, 0, 2]), strict=True):
        assert np.array_equal(sample.reshape(4, -1).T, [code] * int(np.prod(shape[2:]))), "planes"
    neutral = side.results(module.overlay_neutral(x, K, 2.0, "planes"))
    assert np.array_equal(neutral[:, : shape[1]], kept), "the sample"
    assert np.allclose(neutral[:, shape[1] :], 0.5, rtol=side.eps), "neutral planes"


def test_where_the_label_of_tokens_is(side: Side) -> None:
    """Over the first numbers of each."""
    x, labels = side.operands((np.arange(36.0).reshape(2, 3, 6) + 1, np.array([1, 3])))
    given, neutral = (
        side.results(found)
        for found in (
            side.forward_forward.overlay(x, labels, K, 2.0, "tokens"),
            side.forward_forward.overlay_neutral(x, K, 2.0, "tokens"),
        )
    )
    assert given[:, :, :4].tolist() == [[[0, 2, 0, 0]] * 3, [[0, 0, 0, 2]] * 3], "label of every token"
    assert np.allclose(neutral[:, :, :4], 0.5, rtol=side.eps), "neutral label"
    assert np.array_equal(given[:, :, 4:], side.results(x)[:, :, 4:]), "the other numbers"
    assert np.array_equal(neutral[:, :, 4:], side.results(x)[:, :, 4:]), "the other numbers"


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_labelled_inputs_are_streams_like_any_other(side: Side, data: st.DataObject, kind: str) -> None:
    """What is shared and never formed gives the updates and scores of samples with their labels put in."""
    case = data.draw(labelled(kind))
    module, goodness, place = side.forward_forward, side.goodness.mean_square, case.place
    network, x, labels, negative = side.operands(case.operands)
    chain = side.chain(network)
    ours = list(module.local_updates(chain, x, labels, negative, K, goodness, amplitude=2.0, place=place))
    inputs = [module.overlay(x, of, K, 2.0, place) for of in (labels, negative)]
    formed = list(module.stream_updates(chain, *inputs, goodness))
    for (update, loss), (expected, expected_loss) in zip(ours, formed, strict=True):
        for one, other in zip((*update, loss), (*expected, expected_loss), strict=True):
            one, other = side.results((one, other))
            assert rms(one - other) <= 128 * case.depth * side.eps * max(rms(other), 1e-3), f"{place} put in"
    for first_layer in (0, case.depth - 1):
        scores = side.results(module.label_scores(chain, x, K, goodness, 2.0, first_layer, place))
        for k in range(K):
            candidate = module.overlay(x, side.operands(np.full(len(case.x), k)), K, 2.0, place)
            told = side.results(module.stream_goodness(chain, candidate, candidate, goodness))
            total = sum(layer.positive for layer in told[first_layer:])
            assert rms(scores[:, k] - total) <= 128 * case.depth * side.eps * rms(total), f"label {k}"


def test_as_many_labels_as_pixels(twin: Side, compare: Comparison) -> None:
    """Nothing of the sample is left."""
    rng = np.random.default_rng(0)
    dense = Dense((rng.standard_normal((6, K)),), (rng.standard_normal(6),), ("tanh",))

    def found(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, chain = side.forward_forward, side.chain(dense)
        return module.updates(chain, x, labels, negative, K), module.label_scores(chain, x, K)[:1]

    labels = np.array([0, 3, 1])
    compare(twin, "labels alone", found, dense, rng.standard_normal((3, K)), labels, np.array([2, 1, 0]))


@given(data=st.data(), goodness=st.sampled_from(["sum-of-squares", "kurtosis"]), amplitude=st.sampled_from([1.0, 4.0]))
@pytest.mark.parametrize("kind", KINDS)
def test_label_scores(
    twin: Side, compare: Comparison, data: st.DataObject, kind: str, goodness: str, amplitude: float
) -> None:
    case = data.draw(labelled(kind))
    for first_layer in range(case.depth):

        def scores(side: Side, network: Any, x: Any, first_layer: int = first_layer) -> Any:
            chosen, chain = side.goodness.GOODNESS[goodness], side.chain(network)
            return side.forward_forward.label_scores(chain, x, K, chosen, amplitude, first_layer, case.place)

        compare(twin, "label_scores", scores, case.network, case.x)


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_features(twin: Side, compare: Comparison, data: st.DataObject, kind: str) -> None:
    case = data.draw(labelled(kind))
    for first_layer in range(case.depth):

        def neutral(side: Side, network: Any, x: Any, first_layer: int = first_layer) -> Any:
            module = side.forward_forward
            return module.neutral_features(side.chain(network), x, K, 2.0, first_layer, case.place)

        compare(twin, "neutral_features", neutral, case.network, case.x)


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_layers_pass_on(side: Side, data: st.DataObject, kind: str) -> None:
    """Pooled, of root mean square 1, and those of the neutral pass are features of samples with every label."""
    case = data.draw(labelled(kind))
    module = side.forward_forward
    network, x = side.operands((case.network, case.x))
    chain = side.chain(network)
    found = side.results(module.features(chain, module.overlay_neutral(x, K, 2.0, case.place), 0))
    assert np.array_equal(found, side.results(module.neutral_features(chain, x, K, 2.0, 0, case.place)))
    start = 0
    for depth in range(1, case.depth + 1):
        part = side.chain(first_layers(network, depth))
        last = side.results(module.neutral_features(part, x, K, 2.0, depth - 1, case.place))
        assert np.allclose(np.mean(last**2, axis=1), 1, atol=32 * side.eps + 1e-6)
        assert np.array_equal(found[:, start : start + last.shape[1]], last), f"layer {depth - 1}"
        start += last.shape[1]
    assert start == found.shape[1]


@given(h=arrays(), rng=seeds())
def test_readout_update(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator) -> None:
    readout, labels = rng.standard_normal((K, h.shape[1])), rng.integers(0, K, len(h))
    compare(twin, "readout_update", lambda side, *o: side.forward_forward.readout_update(*o), readout, h, labels)


@given(case=streams(num_classes=K))
def test_over_one_pixel_it_is_the_dense_form(side: Side, compare: Comparison, case: Streams) -> None:
    """Layers as convolutions of one tap over images of one pixel, the label over the first channels."""
    convolutions = tuple(
        Padded(weight[:, :, None, None], bias, activation, (1, 1), (0, 0), 1)
        for weight, bias, activation in zip(*case.dense, strict=True)
    )

    def found(side: Side, network: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, chain = side.forward_forward, side.chain(network)
        loss = side.pair_losses.collaboration(1.0)
        updates = module.updates(chain, x, labels, negative, K, loss=loss, prior="before")
        weights = tuple(weight.reshape(weight.shape[:2]) for weight, *_ in updates)
        return weights, module.label_scores(chain, x, K)

    def convolved(side: Side, dense: Any, images: Any, x: Any, *labels: Any) -> Any:
        return found(side, images, x[:, :, None, None], *labels)

    def theirs(side: Side, dense: Any, images: Any, x: Any, *labels: Any) -> Any:
        return found(side, dense, x, *labels)

    compare(side, "as dense", convolved, case.dense, Images(convolutions, NOTHING), *case[1:], expected=theirs)


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_scores_in_parts_are_those_of_one_pass(twin: TwinSide, data: st.DataObject, kind: str) -> None:
    """Memory is bounded by letting as many candidate labels through at a time as fit."""
    if not twin.is_ours:
        pytest.skip("how a package bounds its memory is its own matter")
    case: Labelled = data.draw(labelled(kind))
    network, x = twin.operands((case.network, case.x))
    module = twin.forward_forward
    for depth in range(1, case.depth + 1):
        chain = twin.chain(first_layers(network, depth))
        whole = twin.results(module.label_scores(chain, x, K, place=case.place))
        for candidates in (1, 7, 33):
            rows: list[int] = []

            def passes(layers: Any, first: Any, rows: list[int] = rows) -> Any:
                for found in layer_passes(layers, first):
                    rows.append(len(found.h))
                    yield found

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(forward_forward, "CANDIDATES", candidates)
                patch.setattr(forward_forward, "layer_passes", passes)
                parts = twin.results(module.label_scores(chain, x, K, place=case.place))
            assert rms(parts - whole) <= 128 * depth * twin.eps * rms(whole), "in parts"
            at_once = (candidates if x.ndim == 2 else candidates // 4) // len(x)
            assert max(rows) == min(max(at_once, 1), K) * len(x), "as many labels as fit, one at least"


@pytest.mark.parametrize("first_layer", [-1, 2])
def test_a_layer_that_is_not_there_is_refused(side: Side, first_layer: int) -> None:
    dense, x = side.operands(
        (Dense((np.ones((4, 6)), np.ones((4, 4))), (None, None), ("relu", "relu")), np.ones((2, 6)))
    )
    for function in (side.forward_forward.label_scores, side.forward_forward.neutral_features):
        with side.refuses(rf"first_layer: {first_layer}, expected 0\.\.1"):
            function(side.chain(dense), x, 3, first_layer=first_layer)
