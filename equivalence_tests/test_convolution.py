"""Convolutions on a torus and padded with zeros: twin against reference, adjoints, and what makes a kernel orthogonal.

The adjoints and updates of those padded with zeros are tested as layers' are.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.accelerated import convolution as accelerated
from prograde.accelerated.modules import ResNet
from prograde.accelerated.rules import Backprop, Ftp, MonoForward
from prograde.equivalence_tests.sides import Padded, Side
from prograde.equivalence_tests.strategies import PaddedCase, padded_cases, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolution, orthogonality, pooling

pytestmark = pytest.mark.smoke


class Parts(NamedTuple):
    """What a kernel is made of, a gradient shaped like it, and a batch on either side of it."""

    mixing: Any
    bases: Any
    gradient: Any
    x: Any
    y: Any

    @property
    def kernel(self) -> Any:
        return convolution.orthogonal_kernel(self.mixing, self.bases)


@st.composite
def parts(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Parts:
    """Kernels of every size that narrow, widen and do neither; images as small as the kernel, and no squares."""
    c_in, c_out = (draw(st.sampled_from([1, 2, 3, 4, 6]), label=label) for label in ("c_in", "c_out"))
    size = draw(st.sampled_from(sizes), label="size")
    height = draw(st.sampled_from([1, 3, 4, 5, 8]), label="height")
    width = draw(st.sampled_from([2, 3, 5, 8]), label="width")
    batch = draw(st.sampled_from([1, 2, 5]), label="batch")
    rng = draw(seeds())
    c = max(c_in, c_out, 2)
    c_in, c_out = (c, c_out) if c_in >= c_out else (c_in, c)
    mixing = orthogonality.orthogonal((c_out, c_in), rng)
    bases = [orthogonality.orthogonal((c, c // 2), rng) for _ in range(2 * (size - 1))]
    gradient = rng.standard_normal((c_out, c_in, size, size))
    x = rng.standard_normal((batch, c_in, height, width))
    return Parts(mixing, bases, gradient, x, rng.standard_normal((batch, c_out, height, width)))


def operator(kernel: Any, height: int, width: int) -> Any:
    """The convolution as a matrix, (c_out height width, c_in height width)."""
    n = kernel.shape[1] * height * width
    return convolution.circular_convolve(kernel, np.eye(n).reshape(n, -1, height, width)).reshape(n, -1).T


@given(case=parts())
def test_convolve(twin: Side, compare: Comparison, case: Parts) -> None:
    compare(twin, "circular_convolve", lambda side, *o: side.convolution.circular_convolve(*o), case.kernel, case.x)
    compare(
        twin,
        "circular_convolve_adjoint",
        lambda side, *o: side.convolution.circular_convolve_adjoint(*o),
        case.kernel,
        case.y,
    )


@given(case=parts())
def test_kernel_update(twin: Side, compare: Comparison, case: Parts) -> None:
    size = case.gradient.shape[2]
    compare(
        twin,
        "circular_kernel_update",
        lambda side, *o: side.convolution.circular_kernel_update(*o, size),
        case.y,
        case.x,
    )


@given(case=parts())
def test_adjoint_and_update_are_those_of_the_convolution(side: Side, case: Parts) -> None:
    """<A x, y> = <x, A^T y> = B <k, update(y, x)>."""
    module = side.convolution
    kernel, x, y = side.operands((case.gradient, case.x, case.y))
    products = [
        np.sum(a * b)
        for a, b in (
            side.results((module.circular_convolve(kernel, x), y)),
            side.results((x, module.circular_convolve_adjoint(kernel, y))),
            side.results((module.circular_kernel_update(y, x, kernel.shape[2]) * len(x), kernel)),
        )
    ]
    bound = 64 * side.eps * np.linalg.norm(case.gradient) * np.linalg.norm(case.x) * np.linalg.norm(case.y)
    assert max(products) - min(products) <= bound, "adjoint of the convolution"


@given(rng=seeds(), factor=st.sampled_from([1, 2, 3]), blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_rearrangements(twin: Side, compare: Comparison, rng: np.random.Generator, factor: int, blocks: Any) -> None:
    """Bit for bit, and there and back again."""
    x = rng.standard_normal((2, 3, factor * blocks[0], factor * blocks[1]))
    compare.exactly(twin, "unshuffle", lambda side, x: side.pooling.unshuffle(x, factor), side_rounded(twin, x))
    y = pooling.unshuffle(x, factor)
    compare.exactly(twin, "shuffle", lambda side, y: side.pooling.shuffle(y, factor), side_rounded(twin, y))
    assert np.array_equal(pooling.shuffle(y, factor), x)


def side_rounded(side: Side, array: Any) -> Any:
    """The array as that side's precision has it."""
    return side.results(side.operands(array))


