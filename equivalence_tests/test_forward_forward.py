"""Forward-Forward: twin against reference, closed-form gradients against autograd, and what the method promises.

Labels, scores and features are those of `test_forward_forward_labels`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prograde.accelerated import forward_forward as accelerated
from prograde.accelerated import layers as accelerated_layers
from prograde.accelerated import normalisations as accelerated_normalisations
from prograde.equivalence_tests.sides import Dense, Images, Padded, ReferenceSide, Side
from prograde.equivalence_tests.strategies import PaddedCase, padded_cases, seeds, streams
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import cumulative_goodness, forward_forward, goodness, layers, pair_losses

pytestmark = pytest.mark.smoke

K = 4
KINDS = ["vectors", "vectors, planes", "images", "images, planes", "tokens"]
NOTHING = Dense((), (), ())


class Labelled(NamedTuple):
    """A network of hidden layers, samples of K classes and wrong labels for them, and where the label goes."""

    network: Dense | Images
    x: Any
    labels: Any
    negative_labels: Any
    place: Any

    @property
    def operands(self) -> tuple[Any, ...]:
        return tuple(self)[:4]

    @property
    def weights(self) -> list[Any]:
        """Of all layers."""
        images = self.network if isinstance(self.network, Images) else Images((), self.network)
        return [*(layer.kernel for layer in images.layers), *images.dense.weights]

    @property
    def depth(self) -> int:
        return len(self.weights)


@st.composite
def labelled(draw: st.DrawFn, kind: str, min_layers: int = 1) -> Labelled:
    """Vectors through one to three dense layers, or three of them a sample, as tokens; or images through one or two
    convolutions and at most one of those.

    For planes the first layer takes K channels more than a sample has.
    """
    if kind == "tokens":
        case = draw(streams(num_classes=K, min_layers=min_layers))
        x = case.x[:, None] + draw(seeds()).standard_normal((len(case.x), 3, case.x.shape[1]))
        smooth = case.dense._replace(activations=("tanh",) * len(case.dense.weights))
        return Labelled(smooth, x, *case[2:], "tokens")
    if kind.startswith("vectors"):
        case = draw(streams(num_classes=K, min_layers=min_layers))
        x = case.x[:, K:] if kind.endswith("planes") else case.x
        return Labelled(case.dense, x, *case[2:], "planes" if kind.endswith("planes") else "pixels")
    padded: PaddedCase = draw(padded_cases(activations=("tanh",)))
    rng = draw(seeds())
    first, *others = padded.images.layers
    if kind.endswith("planes"):
        shape = (len(first.kernel), K, *first.kernel.shape[2:])
        first = first._replace(kernel=np.concatenate([first.kernel, rng.standard_normal(shape) / 2], axis=1))
    images = Images((first, *others), Dense(*(field[:-1] for field in padded.images.dense)))
    negative = forward_forward.wrong_labels(padded.labels, K, rng)
    return Labelled(images, padded.x, padded.labels, negative, "planes" if kind.endswith("planes") else "pixels")


@st.composite
def unlabelled(draw: st.DrawFn) -> Labelled:
    """The same, any kind whose samples the first layer takes as they are."""
    return draw(labelled(draw(st.sampled_from(["vectors", "images"]), label="kind")))


def first_layers(network: Dense | Images, depth: int) -> Dense | Images:
    """The first layers of a network."""
    if isinstance(network, Dense):
        return Dense(*(field[:depth] for field in network))
    beyond = max(0, depth - len(network.layers))
    return Images(network.layers[:depth], Dense(*(field[:beyond] for field in network.dense)))


SMOOTH_GOODNESS = ["sum-of-squares", "mean-square", "entmax", "kurtosis"]
"""Without kinks. The mean's gradient is the same in both streams, whose updates then cancel beyond any yardstick."""
LOSSES: dict[str, Callable[[Any], Any]] = {
    "threshold": lambda module: module.threshold(0.5),
    "symba": lambda module: module.symba(0.7),
    "collaboration": lambda module: module.collaboration(1.2),
}
"""Losses of one layer, and one that looks at the goodness of others, by the module of either side."""
priors = st.sampled_from(["none", "before", "others"])


