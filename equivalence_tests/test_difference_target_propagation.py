"""Difference target propagation: twin against reference, and when it is backpropagation."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from prograde.accelerated.rules import DifferenceTargetPropagation
from prograde.equivalence_tests.rule_examples import EXAMPLES, K
from prograde.equivalence_tests.sides import Dense, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.test_rules import layer_gradients, sequential
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import difference_target_propagation as dtp
from prograde.reference import orthogonality

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""

SMOOTH_CASES = cases(("identity", "tanh"), dropout=False)


def hidden_widths(case: Case) -> tuple[int, ...]:
    return tuple(len(weight) for weight in case.dense.weights[:-1])


def inverses_for(case: Case, rng: np.random.Generator, name: str = "tanh") -> tuple[Dense, Any]:
    """Inverses with offsets, and noise."""
    widths = hidden_widths(case)
    weights = tuple(inverse.weight for inverse in dtp.random_inverses(widths, rng))
    offsets = tuple(0.3 * rng.standard_normal(n) for n in widths[:-1])
    return Dense(weights, offsets, (name,) * len(weights)), dtp.inverse_noise(widths, len(case.x), rng)


def updates(side: Side, dense: Any, x: Any, labels: Any, inverses: Any, noise: Any, step: float = 1.0) -> Any:
    module = side.difference_target_propagation
    return module.updates(side.chain(dense), side.chain(inverses), noise, x, labels, step=step)


@given(case=SMOOTH_CASES, rng=seeds())
def test_updates(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, step=0.3)

    compare(twin, "dtp.updates", ours, *case[:3], *inverses_for(case, rng))


@given(case=cases(dropout=False), rng=seeds())
def test_the_last_two_layers_learn_as_under_backprop(
    side: Side, compare: Comparison, case: Case, rng: np.random.Generator
) -> None:
    """Where no inverse stands above a layer its difference is the gradient, through any activation."""

    def last(found: Any) -> Any:
        return found[-2:]

    def backprop(side: Side, dense: Any, x: Any, labels: Any, *_: Any) -> Any:
        return last(side.backprop.updates(side.chain(dense), x, labels))

    def ours(side: Side, *operands: Any) -> Any:
        return last(updates(side, *operands).network)

    compare(side, "updates", ours, *case[:3], *inverses_for(case, rng), expected=backprop)


def square(rng: np.random.Generator, orthogonal: bool, n: int = 6, depth: int = 4) -> tuple[Case, Dense, Any]:
    """A linear network of square hidden layers with their exact inverses, and noise."""
    if orthogonal:
        weights = [orthogonality.orthogonal((n, n), rng) for _ in range(depth - 1)]
    else:
        weights = [np.eye(n) + 0.3 * rng.standard_normal((n, n)) / n**0.5 for _ in range(depth - 1)]
    weights.append(rng.standard_normal((3, n)))
    biases = tuple(0.3 * rng.standard_normal(len(weight)) for weight in weights)
    dense = Dense(tuple(weights), biases, ("identity",) * depth)
    back = tuple(np.linalg.inv(weight) for weight in weights[1:-1])
    offsets = tuple(-inverse @ bias for inverse, bias in zip(back, biases[1:-1], strict=True))
    inverses = Dense(back, offsets, ("identity",) * len(back))
    case = Case(dense, rng.standard_normal((5, n)), rng.integers(0, 3, 5), None)
    return case, inverses, dtp.inverse_noise((n,) * (depth - 1), 5, rng)


@given(rng=seeds())
def test_orthogonal_weights_and_their_inverses_give_backprop(
    side: Side, compare: Comparison, rng: np.random.Generator
) -> None:
    """Linear layers: the inverse is the transpose, and eta times backpropagation's update comes out."""
    case, inverses, noise = square(rng, orthogonal=True)
    operands = side.operands((*case[:3], inverses, noise))
    ours = side.results(updates(side, *operands, step=0.5).network)
    theirs = side.results(side.backprop.updates(side.chain(operands[0]), *operands[1:3]))
    for layer, ((a, *_), (b, *_)) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
        assert rms(a - 0.5 * b) <= EXACT * side.eps * rms(b), f"weights[{layer}]"
    assert rms(ours[-1][0] - theirs[-1][0]) <= EXACT * side.eps * rms(theirs[-1][0]), "output layer"


