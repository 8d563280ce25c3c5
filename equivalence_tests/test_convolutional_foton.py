"""FOTON through convolutions: twin against reference, and when it is backpropagation."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Convolution, Dense, Images, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolution, orthogonality

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""


class ImageCase(NamedTuple):
    """A convolutional network with a batch: x (batch, c_0, height, width), labels (batch,)."""

    images: Images
    x: Any
    labels: Any

    @property
    def depth(self) -> int:
        return len(self.images.layers) + len(self.images.dense.weights)


def image_case(
    rng: np.random.Generator,
    channels: tuple[int, ...],
    factors: tuple[int, ...],
    pools: tuple[int, ...],
    size: int = 3,
    hidden: tuple[int, ...] = (),
    activation: str = "identity",
    biases: bool = False,
    batch: int = 5,
    pixels: int = 1,
) -> ImageCase:
    """Orthogonal kernels and dense hidden layers; the scores' weights are Gaussian. Images as large as is needed."""
    side = pixels * int(np.prod(factors)) * int(np.prod(pools))
    layers, height = [], side
    for c_in, c_out, factor, pool in zip(channels, channels[1:], factors, pools, strict=False):
        c_z = c_in * factor**2
        c = max(c_z, c_out)
        bases = [orthogonality.orthogonal((c, c // 2), rng) for _ in range(2 * (size - 1))] if c > 1 else []
        kernel = convolution.orthogonal_kernel(orthogonality.orthogonal((c_out, c_z), rng), bases)
        bias = 0.3 * rng.standard_normal(c_out) if biases else None
        layers.append(Convolution(kernel, bias, activation, factor, pool))
        height = height // factor // pool
    widths = [channels[-1] * height**2, *hidden, 4]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [orthogonality.orthogonal(shape, rng) for shape in shapes[:-1]]
    weights.append(rng.standard_normal(shapes[-1]) / np.sqrt(shapes[-1][1]))
    offsets = tuple(0.3 * rng.standard_normal(n) if biases else None for n in widths[1:])
    dense = Dense(tuple(weights), offsets, (activation,) * len(hidden) + ("identity",))
    x = rng.standard_normal((batch, channels[0], side, side))
    return ImageCase(Images(tuple(layers), dense), x, rng.integers(0, 4, batch))


@st.composite
def image_cases(
    draw: st.DrawFn, activations: tuple[str, ...] = ("identity", "tanh"), growing: bool = True
) -> ImageCase:
    """One or two convolutional layers, with unshuffling and pooling or without, and at most one dense hidden layer."""
    depth = draw(st.integers(1, 2), label="depth")
    factors = tuple(draw(st.sampled_from([1, 2]), label="factor") for _ in range(depth))
    pools = tuple(draw(st.sampled_from([1, 2]), label="pool") for _ in range(depth))
    channels = [draw(st.integers(2, 3), label="channels")]
    for factor in factors:
        most = channels[-1] * factor**2
        channels.append(draw(st.integers(2, 2 * most if growing else most), label="channels"))
    pixels = draw(st.integers(1, 2), label="pixels")
    hidden = draw(st.sampled_from([(), (2,)]), label="hidden")
    return image_case(
        draw(seeds()),
        tuple(channels),
        factors,
        pools,
        draw(st.sampled_from([1, 2, 3]), label="size"),
        hidden,
        draw(st.sampled_from(activations), label="activation"),
        draw(st.booleans(), label="biases"),
        draw(st.sampled_from([1, 3]), label="batch"),
        pixels,
    )


def updates(side: Side, images: Any, x: Any, labels: Any, **options: Any) -> Any:
    """`activation_gain` is the options' and the network's: what every activation multiplies by, if it is given."""
    network = side.image_network(images)
    if "activation_gain" in options:
        network = scaled(side, network, options["activation_gain"])
    return side.convolutional_foton.updates(network, x, labels, **options)


def scaled(side: Side, network: Any, gain: float) -> Any:
    """The network with sigma(a) = gain a before the output."""
    activation = side.activations.Activation(lambda a: gain * a, *(lambda a, u: gain * u,) * 3)
    dense = network.dense
    hidden = (activation,) * (len(dense.weights) - 1)
    return network._replace(
        layers=tuple(layer._replace(activation=activation) for layer in network.layers),
        dense=dense._replace(activations=(*hidden, dense.activations[-1])),
    )


def linear_updates(side: Side, images: Any, x: Any, labels: Any) -> Any:
    return updates(side, images, x, labels, linear=True)


def parts(side: Side, images: Any, x: Any, labels: Any) -> Any:
    """The projection and the differences, to be named apart."""
    network, module = side.image_network(images), side.convolutional_foton
    clean = module.forward(network, x)
    error = side.losses.cross_entropy_gradient(clean.dense.scores, labels)
    projection = module.error_projection(network, clean)
    return clean.dense.scores, projection, tuple(module.differences(network, clean, error, projection))


@given(case=image_cases())
def test_updates(twin: Side, compare: Comparison, case: ImageCase):
    compare(twin, "convolutional_foton.updates", updates, *case)
    compare(twin, "parts", parts, *case)


@given(case=image_cases())
def test_linear_updates(twin: Side, compare: Comparison, case: ImageCase):
    compare(twin, "convolutional_foton.updates", linear_updates, *case)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "maxmin"])
def test_updates_with_kinks(twin: Side, compare: Comparison, activation: str):
    """An image in which no unit of either pass comes near a kink, sought among thousands."""
    if twin.eps > 1e-4:
        pytest.skip("no image keeps clear of kinks in this precision")
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        case = image_case(rng, (1, 4, 4), (2, 1), (1, 1), 2, activation=activation, batch=1, pixels=2)
        if clearance(case) > 2e-2:
            compare(twin, "convolutional_foton.updates", updates, *case)
            return
    raise AssertionError("no image clear of kinks")


def clearance(case: ImageCase) -> float:
    """How near a pre-activation of the clean or the modulated pass comes to a kink."""
    side = ReferenceSide()
    network, module = side.image_network(case.images), side.convolutional_foton
    clean = module.forward(network, case.x)
    error = side.losses.cross_entropy_gradient(clean.dense.scores, case.labels)
    projected = np.einsum("bk,kchw->bchw", error, module.error_projection(network, clean))
    least = np.inf
    for x in (case.x, case.x - projected):
        for layer, a in zip(case.images.layers, module.forward(network, x).preactivations, strict=True):
            gaps = a[:, 0::2] - a[:, 1::2] if layer.activation == "maxmin" else a
            least = min(least, float(np.abs(gaps).min()))
    return least


def backpropagated(case: ImageCase, gain: float = 1.0) -> list[Any]:
    """dLoss/dparameter of the kernels and dense weights, by autograd of our own forward pass in float64."""
    side = TwinSide("prograde.accelerated", "cpu", "float64")
    images, x, labels = side.operands(tuple(case))
    kernels = [layer.kernel.requires_grad_() for layer in images.layers]
    weights = [weight.requires_grad_() for weight in images.dense.weights]
    network = side.image_network(images)
    clean = side.convolutional_foton.forward(network if gain == 1 else scaled(side, network, gain), x)
    loss = side.losses.cross_entropy(clean.dense.scores, labels).mean()
    return [g.cpu().numpy() for g in torch.autograd.grad(loss, [*kernels, *weights])]


def relative_errors(side: Side, case: ImageCase, **options: Any) -> list[float]:
    found = side.results(updates(side, *side.operands(tuple(case)), **options))
    ours = [*(layer.weight for layer in found.layers), *found.dense.weights]
    return [
        rms(a - b) / rms(b)
        for a, b in zip(ours, backpropagated(case, options.get("activation_gain", 1.0)), strict=True)
    ]


@given(case=image_cases(("identity",), growing=False))
def test_a_linear_network_that_does_not_widen_gives_backprop(side: Side, case: ImageCase):
    """Unshuffling, circular orthogonal kernels, scaled pooling, any output layer: exact, for every layer."""
    assert max(relative_errors(side, case)) <= EXACT * side.eps, "equal to backprop"


@given(case=image_cases(growing=False))
def test_linear_pass_gives_the_last_convolution_its_gradient(side: Side, case: ImageCase):
    """Nothing is missing above it where the output layer follows; through pooling and any activation."""
    last = len(case.images.layers) - 1
    if len(case.images.dense.weights) > 1:
        case = case._replace(images=case.images._replace(dense=output_only(case)))
    error = relative_errors(side, case, linear=True)[last]
    assert error <= EXACT * side.eps, f"convolutional_foton.updates: relative error {error}"


def output_only(case: ImageCase) -> Dense:
    """The dense part without its hidden layers."""
    weights, biases, activations = case.images.dense
    weight = np.random.default_rng(0).standard_normal((4, weights[0].shape[1]))
    return Dense((weight / weight.shape[1] ** 0.5,), biases[-1:], activations[-1:])


@pytest.mark.parametrize("linear", [False, True])
def test_an_activation_gain_gives_the_updates_of_a_scaled_network_their_size(side: Side, linear: bool):
    """sigma(a) = a / 2 in three layers, two of them convolutions: backpropagation's updates, layer by layer."""
    case = image_case(np.random.default_rng(3), (3, 6, 6), (2, 1), (1, 2), 3, (5,), biases=True)
    errors = relative_errors(side, case, linear=linear, activation_gain=0.5)
    assert max(errors) <= EXACT * side.eps, f"activation_gain: relative errors {errors}"


def test_a_widening_stem_does_not_give_backprop(side: Side):
    """3 to 16 to 8 channels: errors of .8 and more up to the output layer, which is exact as ever."""
    case = image_case(np.random.default_rng(0), (3, 16, 8), (1, 1), (1, 2), batch=16, pixels=4)
    first, second, last = relative_errors(side, case)
    assert min(first, second) > 0.6, "expected a difference where channels grow"
    assert last <= EXACT * side.eps, "the output layer is exact for any network"


@given(case=image_cases(("identity",)), rng=seeds())
def test_the_projection_is_the_adjoint_of_the_network(side: Side, case: ImageCase, rng: np.random.Generator):
    """A linear network A: <F e, x> = <e, A x> for every e and x, widening or not."""
    plain = case.images._replace(
        layers=tuple(layer._replace(bias=None) for layer in case.images.layers),
        dense=case.images.dense._replace(biases=(None,) * len(case.images.dense.weights)),
    )
    images, x = side.operands((plain, case.x))
    network, module = side.image_network(images), side.convolutional_foton
    clean = module.forward(network, x)
    scores, projection = side.results((clean.dense.scores, module.error_projection(network, clean)))
    direct = np.einsum("kchw,bchw->bk", projection, side.results(x))
    assert rms(direct - scores) <= 256 * side.eps * rms(scores) + 64 * side.eps, "adjoint of the network"
