"""Packages of others under test: arrays of any framework, what they lack, two wrong ones and a right one."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Never

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde import reference
from prograde.accelerated import activations, hardware
from prograde.equivalence_tests import test_activations, test_backprop, test_foton, test_hardware, test_orthogonality
from prograde.equivalence_tests.pasting import Recorded, UnwritableError, as_call, as_change, as_code
from prograde.equivalence_tests.sides import Dense, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison, leaves

pytestmark = pytest.mark.smoke


class Foreign:
    """An array that can do nothing but be read by others."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    @property
    def dtype(self) -> Any:
        return self.array.dtype


KINDS: dict[str, Callable[[Any], Any]] = {
    "NumPy": np.asarray,
    "PyTorch": torch.from_numpy,
    "lists": np.ndarray.tolist,
    "any other": Foreign,
}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TwinSide]:
    """Makes a package of these modules, in float32."""

    def package(from_numpy: Callable[[Any], Any] | None = None, **modules: Any) -> TwinSide:
        made = ModuleType("made")
        vars(made).update(modules, **({} if from_numpy is None else {"from_numpy": from_numpy}))
        monkeypatch.setitem(sys.modules, "made", made)
        return TwinSide("made", "cpu", "float32")

    return package


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind_are_given_and_read(kind: str, package: Callable[..., TwinSide]) -> None:
    side = package(KINDS[kind], foton=SimpleNamespace())
    tree = Dense((np.array([[0.1, 2.0], [3.0, 4.0]]),), (None,), ("relu",)), np.array([0, 1]), (np.ones((1, 2, 1)),)
    given = side.operands(tree)
    assert type(given[0].weights[0]) is type(KINDS[kind](np.ones((1, 1)))), "as from_numpy makes it"
    dense, labels, (images,) = side.results(given)
    assert dense.weights[0].tolist() == [[float(np.float32(0.1)), 2], [3, 4]], "in float32"
    assert (dense.weights[0].dtype, labels.tolist(), images.shape) == (np.float64, [0, 1], (1, 2, 1))
    assert dense.biases == (None,)


@pytest.mark.parametrize("kind", ["NumPy", "PyTorch", "lists"])
@pytest.mark.parametrize("labels", [np.array([2, 1]), np.array([2.0, 1.0])])
def test_an_operand_that_is_changed_in_place_is_refused(
    kind: str, labels: Any, package: Callable[..., TwinSide]
) -> None:
    """As code it prints what was given and what is left of it."""

    def double(labels: Any) -> Any:
        found = KINDS[kind](2 * np.asarray(labels))
        labels[0] = 0
        return found

    side = package(KINDS[kind], losses=SimpleNamespace(double=double))

    def call(side: Side, labels: Any) -> Any:
        return 2 * labels if isinstance(side, ReferenceSide) else side.losses.double(labels)

    for compared in (Comparison().exactly, Comparison()):
        with pytest.raises(
            AssertionError, match=r"^double: operands\[0\] changed in place, expected arguments to stay"
        ):
            compared(side, "double", call, labels)
    assert labels.tolist() == [2, 1], "the test's own array"
    code = as_change(side, call, (labels,))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue() == f"({labels!r},)\n({np.array([0, 1], labels.dtype)!r},)\n", code


@pytest.mark.parametrize("from_numpy", [np.asarray, torch.from_numpy, Foreign, None])
def test_another_dtype_is_called_that(from_numpy: Any, package: Callable[..., TwinSide]) -> None:
    wider = (from_numpy or torch.from_numpy)(np.ones((2, 2)))
    side = package(from_numpy, orthogonality=SimpleNamespace(gram=lambda a: wider))
    with pytest.raises(AssertionError, match=r"^result in (torch\.)?float64, expected (torch\.)?float32$"):
        Comparison()(side, "gram", lambda side, a: side.orthogonality.gram(a), np.ones((2, 2)))


def test_what_is_missing_is_skipped_and_ours_may_lack_nothing(package: Callable[..., TwinSide]) -> None:
    lacking = {"foton": SimpleNamespace(), "goodness": SimpleNamespace()}
    side = package(activations=SimpleNamespace(ACTIVATIONS={"relu": activations.relu}), **lacking)
    assert side.activations.ACTIVATIONS["relu"] is activations.relu
    for call, name in (
        (lambda: side.activations.ACTIVATIONS["gelu"], "activations.gelu"),
        (lambda: side.foton.updates, "foton.updates"),
        (lambda: side.goodness._entmax_root, "goodness._entmax_root"),
        (lambda: side.ftp, "ftp"),
    ):
        with pytest.raises(pytest.skip.Exception, match=f"not there: {name}$"):
            call()
    assert list(side.used) == ["activations.relu", "activations.gelu", "foton.updates"], "noted"
    side = package(foton=SimpleNamespace(updates=lambda layers, x, labels: "made"))
    assert side.foton.updates(None, None, labels=None) == "made"
    with pytest.raises(pytest.skip.Exception) as found:
        side.foton.updates(None, None, None, linear=True)
    assert str(found.value) == "not there: foton.updates(linear=)", "an option"
    assert side.layers.Dense is not None, "lent to torch functions"
    with pytest.raises(AssertionError, match=r"prograde\.accelerated\.nothing is missing"):
        TwinSide("prograde.accelerated", "cpu", "float32").lack("nothing")