@given(rng=seeds())
def test_exact_inverses_aim_every_layer_at_one_output(side: Side, rng: np.random.Generator) -> None:
    """What the layers above make of any target is the last hidden layer's; and there is nothing left to learn."""
    case, inverses, noise = square(rng, orthogonal=False)
    dense, x, labels, back, noise = side.operands((*case[:3], inverses, noise))
    layers = side.chain(dense)
    clean = side.layers.forward(layers, x)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    found = side.results(side.difference_target_propagation.differences(layers, side.chain(back), clean, error))
    for layer, difference in enumerate(found):
        for weight in case.dense.weights[layer + 1 : -1]:
            difference = difference @ weight.T
        assert rms(difference - found[-1]) <= EXACT * side.eps * rms(found[-1]), f"layer {layer + 1}"
    learned = side.results(updates(side, dense, x, labels, back, noise).inverses)
    assert all(rms(g) <= EXACT * side.eps for update in learned for g in update), "nothing left to learn"


@given(case=SMOOTH_CASES, rng=seeds())
def test_inverses_learn_by_their_gradient(case: Case, rng: np.random.Generator) -> None:
    """A small step down the update lowers the reconstruction error by the update's square."""
    side = ReferenceSide()
    inverses, noise = inverses_for(case, rng)
    layers = side.chain(case.dense)
    clean = side.layers.forward(layers, case.x)

    def loss(weights: Any) -> float:
        total = 0.0
        for index, eps in enumerate(noise):
            z = clean.inputs[index + 1] + eps
            back = side.layers.Dense(weights[index], inverses.biases[index], (side.activations.tanh,))
            total += 0.5 * np.sum((side.layers.scores((layers[index + 1], back), z) - z) ** 2)
        return total / len(case.x)

    found = updates(side, case.dense, case.x, case.labels, inverses, noise).inverses
    found = [weight for weight, _ in found]
    t = 1e-6
    lower = loss([weight - t * g for weight, g in zip(inverses.weights, found, strict=True)])
    higher = loss([weight + t * g for weight, g in zip(inverses.weights, found, strict=True)])
    squares = sum(np.sum(g**2) for g in found)
    assert (higher - lower) / (2 * t) == pytest.approx(squares, rel=1e-5, abs=1e-9), "gradient of the reconstruction"


@given(case=SMOOTH_CASES, rng=seeds())
def test_rule(twin: TwinSide, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    """Through the front door: gradients of the model and of the rule's own inverses."""
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")
    inverses, _ = inverses_for(case, rng, case.dense.activations[0])
    silent = tuple(np.zeros((len(case.x), n)) for n in hidden_widths(case)[:-1])

    def ours(side: Side, dense: Any, x: Any, labels: Any, back: Any, noise: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return updates(side, dense, x, labels, back, noise, 0.5)
        rule = DifferenceTargetPropagation(sequential(dense), step=0.5, noise=1e-30)
        for own, given_ in ((rule.inverse_weights, back.weights), (rule.inverse_biases, back.biases)):
            for parameter, value in zip(own, given_, strict=True):
                parameter.data.copy_(value)
        rule.assign_credit(x.unflatten(1, (1, -1)), labels)
        module = side.difference_target_propagation
        own = zip(rule.inverse_weights, rule.inverse_biases, strict=True)
        learned = tuple((weight.grad, bias.grad) for weight, bias in own)
        return module.DifferenceTargetUpdates(layer_gradients(rule), learned)

    compare(twin, "DifferenceTargetPropagation", ours, *case[:3], inverses, silent)


def test_inverses_that_do_not_fit_are_refused(side: Side) -> None:
    case, inverses, noise = square(np.random.default_rng(0), orthogonal=True)
    operands = side.operands((*case[:3], inverses, noise[:1]))
    with side.refuses("inverses, noise: 2 and 1, expected 2, one for every hidden layer"):
        updates(side, *operands)


@pytest.mark.usefixtures("ours_only")
def test_target_propagation_through_two_activations(twin: TwinSide) -> None:
    """An inverse has the activation of the layer that it recovers: its error can come to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, K))
    rule = DifferenceTargetPropagation(model.to(twin.device, torch.float64), noise=1e-9)
    with torch.no_grad():  # a first layer that gives tanh(0.3) always, and an inverse that does
        for parameter in (*rule.inverse_weights, *rule.inverse_biases, model[2].bias):
            parameter.zero_()
        model[0].weight.zero_()
        model[0].bias.fill_(0.3)
        rule.inverse_biases[0].fill_(0.3)
    x, y = EXAMPLES["dtp"].batch(twin.device)
    rule.assign_credit(x, y)
    assert rule.inverse_biases[0].grad.abs().max() < 1e-8, "tanh(0.3) is recovered"
