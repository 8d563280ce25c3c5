"""Plausible mistakes of somebody's twin: the test of the property is the one that refuses it, and says where.

And a right twin that keeps what the pages promise and no more: no test refuses it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from inspect import isfunction, signature
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from prograde import accelerated as ours
from prograde import reference
from prograde.equivalence_tests.placement import Placement
from prograde.equivalence_tests.sides import MODULES, TwinSide
from prograde.equivalence_tests.tolerance import Comparison

PACKAGE = "a_wrong_twin"


def scaled(function: Callable[..., Any], factor: Callable[..., float]) -> Callable[..., Any]:
    """The function's result, a tensor or a tree of them, times a factor made of its arguments."""

    def times(found: Any, by: float) -> Any:
        return tuple(times(item, by) for item in found) if isinstance(found, tuple) else by * found

    return lambda *operands, **options: times(function(*operands, **options), factor(*operands, **options))


def activation(name: str, **functions: Any) -> dict[str, Any]:
    wrong = getattr(ours.activations, name)._replace(**functions)
    return {name: wrong, "ACTIVATIONS": {**ours.activations.ACTIVATIONS, name: wrong}}


def relu_at_zero(a: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return direction * (a >= 0)


def halves_up(v: torch.Tensor, bits: int | None) -> torch.Tensor:
    if bits is None or not v.any():
        return v
    step = v.abs().amax() / (2 ** (bits - 1) - 1)
    return v.sign() * torch.floor(v.abs() / step + 0.5) * step


def unbiased(h: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    rows = h.flatten(1)
    return ((rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + eps).sqrt()).view_as(h)


def eps_beside_the_root(h: torch.Tensor, groups: int, eps: float = 1e-5) -> torch.Tensor:
    rows = h.view(len(h), groups, -1)
    return ((rows - rows.mean(2, keepdim=True)) / (rows.var(2, keepdim=True, correction=0).sqrt() + eps)).view_as(h)


def by_signs(h: torch.Tensor) -> torch.Tensor:
    """The largest unit, of their values where it should be of their sizes."""
    return h.flatten(1).amax(1).square()


def last_of_equals(scores: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    hits = ours.aggregation.range_hits(scores, labels)
    first, end = divmod(hits.numel() - 1 - int(hits.flip(0, 1).argmax()), len(scores))
    return first, end


def smoothed_over_the_others(labels: torch.Tensor, num_classes: int, label_smoothing: float = 0.0) -> torch.Tensor:
    hot = ours.losses.one_hot(labels, num_classes)
    return (1 - label_smoothing) * hot + label_smoothing / (num_classes - 1) * (1 - hot)


def uncut(scores: torch.Tensor, targets: torch.Tensor, delta: float = 1.0, sample_weight: Any = None) -> torch.Tensor:
    return ours.losses.huber_gradient(scores, targets, 1e9, sample_weight)


def squared_without_half(scores: torch.Tensor, labels: torch.Tensor, sample_weight: Any = None) -> torch.Tensor:
    return 2 * ours.losses.squared_error(scores, labels, sample_weight)


def padded_mean(g: torch.Tensor, size: int, **place: Any) -> torch.Tensor:
    return ours.pooling.scaled_average_pool(g, size) / size


def turned(kernel: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return ours.convolution.circular_convolve(kernel.flip(2, 3), z)


def without_activation_derivative(layers: Any, feedback: Any, x: Any, labels: Any, **options: Any) -> Any:
    clean = ours.layers.forward(layers, x)
    error = ours.losses.cross_entropy_gradient(clean.scores, labels)
    module = ours.direct_feedback_alignment
    factors = list(module.update_factors(layers, clean, error, feedback, error.sign() if options["signs"] else None))
    deltas = [(error @ matrix).view_as(h) for matrix, h in zip(feedback, clean.activities, strict=False)]
    mixed = [(delta, z) for delta, (_, z) in zip(deltas, factors, strict=False)]
    return ours.layers.updates(layers, [*mixed, factors[-1]])


def negated_projection(module: ModuleType, place: int) -> Callable[..., Any]:
    def updates(*operands: Any, **options: Any) -> Any:
        wrong = list(operands)
        wrong[place] = -wrong[place]
        return module.updates(*wrong, **options)

    return updates


def by_the_weights(layers: Any, feedback: Any, x: Any, labels: Any, **options: Any) -> Any:
    return ours.backprop.updates(layers, x, labels)


def summed(layers: Any, x: Any, *operands: Any, **options: Any) -> Any:
    return scaled(ours.backprop.updates, lambda *_, **__: len(x))(layers, x, *operands, **options)


def modulated_presynaptic(layers: Any, projection: Any, *operands: Any, **options: Any) -> Any:
    options["presynaptic"] = "clean"
    return ours.pepita.updates(layers, projection, *operands, **options)


def not_repeated(x: torch.Tensor, partner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    positive, negative = ours.negatives.self_supervised_pairs(x, partner)
    return negative, positive


LOSSES, GOODNESS = ours.losses, ours.goodness
WRONG: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str | None]] = {
    "ReLU's derivative at 0 is 1": (
        "activations", activation("relu", jvp=relu_at_zero, vjp=relu_at_zero),
        "test_activations.test_derivative_at_zero", {"name": "relu", "sign": 1.0}, r"relu'\(0\)"),
    "tanh's derivative is 1 - tanh^2 of its value": (
        "activations", activation("tanh", vjp=lambda a, d: d * (1 - a**2)),
        "test_activations.test_value_and_derivatives", {"name": "tanh"}, "tanh"),
    "halves are rounded up": (
        "hardware", {"quantise": halves_up},
        "test_hardware.test_halves_go_to_the_even_level", {"bits": 2, "half": 0.5, "level": 0}, r"\[\[1"),
    "cross-entropy's error is divided by the batch": (
        "losses", {"cross_entropy_gradient": scaled(LOSSES.cross_entropy_gradient, lambda s, *_, **__: 1 / len(s))},
        "test_losses.test_cross_entropy", {}, "gradient"),
    "cross-entropy's error lacks 1 / T": (
        "losses", {"cross_entropy_gradient": scaled(LOSSES.cross_entropy_gradient, lambda s, y, t=1, *_, **__: t)},
        "test_losses.test_cross_entropy", {}, "gradient"),
    "the squared error lacks its half": (
        "losses", {"squared_error": squared_without_half}, "test_losses.test_squared_error", {}, "squared_error"),
    "labels are smoothed over the other classes": (
        "losses", {"one_hot": smoothed_over_the_others}, "test_losses.test_one_hot", {}, "one_hot"),
    "Huber's error is not cut": (
        "losses", {"huber_gradient": uncut}, "test_losses.test_weighted", {"kind": "distances"}, "huber"),
    "layer normalisation by the unbiased variance": (
        "normalisations", {"layer_norm": unbiased}, "test_normalisations.test_twin", {"name": "layer_norm"}, "layer"),
    "eps beside the root": (
        "normalisations", {"group_norm": eps_beside_the_root},
        "test_normalisations.test_values_are_those_of_the_definition", {"name": "group_norm(1)", "last": False}, None),
    "a mean for a sum of squares": (
        "goodness", {"sum_of_squares": GOODNESS.mean_square},
        "test_goodness.test_twin", {"kind": "sum_of_squares"}, r"sum_of_squares\.value"),
    "the largest unit by value, not by size": (
        "goodness", {"maximum": GOODNESS.maximum._replace(value=by_signs)},
        "test_goodness.test_twin", {"kind": "maximum"}, r"maximum\.value"),
    "the last of equal ranges": (
        "aggregation", {"best_range": last_of_equals}, "test_aggregation.test_ties_by_hand", {}, None),
    "average pooling is not scaled": (
        "pooling", {"scaled_average_pool": padded_mean},
        "test_convolution.test_average_pool", {}, "scaled_average_pool"),
    "a convolution, not a correlation": (
        "convolution", {"circular_convolve": turned}, "test_convolution.test_convolve", {}, "circular_convolve"),
    "updates are sums over the batch": (
        "backprop", {"updates": summed}, "test_backprop.test_updates", {}, r"updates\[0\]\[0\]"),
    "FOTON adds the projected error": (
        "foton", {"updates": lambda layers, x, labels, **o: ours.foton.updates(
            layers, x, labels, projection=-ours.foton.error_projection(layers, ours.layers.forward(layers, x)), **o)},
        "test_foton.test_updates", {}, r"foton\.updates\[0\]"),
    "PEPITA subtracts the projected error": (
        "pepita", {"updates": negated_projection(ours.pepita, 1)}, "test_pepita.test_updates", {}, r"updates\[0\]"),
    "PEPITA's clean presynaptic factor": (
        "pepita", {"updates": modulated_presynaptic}, "test_pepita.test_updates", {}, "updates"),
    "feedback by the weights themselves": (
        "feedback_alignment", {"updates": by_the_weights},
        "test_feedback_alignment.test_feedback_alignment", {}, r"updates\[0\]"),
    "direct feedback without the activation's derivative": (
        "direct_feedback_alignment", {"updates": without_activation_derivative},
        "test_feedback_alignment.test_direct_feedback_alignment", {}, r"updates\[0\]"),
    "positive and negative pairs exchanged": (
        "negatives", {"self_supervised_pairs": not_repeated},
        "test_negatives.test_self_supervised_pairs", {}, "self_supervised_pairs"),
    "the polar factor is not iterated": (
        "orthogonality", {"polar_factor": lambda weight: weight},
        "test_orthogonality.test_polar_factor", {}, "polar_factor"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_package_left() -> Iterator[None]:
    yield
    sys.modules.pop(PACKAGE, None)


def twin_with(module: str, functions: dict[str, Any]) -> TwinSide:
    """A package of somebody's whose functions are ours, but for these."""
    package: Any = ModuleType(PACKAGE)
    for name in MODULES:
        setattr(package, name, getattr(ours, name))
    setattr(package, module, SimpleNamespace(**{**vars(getattr(ours, module)), **functions}))
    sys.modules[PACKAGE] = package
    return TwinSide(PACKAGE, "cpu", "float64")


def hold(twin: TwinSide, test: str, arguments: dict[str, Any], profile: str) -> None:
    """Runs a test of ours on the twin, with the examples of a profile, without shrinking what it finds."""
    module, _, name = test.partition(".")
    function = getattr(import_module(f"prograde.equivalence_tests.{module}"), name)
    if any("ours_only" in mark.args for mark in getattr(function, "pytestmark", ())) and not twin.is_ours:
        pytest.skip("a promise of prograde's own")
    given = {**arguments, "twin": twin, "side": twin, "twin64": twin, "compare": Comparison()}
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(function, "hypothesis"):
            briefly = settings(settings.get_profile(profile), phases=[Phase.generate])
            patch.setattr(function, "_hypothesis_internal_use_settings", briefly)
        function(**{name: value for name, value in given.items() if name in signature(function).parameters})


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # a large example would be printed
@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_refused_by_its_property(mistake: str) -> None:
    Placement.device = torch.device("cpu")
    module, functions, test, arguments, message = WRONG[mistake]
    with pytest.raises(AssertionError, match=message):
        hold(twin_with(module, functions), test, arguments, "default")
    hold(twin_with(module, {}), test, arguments, "smoke")


@pytest.mark.parametrize(("test", "kind"), [
    ("test_goodness.test_weights_of_the_entmax", ""),
    ("test_layer_kinds.test_difference_is_that_of_two_values", "causal attention"),
    ("test_layer_kinds.test_tiny_differences_keep_their_precision", "layer norm"),
    ("test_layer_kinds.test_tiny_differences_keep_their_precision", "attention"),
    ("test_samplers.test_orthogonal_is_uniform", ""),
    ("test_samplers.test_wrong_labels_are_wrong_and_even", ""),
])  # fmt: skip
def test_what_the_reference_writes_is_not_refused_in_float32(test: str, kind: str) -> None:
    """Its public functions on arrays of NumPy: differences of two values, which lose all digits of tiny ones."""
    Placement.device = torch.device("cpu")
    package: Any = ModuleType(PACKAGE)
    package.from_numpy = np.asarray
    for name in MODULES:
        module = getattr(reference, name)
        setattr(package, name, SimpleNamespace(**{public: getattr(module, public) for public in module.__all__}))
    sys.modules[PACKAGE] = package
    with contextlib.suppress(pytest.skip.Exception):
        hold(TwinSide(PACKAGE, "cpu", "float32"), test, {"kind": kind}, "smoke")


class Chain:
    """What `dense_chain` returns of a package whose networks are its own affair."""

    def __init__(self, layers: Any) -> None:
        self._layers = layers


def of_its_own_make(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes a `Chain` where ours takes layers, and refuses in its own words."""

    @wraps(function)
    def called(*operands: Any, **options: Any) -> Any:
        layers = [operand._layers if isinstance(operand, Chain) else operand for operand in operands]
        try:
            return function(*layers, **options)
        except ValueError:
            raise TypeError("these do not go together") from None

    return called


@pytest.mark.parametrize("test", [
    "test_feedback_alignment.test_a_centred_label_is_minus_the_error_of_equal_scores",
    "test_feedback_alignment.test_target_projection_does_not_look_at_the_output",
    "test_foton.test_scaled_identity_scales_updates_by_depth",
    "test_foton.test_recomputing_the_clean_pass_changes_nothing",
    "test_foton.test_maxmin_needs_more_than_the_weights_in_the_projection",
    "test_foton.test_an_activation_gain_gives_the_updates_of_a_scaled_network_their_size",
    "test_foton.test_updates_with_maximum_pooling",
    "test_ftp.test_the_layer_of_the_first_target_follows_direct_feedback",
    "test_layers.test_steps_in_a_row",
    "test_layers.test_the_layer_that_does_not_fit_is_named",
    "test_recurrent.test_what_does_not_fit_is_refused",
])  # fmt: skip
def test_a_right_twin_of_its_own_make_is_not_refused(test: str) -> None:
    """Its networks are opaque, and the words of its errors are its own."""
    Placement.device = torch.device("cpu")
    package: Any = ModuleType(PACKAGE)
    for name in MODULES:
        theirs = vars(getattr(ours, name)).items()
        made = {key: of_its_own_make(value) if isfunction(value) else value for key, value in theirs}
        setattr(package, name, SimpleNamespace(**made))
    package.layers.dense_chain = lambda *operands, **options: Chain(ours.layers.dense_chain(*operands, **options))
    sys.modules[PACKAGE] = package
    with contextlib.suppress(pytest.skip.Exception):
        hold(TwinSide(PACKAGE, "cpu", "float64"), test, {"linear": False, "activation": "tanh"}, "smoke")