@given(data=st.data(), of=st.sampled_from(SMOOTH_GOODNESS), amplitude=st.sampled_from([1.0, 4.0]), prior=priors)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_updates(
    twin: Side, compare: Comparison, data: st.DataObject, kind: str, of: str, amplitude: float, loss: str, prior: Any
) -> None:
    case = data.draw(labelled(kind))

    def updates(side: Side, network: Any, x: Any, labels: Any, negative: Any) -> Any:
        return side.forward_forward.updates(
            side.chain(network), x, labels, negative, K,
            side.goodness.GOODNESS[of], LOSSES[loss](side.pair_losses), prior, amplitude, case.place,
        )  # fmt: skip

    compare(twin, "updates", updates, *case.operands)


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_layers(twin: Side, compare: Comparison, data: st.DataObject, kind: str) -> None:
    case = data.draw(labelled(kind))

    def losses(side: Side, network: Any, x: Any, labels: Any, negative: Any) -> Any:
        chain = side.chain(network)
        found = side.forward_forward.local_updates(chain, x, labels, negative, K, place=case.place)
        return tuple(loss for _, loss in found)

    compare(twin, "local_updates.loss", losses, *case.operands)


@given(case=unlabelled(), prior=st.sampled_from(["before", "others"]), normalised=st.booleans())
def test_any_two_streams(twin: Side, compare: Comparison, case: Labelled, prior: Any, normalised: bool) -> None:
    def updates(side: Side, network: Any, positive: Any, negative: Any) -> Any:
        module, loss = side.forward_forward, side.pair_losses.collaboration(0.8)
        settings = {"loss": loss, "prior": prior, "normalised": normalised}
        return tuple(module.stream_updates(side.chain(network), positive, negative, **settings))

    def told(side: Side, network: Any, positive: Any, negative: Any) -> Any:
        module = side.forward_forward
        found = module.stream_goodness(side.chain(network), positive, negative, prior=prior, normalised=normalised)
        seen = tuple((layer.positive, layer.negative) for layer in found)
        priors = tuple((layer.prior_positive, layer.prior_negative) for layer in found)
        return seen, priors[1:] if prior == "before" or case.depth == 1 else priors  # of the first layer 0

    negative = case.x[::-1] + 0.5
    compare(twin, "stream_updates", updates, case.network, case.x, negative)
    compare(twin, "stream_goodness", told, case.network, case.x, negative)