@given(rng=seeds(), size=st.sampled_from([1, 2, 3]), blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_average_pool(twin: Side, compare: Comparison, rng: np.random.Generator, size: int, blocks: Any) -> None:
    x, y = (rng.standard_normal((2, 3, n * blocks[0], n * blocks[1])) for n in (size, 1))
    compare(twin, "scaled_average_pool", lambda side, x: side.pooling.scaled_average_pool(x, size), x)
    compare(twin, "scaled_average_pool_adjoint", lambda side, y: side.pooling.scaled_average_pool_adjoint(y, size), y)


@given(rng=seeds(), size=st.sampled_from([2, 3]))
def test_pooling_keeps_the_norm_of_what_it_keeps(side: Side, rng: np.random.Generator, size: int) -> None:
    """A A^T = I, and A^T is A's adjoint."""
    x, y = side.operands((rng.standard_normal((2, 3, 2 * size, size)), rng.standard_normal((2, 3, 2, 1))))
    module = side.pooling
    back = side.results(module.scaled_average_pool(module.scaled_average_pool_adjoint(y, size), size))
    y64 = side.results(y)
    assert rms(back - y64) <= 8 * side.eps * rms(y64), "A A^T = I"
    pooled, spread = side.results((module.scaled_average_pool(x, size), module.scaled_average_pool_adjoint(y, size)))
    assert abs(np.sum(pooled * y64) - np.sum(side.results(x) * spread)) <= 64 * side.eps * x.shape[0] * 10, "adjoint"


@given(case=parts())
def test_orthogonal_kernel(twin: Side, compare: Comparison, case: Parts) -> None:
    compare(
        twin,
        "orthogonal_kernel",
        lambda side, *o: side.convolution.orthogonal_kernel(*o),
        case.mixing,
        case.bases,
    )
    compare(
        twin,
        "orthogonal_kernel_vjp",
        lambda side, *o: side.convolution.orthogonal_kernel_vjp(*o),
        case.mixing,
        case.bases,
        case.gradient,
    )


@given(case=parts())
def test_the_kernel_is_orthogonal_on_a_torus_of_any_size(side: Side, case: Parts) -> None:
    """Every singular value of the convolution is 1: it keeps the norm of what it maps, and its adjoint too."""
    ours = side.results(side.convolution.orthogonal_kernel(*side.operands((case.mixing, case.bases))))
    values = np.linalg.svd(operator(ours, *case.x.shape[2:]), compute_uv=False)
    assert np.abs(values - 1).max() <= 64 * case.gradient.shape[2] * side.eps, "singular values"


def test_zero_padding_loses_norm_at_the_border() -> None:
    """The same kernel, the same image, no torus: singular values fall far below 1."""
    rng = np.random.default_rng(0)
    bases = [orthogonality.orthogonal((4, 2), rng) for _ in range(4)]
    kernel = convolution.orthogonal_kernel(orthogonality.orthogonal((4, 4), rng), bases)
    columns = torch.eye(4 * 36, dtype=torch.float64).reshape(-1, 4, 6, 6)
    matrix = torch.nn.functional.conv2d(columns, torch.tensor(kernel), padding=1).flatten(1).T
    assert torch.linalg.svdvals(matrix).min() < 0.6
    assert np.linalg.svd(operator(kernel, 6, 6), compute_uv=False).min() > 1 - 1e-12


@given(case=parts((2, 3, 4)), rng=seeds())
def test_the_update_of_the_parts_is_the_kernels_derivative_transposed(case: Parts, rng: np.random.Generator) -> None:
    """<gradient, dk> = <vjp, d(parts)>, dk by central differences; step 1e-5, whose error is of its square."""
    step = 1e-5
    mixing = rng.standard_normal(case.mixing.shape)
    bases = [rng.standard_normal(b.shape) for b in case.bases]

    def moved(t: float) -> Any:
        shifted = [b + t * d for b, d in zip(case.bases, bases, strict=True)]
        return convolution.orthogonal_kernel(case.mixing + t * mixing, shifted)

    slope = np.sum(case.gradient * (moved(step) - moved(-step))) / (2 * step)
    of_mixing, of_bases = convolution.orthogonal_kernel_vjp(case.mixing, case.bases, case.gradient)
    ours = np.sum(of_mixing * mixing) + sum(np.sum(a * b) for a, b in zip(of_bases, bases, strict=True))
    assert abs(ours - slope) <= 1e-6 * (np.abs(slope) + np.linalg.norm(case.gradient)), "derivative of the kernel"


@given(case=parts((1, 2, 3)), rng=seeds())
def test_skew_kernel(twin: Side, compare: Comparison, case: Parts, rng: np.random.Generator) -> None:
    """The twin; and Q^T J Q as a matrix, skew, orthogonal, its pull-back the transposed derivative."""
    channels, size = 2 * len(case.mixing), case.gradient.shape[2]
    bases = [orthogonality.orthogonal((channels, channels // 2), rng) for _ in range(2 * (size - 1))]
    kernel = convolution.orthogonal_kernel(orthogonality.orthogonal((channels, channels), rng), bases)
    xi, gradient = rng.standard_normal(kernel.shape), rng.standard_normal((channels, channels, *[2 * size - 1] * 2))
    compare(twin, "skew_kernel", lambda side, k: side.convolution.skew_kernel(k), kernel)
    compare(twin, "skew_kernel_vjp", lambda side, *o: side.convolution.skew_kernel_vjp(*o), kernel, gradient)
    skew = operator(convolution.skew_kernel(kernel), 3, 4)
    q = operator(kernel, 3, 4)
    assert np.abs(skew - q.T @ orthogonality.quarter_turns(q.reshape(channels, -1)).reshape(q.shape)).max() <= 1e-12
    assert np.abs(skew + skew.T).max() <= 1e-12, "skew"
    assert np.abs(skew @ skew.T - np.eye(len(skew))).max() <= 1e-12, "orthogonal"
    change = convolution.skew_kernel(kernel + xi) - convolution.skew_kernel(kernel - xi)
    of_kernel = convolution.skew_kernel_vjp(kernel, gradient)
    assert np.isclose(np.sum(gradient * change) / 2, np.sum(of_kernel * xi)), "quadratic in the kernel"


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (3, 0), (2, 1)])
def test_average_pooling_of_squares_that_overlap_or_leave_gaps(
    twin: Side, compare: Comparison, stride: int, padding: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6, 7))
    d = rng.standard_normal(pooling.average_pool(x, 2, stride, padding).shape)
    back = pooling.average_pool_adjoint(x, d, 2, stride, padding)
    assert np.isclose(np.sum(pooling.average_pool(x, 2, stride, padding) * d), np.sum(x * back)), "adjoint"
    compare(
        twin, "average_pool_adjoint", lambda side, *on: side.pooling.average_pool_adjoint(*on, 2, stride, padding), x, d
    )


@pytest.mark.parametrize(("size", "place"), [(2, (2, None, 0)), (3, (3, 2, 1)), (2, (2, 1, 0))])
def test_pools(twin: Side, compare: Comparison, size: int, place: Any) -> None:
    """Each function by itself: squares side by side, with a border around, and that overlap; no equal pixels."""
    rng = np.random.default_rng(0)
    x = rng.permutation(180).reshape(2, 3, 5, 6) / 10 - 6.05
    d, u = (rng.standard_normal(shape) for shape in (pooling.max_pool(x, *place).shape, x.shape))
    of_norm = rng.standard_normal(pooling.lp_pool(x, 3.0, size).shape)
    calls: dict[str, tuple[Any, ...]] = {
        "max_pool": (lambda side, x: side.pooling.max_pool(x, *place), x),
        "at_maxima": (lambda side, *on: side.pooling.at_maxima(*on, *place), x, u),
        "max_pool_vjp": (lambda side, *on: side.pooling.max_pool_vjp(*on, *place), x, d),
        "average_pool": (lambda side, x: side.pooling.average_pool(x, *place), x),
        "lp_pool": (lambda side, x: side.pooling.lp_pool(x, 3.0, size), x),
        "lp_pool_jvp": (lambda side, *on: side.pooling.lp_pool_jvp(*on, 3.0, size), x, u),
        "lp_pool_vjp": (lambda side, *on: side.pooling.lp_pool_vjp(*on, 3.0, size), x, of_norm),
    }
    for name, (call, *operands) in calls.items():
        compare(twin, name, call, *operands)


@pytest.mark.parametrize("function", ["unshuffle", "scaled_average_pool"])
def test_sizes_that_do_not_divide_are_refused(side: Side, function: str) -> None:
    with side.refuses("x: 5 x 4 pixels, expected multiples of 2"):
        getattr(side.pooling, function)(side.operands(np.ones((1, 1, 5, 4))), 2)


@pytest.mark.parametrize("size", [4, 5])
def test_a_map_of_one_pixel_meets_itself_at_every_tap(side: Side, size: int) -> None:
    """Kernels larger than the map wrap around as often as they reach."""
    kernel, x = side.operands((np.ones((1, 1, size, size)), np.full((1, 1, 1, 1), 2.0)))
    for function in (side.convolution.circular_convolve, side.convolution.circular_convolve_adjoint):
        assert side.results(function(kernel, x)).item() == 2 * size**2


def test_another_number_of_channels_is_refused(side: Side) -> None:
    with side.refuses("x: 2 channels, but the kernel takes 3"):
        side.convolution.circular_convolve(*side.operands((np.ones((4, 3, 1, 1)), np.ones((1, 2, 5, 4)))))


# Padded with zeros


@given(case=padded_cases(max_convolutions=1))
def test_the_reference_convolves_as_scipy_does(case: PaddedCase) -> None:
    layer = case.images.layers[0]
    assert isinstance(layer, Padded)
    around = [(0, 0), (0, 0), *((q, q) for q in layer.padding)]
    rows, columns = layer.kernel.shape[2:]

    def valid(z: Any, k: Any) -> Any:
        """Where the kernel, centred at a pixel, lies within the image."""
        whole = correlate(z, k)[rows // 2 :, columns // 2 :]
        return whole[: len(z) - rows + 1, : z.shape[1] - columns + 1]

    expected = np.array(
        [
            [sum(valid(z, k) for z, k in zip(image, kernel, strict=True)) for kernel in layer.kernel]
            for image in np.pad(case.x, around)
        ]
    )[:, :, :: layer.stride[0], :: layer.stride[1]]
    ours = convolution.convolve(layer.kernel, case.x, layer.stride, layer.padding)
    assert ours.shape == expected.shape
    assert rms(ours - expected) <= 1e-13 * rms(expected), "convolve is not SciPy's correlation"


class Grouped(NamedTuple):
    """A convolution's kernel, stride, padding and groups, its input and a delta of its output."""

    kernel: Any
    place: tuple[tuple[int, int], tuple[int, int], int]
    z: Any
    delta: Any


@st.composite
def grouped(draw: st.DrawFn) -> Grouped:
    """1 to 3 groups of 1 to 3 channels each way."""
    groups, c_in, c_out = (draw(st.integers(1, 3), label=label) for label in ("groups", "c_in", "c_out"))
    rng = draw(seeds())
    kernel, z = rng.standard_normal((groups * c_out, c_in, 3, 2)), rng.standard_normal((3, groups * c_in, 6, 5))
    return Grouped(kernel, ((2, 1), (1, 0), groups), z, rng.standard_normal((3, groups * c_out, 3, 4)))


@given(case=grouped())
def test_groups_are_a_kernel_of_blocks(side: Side, case: Grouped) -> None:
    """A kernel without groups whose blocks off the diagonal are 0; of its update, the blocks on it."""
    *place, groups = case.place
    c_out, c_in = (n // (groups if i == 0 else 1) for i, n in enumerate(case.kernel.shape[:2]))
    whole = np.zeros((groups * c_out, groups * c_in, 3, 2))
    for n in range(groups):
        rows = slice(n * c_out, (n + 1) * c_out)
        whole[rows, n * c_in : (n + 1) * c_in] = case.kernel[rows]
    module = side.convolution
    kernel, z, delta, blocks = side.operands((case.kernel, case.z, case.delta, whole))
    ours, theirs = side.results((module.convolve(kernel, z, *place, groups), module.convolve(blocks, z, *place)))
    assert rms(ours - theirs) <= 64 * side.eps * rms(theirs), "blocks of the kernel"
    ours = side.results(module.kernel_update(delta, z, (3, 2), *place, groups))
    theirs = side.results(module.kernel_update(delta, z, (3, 2), *place))
    for n in range(groups):
        rows = slice(n * c_out, (n + 1) * c_out)
        block = theirs[rows, n * c_in : (n + 1) * c_in]
        assert rms(ours[rows] - block) <= 64 * side.eps * rms(block), "blocks of the update"


@pytest.mark.parametrize("part", [1, 40, 2**20])
@pytest.mark.parametrize(("size", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((2, 3), (2, 1), (0, 2))])
@pytest.mark.parametrize("channels", [(128, 129), (3, 2)])
def test_kernel_update_by_windows(
    twin: Side,
    compare: Comparison,
    monkeypatch: pytest.MonkeyPatch,
    channels: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    part: int,
) -> None:
    """Maps with many channels, last in memory, a row of a sample at a time, a few, or all of the batch."""
    monkeypatch.setattr(accelerated, "PART", part)
    if max(channels) < accelerated.MANY:
        monkeypatch.setattr(accelerated, "MANY", 1)
    rng, (c_in, c_out) = np.random.default_rng(0), channels
    z = rng.standard_normal((3, c_in, 5, 4))
    sides = zip(z.shape[2:], size, stride, padding, strict=True)
    delta = rng.standard_normal((3, c_out, *((n + 2 * around - k) // step + 1 for n, k, step, around in sides)))

    def ours(side: Side, delta: Any, z: Any) -> Any:
        z = z.contiguous(memory_format=torch.channels_last) if isinstance(z, torch.Tensor) else z
        return side.convolution.kernel_update(delta, z, size, stride, padding)

    compare(twin, "kernel_update", ours, delta, z)


@pytest.mark.parametrize(
    ("changed", "by_windows"),
    [
        ({}, True),
        ({"padding": (1, 1)}, True),
        ({"dilation": (2, 2)}, False),
        ({"groups": 2, "channels": 2 * accelerated.MANY}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"memory_format": torch.contiguous_format}, False),
        ({"channels": accelerated.MANY - 1}, False),
    ],
    ids=lambda given: next(iter(given), "as it is") if isinstance(given, dict) else "",
)
def test_which_kernels_learn_by_windows(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], by_windows: bool
) -> None:
    """Many channels, last in memory, of one group, in float32 at least: PyTorch is not asked for what is faster so."""
    asked = []

    def conv2d_weight(z: Any, *given: Any) -> Any:
        asked.append(z)
        return theirs(z, *given)

    theirs = accelerated.conv2d_weight
    monkeypatch.setattr(accelerated, "conv2d_weight", conv2d_weight)
    place = {"padding": (0, 0), "dilation": (1, 1), "groups": 1} | changed
    channels = place.pop("channels", accelerated.MANY)
    memory = {"dtype": place.pop("dtype", torch.float32)}
    z = torch.ones(1, channels, 5, 5, **memory)
    z = z.contiguous(memory_format=place.pop("memory_format", torch.channels_last))
    shape = (channels, channels // place["groups"], 3, 3)
    a = torch.nn.functional.conv2d(z, torch.ones(shape, **memory), None, (1, 1), **place)
    assert accelerated.weight_gradient(z, shape, a, (1, 1), **place).shape == shape
    assert bool(asked) != by_windows, "who multiplies windows"
    assert not accelerated.multiplies_windows("same", z, shape, (1, 1), 1), "padding by a name, whose size is not told"


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 3, 8, 8), "z: 3 channels"), ((2, 2, 1, 8), "z: 1 pixels a side, with 0 around")]
)
def test_images_that_do_not_fit(side: Side, shape: tuple[int, ...], message: str) -> None:
    kernel, z = side.operands((np.ones((4, 2, 3, 3)), np.ones(shape)))
    with side.refuses(message):
        side.convolution.convolve(kernel, z)


class StridesOfWeightGradients(TorchDispatchMode):
    """Notes the strides of each gradient by a kernel of one pixel that PyTorch is asked for, and the maps' order.

    What it would compute with strides, of channels last in memory, are zeros: it would write beyond its memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []
        self.dangerous = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and args[2].shape[2:] == (1, 1) and args[-1][1]:
            self.found.append(tuple(args[4]))
            if max(args[4]) > 1 and any(t.stride(1) == 1 for t in args[:2]):
                self.dangerous += 1
                like = args[1], args[2], args[2][:, 0, 0, 0]
                return tuple(torch.zeros_like(t) if asked else None for t, asked in zip(like, args[-1], strict=True))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [Ftp, MonoForward])
def test_no_gradient_by_a_pixel_is_asked_for_with_strides(rule: Any) -> None:
    """PyTorch 2.13's is wrong, or crashes, for few channels last in memory with two threads."""
    pixel, following = nn.Conv2d(3, 2, 1, stride=(2, 1)), nn.Conv2d(2, 4, 1, stride=2, bias=False)
    model = nn.Sequential(pixel, nn.ReLU(), following, nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    with StridesOfWeightGradients() as seen:
        rule(model, example=torch.zeros(2, 3, 8, 8)).assign_credit(torch.randn(5, 3, 8, 8), torch.zeros(5).long())
    assert seen.found == [(1, 1)] * 2, "strides of what PyTorch is asked for"


@pytest.mark.parametrize("rule", [Backprop, MonoForward])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_strided_pixels_in_modules_of_ones_own_get_maps_in_the_default_order(
    rule: Any, order: torch.memory_format
) -> None:
    """As the shortcut of a ResNet's block: autograd differentiates it, and PyTorch's kernel crashes otherwise."""
    model = ResNet(num_classes=4, image_channels=3, widths=(4, 8), depths=(1, 1))
    x = torch.randn(8, 3, 8, 8).contiguous(memory_format=order)
    with StridesOfWeightGradients() as seen:
        built = rule(model) if rule is Backprop else rule(model, units=model.units(), example=x[:2])
        built.assign_credit(x, torch.zeros(8).long())
    assert (2, 2) in seen.found
    assert seen.dangerous == 0, "maps whose channels come last"


class OrdersOfGroupNorms(TorchDispatchMode):
    """Counts gradients by a GroupNorm's weights, and those of maps whose channels come last without one by the input.

    PyTorch 2.13 crashes in these on a CPU, so that they are not computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = self.dangerous = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_group_norm_backward.default:
            self.found += 1
            x, weight, asked = args[1], args[4], args[-1]
            if x.stride(1) == 1 and not asked[0]:
                self.dangerous += 1
                return tuple(
                    torch.zeros_like(t) if a else None for t, a in zip((x, weight, weight), asked, strict=True)
                )
        return func(*args, **(kwargs or {}))


class NormFirst(nn.Module):
    """A block that begins with its normalisation, as those of today do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.kernel = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = x + self.kernel(self.norm(x).relu())
        return h


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rule", [Backprop, Ftp, MonoForward])
def test_group_norms_get_maps_in_the_default_order(
    rule: Any, of_weights: torch.memory_format, order: torch.memory_format
) -> None:
    """Those at the beginning of a model, of a block, and behind what is frozen: what crashes is not asked for."""
    torch.manual_seed(0)
    kernel, end = nn.Conv2d(4, 4, 3, padding=1), [nn.Flatten(), nn.Linear(64, 3)]
    first = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), kernel, nn.ReLU(), *end)
    frozen = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), *end)
    frozen[0].requires_grad_(False)
    blocks = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), NormFirst(), NormFirst(), *end)
    x, y = torch.randn(5, 4, 4, 4).contiguous(memory_format=order), torch.tensor([0, 1, 2, 0, 1])
    for name, model in {"first": first, "frozen": frozen, "blocks": blocks}.items():
        if name == "frozen" and of_weights is torch.channels_last:
            continue  # whose own order PyTorch gives what follows
        built = rule(model, example=x, generator=torch.Generator(x.device).manual_seed(1))
        built.to(memory_format=of_weights)
        with OrdersOfGroupNorms() as seen:
            built.assign_credit(x, y)
        assert seen.dangerous == 0, f"{name}: maps whose channels come last"
        assert seen.found or (rule is MonoForward and name != "blocks"), name