def said(act: Callable[[], Any]) -> str:
    """By what it was ended, "" where by nothing."""
    try:
        act()
    except (Exception, pytest.skip.Exception, pytest.fail.Exception) as ended:
        return str(ended)
    return ""


def test_the_words_of_a_refusal_are_the_packages_own(package: Callable[..., TwinSide]) -> None:
    def refused(side: Side, error: Exception | None) -> None:
        with side.refuses(r"x\[0\]: ours"):
            if error is not None:
                raise error

    side = package(foton=SimpleNamespace())
    assert said(lambda: refused(side, TypeError("theirs"))) == "", "their own words"
    assert said(lambda: refused(side, None)) == "accepts what is refused: x[0]: ours"
    for ours in (ReferenceSide(), TwinSide("prograde.accelerated", "cpu", "float32")):
        assert said(lambda ours=ours: refused(ours, ValueError("x[0]: ours"))) == ""
        assert "did not match" in said(lambda ours=ours: refused(ours, ValueError("theirs"))), "ours are promised"
        assert "DID NOT RAISE" in said(lambda ours=ours: refused(ours, None))


def test_what_dense_chain_returns_is_the_packages_own_affair(package: Callable[..., TwinSide]) -> None:
    layers = SimpleNamespace(dense_chain=lambda weights, biases, activations: iter(weights))
    side = package(np.asarray, layers=layers, activations=SimpleNamespace(ACTIVATIONS={"relu": "relu"}))
    found = side.chain(Dense((np.eye(2),), (None,), ("relu",)))
    assert len(list(found)) == 1, "as it is"
    for look in (side.one_by_one, side.opened):
        assert said(lambda look=look: look(found)) == "not there: layers.dense_chain as a tuple"
    another = said(lambda: side.opened([("weight", "bias")]))
    assert another == "not there: layers.dense_chain as a tuple of layers.Dense", "layers of another kind"


@dataclass
class Pass:
    """As the reference's, but no tuple."""

    inputs: Any
    preactivations: Any
    activities: Any


def test_a_result_of_a_class_of_ones_own_is_read_by_its_fields(package: Callable[..., TwinSide]) -> None:
    twin = package(np.asarray, layers=SimpleNamespace())
    x = np.ones(2, np.float32)
    (found,) = twin.results([Pass((x,), [x], (x, 2 * x))])
    assert isinstance(found, reference.layers.Pass), "its fields are not read"
    assert dict(leaves("", found))[".activities[1]"].tolist() == [2.0, 2.0]
    with pytest.raises(AssertionError, match="result in float64, expected float32"):
        twin.results(Pass((), (), (np.ones(2),)))


def test_relu_with_another_derivative_at_0_is_refused(package: Callable[..., TwinSide]) -> None:
    relu = activations.relu._replace(vjp=lambda a, d: torch.where(a >= 0, d, 0))
    side = package(activations=SimpleNamespace(ACTIVATIONS={**activations.ACTIVATIONS, "relu": relu}))
    with pytest.raises(AssertionError, match=r"relu'\(0\): 1, expected 0"):
        test_activations.test_derivative_at_zero(side, "relu", 1.0)


def test_halves_that_are_rounded_up_are_refused(package: Callable[..., TwinSide]) -> None:
    def quantise(v: torch.Tensor, bits: int) -> torch.Tensor:
        step = v.abs().max() / (2 ** (bits - 1) - 1)
        return (v / step + 0.5).floor() * step

    side = package(hardware=SimpleNamespace(**{**vars(hardware), "quantise": quantise}))
    refused = 0
    for bits, half, level in [(2, 0.5, 0), (3, 1.5, 2), (4, 3.5, 4), (5, 7.5, 8)]:
        try:
            test_hardware.test_halves_go_to_the_even_level(side, bits, half, level)
        except AssertionError:
            refused += 1
    assert refused, "halves rounded up"


@pytest.mark.parametrize("test", [
    test_foton.test_updates, test_backprop.test_updates, test_orthogonality.test_polar_factor,
])  # fmt: skip
def test_the_reference_is_a_right_twin_in_float32(test: Any, package: Callable[..., TwinSide]) -> None:
    modules = {name: getattr(reference, name) for name in reference.__all__}
    test(twin=package(np.asarray, **modules), compare=Comparison())


@given(masked=st.booleans(), linear=st.booleans())
def updates_agree(twin: Side, compare: Comparison, masked: bool, linear: bool) -> None:
    case = test_foton.linear_case([3, 2, 2])._replace(masks=[np.ones((32, 2)), None] if masked else None)
    compare(twin, "foton.updates", lambda side, *o: test_foton.foton_updates(side, *o, linear=linear), *case)


@given(masked=st.booleans())
def linear_updates_agree(twin: Side, compare: Comparison, masked: bool) -> None:
    updates_agree.hypothesis.inner_test(twin, compare, masked, True)