@given(rng=seeds())
@pytest.mark.parametrize("groups", [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("place", ["pixels", "planes"])
def test_grouped_convolutions(
    twin: Side, compare: Comparison, rng: np.random.Generator, place: Any, groups: tuple[int, int]
) -> None:
    """With planes in a first convolution of two groups, one sees the image and two labels, the other two labels."""
    channels = 2 + (K if place == "planes" else 0)
    convolutions, seen = [], channels
    for n, c_out in zip(groups, (4, 6), strict=True):
        kernel = rng.standard_normal((c_out, seen // n, 3, 2)) / np.sqrt(seen)
        convolutions.append(Padded(kernel, 0.3 * rng.standard_normal(c_out), "tanh", (1, 1), (1, 0), 1, n))
        seen = c_out
    dense = Dense((rng.standard_normal((5, 6 * 5 * 4)) / 8,), (0.3 * rng.standard_normal(5),), ("tanh",))
    x, labels = rng.standard_normal((3, 2, 5, 6)), np.array([1, 3, 0])

    def found(side: Side, images: Any, x: Any, labels: Any, negative: Any) -> Any:
        module, chain = side.forward_forward, side.chain(images)
        updates = module.updates(chain, x, labels, negative, K, amplitude=2.0, place=place)
        return updates, module.label_scores(chain, x, K, amplitude=2.0, place=place)

    operands = Images(tuple(convolutions), dense), x, labels, np.array([0, 1, 2])
    compare(twin, "groups", found, *operands)


@pytest.mark.parametrize(
    ("place", "shape", "channels", "shared"),
    [
        ("pixels", (6,), 6, True),
        ("pixels", (K,), K, False),
        ("pixels", (2, 3, 3), 2, False),
        ("planes", (6,), 6 + K, True),
        ("planes", (2, 3, 3), 2 + K, True),
        ("tokens", (3, 6), 6, False),
    ],
)
def test_whose_input_is_shared_by_all_labels(place: Any, shape: tuple[int, ...], channels: int, shared: bool) -> None:
    """A product with what samples have in common is taken once, where labels have channels of their own."""
    dense, x = accelerated_layers.Dense(torch.ones(5, channels), torch.ones(5)), torch.ones(2, *shape)
    layer = accelerated_layers.Convolution(torch.ones(5, channels, 2, 2), torch.ones(5)) if x.dim() == 4 else dense
    found = accelerated.labelled(layer, x, K, 1.0, place)(torch.tensor([0, 1]))
    assert isinstance(found, accelerated.LabelledInput) == shared, "shared by all labels"
    whole = accelerated.overlay(x, torch.tensor([0, 1]), K, 1.0, place)
    torch.testing.assert_close(found.value(layer), layer.value(accelerated_normalisations.rms_norm(whole)))


@given(case=unlabelled(), normalised=st.booleans())
def test_what_the_first_layer_takes(side: Side, case: Labelled, normalised: bool) -> None:
    """Inputs that are said to be normalised as they are, whatever their length; others at a root mean square of 1."""
    module, reference = side.forward_forward, ReferenceSide().chain(case.network)
    streams = case.x, 3 * case.x[::-1]
    network, *inputs = side.operands((case.network, *streams))
    found = module.stream_goodness(side.chain(network), *inputs, normalised=normalised)[0]
    for x, ours in zip(streams, (found.positive, found.negative), strict=True):
        size = np.sqrt(np.mean(x**2, axis=tuple(range(1, x.ndim)), keepdims=True)) + 1e-8
        h = layers.forward(reference[:1], x if normalised else x / size).activities[0]
        expected = np.sum(h.reshape(len(h), -1) ** 2, axis=1)
        assert rms(side.results(ours) - expected) <= 64 * side.eps * rms(expected), "goodness of the first layer"


@given(case=unlabelled())
def test_what_a_loss_is_told(side: Side, case: Labelled) -> None:
    """Layer and depth, theta's scale, and of other layers' goodness what the prior asks for: bit for bit for two."""
    network, x, y = side.operands((case.network, case.x, case.x[::-1].copy()))
    chain, depth = side.chain(network), case.depth
    told = {
        prior: side.results(side.forward_forward.stream_goodness(chain, x, y, prior=prior))
        for prior in ("none", "before", "others")
    }
    units = [a[0].size for a in layers.forward(ReferenceSide().chain(case.network), case.x).preactivations]
    for prior, found in told.items():
        assert [(layer.layer, layer.depth) for layer in found] == [(i, depth) for i in range(depth)]
        assert [float(layer.scale) for layer in found] == units, "units before pooling"
        for layer, others in enumerate(found):
            chosen = {"none": [], "before": range(layer), "others": [t for t in range(depth) if t != layer]}[prior]
            for stream in ("positive", "negative"):
                expected = sum((getattr(found[t], stream) for t in chosen), np.zeros(len(case.x)))
                seen = getattr(others, f"prior_{stream}")
                assert rms(seen - expected) <= 4 * depth * side.eps * rms(expected), f"prior {prior} of layer {layer}"
                assert np.array_equal(getattr(others, stream), getattr(told["none"][layer], stream)), "own goodness"


@pytest.mark.parametrize("function", ["stream_goodness", "stream_updates"])
def test_another_prior_is_refused(side: Side, function: str) -> None:
    dense, x = side.operands((Dense((np.ones((4, 6)),), (None,), ("relu",)), np.ones((2, 6))))
    with side.refuses("prior: 'after', expected 'none', 'before' or 'others'"):
        list(getattr(side.forward_forward, function)(side.chain(dense), x, x, prior="after"))


TORCH_ACTIVATIONS: dict[str, Any] = {
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
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
    case: Labelled, loss: str, prior: str, of: str = "sum-of-squares", detach: bool = True
) -> list[tuple[Any, ...]]:
    """Each layer's gradients. An independent forward pass in torch; inputs of layers detached, streams apart."""
    passed = []
    for labels in (case.labels, case.negative_labels):
        x, code = torch.tensor(case.x), torch.eye(K, dtype=torch.float64)[labels]
        if case.place == "planes":
            planes = code.view(*code.shape, *[1] * (x.dim() - 2)) * torch.ones_like(x[:, :1])
            passed.append(torch.cat([x, planes], dim=1))
        elif case.place == "tokens":
            passed.append(torch.cat([code[:, None].expand(-1, x.shape[1], -1), x[:, :, K:]], dim=2))
        else:
            passed.append(torch.cat([code, x.flatten(1)[:, K:]], dim=1).view_as(x))
    images = case.network if isinstance(case.network, Images) else Images((), case.network)
    parameters, seen, units = [], [], []
    for layer in [*images.layers, *zip(*images.dense, strict=True)]:
        z = [(s / (s.pow(2).flatten(1).mean(1).sqrt() + 1e-8).view(-1, *[1] * (s.dim() - 1))).detach() for s in passed]
        w = torch.tensor(layer[0], requires_grad=True)
        b = None if layer[1] is None else torch.tensor(layer[1], requires_grad=True)
        act = TORCH_ACTIVATIONS[layer[2]]
        if isinstance(layer, Padded):
            h = [act(functional.conv2d(s, w, b, layer.stride, layer.padding)) for s in z]
            passed = [functional.max_pool2d(s, layer.pool) for s in h]
        else:
            rows = z if case.place == "tokens" else [s.flatten(1) for s in z]
            h = passed = [act(functional.linear(s, w, b)) for s in rows]
        parameters.append((w,) if b is None else (w, b))
        seen.append([TORCH_GOODNESS[of](s.flatten(1)) for s in h])
        units.append(float(h[0][0].numel()))
    for layer, (p, n) in enumerate(seen):
        others = {"before": range(layer), "others": [t for t in range(case.depth) if t != layer], "none": []}[prior]
        told = [sum((seen[t][stream] for t in others), torch.zeros(len(p)).double()) for stream in (0, 1)]
        if detach:
            told = [other.detach() for other in told]
        scale = units[layer] if of == "sum-of-squares" else 1.0
        TORCH_LOSSES[loss](scale, p, n, *told).mean().backward(retain_graph=True)
    return [tuple(p.grad.cpu().numpy() for p in of_layer if p.grad is not None) for of_layer in parameters]


@given(data=st.data(), prior=priors, of=st.sampled_from([*TORCH_GOODNESS]))
@pytest.mark.parametrize("loss", TORCH_LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_autograd_of_each_layers_own_loss(
    data: st.DataObject, kind: str, loss: str, prior: Any, of: str
) -> None:
    case = data.draw(labelled(kind))
    ours = forward_forward.updates(
        ReferenceSide().chain(case.network), *case.operands[1:], K,
        goodness.GOODNESS[of], REFERENCE_LOSSES[loss](), prior, place=case.place,
    )  # fmt: skip
    for layer, (update, expected) in enumerate(zip(ours, by_autograd(case, loss, prior, of), strict=True)):
        for name, one, other in zip(("weight", "bias"), update, expected, strict=False):
            assert np.allclose(one, other, rtol=0, atol=1e-12), f"{name} of layer {layer}"
        assert len(update) == len(expected)


@pytest.mark.parametrize("prior", ["before", "others"])
@given(case=labelled("vectors", min_layers=2))
def test_the_goodness_of_other_layers_is_a_constant_to_a_layer(case: Labelled, prior: Any) -> None:
    """Were it none, a layer's update would have a part from the losses of others."""
    ours = forward_forward.updates(
        ReferenceSide().chain(case.network), *case.operands[1:], K, loss=REFERENCE_LOSSES["cumulative"](), prior=prior
    )
    attached = by_autograd(case, "cumulative", prior, detach=False)
    assert rms(ours[0][0] - attached[0][0]) > 1e-6 * rms(attached[0][0]), "prior detached"
    if prior == "before":
        assert np.allclose(ours[-1][0], attached[-1][0], rtol=0, atol=1e-12), "no layer comes after the last"


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_local(side: Side, data: st.DataObject, kind: str) -> None:
    """Bit for bit: a layer's update does not depend on the layers above it."""
    case = data.draw(labelled(kind))
    network, *operands = side.operands(case.operands)

    def updates(network: Any) -> Any:
        return side.results(side.forward_forward.updates(side.chain(network), *operands, K, place=case.place))

    whole = updates(network)
    for depth in range(1, case.depth):
        for layer, update in enumerate(updates(first_layers(network, depth))):
            assert np.array_equal(whole[layer][0], update[0]), f"layer {layer} below layer {depth}"


@given(case=labelled("images"))
def test_goodness_is_taken_before_pooling(side: Side, case: Labelled) -> None:
    """A layer's goodness and its theta do not depend on how it is pooled."""
    assert isinstance(case.network, Images)
    told = []
    for pool in (1, 2):
        network = Images((case.network.layers[0]._replace(pool=pool),), NOTHING)
        network, x = side.operands((network, case.x))
        told.append(side.results(side.forward_forward.stream_goodness(side.chain(network), x, x))[0])
    assert np.array_equal(told[0].positive, told[1].positive), "goodness before pooling"
    assert told[0].scale == told[1].scale, "units before pooling"


@given(case=unlabelled(), factor=st.sampled_from([0.125, 8.0]))
def test_a_layer_does_not_see_how_active_the_one_below_was(side: Side, case: Labelled, factor: float) -> None:
    """Twice the activity, the same direction: the goodness of the next layers is the same, that of the first is not."""
    linear = _with_first(case.network, activation="identity", bias=None)
    weight = _with_first(linear, scale=factor)
    told = []
    for network in (linear, weight):
        network, x = side.operands((network, case.x))
        told.append(side.results(side.forward_forward.stream_goodness(side.chain(network), x, x)))
    first = factor**2 * told[0][0].positive
    assert rms(told[1][0].positive - first) <= 64 * side.eps * rms(first), "goodness of the layer itself"
    for one, other in zip(told[0][1:], told[1][1:], strict=True):
        assert rms(one.positive - other.positive) <= (64 * side.eps + 1e-5) * rms(one.positive), "hidden from the next"


def _with_first(network: Dense | Images, scale: float = 1.0, **changed: Any) -> Any:
    """The network with another first layer."""
    if isinstance(network, Images):
        first, *others = network.layers
        return network._replace(layers=(first._replace(kernel=scale * first.kernel, **changed), *others))
    (weight, *weights), (bias, *biases), (name, *names) = network
    first_name, first_bias = changed.get("activation", name), changed.get("bias", bias)
    return Dense((scale * weight, *weights), (first_bias, *biases), (first_name, *names))


@given(case=labelled("vectors"))
def test_a_small_step_lowers_each_layers_loss(case: Labelled) -> None:
    chain = ReferenceSide().chain(case.network)

    def losses(chain: Any) -> list[float]:
        return [float(loss) for _, loss in forward_forward.local_updates(chain, *case.operands[1:], K)]

    before = losses(chain)
    for index, (update, *_) in enumerate(forward_forward.updates(chain, *case.operands[1:], K)):
        moved = list(chain)
        step = 1e-4 / (1 + np.square(update).sum())
        moved[index] = chain[index]._replace(weight=chain[index].weight - step * update)
        assert losses(moved)[index] < before[index], f"layer {index}"


def test_inputs_are_normalised_unless_they_are_so_already(side: Side) -> None:
    """The first layer takes them at one length: those who have it by themselves say so."""
    rng = np.random.default_rng(0)
    weight, *inputs = side.operands(tuple(rng.standard_normal(shape) for shape in ((4, 6), (3, 6), (3, 6))))
    layers, module = [side.layers.Dense(weight, None)], side.forward_forward
    lengthened = [8 * x for x in inputs]
    normalised = [side.normalisations.rms_norm(x) for x in lengthened]
    for function in (module.stream_goodness, module.stream_updates):
        found, expected, as_they_are = (
            np.concatenate([np.ravel(array) for array in arrays(side.results(tuple(given)))])
            for given in (
                function(layers, *lengthened),
                function(layers, *normalised, normalised=True),
                function(layers, *lengthened, normalised=True),
            )
        )
        assert rms(found - expected) <= 16 * side.eps * rms(expected), "not normalised"
        assert rms(found - as_they_are) > rms(found), "normalised, though said to be so already"


def arrays(found: Any) -> list[Any]:
    """All arrays in nested tuples."""
    if isinstance(found, tuple | list):
        return [array for part in found for array in arrays(part)]
    return [found]
