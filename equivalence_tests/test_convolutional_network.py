"""Convolutions padded with zeros and max pooling: twin against reference, and the reference against SciPy."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate2d

from prograde.equivalence_tests.sides import Dense, Images, Padded, ReferenceSide, Side
from prograde.equivalence_tests.strategies import POOLS, SMOOTH, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolution, convolutional_network

pytestmark = pytest.mark.smoke


class PaddedCase(NamedTuple):
    """A convolutional network with a batch: x (batch, c_0, height, width), labels (batch,)."""

    images: Images
    x: Any
    labels: Any

    @property
    def depth(self) -> int:
        return len(self.images.layers) + len(self.images.dense.weights)

    @property
    def num_classes(self) -> int:
        return len(self.images.dense.weights[-1])

    def feature_map(self) -> tuple[int, ...]:
        """The shape of the first convolution's output."""
        clean = convolutional_network.forward(ReferenceSide().padded_network(self.images), self.x)
        return tuple(clean.preactivations[0].shape[1:])


@st.composite
def padded_cases(
    draw: st.DrawFn, activations: tuple[str, ...] = SMOOTH, max_convolutions: int = 2, groups: bool = False
) -> PaddedCase:
    """One or two convolutions of any stride, padding and shape of kernel, and at most one dense hidden layer.

    With `groups` each convolution has as many as divide its channels, one among them.
    """
    rng = draw(seeds())
    activation = draw(st.sampled_from(activations), label="activation")
    biases = draw(st.booleans(), label="biases")
    channels = draw(st.integers(1, 3), label="channels")
    size = [draw(st.integers(7, 10), label="pixels") for _ in range(2)]
    x = rng.standard_normal((draw(st.sampled_from([1, 3, 5]), label="batch"), channels, *size))
    layers = []
    for _ in range(draw(st.integers(1, max_convolutions), label="convolutions")):
        kernel = [draw(st.integers(1, 3), label="kernel") for _ in range(2)]
        stride = (draw(st.integers(1, 2), label="stride"), 1)
        padding = (draw(st.integers(0, 1), label="padding"), draw(st.integers(0, 1), label="padding"))
        c_out = draw(st.integers(2, 4), label="channels")
        divisors = [n for n in range(1, c_out + 1) if groups and channels % n == c_out % n == 0]
        parts = draw(st.sampled_from(divisors or [1]), label="groups")
        seen = channels // parts
        weights = rng.standard_normal((c_out, seen, *kernel)) / np.sqrt(seen * np.prod(kernel))
        sides = zip(size, kernel, stride, padding, strict=True)
        size = [(n + 2 * around - k) // step + 1 for n, k, step, around in sides]
        pool = draw(st.sampled_from([n for n in POOLS if n <= min(size)]), label="pool")
        size = [n // pool for n in size]
        bias = 0.3 * rng.standard_normal(c_out) if biases else None
        layers.append(Padded(weights, bias, activation, stride, padding, pool, parts))
        channels = c_out
        if min(size) < 3:
            break
    widths = [channels * size[0] * size[1], *draw(st.sampled_from([(), (5,)]), label="hidden"), 4]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    dense = Dense(
        tuple(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes),
        tuple(0.3 * rng.standard_normal(n) if biases else None for n in widths[1:]),
        (activation,) * (len(shapes) - 1) + ("identity",),
    )
    return PaddedCase(Images(tuple(layers), dense), x, rng.integers(0, 4, len(x)))


@given(case=padded_cases())
def test_forward(twin: Side, compare: Comparison, case: PaddedCase):
    def ours(side: Side, images: Any, x: Any) -> Any:
        return side.module("convolutional_network").forward(side.padded_network(images), x)

    compare(twin, "convolutional_network.forward", ours, case.images, case.x)


@given(case=padded_cases(max_convolutions=1), rng=seeds())
def test_layer_update(twin: Side, compare: Comparison, case: PaddedCase, rng: np.random.Generator):
    delta = rng.standard_normal((len(case.x), *case.feature_map()))

    def ours(side: Side, images: Any, delta: Any, x: Any) -> Any:
        layer = side.padded_network(images).layers[0]
        return side.module("convolutional_network").layer_update(delta, x, layer)

    compare(twin, "convolutional_network.layer_update", ours, case.images, delta, case.x)


class Grouped(NamedTuple):
    """A convolution in groups, its input and a delta of its output."""

    layer: Padded
    z: Any
    delta: Any


@st.composite
def grouped(draw: st.DrawFn) -> Grouped:
    """1 to 3 groups of 1 to 3 channels each way."""
    groups, c_in, c_out = (draw(st.integers(1, 3), label=label) for label in ("groups", "c_in", "c_out"))
    rng = draw(seeds())
    kernel = rng.standard_normal((groups * c_out, c_in, 3, 2))
    layer = Padded(kernel, rng.standard_normal(groups * c_out), "tanh", (2, 1), (1, 0), 1, groups)
    z = rng.standard_normal((3, groups * c_in, 6, 5))
    return Grouped(layer, z, rng.standard_normal((3, groups * c_out, 3, 4)))


@given(case=grouped())
def test_grouped_convolutions(twin: Side, compare: Comparison, case: Grouped):
    def found(side: Side, images: Any, z: Any, delta: Any) -> Any:
        module, layer = side.module("convolutional_network"), side.padded_network(images).layers[0]
        kernel, *rest = layer.kernel, layer.stride, layer.padding, layer.groups
        convolved = side.convolution.convolve(kernel, z, *rest)
        updates = side.convolution.kernel_update(delta, z, (3, 2), *rest), module.layer_update(delta, z, layer)
        return convolved, module.activate(layer, z), updates

    images = Images((case.layer,), Dense((), (), ()))
    compare(twin, "layer_update", found, images, case.z, case.delta)


@given(case=grouped())
def test_groups_are_a_kernel_of_blocks(side: Side, case: Grouped):
    """A kernel without groups whose blocks off the diagonal are 0; of its update, the blocks on it."""
    groups = case.layer.groups
    c_out, c_in = (n // (groups if i == 0 else 1) for i, n in enumerate(case.layer.kernel.shape[:2]))
    whole = np.zeros((groups * c_out, groups * c_in, 3, 2))
    for n in range(groups):
        rows = slice(n * c_out, (n + 1) * c_out)
        whole[rows, n * c_in : (n + 1) * c_in] = case.layer.kernel[rows]
    module, place = side.convolution, (case.layer.stride, case.layer.padding)
    kernel, z, delta, blocks = side.operands((case.layer.kernel, case.z, case.delta, whole))
    ours, theirs = side.results((module.convolve(kernel, z, *place, groups), module.convolve(blocks, z, *place)))
    assert rms(ours - theirs) <= 64 * side.eps * rms(theirs), "blocks of the kernel"
    ours = side.results(module.kernel_update(delta, z, (3, 2), *place, groups))
    theirs = side.results(module.kernel_update(delta, z, (3, 2), *place))
    for n in range(groups):
        rows = slice(n * c_out, (n + 1) * c_out)
        block = theirs[rows, n * c_in : (n + 1) * c_in]
        assert rms(ours[rows] - block) <= 64 * side.eps * rms(block), "blocks of the update"


@given(case=padded_cases(max_convolutions=1))
def test_the_reference_convolves_as_scipy_does(case: PaddedCase):
    layer = case.images.layers[0]
    assert isinstance(layer, Padded)
    around = [(0, 0), (0, 0), *((q, q) for q in layer.padding)]
    expected = np.array(
        [
            [
                sum(correlate2d(z, k, mode="valid") for z, k in zip(image, kernel, strict=True))
                for kernel in layer.kernel
            ]
            for image in np.pad(case.x, around)
        ]
    )[:, :, :: layer.stride[0], :: layer.stride[1]]
    ours = convolution.convolve(layer.kernel, case.x, layer.stride, layer.padding)
    assert ours.shape == expected.shape
    assert rms(ours - expected) <= 1e-13 * rms(expected), "convolve is not SciPy's correlation"


@given(case=padded_cases(max_convolutions=1), rng=seeds())
def test_kernel_update_is_the_convolutions_adjoint(side: Side, case: PaddedCase, rng: np.random.Generator):
    """The batch-mean product of delta with what any change of the kernel does is that change's product with G."""
    layer = case.images.layers[0]
    assert isinstance(layer, Padded)
    change = rng.standard_normal(layer.kernel.shape)
    delta = rng.standard_normal((len(case.x), *case.feature_map()))
    operands = side.operands((delta, case.x, change))
    module, shape = side.convolution, layer.kernel.shape[2:]
    update, effect = side.results(
        (
            module.kernel_update(operands[0], operands[1], shape, layer.stride, layer.padding),
            module.convolve(operands[2], operands[1], layer.stride, layer.padding),
        )
    )
    products = np.sum(delta * effect) / len(case.x)
    scale = np.sqrt(np.sum(delta**2) * np.sum(effect**2)) / len(case.x)
    assert abs(np.sum(update * change) - products) <= 64 * side.eps * scale, "no adjoint"


def test_max_pool_by_hand(side: Side):
    """Of 5 x 4 pixels the last row is lost."""
    image = np.arange(20.0).reshape(1, 1, 5, 4)
    image[0, 0, 1, 1] = 99
    pooled = side.results(side.pooling.max_pool(side.operands(image), 2))
    assert pooled.tolist() == [[[[99, 7], [13, 15]]]], "max_pool"


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 3, 8, 8), "z: 3 channels"), ((2, 2, 1, 8), "z: 1 pixels a side, with 0 around")]
)
def test_images_that_do_not_fit(side: Side, shape: tuple[int, ...], message: str):
    kernel, z = side.operands((np.ones((4, 2, 3, 3)), np.ones(shape)))
    with pytest.raises(ValueError, match=message):
        side.convolution.convolve(kernel, z)
