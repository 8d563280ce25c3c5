"""Low precision and noisy hardware: twin against reference, what follows from the equations, and rules on crossbars."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.accelerated import hardware as hardware_twin
from prograde.accelerated.activations import ACTIVATIONS
from prograde.accelerated.modules import OrthogonalConv2d, RecurrentNetwork
from prograde.accelerated.rules import (
    RULES,
    Backprop,
    BackpropThroughTime,
    DirectFeedbackAlignment,
    Foton,
    Ftp,
    Hardware,
    Pepita,
    RecurrentFtp,
    Rule,
)
from prograde.accelerated.rules import ftp as rules_ftp
from prograde.accelerated.rules import hardware as rules_hardware
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rounding import rounding_too
from prograde.equivalence_tests.rule_examples import EXAMPLES
from prograde.equivalence_tests.sides import Dense, Images, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import BATCHES, WIDTHS, Case, cases, padded_cases, seeds
from prograde.equivalence_tests.test_rules import credited, example, layer_gradients, make, model_of, sequential
from prograde.equivalence_tests.test_samplers import SIGNIFICANCE, drawn
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import hardware
from prograde.reference.layers import forward, he_uniform

pytestmark = pytest.mark.smoke
bits = st.integers(2, 8)
SEED = 7


def levels(b: int) -> int:
    """The levels above 0."""
    return int(2 ** (b - 1) - 1)


def off_ties(b: int, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Numbers of up to 1 that (1) moves, none of them near the middle between two of its levels."""
    steps = rng.integers(-levels(b), levels(b) + 1, shape) + rng.uniform(-0.3, 0.3, shape)
    steps = np.sign(steps) * np.minimum(np.abs(steps), 2 * levels(b) - np.abs(steps))  # none beyond the last level
    v = steps / levels(b)
    v.flat[rng.integers(v.size)] = rng.choice([-1, 1])
    return v


def ties(v: Any, b: int) -> float:
    """How far the nearest of the numbers is from the middle between two levels, in units of D."""
    steps = np.abs(v) / np.abs(v).max() * levels(b)
    return float(np.abs(steps - np.floor(steps) - 0.5).min())


