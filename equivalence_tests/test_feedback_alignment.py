"""Feedback alignment, direct feedback alignment, direct random target projection: twins, and how they are related."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.accelerated.rules import DirectFeedbackAlignment, FeedbackAlignment
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import K, dense
from prograde.equivalence_tests.sides import Images, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.test_backprop import ChainCase, chain_cases, chain_of, parameters
from prograde.equivalence_tests.test_backprop import updates as backprop_updates
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import direct_feedback_alignment, feedback_alignment

pytestmark = pytest.mark.smoke


def weights(network: Any) -> list[Any]:
    return [weight for weight, *_ in parameters(network)]


def mirrored(case: ChainCase, rng: np.random.Generator) -> Any:
    return feedback_alignment.random_feedback([weight.shape for weight in weights(case.network)[1:]], rng)


def direct(case: ChainCase, rng: np.random.Generator, by_channel: bool = False) -> Any:
    hidden = case.clean().activities[:-1]
    widths = tuple(h.shape[1] if by_channel else h[0].size for h in hidden)
    return direct_feedback_alignment.random_feedback(widths, case.num_classes, rng)


def updates(module: str, **options: Any) -> Any:
    def run(side: Side, network: Any, x: Any, labels: Any, masks: Any, feedback: Any) -> Any:
        layers, x = chain_of(side, network, x, masks)
        return getattr(side, module).updates(layers, feedback, x, labels, **options)

    return run


def with_output_layer(network: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """The network with another weight and bias of its last layer."""
    if isinstance(network, Images):
        return network._replace(dense=with_output_layer(network.dense, change))
    weight, bias = change(network.weights[-1], network.biases[-1])
    return network._replace(weights=(*network.weights[:-1], weight), biases=(*network.biases[:-1], bias))


def backprop(side: Side, network: Any, x: Any, labels: Any, masks: Any, _: Any) -> Any:
    return backprop_updates(side, network, x, labels, masks)


@given(case=chain_cases(), rng=seeds())
def test_feedback_alignment(twin: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator) -> None:
    rule = updates("feedback_alignment")
    compare(twin, "feedback_alignment.updates", rule, *case, mirrored(case, rng))


@given(case=chain_cases(), rng=seeds(), signs=st.booleans(), by_channel=st.booleans())
def test_direct_feedback_alignment(
    twin: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator, signs: bool, by_channel: bool
) -> None:
    rule = updates("direct_feedback_alignment", signs=signs)
    compare(twin, "direct_feedback_alignment.updates", rule, *case, direct(case, rng, by_channel))


@given(case=chain_cases(), rng=seeds(), by_channel=st.booleans(), centred=st.booleans())
def test_direct_random_target_projection(
    twin: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator, by_channel: bool, centred: bool
) -> None:
    rule = updates("direct_random_target_projection", centred=centred)
    compare(twin, "direct_random_target_projection.updates", rule, *case, direct(case, rng, by_channel))
    probabilities = case._replace(labels=rng.dirichlet(np.ones(case.num_classes), len(case.labels)))
    compare(twin, "updates by targets", rule, *probabilities, direct(case, rng, by_channel))


@given(case=chain_cases())
def test_the_weights_as_feedback_give_backprop(side: Side, compare: Comparison, case: ChainCase) -> None:
    rule = updates("feedback_alignment")
    compare(side, "updates", rule, *case, tuple(weights(case.network)[1:]), expected=backprop)


@given(case=cases(max_hidden=1))
def test_the_last_weights_as_feedback_give_backprop_with_one_hidden_layer(
    side: Side, compare: Comparison, case: Case
) -> None:
    rule = updates("direct_feedback_alignment")
    matrices = (case.dense.weights[-1].T.copy(),)
    compare(side, "updates", rule, *case, matrices, expected=backprop)


@given(case=cases(("identity",), dropout=False), rng=seeds())
def test_direct_feedback_is_feedback_through_products_in_a_linear_network(
    side: Side, compare: Comparison, case: Case, rng: np.random.Generator
) -> None:
    """B_l (direct) = B_(l+1)^T ... B_L^T."""
    chain = mirrored(ChainCase(*case), rng)
    products = []
    through = np.eye(case.num_classes)
    for matrix in reversed(chain):
        through = matrix.T @ through
        products.append(through)

    def aligned(side: Side, dense: Any, x: Any, labels: Any, masks: Any, _: Any) -> Any:
        feedback = tuple(matrix.astype(x.dtype) for matrix in chain)
        return updates("feedback_alignment")(side, dense, x, labels, masks, feedback)

    rule = updates("direct_feedback_alignment")
    compare(side, "updates", rule, *case, tuple(reversed(products)), expected=aligned)


@given(case=chain_cases(("padded", "circular")), rng=seeds())
def test_one_row_a_channel_is_that_row_at_each_position(
    side: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator
) -> None:
    rule = updates("direct_feedback_alignment")
    rows = direct(case, rng, by_channel=True)
    sizes = [h[0, 0].size for h in case.clean().activities[:-1]]
    whole = tuple(np.repeat(matrix, size, axis=0) for matrix, size in zip(rows, sizes, strict=True))

    def repeated(side: Side, network: Any, x: Any, labels: Any, masks: Any, _: Any) -> Any:
        return rule(side, network, x, labels, masks, tuple(matrix.astype(x.dtype) for matrix in whole))

    compare(side, "updates", rule, *case, rows, expected=repeated)


@given(case=chain_cases(), rng=seeds())
def test_the_output_layer_learns_as_under_backprop(side: Side, case: ChainCase, rng: np.random.Generator) -> None:
    for module, draw in (
        ("feedback_alignment", mirrored),
        ("direct_feedback_alignment", direct),
        ("direct_random_target_projection", direct),
    ):
        operands = side.operands((*case, draw(case, rng)))
        ours = side.results(updates(module)(side, *operands))[-1]
        theirs = side.results(backprop(side, *operands))[-1]
        assert all(rms(a - b) <= 16 * side.eps * rms(b) for a, b in zip(ours, theirs, strict=True)), module


@given(case=chain_cases(), rng=seeds())
def test_target_projection_does_not_look_at_the_output(side: Side, case: ChainCase, rng: np.random.Generator) -> None:
    """Hidden updates are the same whatever the output layer says."""
    feedback = direct(case, rng)
    found = []
    for scale in (1, 2):
        network, x, labels, masks, drawn = side.operands((*case, feedback))
        changed = with_output_layer(network, lambda weight, bias, by=scale: (by * weight + (by - 1), bias))
        layers, x = chain_of(side, changed, x, masks)
        rule = side.direct_random_target_projection
        found.append(side.results(rule.updates(layers, drawn, x, labels)[:-1]))
    flat = [[g for update in updates for g in update] for updates in found]
    assert all(np.array_equal(a, b) for a, b in zip(*flat, strict=True)), "the output is looked at"


@given(case=chain_cases(), rng=seeds())
def test_a_centred_label_is_minus_the_error_of_equal_scores(
    side: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator
) -> None:
    """So that the first step from an output layer of zeros is that of direct feedback alignment through -B_l."""
    feedback = direct(case, rng)

    def from_zeros(module: str, sign: int, **options: Any) -> Any:
        def run(side: Side, network: Any, x: Any, labels: Any, masks: Any, drawn: Any) -> Any:
            without = with_output_layer(network, lambda weight, bias: (0 * weight, None))
            layers, x = chain_of(side, without, x, masks)
            matrices = tuple(sign * matrix for matrix in drawn)
            return getattr(side, module).updates(layers, matrices, x, labels, **options)

        return run

    ours, theirs = (
        from_zeros("direct_random_target_projection", -1, centred=True),
        from_zeros("direct_feedback_alignment", 1),
    )
    compare(side, "updates from zeros", ours, *case, feedback, expected=theirs)


@pytest.mark.parametrize("by_channel", [False, True])
def test_the_feedback_of_all_positions_sums_to_that_of_a_dense_layer(twin: TwinSide, by_channel: bool) -> None:
    """The rows of a map's matrix summed over positions have the mean square of a dense layer's."""
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")
    model = nn.Sequential(nn.Conv2d(1, 600, 3), nn.Flatten(), nn.Linear(600 * 4 * 3, 10))
    rule = DirectFeedbackAlignment(model, image_size=(6, 5), by_channel=by_channel, scale=0.7, generator=seeded(0))
    (matrix,) = rule.feedback
    rows = 12 * matrix if by_channel else matrix.unflatten(0, (600, 12)).sum(dim=1)
    assert rows.shape == (600, 10)
    assert rows.square().mean().item() == pytest.approx(0.7**2 * 2 / 10, rel=0.1), "rows"


@pytest.mark.usefixtures("ours_only")
def test_feedback_alignment_keeps_no_matrix_that_nothing_goes_through(twin: TwinSide) -> None:
    """B_1 would send an error to the input."""
    rule = FeedbackAlignment(dense().to(twin.device))
    kept = {name: tuple(value.shape) for name, value in rule.state_dict().items() if name.startswith("feedback")}
    assert kept == {"feedback_1": (8, 8), "feedback_2": (K, 8)}, "matrices"


@pytest.mark.usefixtures("ours_only")
def test_signs_of_errors_have_no_size(twin: TwinSide) -> None:
    """With `signs`, twice the error teaches the hidden layer the same, and the output layer twice as much."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(twin.device, torch.float64)
    rule = DirectFeedbackAlignment(model, loss="squared_error", signs=True)
    x = torch.randn(6, 5, dtype=torch.float64, device=twin.device)
    scores, error = rule(x).detach(), torch.randn(6, 3, dtype=torch.float64, device=twin.device)
    (hidden, output), (hidden_of_two, output_of_two) = (
        [update.gradients[0] for update in rule.stream(x, scores - size * error)] for size in (1, 2)
    )
    torch.testing.assert_close(hidden_of_two, hidden)
    torch.testing.assert_close(output_of_two, 2 * output)