def test_what_lacks_options_is_held_to_the_examples_without_them(package: Callable[..., TwinSide]) -> None:
    """A FOTON without masks and linear pass: a lost factor is seen, and where no example is left it is said."""

    def chain(weights: Any, biases: Any, activations: Any) -> Any:
        return reference.layers.dense_chain(weights, biases, activations)

    def held(test: Any, factor: float = 1.0) -> Comparison:
        def updates(layers: Any, x: Any, labels: Any) -> Any:
            found = reference.foton.updates(layers, x, labels)
            return tuple(tuple(np.float32(factor) * part for part in layer) for layer in found)

        layers = SimpleNamespace(**{**vars(reference.layers), "dense_chain": chain})
        foton = SimpleNamespace(updates=updates)
        side = package(np.asarray, activations=reference.activations, layers=layers, foton=foton)
        comparison = Comparison()
        with side.leaving_out(test):
            test(twin=side, compare=comparison)
        return comparison

    assert "foton.updates[][]" in held(updates_agree).blind, "compared"
    with pytest.raises(AssertionError, match=r"foton\.updates\[0\]\[0\]: off by"):
        held(updates_agree, factor=2.0)
    with pytest.raises(pytest.skip.Exception, match=r"^not there: .*foton\.updates\(linear=\)"):
        held(linear_updates_agree)


def test_a_comparison_as_code_prints_both_results(package: Callable[..., TwinSide]) -> None:
    """What a test of its own computes is written out, with what stands around it and what its defaults are."""
    gain, scale, side = 2.0, 3.0, package(np.asarray, losses=reference.losses)

    def scaled(side: Side, scores: Any, labels: Any, factor: float = scale, *, more: float = 3.0 * scale) -> Any:
        return factor * more * gain * side.losses.cross_entropy(scores, labels)

    operands = np.array([[1.0, -1e30, 0.1]]), np.array([0])
    code = as_code(side, scaled, lambda side, x, y, last=[np.inf]: np.array([x.size, *last]), operands)
    assert "factor=3.0, *, more=9.0" in code, f"defaults by their values\n{code}"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    found = side.results(scaled(side, *side.operands(operands)))
    assert printed.getvalue() == f"[ 3. inf]\n{found}\n", code
    with pytest.raises(UnwritableError):
        as_code(side, scaled, None, (np.random.default_rng(0),))


def test_long_operands_are_wrapped(package: Callable[..., TwinSide]) -> None:
    """A row of an array in a line, as far as it goes, and what a text has in it is left alone."""
    rng, side = np.random.default_rng(3), package(np.asarray, losses=reference.losses)
    rows, wide = rng.standard_normal((3, 4)).round(9), rng.standard_normal((2, 2, 30)).astype(np.float32)
    rest: Any = {"a, (b": [wide, -1, None], "ü": (rng.integers(9, size=200),)}
    code = as_code(side, lambda side, *operands: np.arange(1), None, (Dense((rows,), rest, ()), np.zeros((0, 3)), 0.5))
    given: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, given)
    assert max(map(len, code.splitlines())) <= 100, f"wrapped\n{code}"
    read, empty, number = given["operands"]
    assert np.array_equal(read.weights[0], rows), "rows"
    assert read.biases["a, (b"][0].dtype == np.float32
    assert np.array_equal(read.biases["a, (b"][0], wide), "wide rows"
    assert read.biases["a, (b"][1:] == [-1, None], "what is no array"
    assert np.array_equal(read.biases["ü"][0], rest["ü"][0]), "whole numbers"
    assert (empty.shape, number) == ((0, 3), 0.5)
    assert f"[{', '.join(map(str, rows[1].tolist()))}],\n" in code, "a row in a line"
    assert len(code.splitlines()) < 120, "filled lines"


@given(data=st.data(), rng=seeds(), sign=st.sampled_from([-1.0]))
def fails(side: Side, compare: Comparison, data: st.DataObject, rng: np.random.Generator, sign: float) -> Never:
    drawn = data.draw(seeds()).integers(9), rng.integers(9), compare.seen, side.eps
    raise AssertionError(f"{drawn}, {sign}, {data.draw(st.just(3))}")


def test_a_property_as_code_fails_as_the_test_did(package: Callable[..., TwinSide]) -> None:
    """Drawn anew: what the test has drawn of `data`, and what it draws from generators."""
    data = Recorded(SimpleNamespace(draw=lambda strategy, label: 3 if len(data.values) else np.random.default_rng(5)))
    arguments = {"side": package(np.asarray, losses=reference.losses), "compare": Comparison(), "data": data}
    arguments |= {"rng": np.random.default_rng(4), "sign": -1.0}
    with pytest.raises(AssertionError) as found:
        fails.hypothesis.inner_test(**arguments)
    code = as_call(fails, arguments)
    with pytest.raises(AssertionError, match=re.escape(str(found.value))):
        exec(code, {})
    with pytest.raises(UnwritableError):
        as_call(fails, {"side": reference})