def windows_of(z: Any, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Any:
    """What a kernel of that size sees: (batch, height_out, width_out, c_in rows columns)."""
    z = np.pad(z, [(0, 0), (0, 0), *((q, q) for q in padding)])
    starts = [range(0, n - k + 1, step) for n, k, step in zip(z.shape[2:], size, stride, strict=True)]
    seen = [[z[:, :, i : i + size[0], j : j + size[1]].reshape(len(z), -1) for j in starts[1]] for i in starts[0]]
    return np.moveaxis(np.array(seen), 2, 0)


@rounding_too
def added_up(windows: Any, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Any:
    """Windows, (batch, height_out, width_out, c_in, rows, columns), on images of that size: (batch, c_in, *size)."""
    batch, height, width, c, rows, columns = windows.shape
    z = np.zeros((batch, c, size[0] + 2 * padding[0], size[1] + 2 * padding[1]), windows.dtype)
    for i in range(height):
        for j in range(width):
            at = (slice(i * stride[0], i * stride[0] + rows), slice(j * stride[1], j * stride[1] + columns))
            z[:, :, at[0], at[1]] += windows[:, i, j]
    return z[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def coarse(b: int, twin: TwinSide) -> int:
    """b, or fewer bits in a precision that cannot tell so many levels apart."""
    return b if levels(b) * twin.eps < 0.05 else 3


@given(b=bits, rng=seeds(), scale=st.sampled_from([1e-3, 1.0, 17.0]))
def test_quantise(twin: TwinSide, compare: Comparison, b: int, rng: np.random.Generator, scale: float) -> None:
    b = coarse(b, twin)
    v = scale * off_ties(b, (7, 5), rng)
    compare(twin, "quantise", lambda side, v: side.hardware.quantise(v, b), v)


@given(b=st.one_of(st.none(), bits), rng=seeds(), deviation=st.sampled_from([0.05, 1.0]))
def test_read(twin: TwinSide, compare: Comparison, b: int | None, rng: np.random.Generator, deviation: float) -> None:
    b = None if b is None else coarse(b, twin)
    weight = 3 * off_ties(b or 8, (5, 9), rng)

    def read(side: Side, weight: Any, noise: Any) -> Any:
        crossbar = side.hardware.Crossbar(weight_bits=b, read_noise=deviation)
        return side.hardware.read(crossbar, weight), side.hardware.read(crossbar, weight, noise)

    compare(twin, "read", read, weight, rng.standard_normal(weight.shape))


@given(b=bits, rng=seeds(), n_out=st.sampled_from(WIDTHS), n_in=st.sampled_from(WIDTHS), batch=st.sampled_from(BATCHES))
def test_product(
    twin: TwinSide, compare: Comparison, b: int, rng: np.random.Generator, n_out: int, n_in: int, batch: int
) -> None:
    """Each converter alone, then all of them with noise; results are drawn until none is near a tie of the ADC."""
    if twin.eps > 1e-4:
        b = 3
    for _ in range(300):
        x, weight = off_ties(b, (batch, n_in), rng), off_ties(b, (n_out, n_in), rng)
        noise = rng.standard_normal(weight.shape)
        driven = [hardware.Crossbar(), hardware.Crossbar(b, b, None, 0.1)]
        if min(ties(hardware.product(crossbar, x, weight, noise), b) for crossbar in driven) > 2e-4:
            break

    def product(side: Side, x: Any, weight: Any, noise: Any) -> Any:
        run = side.hardware.product
        return by_converters(side, b, twin.eps, lambda crossbar, noise: run(crossbar, x, weight, noise), noise)

    compare(twin, "product", product, x, weight, noise)


def by_converters(side: Side, b: int, eps: float, run: Callable[[Any, Any], Any], noise: Any, adc: bool = True) -> Any:
    """Results with each converter alone, with and without noise, and with all of them."""
    module = side.hardware
    found = [run(module.Crossbar(b), None), run(module.Crossbar(None, b), None)]
    found.append(run(module.Crossbar(b, b, None, 0.1), noise))
    if adc and eps < 1e-4:  # results are no exact numbers, and their ties not far enough in coarser precisions
        converted = [run(module.Crossbar(None, None, b), None), run(module.Crossbar(b, b, b, 0.1), noise)]
        # How many D a result is: D itself has the error of the one largest result, which the others' do not bound.
        converted = [result / np.abs(result).max() * levels(b) for result in side.results(converted)]
        found += [np.round(steps).astype(int) for steps in converted]
    return tuple(found)


class Maps(NamedTuple):
    """Sizes of a convolution: of the kernel, of what it takes and of what it gives; and where it stands."""

    kernel: tuple[int, int, int, int]
    z: tuple[int, ...]
    y: tuple[int, ...]
    place: tuple[tuple[int, int], tuple[int, int]]


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    """Kernels of any shape, with any stride and padding: also such that some pixels are seen by none."""
    batch, c_in, c_out = (draw(st.integers(1, most), label=label) for label, most in zip("bio", (3, 3, 4), strict=True))
    size, stride = ([draw(st.integers(1, 3), label=label) for _ in "hw"] for label in ("kernel", "stride"))
    padding, image = ([draw(st.integers(*ends), label="pixels") for _ in "hw"] for ends in ((0, 1), (3, 6)))
    sides = zip(image, size, stride, padding, strict=True)
    out = [(n + 2 * around - k) // step + 1 for n, k, step, around in sides]
    place = (stride[0], stride[1]), (padding[0], padding[1])
    return Maps((c_out, c_in, size[0], size[1]), (batch, c_in, *image), (batch, c_out, *out), place)


@given(b=bits, rng=seeds(), case=maps())
def test_convolve(side: Side, compare: Comparison, b: int, rng: np.random.Generator, case: Maps) -> None:
    """The product with the windows of all positions of all samples, one batch of vectors and one read."""
    b = 3 if side.eps > 1e-4 else b
    for _ in range(300):
        z, kernel = off_ties(b, case.z, rng), off_ties(b, case.kernel, rng)
        noise = rng.standard_normal(kernel.shape)
        windows = windows_of(z, case.kernel[2:], *case.place).reshape(-1, kernel[0].size)
        matrices = kernel.reshape(len(kernel), -1), noise.reshape(len(kernel), -1)
        driven = [hardware.Crossbar(), hardware.Crossbar(b, b, None, 0.1)]
        results = [hardware.product(crossbar, windows, *matrices) for crossbar in driven]
        if ties(windows, b) > 0.1 and min(ties(result, b) for result in results) > 2e-4:
            break

    def convolved(side: Side, z: Any, kernel: Any, noise: Any) -> Any:
        run = side.hardware.convolve
        return by_converters(side, b, eps, lambda crossbar, n: run(crossbar, z, kernel, n, *case.place), noise)

    def by_hand(side: Side, z: Any, kernel: Any, noise: Any) -> Any:
        def run(crossbar: Any, noise: Any) -> Any:
            windows = windows_of(z, case.kernel[2:], *case.place)
            noise = None if noise is None else noise.reshape(len(kernel), -1)
            rows, matrix = windows.reshape(-1, windows.shape[-1]), kernel.reshape(len(kernel), -1)
            found = side.hardware.product(crossbar, rows, matrix, noise)
            return found.reshape(*windows.shape[:3], -1).transpose(0, 3, 1, 2)

        return by_converters(side, b, eps, run, noise)

    eps = side.eps
    compare(side, "convolve", convolved, z, kernel, noise, expected=by_hand)


@given(b=bits, rng=seeds(), case=maps(), whole=st.booleans())
def test_convolve_adjoint(
    side: Side, compare: Comparison, b: int, rng: np.random.Generator, case: Maps, whole: bool
) -> None:
    """The transposed product at every position, converted before the windows that overlap are added up.

    `whole` numbers, few enough to be exact in every precision, are what goes through the ADC.
    """
    b, matrix = (3 if side.eps > 1e-4 else b), (case.kernel[0], -1)
    for _ in range(300):
        if whole:
            y, kernel = (rng.integers(-2, 3, shape).astype(float) for shape in (case.y, case.kernel))
        else:
            y, kernel = off_ties(b, case.y, rng), off_ties(b, case.kernel, rng)
        windows = y.transpose(0, 2, 3, 1).reshape(-1, len(kernel)) @ kernel.reshape(matrix)
        if windows.any() and (not whole or ties(windows, b) > 1e-2):
            break
    noise = rng.standard_normal(kernel.shape)

    def by(side: Side, run: Callable[[Any, Any], Any], noise: Any) -> Any:
        return (
            run(side.hardware.Crossbar(None, None, b), None)
            if whole
            else by_converters(side, b, eps, run, noise, adc=False)
        )

    def convolved(side: Side, y: Any, kernel: Any, noise: Any) -> Any:
        run = side.hardware.convolve_adjoint
        return by(side, lambda crossbar, n: run(crossbar, y, kernel, case.z[2:], n, *case.place), noise)

    def by_hand(side: Side, y: Any, kernel: Any, noise: Any) -> Any:
        def run(crossbar: Any, noise: Any) -> Any:
            rows = y.transpose(0, 2, 3, 1)
            noise = None if noise is None else noise.reshape(matrix).T
            found = side.hardware.product(crossbar, rows.reshape(-1, len(kernel)), kernel.reshape(matrix).T, noise)
            return added_up(found.reshape(*rows.shape[:3], *case.kernel[1:]), case.z[2:], *case.place)

        return by(side, run, noise)

    eps = side.eps
    compare(side, "convolve_adjoint", convolved, y, kernel, noise, expected=by_hand)


@given(rng=seeds(), case=maps())
def test_exact_crossbars_convolve(side: Side, compare: Comparison, rng: np.random.Generator, case: Maps) -> None:
    z, y, kernel = (rng.standard_normal(shape) for shape in (case.z, case.y, case.kernel))

    def on_crossbar(side: Side, z: Any, y: Any, kernel: Any) -> Any:
        module, exact = side.hardware, side.hardware.Crossbar()
        back = module.convolve_adjoint(exact, y, kernel, case.z[2:], None, *case.place)
        return module.convolve(exact, z, kernel, None, *case.place), back

    def plain(side: Side, z: Any, y: Any, kernel: Any) -> Any:
        module = side.convolution
        return module.convolve(kernel, z, *case.place), module.convolve_adjoint(kernel, y, case.z[2:], *case.place)

    compare(side, "exact", on_crossbar, z, y, kernel, expected=plain)


@given(b=bits, rng=seeds())
def test_each_operand_has_a_converter_of_its_own(side: Side, b: int, rng: np.random.Generator) -> None:
    """Bit for bit what quantising it beforehand gives, or the result afterwards."""
    x, weight = side.operands((rng.standard_normal((5, 6)), rng.standard_normal((7, 6))))
    run, quantise = side.hardware.product, side.hardware.quantise
    made = side.hardware.Crossbar
    exact = made()
    for crossbar, expected, name in (
        (made(weight_bits=b), run(exact, x, quantise(weight, b)), "weights"),
        (made(activation_bits=b), run(exact, quantise(x, b), weight), "what drives it"),
        (made(product_bits=b), quantise(run(exact, x, weight), b), "its result"),
    ):
        assert np.array_equal(side.results(run(crossbar, x, weight)), side.results(expected)), name


@given(rng=seeds(), limit=st.sampled_from([None, 0.4, 1.5]))
def test_programmed(twin: TwinSide, compare: Comparison, rng: np.random.Generator, limit: float | None) -> None:
    weight, noise = rng.standard_normal((5, 9)), rng.standard_normal((5, 9))

    def programmed(side: Side, weight: Any, noise: Any) -> Any:
        run = side.hardware.programmed
        return run(weight, None, 0.2, limit), run(weight, noise, 0.2, limit)

    compare(twin, "programmed", programmed, weight, noise)


@given(b=bits, rng=seeds())
def test_quantising_leaves_few_levels_near_the_numbers(side: Side, b: int, rng: np.random.Generator) -> None:
    """At most 2^b - 1 of them, symmetric about 0, none farther off than D / 2, the largest number being one."""
    v = side.operands(rng.standard_normal((40, 50)))
    found = side.results(side.hardware.quantise(v, b))
    v = side.results(v)
    step = np.abs(v).max() / levels(b)
    assert len(np.unique(found)) <= 2**b - 1, "too many levels"
    assert np.abs(found - v).max() <= (0.5 + 4 * side.eps * levels(b)) * step, "farther off than half a level"
    assert np.abs(found).max() == np.abs(v).max(), "the largest number is no level"


@given(b=bits, rng=seeds())
def test_quantising_is_idempotent_and_odd(side: Side, b: int, rng: np.random.Generator) -> None:
    v = side.operands(rng.standard_normal((6, 7)))
    once = side.hardware.quantise(v, b)
    if levels(b) * side.eps < 0.1:  # else the precision itself cannot tell the levels apart
        assert np.array_equal(side.results(side.hardware.quantise(once, b)), side.results(once)), "not idempotent"
    assert np.array_equal(side.results(side.hardware.quantise(-v, b)), -side.results(once)), "not odd"


@given(b=bits, rng=seeds(), power=st.integers(-20, 20))
def test_quantising_does_not_depend_on_the_scale(side: Side, b: int, rng: np.random.Generator, power: int) -> None:
    """Bit for bit for powers of two, which round nothing."""
    v = side.operands(rng.standard_normal((6, 7)))
    scaled = side.results(side.hardware.quantise(v * 2.0**power, b))
    assert np.array_equal(scaled, 2.0**power * side.results(side.hardware.quantise(v, b)))


def test_quantising_with_many_bits_changes_nothing(side: Side) -> None:
    v = side.operands(np.random.default_rng(0).standard_normal((6, 7)))
    many = side.hardware.quantise(v, 60)
    assert rms(side.results(many) - side.results(v)) <= 2 * side.eps * rms(side.results(v))
    assert side.hardware.quantise(v, None) is v


def test_zeros_stay_zeros(side: Side) -> None:
    """They have no D. A read of them has no noise either: it is scaled by the largest weight."""
    zeros, noise = side.operands((np.zeros((3, 4)), np.ones((3, 4))))
    x = side.operands(np.ones((2, 4)))
    crossbar = side.hardware.Crossbar(4, 4, 4, 0.5)
    for found in (
        side.hardware.quantise(zeros, 4),
        side.hardware.product(crossbar, x, zeros, noise),
        side.hardware.product(crossbar, 0 * x, zeros + 1, noise),
        side.hardware.programmed(zeros, noise, 0.5),
    ):
        assert not side.results(found).any(), "zeros do not stay zeros"


@pytest.mark.parametrize(("bits", "half", "level"), [(2, 0.5, 0), (3, 1.5, 2), (4, 3.5, 4), (5, 7.5, 8)])
def test_halves_go_to_the_even_level(side: Side, bits: int, half: float, level: int) -> None:
    """Specified, as IEEE 754 rounds: v = D (k + 1/2) becomes the even one of D k and D (k + 1), of both signs."""
    largest = 2 ** (bits - 1) - 1
    v = np.array([[largest, half], [-half, 0.0]])
    assert side.results(side.hardware.quantise(side.operands(v), bits)).tolist() == [[largest, level], [-level, 0]]


def test_less_than_two_bits_are_refused(side: Side) -> None:
    v = side.operands(np.ones((2, 2)))
    with side.refuses("bits: 1, expected 2 or more"):
        side.hardware.quantise(v, 1)


def test_noise_is_scaled_by_the_largest_weight(side: Side) -> None:
    """Of a matrix whose largest entry is far above the others', and negative: its spread would give another noise."""
    weight = np.full((4, 5), 0.125)
    weight[1, 2] = -2.0
    noise = np.random.default_rng(0).standard_normal((4, 5))
    ours, drawn = side.operands((weight, noise))
    read = side.results(side.hardware.read(side.hardware.Crossbar(read_noise=0.25), ours, drawn))
    written = side.results(side.hardware.programmed(ours, drawn, 0.25))
    limit = 8 * side.eps * rms(noise)
    assert rms(read - weight - 0.5 * noise) <= limit, "read noise"
    assert rms(written - weight - 0.5 * noise) <= limit, "programming noise"


def test_what_is_written_is_within_the_range(side: Side) -> None:
    """Noise does not carry a weight out of it; without noise a weight in it stays as it is."""
    weight, noise = side.operands(tuple(np.random.default_rng(0).standard_normal((2, 30, 40))))
    written = side.results(side.hardware.programmed(weight, noise, 0.5, 0.75))
    assert np.abs(written).max() == 0.75, "out of range"
    assert np.mean(np.abs(written) == 0.75) > 0.2
    small = weight / 8
    assert np.array_equal(side.results(side.hardware.programmed(small, None, 0.5, 0.75)), side.results(small))
    assert side.hardware.clipped(small, None) is small


def test_random_noise(side: Side) -> None:
    from scipy import stats

    noise = drawn(side, side.hardware.random_noise, (300, 40))
    assert noise.shape == (300, 40)
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > SIGNIFICANCE


# Rules on crossbars


def test_one_matrix_for_all_samples_is_driven_once() -> None:
    """PyTorch multiplies rows of samples by a matrix in this way, too."""
    rule = Hardware(Backprop(nn.Sequential(nn.Linear(3, 4))), bits=4)
    weight = rule.rule.units[0].weights[0].detach()
    x = torch.randn(2, 5, 3)
    with rules_hardware._Crossbars(rule, [weight]):
        found = torch.bmm(x, weight.T.expand(2, 3, 4))
    expected = hardware_twin.product(rule.crossbar, x.flatten(0, 1), weight, None).unflatten(0, (2, 5))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def ours(twin: TwinSide) -> TwinSide:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")
    return twin


@pytest.fixture
def ours64(ours: TwinSide, twin64: TwinSide) -> TwinSide:
    """For what hangs on a rounding that a coarser precision may turn: results on the hardware of a whole network."""
    return twin64


@rounding_too
def plus(a: Any, bias: Any) -> Any:
    """What the crossbar gives, with the bias of every unit or channel."""
    return a if bias is None else a + bias.reshape(-1, *[1] * (a.ndim - 2))


class Chip:
    """Products by the reference, each with the noise that the rule's generator draws for it.

    What the converters are given adds its distance from their ties to `distances`.
    """

    def __init__(self, side: Side, converters: Any, read_noise: float, distances: list[float]) -> None:
        self.side, self.converters, self.distances = side, converters, distances
        self.crossbar = side.hardware.Crossbar(*converters, read_noise)
        self.generator = seeded(SEED)

    def noise(self, weight: Any) -> Any:
        if not self.crossbar.read_noise:
            return None
        drawn = torch.empty(weight.shape, dtype=torch.float64).normal_(generator=self.generator)
        return drawn.cpu().numpy().astype(weight.dtype)

    def multiply(self, x: Any, weight: Any, transposed: bool = False) -> Any:
        """x W^T, or x W of a kernel's matrix W, whose noise is drawn as W is shaped."""
        noise = self.noise(weight)
        if transposed:
            weight, noise = weight.T, None if noise is None else noise.T
        result = self.side.hardware.product(self.crossbar._replace(product_bits=None), x, weight, noise)
        given = zip((weight, x, result), self.converters, strict=True)
        self.distances.extend(ties(v, b) for v, b in given if b is not None and v.any())
        return self.side.hardware.product(self.crossbar, x, weight, noise)

    def layers(self, network: Dense | Images) -> tuple[Any, ...]:
        return tuple(OnChip(layer, self) for layer in self.side.one_by_one(self.side.chain(network)))


class OnChip(NamedTuple):
    """A layer of the reference with its products on crossbars, but for its update."""

    layer: Any
    chip: Chip

    @property
    def steps(self) -> Any:
        return self.layer.steps

    @property
    def outlet(self) -> Any:
        return self.layer.outlet

    def value(self, z: Any) -> Any:
        weight, bias, *_ = self.layer
        if weight.ndim == 2:
            return plus(self.chip.multiply(z, weight), bias)
        windows = windows_of(z, weight.shape[2:], self.layer.stride, self.layer.padding)
        found = self.chip.multiply(windows.reshape(-1, windows.shape[-1]), weight.reshape(len(weight), -1))
        return plus(found.reshape(*windows.shape[:3], -1).transpose(0, 3, 1, 2), bias)

    def adjoint(self, z: Any, d: Any) -> Any:
        """The same crossbar's product, driven from its other side."""
        weight = self.layer[0]
        if weight.ndim == 2:
            return self.chip.multiply(d, weight.T)
        rows = d.transpose(0, 2, 3, 1)
        found = self.chip.multiply(rows.reshape(-1, len(weight)), weight.reshape(len(weight), -1), transposed=True)
        found = found.reshape(*rows.shape[:3], *weight.shape[1:])
        return added_up(found, z.shape[2:], self.layer.stride, self.layer.padding)

    def update(self, z: Any, delta: Any) -> Any:
        """Exactly: a product without a weight is digital."""
        return self.layer.update(z, delta)


def error_of(side: Side, clean: Any, labels: Any) -> Any:
    return side.losses.cross_entropy_gradient(clean.scores, labels)


@rounding_too
def ftp_by_hand(side: Side, chip: Chip, network: Any, x: Any, labels: Any, fixed: Any) -> Any:
    """Both passes in full on the crossbars, G on one as well."""
    (feedback,), layers = fixed, chip.layers(network)
    clean = side.layers.forward(layers, x)
    error = error_of(side, clean, labels)
    targets = side.losses.one_hot(labels, error.shape[1]).astype(x.dtype)
    first = np.tanh(chip.multiply(targets + error, feedback)) - np.tanh(chip.multiply(targets, feedback))
    factors = side.ftp.update_factors(layers, clean, error, first.reshape(clean.activities[0].shape))
    return side.layers.updates(layers, factors)


@rounding_too
def pepita_by_hand(side: Side, chip: Chip, network: Any, x: Any, labels: Any, fixed: Any) -> Any:
    (projection,), layers = fixed, chip.layers(network)
    clean = side.layers.forward(layers, x)
    error = error_of(side, clean, labels)
    modulated = side.layers.forward(layers, x + chip.multiply(error, projection).reshape(x.shape))
    deltas = [h - other for h, other in zip(clean.activities[:-1], modulated.activities[:-1], strict=True)]
    return side.layers.updates(layers, zip([*deltas, error], modulated.inputs, strict=True))


def backprop_by_hand(side: Side, chip: Chip, network: Any, x: Any, labels: Any, _: Any) -> Any:
    return side.backprop.updates(chip.layers(network), x, labels)


def mirrored_by_hand(side: Side, chip: Chip, network: Any, x: Any, labels: Any, feedback: Any) -> Any:
    """Back through arrays of feedback in the place of the weights."""
    layers = chip.layers(network)
    clean = side.layers.forward(layers, x)
    back = [
        layer._replace(layer=type(layer.layer)(b, *layer.layer[1:]))
        for layer, b in zip(layers[1:], feedback, strict=True)
    ]
    factors = side.backprop.update_factors((layers[0], *back), clean, error_of(side, clean, labels))
    return side.layers.updates(layers, factors)


def direct_by_hand(side: Side, chip: Chip, network: Any, x: Any, labels: Any, feedback: Any) -> Any:
    layers = chip.layers(network)
    clean = side.layers.forward(layers, x)
    error = error_of(side, clean, labels)
    sent = (
        chip.multiply(error, matrix).reshape(h.shape) for matrix, h in zip(feedback, clean.activities, strict=False)
    )
    passed = zip(layers, clean.preactivations, sent, strict=False)
    deltas = [side.layers.pulled_back(layer.steps, a, d) for layer, a, d in passed]
    return side.layers.updates(layers, zip([*deltas, error], clean.inputs, strict=True))


BY_HAND: dict[str, Any] = {
    "backprop": backprop_by_hand,
    "ftp": ftp_by_hand,
    "pepita": pepita_by_hand,
    "fa": mirrored_by_hand,
    "dfa": direct_by_hand,
}


def redrawn(network: Dense | Images, rng: np.random.Generator) -> Any:
    """The network with other weights."""
    if isinstance(network, Images):
        layers = (layer._replace(kernel=he_uniform(layer.kernel.shape, rng)) for layer in network.layers)
        return Images(tuple(layers), redrawn(network.dense, rng))
    weights = (rng.standard_normal(weight.shape) / np.sqrt(weight.shape[1]) for weight in network.weights)
    return network._replace(weights=tuple(weights))


def off_all_ties(
    name: str, network: Any, x: Any, labels: Any, converters: Any, read_noise: float, rng: np.random.Generator
) -> Any:
    """Weights, a batch and the rule's fixed matrices: no number near a converter's tie, and no update that cancels.

    No tanh is saturated: autograd's 1 - h^2 would have lost its digits.
    """
    clean = forward(ReferenceSide().chain(network), x)
    *hidden, scores = (h[0].size for h in clean.activities)
    rows = {"ftp": hidden[:1], "pepita": [x[0].size], "dfa": hidden}
    shapes = [(n, scores) for n in rows.get(name, [])]
    if name == "fa":
        shapes = [layer[0].shape for layer in ReferenceSide().chain(network)[1:]]
    for _ in range(200):
        network, x = redrawn(network, rng), 0.5 * rng.standard_normal(x.shape)
        fixed = tuple(rng.uniform(-1, 1, shape) for shape in shapes)
        distances: list[float] = []
        chip = Chip(ReferenceSide(), converters, read_noise, distances)
        found = BY_HAND[name](ReferenceSide(), chip, network, x, labels, fixed)
        if min(distances, default=1.0) > 1e-6 and min(rms(g) for layer in found for g in layer) > 1e-6:
            return network, x, fixed
    raise RuntimeError("no network off all ties in 200 draws")


def apart_in_pools(network: Any, of_weights: Any, of_inputs: Any, of_products: Any) -> tuple[Any, Any, Any]:
    """Converters, none of which leaves the choice of a maximum to rounding.

    Few levels of inputs make equal sums, which a product's order of summation tells apart; those of a converter behind
    it stay equal.
    """
    has_pools = isinstance(network, Images) and any(layer.pool > 1 for layer in network.layers)
    return (of_weights, None, of_inputs) if has_pools and of_products is None else (of_weights, of_inputs, of_products)


some = st.integers(3, 8)
PAIRS = st.tuples(some, some, st.integers(0, 2)).map(lambda drawn: (*drawn[: drawn[2]], None, *drawn[drawn[2] : 2]))
"""Two converters of three: sums of levels stand on ties of the third, unless there is noise between them."""


@pytest.mark.parametrize("name", BY_HAND)
@given(
    case=st.one_of(cases(("tanh",), dropout=False), padded_cases(("tanh",))),
    rng=seeds(),
    setting=st.one_of(
        st.tuples(PAIRS, st.just(0.0)), st.tuples(st.tuples(*[st.one_of(st.none(), some)] * 3), st.just(0.02))
    ),
)
def test_a_rules_gradient_is_the_reference_by_hand(
    name: str, ours64: TwinSide, compare: Comparison, case: Any, rng: np.random.Generator, setting: Any
) -> None:
    """Forward and backward products, second passes and projections, each with a converter and a noise of its own."""
    converters, read_noise = apart_in_pools(case[0], *setting[0]), setting[1]
    network, x, fixed = off_all_ties(name, *case[:3], converters, read_noise, rng)

    def updates(side: Side, network: Any, x: Any, labels: Any, fixed: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return BY_HAND[name](side, Chip(side, converters, read_noise, []), network, x, labels, fixed)
        options: dict[str, Any] = {"second_pass": "full"} if name in ("ftp", "pepita") else {}
        if isinstance(network, Images) and name in ("ftp", "pepita", "dfa"):
            options["image_size"] = x.shape[2:]
        if isinstance(network, Images) and name == "ftp":
            options["by_channel"] = False
        rule = RULES[name](model_of(network), **options)
        for buffer, matrix in zip(rule.buffers(), fixed, strict=True):
            buffer.copy_(matrix.T.reshape(buffer.shape) if name == "pepita" else matrix)
        names = ("weight_bits", "activation_bits", "product_bits")
        chip = Hardware(rule, **dict(zip(names, converters, strict=True)), read_noise=read_noise)
        chip.generator = seeded(SEED)
        chip.assign_credit(x if isinstance(network, Images) else x.unflatten(1, (1, -1)), labels)
        return layer_gradients(chip)

    compare(ours64, f"{name} on hardware", updates, network, x, case.labels, fixed)


class OnceRead(OnChip):
    """A layer that is read once for each input: what a step's derivative needs again was kept."""

    def value(self, z: Any) -> Any:
        kept: dict[int, Any] = self.chip.__dict__.setdefault("kept", {})
        if id(z) not in kept:
            kept[id(z)] = z, super().value(z)
        return kept[id(z)][1]

    def difference(self, z: Any, u: Any) -> Any:
        return self.chip.multiply(u, self.layer[0])

    @property
    def weight(self) -> Any:
        return self.layer[0]


def recurrent_by_hand(
    side: Side, chip: Chip, name: str, cell: str, parameters: Any, x: Any, labels: Any, feedback: Any
) -> Any:
    """W_x is read once for all steps, W_h at each of them, and for the differences or the cotangents of each."""
    module, dense = side.recurrent, side.layers.Dense
    weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out = parameters
    of_input, of_state = OnChip(dense(weight_ih, bias_ih), chip), OnceRead(dense(weight_hh, bias_hh), chip)
    each = np.moveaxis(x, 1, 0)
    p = of_input.value(each.reshape(-1, x.shape[2])).reshape(*each.shape[:2], -1)
    layer, whole = (
        module.RecurrentLayer(module.CELLS[cell], of_input, of_state),
        module.Part(0, *[weight_hh.shape[1]] * 2),
    )
    steps = [module.CellStep(layer, *parts, whole) for parts in zip(each, p, strict=True)]
    layers = (*steps, OnChip(dense(weight_out, bias_out), chip))
    clean = side.layers.forward(layers, np.zeros((len(x), weight_hh.shape[1]), x.dtype))
    error = error_of(side, clean, labels)
    if name == "BackpropThroughTime":
        return module.updates(layers, side.backprop.update_factors(layers, clean, error))
    targets = side.losses.one_hot(labels, error.shape[1]).astype(x.dtype)
    both, of_error = chip.multiply(targets + error, feedback), chip.multiply(error, feedback)
    differences = [side.activations.tanh.difference(both, of_error)]
    for step, z in zip(steps[1:], clean.inputs[1:], strict=False):
        differences.append(step.difference(z, differences[-1]))
    return module.updates(layers, side.ftp.local_factors(layers, clean, error, iter(differences)))


@pytest.mark.parametrize("cell", ["elman", "gru"])
@pytest.mark.parametrize("name", ["RecurrentFtp", "BackpropThroughTime"])
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    rng=seeds(),
    setting=st.tuples(st.tuples(*[st.one_of(st.none(), some)] * 3), st.just(0.02)),
)
def test_a_recurrent_rules_gradient_is_the_reference_by_hand(
    name: str, cell: str, ours64: TwinSide, compare: Comparison, sizes: Any, rng: np.random.Generator, setting: Any
) -> None:
    (batch, n_0, n, length), K = sizes, 3
    rows = (1 if cell == "elman" else 3) * n
    shapes = [(rows, n_0), (rows, n), (rows,), (rows,), (K, n), (K,)]
    labels, distances = rng.integers(0, K, batch), [0.0]
    while min(distances, default=1.0) <= 1e-6:
        parameters = tuple(0.5 * rng.standard_normal(shape) / np.sqrt(shape[-1]) for shape in shapes)
        x, feedback = 0.5 * rng.standard_normal((batch, length + 1, n_0)), rng.standard_normal((n, K))
        distances = []
        chip = Chip(ReferenceSide(), *setting, distances)
        recurrent_by_hand(ReferenceSide(), chip, name, cell, parameters, x, labels, feedback)

    def updates(side: Side, parameters: Any, x: Any, labels: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            made = Chip(side, *setting, [])
            of_steps, of_output = recurrent_by_hand(side, made, name, cell, parameters, x, labels, feedback)
            return *of_steps, *of_output
        model = RecurrentNetwork(n_0, n, K, cell, dtype=x.dtype)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), parameters, strict=True):
                parameter.copy_(value)
        rule = RecurrentFtp(model) if name == "RecurrentFtp" else BackpropThroughTime(model)
        for buffer in rule.buffers():
            buffer.copy_(feedback)
        names = ("weight_bits", "activation_bits", "product_bits")
        hardware = Hardware(rule, **dict(zip(names, setting[0], strict=True)), read_noise=setting[1])
        hardware.generator = seeded(SEED)
        hardware.assign_credit(x, labels)
        return tuple(parameter.grad for parameter in model.parameters())

    compare(ours64, f"{name} on hardware", updates, parameters, x, labels, feedback)


IMAGES = [name for name in EXAMPLES if name.endswith(", images") and name != "foton, images"]
"""Rules on models with Conv2d; Foton's kernels are orthogonal."""

SEQUENCES = ["recurrent ftp", "recurrent ftp, gru", "backprop through time", "truncated"]


@pytest.mark.parametrize("name", [*RULES, *IMAGES, *SEQUENCES])
def test_exact_hardware_changes_no_bit(name: str, ours: TwinSide) -> None:
    """Updates, scores, and weights after three steps with momentum."""
    if name in RULES:
        bare, (_, x, y) = make(name, example()[0], seeded(1)), example()
    else:
        bare, (x, y) = EXAMPLES[name].build("cpu"), EXAMPLES[name].batch("cpu")
    chip: Rule = Hardware(copy.deepcopy(bare), programming_noise=0.0)
    for rule in (bare, chip):
        rule.generator.manual_seed(2)
    optimizers = [torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9) for rule in (bare, chip)]
    for _ in range(3):
        assert torch.equal(bare.assign_credit(x, y), chip.assign_credit(x, y))
        for one, other in zip(bare.parameters(), chip.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad), "exact hardware changes a gradient"
        for rule, optimizer in zip((bare, chip), optimizers, strict=True):
            optimizer.step()
            rule.constrain(optimizer)
        assert all(torch.equal(*pair) for pair in zip(bare.parameters(), chip.parameters(), strict=True))
    assert torch.equal(bare(x), chip(x))


PRODUCTS = {
    "backprop": 3 + 2,
    "foton": 3 + 3 + 2,  # F by three products, and its way through W_1 and W_2
    "ftp": 3 + 2 + 1,
    "pepita": 3 + 1 + 2,
    "fa": 3 + 2,
    "dfa": 3 + 2,
    "drtp": 3 + 2,
    "dtp": 3 + 1 + 1 + 1 + 2,
    "forward-forward": 2,
    "symba": 2,
    "layer-collaboration": 2,
    "cumulative": 2,
    "mono-forward": 2 * (1 + 2),  # the layer's, its scores, and their way back; the last layer has no part
    "hyperspherical": 2,  # prototypes are normalised, which makes other matrices of them
    "dynamic-temperature": 2 * (1 + 2),
    "backprop-deep-supervision": 2 * (1 + 2) + 1,
    "backprop, images": 4 + 3,
    "ftp, images": 4 + 2 + 2,
    "pepita, images": 4 + 1 + 4,  # in full
    "fa, images": 4 + 3,
    "dfa, images": 4 + 3,
    "drtp, images": 4 + 3,
    "forward-forward, images": 3,
    "mono-forward, images": 3 * (1 + 2),
    "channel-competition, images": 3,
    "recurrent ftp": 1 + 7 + 1 + 2 + 6,  # of all inputs, seven states and the output
    "recurrent ftp, gru": 1 + 7 + 1 + 2 + 6,
    "backprop through time": 1 + 7 + 1 + 1 + 6,
    "truncated": (1 + 4) + (1 + 3) + 1 + 1 + 2,
}
"""With a matrix of the rule, through the layers of `example` or of others: forward, and the rule's own."""


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights of all products on crossbars from here on."""
    shapes: list[tuple[int, ...]] = []

    def seen(run: Any, crossbar: Any, x: Any, weight: Any, *others: Any) -> Any:
        shapes.append(tuple(weight.shape))
        return run(crossbar, x, weight, *others)

    for name in ("product", "convolve", "convolve_adjoint"):
        monkeypatch.setattr(rules_hardware, name, partial(seen, getattr(rules_hardware, name)))
    return shapes


@pytest.mark.parametrize("name", [*RULES, *IMAGES, *SEQUENCES])
def test_every_product_with_a_matrix_is_seen(name: str, ours: TwinSide, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch)
    if name in RULES:
        rule, (_, x, y) = make(name, example()[0]), example()
    else:
        rule, (x, y) = EXAMPLES[name].build("cpu"), EXAMPLES[name].batch("cpu")
    Hardware(rule, bits=8).assign_credit(x, y)
    assert len(shapes) == PRODUCTS[name], f"products on crossbars: {shapes}"


@pytest.mark.parametrize("inject", [0, 1])
def test_a_full_feedback_matrix_is_read_once_as_it_stands(
    inject: int, ours: TwinSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feature maps are channels last on a CPU, where the bare rule multiplies a permuted copy by parts of the batch."""
    monkeypatch.setattr(rules_ftp, "PART", 1)
    example = EXAMPLES["ftp, images"]
    rule = Ftp(example.model().double(), image_size=(8, 8), by_channel=False, inject=inject)
    shapes = counted(monkeypatch)
    x, y = example.batch("cpu")
    Hardware(rule, bits=8).assign_credit(x, y)
    assert shapes.count(tuple(rule.feedback.shape)) == 1 + (rule.phi != ACTIVATIONS["identity"]), "reads of G"
    assert not rule.on_crossbars, "still on crossbars"


def test_backward_products_are_seen(ours: TwinSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dispatched below autograd; scores, in any mode, have the forward ones alone."""
    shapes = counted(monkeypatch)
    model, x, y = example()
    chip = Hardware(Backprop(model), bits=8)
    forward = [(16, 20), (12, 16), (4, 12)]
    chip.assign_credit(x, y)
    assert shapes == [*forward, (12, 4), (16, 12)], "products seen"
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        shapes.clear()
        with mode():
            chip(x)
        assert shapes == forward, "products seen"
    assert not torch.equal(chip(x), model(x)), "scores are not the hardware's"


@pytest.mark.parametrize("padding", [1, "same"])
def test_backward_convolutions_are_seen(padding: Any, ours: TwinSide, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch)
    kernels = nn.Conv2d(2, 3, 3, padding=padding), nn.Conv2d(3, 2, 2, stride=2, bias=False)
    model = nn.Sequential(kernels[0], nn.ReLU(), kernels[1], nn.Flatten(), nn.Linear(8, 4))
    chip = Hardware(Backprop(model), bits=8)
    x, y = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    forward = [(3, 2, 3, 3), (2, 3, 2, 2), (4, 8)]
    chip.assign_credit(x, y)
    assert shapes == [*forward, (8, 4), (2, 3, 2, 2)], "convolutions seen"
    shapes.clear()
    with torch.inference_mode():
        chip(x)
    assert shapes == forward, "convolutions seen"


def full_and_difference(name: str, model: nn.Module, **options: Any) -> Iterator[Rule]:
    """The rule in its two forms, with one matrix."""
    generator = seeded(3)
    kind: Any = {"ftp": Ftp, "pepita": Pepita}[name]
    rules = [kind(copy.deepcopy(model), second_pass=form, generator=generator) for form in ("full", "difference")]
    rules[1].load_state_dict(rules[0].state_dict())
    for rule in rules:
        rule.generator = seeded(5)
        yield Hardware(rule, **options) if options else rule


@given(
    case=cases(("tanh", "identity"), dropout=False),
    rng=seeds(),
    inject=st.integers(0, 1),
    phi=st.sampled_from(["identity", "tanh"]),
)
def test_ftp_in_full(
    twin64: Side, compare: Comparison, ours: Side, case: Case, rng: np.random.Generator, inject: int, phi: str
) -> None:
    """The reference subtracts two passes, as the paper does, and so does this form."""
    n = len(case.dense.weights[0]) if inject else case.x.shape[1]
    feedback = 0.5 * rng.standard_normal((n, case.num_classes))

    def updates(side: Side, dense: Any, x: Any, labels: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            activation = side.activations.ACTIVATIONS[phi]
            return side.ftp.updates(side.chain(dense), feedback, x, labels, phi=activation, gain=0.7, inject=inject)
        rule = Ftp(sequential(dense), phi=phi, gain=0.7, inject=inject, second_pass="full")
        rule.feedback.copy_(feedback)
        return credited(rule, x, labels)

    compare(twin64, "Ftp in full", updates, *case[:3], feedback)


@given(case=cases(dropout=False), rng=seeds(), forms=st.tuples(*[st.sampled_from(["clean", "modulated"])] * 2))
def test_pepita_in_full(
    twin64: Side, compare: Comparison, ours: Side, case: Case, rng: np.random.Generator, forms: Any
) -> None:
    options = dict(zip(("output_error", "presynaptic"), forms, strict=True))
    projection = 0.5 * rng.standard_normal((case.num_classes, case.x.shape[1]))

    def updates(side: Side, dense: Any, x: Any, labels: Any, projection: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return side.pepita.updates(side.chain(dense), projection, x, labels, **options)
        rule = Pepita(sequential(dense), second_pass="full", **options)
        rule.projection.copy_(projection)
        return credited(rule, x, labels)

    compare(twin64, "Pepita in full", updates, *case[:3], projection)


@pytest.mark.parametrize("name", ["ftp", "pepita"])
def test_both_forms_share_their_masks(name: str, ours: TwinSide) -> None:
    """With dropout too the forms are one algorithm: equal to rounding."""
    torch.manual_seed(0)
    widths = [(20, 16), (16, 12), (12, 10)]
    layers = [layer for n in widths for layer in (nn.Linear(*n), nn.Tanh(), nn.Dropout(0.4))]
    model = nn.Sequential(*layers, nn.Linear(10, 4)).double()
    x, y = torch.randn(9, 20, dtype=torch.float64), torch.randint(0, 4, (9,))
    found = []
    for rule in full_and_difference(name, model):
        rule.assign_credit(x, y)
        found.append([update[0].cpu().numpy() for update in layer_gradients(rule)])
    for layer, (one, other) in enumerate(zip(*found, strict=True)):
        assert rms(one - other) <= 1e-12 * rms(other), f"weights[{layer}]"


@pytest.mark.parametrize("name", ["ftp", "pepita"])
def test_what_a_second_pass_in_full_loses(name: str, ours: TwinSide) -> None:
    """Two passes that differ by less than a level differ by what rounding makes of it; a difference keeps its digits.

    Small as it is, it is the same but for a factor in the limit, so that the exact rule tells what is left of it.
    """
    model, x, y = example()
    found = []
    for options in ({}, {"activation_bits": 6}):
        for rule in full_and_difference(name, model, **options):
            for buffer in rule.buffers():
                buffer.mul_(1e-4)
            rule.assign_credit(x, y)
            found.append(rule.units[1].module.weight.grad.cpu().numpy())
    exact, other, full, difference = found
    assert rms(exact - other) <= 1e-9 * rms(exact), "the forms are two algorithms"
    assert rms(full - exact) > 0.5 * rms(exact), "the full pass carries what is below its levels"
    assert rms(difference - exact) < 0.2 * rms(exact), "the difference is lost"


def test_the_two_passes_read_with_noise_of_their_own(ours: TwinSide) -> None:
    """G = 0: nothing is to be learned, and a second pass would repeat the first if it read the same weights."""
    model, x, y = example()
    for chip, moves in zip(full_and_difference("ftp", model, read_noise=0.1), (True, False), strict=True):
        for buffer in chip.buffers():
            buffer.zero_()
        chip.assign_credit(x, y)
        grad = chip.units[1].module.weight.grad
        assert bool(grad.any()) == moves, "noise of the two passes"
        assert not chip.units[0].module.weight.grad.any()
        assert not torch.equal(chip(x), chip(x)), "noise of two reads"


def test_biases_are_added_behind_the_converters(ours: TwinSide) -> None:
    """Weights of 0: the scores are the bias, to the last bit."""
    model = nn.Sequential(nn.Linear(6, 5, dtype=torch.float64))
    nn.init.zeros_(model[0].weight)
    found = Hardware(Backprop(model), bits=2)(torch.ones(3, 6, dtype=torch.float64))
    assert torch.equal(found, model[0].bias.expand(3, 5)), "the bias is quantised"


@pytest.mark.parametrize("name", RULES)
def test_every_parameter_is_written_with_noise(name: str, ours: TwinSide) -> None:
    """Biases too, each by its own largest entry; what is not trained, and what is no parameter, is not written to."""
    chip = Hardware(make(name, example()[0]), programming_noise=0.1, weight_range=0.15)
    _, x, y = example()
    optimizer = torch.optim.SGD(chip.parameters(), lr=0.5)
    chip.generator = seeded(2)
    chip.assign_credit(x, y)
    optimizer.step()
    bare = copy.deepcopy(chip.rule)
    bare.constrain(optimizer)
    buffers = [buffer.clone() for buffer in chip.buffers()]
    chip.generator = seeded(SEED)
    chip.constrain(optimizer)
    draws = seeded(SEED)
    for (label, parameter), before in zip(chip.named_parameters(), bare.parameters(), strict=True):
        expected = before.detach()
        if parameter.grad is not None:
            noise = torch.empty_like(expected).normal_(generator=draws)
            target = expected.clamp(-0.15, 0.15)
            expected = (target + 0.1 * target.abs().max() * noise).clamp(-0.15, 0.15)
        assert torch.allclose(parameter, expected, rtol=1e-12, atol=0), f"{label} as written"
    assert all(torch.equal(*pair) for pair in zip(chip.buffers(), buffers, strict=True))


def test_the_objective_is_exact(ours: TwinSide) -> None:
    model, x, y = example()
    rule = Backprop(model)
    assert torch.equal(Hardware(rule, bits=2, read_noise=0.5).objective(x, y), rule.objective(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_copies_pickles_and_states_learn_the_same(name: str, ours: TwinSide) -> None:
    """Three noisy steps; one generator is all the randomness that there is."""
    options: Any = {"bits": 6, "read_noise": 0.02, "programming_noise": 1e-3, "weight_range": 2.0}
    original = Hardware(make(name, example()[0]), **options)
    loaded = Hardware(make(name, example()[0]), **options)
    loaded.load_state_dict(original.state_dict())
    chips = [original, copy.deepcopy(original), pickle.loads(pickle.dumps(original)), loaded]
    _, x, y = example(torch.float32)
    for chip in chips:
        chip.float()
        chip.generator = seeded(4)
        optimizer = torch.optim.SGD(chip.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            chip.assign_credit(x, y)
            optimizer.step()
            chip.constrain(optimizer)
    for other in chips[1:]:
        for one, two in zip(original.parameters(), other.parameters(), strict=True):
            assert one is not two
            assert torch.equal(one, two)


def test_the_hardware_has_the_rules_face(ours: TwinSide) -> None:
    model, x, y = example()
    generator = seeded(1)
    rule = Ftp(model)
    chip = Hardware(rule, bits=4, generator=generator)
    assert rule.generator is chip.generator is generator
    assert chip.units is rule.units
    assert (chip.model, chip.num_classes, chip.units) == (model, 4, rule.units)
    assert [id(p) for p in chip.parameters()] == [id(p) for p in rule.parameters()]
    assert set(chip.state_dict()) == {f"rule.{name}" for name in rule.state_dict()}
    assert Hardware(rule).generator is generator
    updates = chip.stream(x, y)
    next(updates)
    assert torch.equal(x.flatten(1) @ model[1].weight.T, x.flatten(1).matmul(model[1].weight.T.clone()))
    assert len(list(updates)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits: 1, expected an integer of 2 or more, or None"),
        ({"weight_bits": 4.0}, "weight_bits: 4.0, expected an integer"),
        ({"activation_bits": 0}, "activation_bits: 0, expected an integer"),
        ({"product_bits": True}, "product_bits: True, expected an integer"),
        ({"read_noise": -0.1}, "read_noise: -0.1, expected 0 or a positive number"),
        ({"programming_noise": float("nan")}, "programming_noise: nan, expected 0 or a positive number"),
        ({"weight_range": 0.0}, "weight_range: 0.0, expected a positive number or None"),
    ],
)
def test_impossible_hardware_is_refused(options: Any, message: str, ours: TwinSide) -> None:
    with pytest.raises(ValueError, match=message):
        Hardware(Backprop(example()[0]), **options)


def test_what_has_no_crossbar_is_refused(ours: TwinSide) -> None:
    for first, message in (
        (
            OrthogonalConv2d(2, 4, 3),
            "OrthogonalConv2d, whose weight is computed from its parts; Hardware has crossbars",
        ),
        (nn.Conv2d(2, 4, 3, padding=1, groups=2), r"Conv2d\(.*groups=2.*\); Hardware has crossbars for Conv2d without"),
        (nn.Conv2d(2, 4, 3, padding=2, dilation=2), r"Conv2d\(.*dilation=.*\); Hardware has crossbars for Conv2d wit"),
    ):
        images = nn.Sequential(first, nn.Flatten(), nn.Linear(64, 4))
        with pytest.raises(ValueError, match=f"layer '0': {message}"):
            Hardware(Backprop(images))
    with pytest.raises(ValueError, match="rule: its G is seeded, drawn anew at each step"):
        Hardware(Ftp(example()[0], seeded=True))
    rule = Hardware(Backprop(example()[0]))
    for wrong in (rule, rule.model):
        with pytest.raises(ValueError, match=f"rule: a {type(wrong).__name__}, expected a learning rule"):
            Hardware(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="second_pass: 'half', expected 'difference' or 'full'"):
        Ftp(example()[0], second_pass="half")  # type: ignore[arg-type]


class OfTokens(nn.Module):
    """A layer of PyTorch's that gives a pair, or takes its input thrice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        given: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
        return given


@pytest.mark.parametrize(
    ("make_layer", "products"),
    [
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), 2),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 4),
        (lambda: nn.LSTM(8, 8, batch_first=True), 6),  # of the inputs at once, of the state at each of five steps
    ],
    ids=["attention", "transformer", "LSTM"],
)
def test_products_inside_modules_are_seen(make_layer: Any, products: int, ours: TwinSide, monkeypatch: Any) -> None:
    """In evaluation too, where PyTorch has one operation for all that such a layer computes."""
    model = nn.Sequential(nn.Linear(8, 8), OfTokens(make_layer()), nn.Flatten(), nn.Linear(40, 3))
    x = torch.randn(4, 5, 8)
    rule = Hardware(DirectFeedbackAlignment(model, example=x), bits=8).eval()
    counted = []
    multiply = rules_hardware._Crossbars.multiply
    monkeypatch.setattr(
        rules_hardware._Crossbars, "multiply", lambda self, *operands: counted.append(1) or multiply(self, *operands)
    )
    with torch.no_grad():  # PyTorch's fast path wants no graph
        rule(x)
    assert len(counted) == 2 + products, "products of matrices"
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="layer '0': ParametrizedLinear, whose weight is computed"):
        Hardware(DirectFeedbackAlignment(normed, example=x[:, 0]), bits=8)


def test_an_unknown_product_with_a_matrix_is_no_exact_one(ours: TwinSide) -> None:
    """Nothing passes by the crossbars unseen."""
    model, x, _ = example()
    weight, x = model[1].weight.detach(), x.flatten(1)
    chip = Hardware(Backprop(model), bits=4)
    kernel, images = weight.view(16, 5, 2, 2), torch.ones(1, 16, 6, 6, dtype=x.dtype)
    no_plain = "convolution: Hardware knows Conv2d without groups and dilation alone"

    def said(call: Callable[[], object]) -> str:
        try:
            call()
        except NotImplementedError as error:
            return str(error)
        return "accepted"

    with chip._crossbars(), torch.no_grad():
        found = said(lambda: torch.bmm(weight.expand(2, 16, 20), torch.ones(2, 20, 3, dtype=x.dtype)))
        assert "Hardware knows no such product" in found, "a batch of products"
        found = said(lambda: torch.mv(x, weight[0]))
        assert "Hardware knows no such product" in found, "a row of a matrix"
        assert said(lambda: torch.conv2d(images[:, :5], kernel, dilation=2)) == no_plain, "dilation"
        assert said(lambda: torch.conv2d(images[:, :10], kernel, groups=2)) == no_plain, "groups"
        assert said(lambda: torch.conv_transpose2d(images, kernel)) == no_plain, "transposed"
        left = weight @ x.T
    assert not torch.equal(left, weight @ x.T), "a matrix on the left is seen"


def test_updates_that_are_streamed_are_written_too(ours: TwinSide) -> None:
    """Without any gradient left behind; and a second `constrain` writes nothing."""
    model, x, y = example()
    chip = Hardware(Backprop(model), weight_range=0.05)
    for update in chip.stream(x, y):
        with torch.no_grad():
            for parameter, gradient in update.pairs:
                parameter -= 0.1 * gradient
    chip.constrain()
    assert max(parameter.abs().max() for parameter in chip.parameters()) <= 0.05, "written"
    with torch.no_grad():
        chip.units[0].module.weight.fill_(1)
    chip.constrain()
    assert torch.all(chip.units[0].module.weight == 1)


def test_layers_before_the_first_target_are_neither_trained_nor_written(ours: TwinSide) -> None:
    model, x, y = example()
    chip = Hardware(Ftp(model, inject=2), programming_noise=0.1)
    first, second = (list(unit.module.parameters()) for unit in chip.units[:2])
    before = [parameter.clone() for parameter in first]
    optimizer = torch.optim.SGD(chip.parameters(), lr=0.1, weight_decay=0.1)
    chip.assign_credit(x, y)
    optimizer.step()
    chip.constrain(optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, first, strict=True)), "trained"
    assert all(parameter.grad is not None for parameter in second)


def test_foton_on_hardware_is_restored_from_its_weights(ours: TwinSide) -> None:
    """Its factors are noisy there: they tell no step that could be taken back, even where the optimizer is known."""
    torch.manual_seed(0)
    layers = [nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 4)]
    chips = [Hardware(Foton(copy.deepcopy(nn.Sequential(*layers))), bits=4) for _ in range(2)]
    chips[1].load_state_dict(chips[0].state_dict())
    x, y = torch.randn(16, 128), torch.randint(0, 4, (16,))
    for chip, told in zip(chips, (True, False), strict=True):
        optimizer = torch.optim.SGD(chip.parameters(), lr=0.1)
        chip.assign_credit(x, y)
        optimizer.step()
        chip.constrain(optimizer if told else None)
    assert all(torch.equal(*pair) for pair in zip(*(chip.parameters() for chip in chips), strict=True)), "told"


def test_rules_that_hardware_has_nothing_for(ours: TwinSide) -> None:
    dropped = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"read_noise: 0\.1, with recompute and Dropout"):
        Hardware(Foton(dropped, recompute=True), read_noise=0.1)
