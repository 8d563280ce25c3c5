"""Negative data: twin against reference, samplers by distribution, and what each kind of negative promises."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.placement import Placement, seeded
from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.equivalence_tests.strategies import arrays, scored, seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

SIGNIFICANCE = 1e-4
laws = st.sampled_from(["root", "softmax"])


@st.composite
def bits(draw: st.DrawFn) -> Any:
    """(batch, height, width) of 0 and 1, with a region of each that a few blurs leave."""
    batch, height, width = (draw(st.sampled_from(sizes), label="size") for sizes in ((1, 2, 5), (9, 14), (11, 13)))
    noise = draw(seeds()).integers(0, 2, (batch, height, width)).astype(np.float64)
    noise[:, :5, :5], noise[:, -5:, -5:] = 1, 0
    return noise


@given(case=scored(), law=laws)
def test_wrong_label_probabilities(twin: Side, compare: Comparison, case: Any, law: str) -> None:
    """Scores of either sign, with a wrong one above 0 for every sample."""
    scores, labels = case
    scores[np.arange(len(labels)), (labels + 1) % scores.shape[1]] = 2.5

    def call(side: Side, scores: Any, labels: Any) -> Any:
        return side.negatives.wrong_label_probabilities(scores, labels, law)

    compare(twin, "wrong_label_probabilities", call, scores, labels)


@given(rng=seeds(), shape=st.sampled_from([(3, 5), (1, 7), (4, 2, 6, 5)]))
def test_hybrid_images(twin: Side, compare: Comparison, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x1, x2 = rng.standard_normal((2, *shape))
    mask = rng.integers(0, 2, shape).astype(float)
    compare(twin, "hybrid_images", lambda side, *o: side.negatives.hybrid_images(*o), x1, x2, mask)


@given(noise=bits(), passes=st.sampled_from([1, 2, 6, 10]))
def test_blurred_masks(twin64: Side, compare: Comparison, noise: Any, passes: int) -> None:
    """Bit for bit in float64, where so few passes are exact."""
    compare.exactly(twin64, "blurred_masks", lambda side, n: side.negatives.blurred_masks(n, passes), noise)


@given(x=arrays(), rng=seeds())
def test_self_supervised_pairs(twin: Side, compare: Comparison, x: Any, rng: np.random.Generator) -> None:
    def pairs(side: Side, x: Any, partner: Any) -> Any:
        return side.negatives.self_supervised_pairs(x, partner)

    compare(twin, "self_supervised_pairs", pairs, x, rng.permutation(len(x)))


@given(case=scored(), law=laws, silent=st.booleans())
def test_the_right_label_has_no_chance(side: Side, case: Any, law: str, silent: bool) -> None:
    """The others share all of it, in the ratio of the law; evenly where none of them is active at all."""
    scores, labels = case
    if silent:
        scores = np.where(np.eye(scores.shape[1])[labels] == 1, 5.0, -1.0)
    operands = side.operands((scores, labels))
    p, scores = side.results((side.negatives.wrong_label_probabilities(*operands, law), operands[0]))
    count = scores.shape[1]
    assert np.all(p[np.arange(len(labels)), labels] == 0), "the right label may be drawn"
    assert np.allclose(p.sum(axis=1), 1, rtol=8 * side.eps), "not a distribution"
    wrong = np.eye(count)[labels] == 0
    weights = np.where(wrong, np.exp(scores) if law == "softmax" else np.sqrt(np.maximum(scores, 0)), 0)
    weights[weights.sum(axis=1) == 0] = 1
    weights = weights * wrong
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert np.allclose(p, expected, rtol=0, atol=32 * side.eps), "law"


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_goodness_of_any_size(side: Side, size: float) -> None:
    scores = side.operands(size * np.array([[1.0, 4.0, 9.0, 0.0]]))
    p = side.results(side.negatives.wrong_label_probabilities(scores, side.operands(np.array([1]))))
    assert np.allclose(p, [[0.25, 0, 0.75, 0]], rtol=8 * side.eps)


def place(side: Side) -> dict[str, Any]:
    """Where the twin's samplers draw, if not where their operands lie."""
    return {} if side.name == "reference" else {"device": Placement.device}


def sampled(side: Side, function: Any, seed: int = 3, **place: Any) -> Any:
    """A draw of either side from a fixed seed."""
    if isinstance(side, ReferenceSide):
        return function(np.random.default_rng(seed))
    if not side.takes_tensors:
        pytest.skip("its samplers have a generator of its own framework's")
    return function(seeded(seed), **place).cpu().numpy()


def test_hard_wrong_labels_are_wrong_and_as_likely_as_said(side: Side) -> None:
    """Beside a label of the greatest goodness, which is never drawn."""
    from scipy.stats import chisquare

    scores = side.operands(np.tile([[1.0, 100.0, 2.25, 0.25, 4.0]], (12_000, 1)))
    labels = side.operands(np.full(12_000, 1))
    for law, weights in (("root", np.array([1, 1.5, 0.5, 2])), ("softmax", np.exp([1, 2.25, 0.25, 4]))):

        def draw(generator: Any, law: str = law) -> Any:
            return side.negatives.hard_wrong_labels(scores, labels, generator, law)

        counts = np.bincount(sampled(side, draw), minlength=5)
        assert counts[1] == 0, "the right label was drawn"
        assert chisquare(counts[[0, 2, 3, 4]], 12_000 * weights / weights.sum()).pvalue > SIGNIFICANCE, law


@pytest.mark.parametrize(
    ("shape", "law", "said"),
    [
        ((2, 3), "square", "law: 'square', expected 'root' or 'softmax'"),
        ((2, 1), "root", "scores: 1 classes, expected 2"),
    ],
)
def test_no_law_and_no_wrong_label_is_refused(side: Side, shape: tuple[int, int], law: str, said: str) -> None:
    scores, labels = side.operands((np.ones(shape), np.zeros(2, dtype=np.int64)))
    with side.refuses(said):
        side.negatives.wrong_label_probabilities(scores, labels, law)


@given(rng=seeds())
def test_a_hybrid_is_of_one_image_or_the_other(side: Side, rng: np.random.Generator) -> None:
    """Bit for bit: where the mask is 1 of the first, else of the second."""
    x1, x2 = side.operands(tuple(rng.standard_normal((2, 3, 2, 6, 7))))
    mask = rng.integers(0, 2, (3, 1, 6, 7)).astype(float)
    hybrid = side.results(side.negatives.hybrid_images(x1, x2, side.operands(mask)))
    first, second = side.results((x1, x2))
    assert np.array_equal(hybrid, np.where(mask == 1, first, second)), "wrong image"


@given(noise=bits(), passes=st.sampled_from([1, 3, 6]))
def test_masks_are_of_zeros_and_ones_and_of_no_direction(side: Side, noise: Any, passes: int) -> None:
    """Constant bits stay, for the blur sums to 1 up to the border; mirrored or transposed bits give such masks."""

    def mask(noise: Any) -> Any:
        return side.results(side.negatives.blurred_masks(side.operands(noise), passes))

    ours = mask(noise)
    assert set(np.unique(ours)) == {0.0, 1.0}, "not a mask"
    assert np.all(mask(np.ones_like(noise)) == 1), "ones do not stay"
    assert np.all(mask(np.zeros_like(noise)) == 0), "zeros do not stay"
    for turned in (lambda n: n[:, ::-1], lambda n: n[:, :, ::-1], lambda n: n.swapaxes(1, 2)):
        assert np.array_equal(mask(turned(noise).copy()), turned(ours)), "a direction of its own"


def test_a_blur_by_hand(side: Side) -> None:
    """One bit of five: 1/4, 1/2, 1/4 of it; columns, then rows. At a corner 3/4 of it stay along either axis: 9/16."""
    noise = np.zeros((2, 5, 5))
    noise[0, 0, 0] = 1
    noise[1, 1:4, 2] = 1  # at its middle 1 of the column, 1/2 of the row: a tie, no majority
    mask = side.results(side.negatives.blurred_masks(side.operands(noise), 1))
    assert mask[0].sum() == mask[0, 0, 0] == 1, "the corner"
    assert mask[1].sum() == 0, "a tie"
    assert side.results(side.negatives.blurred_masks(side.operands(noise), 2)).sum() == 0, "a second pass"


def test_random_masks(side: Side) -> None:
    """Even chances of both values, and regions pi sqrt(passes) pixels wide."""
    for passes in (6, 16):

        def draw(generator: Any, passes: int = passes, **place: Any) -> Any:
            return side.negatives.random_masks((60, 96, 100), passes, generator, **place)

        mask = sampled(side, draw, **place(side), **({} if side.name == "reference" else {"dtype": torch.float64}))
        assert mask.shape == (60, 96, 100)
        assert abs(mask.mean() - 0.5) < 0.01, "chances"
        inner = mask[:, 10:-10, 10:-10]
        width = 1 / np.mean(inner[:, :, 1:] != inner[:, :, :-1])
        assert abs(width / (np.pi * np.sqrt(passes)) - 1) < 0.07, "width of regions"
    if side.name == "twin":
        assert side.negatives.random_masks((1, 4, 4), 2).dtype == torch.get_default_dtype()


@given(x=arrays(), seed=st.integers(0, 10_000))
def test_partners_are_others(side: Side, x: Any, seed: int) -> None:
    """Each sample is a partner once, and never its own; the positive pair is the sample twice."""
    if len(x) == 1:
        with side.refuses("batch: 1, expected 2 or more"):
            sampled(side, lambda g: side.negatives.random_partners(1, g, **place(side)))
        return
    partner = sampled(side, lambda g: side.negatives.random_partners(len(x), g, **place(side)), seed)
    assert sorted(partner) == list(range(len(x))), "not each sample once"
    assert np.all(partner != np.arange(len(x))), "its own partner"
    operand = side.operands(x)
    pairs = side.negatives.self_supervised_pairs(operand, side.operands(partner))
    (positive, negative), x = side.results((pairs, operand))
    half = x.shape[1]
    assert np.array_equal(positive, np.tile(x, 2)), "positive pair"
    assert np.array_equal(negative[:, :half], x), "first of the negative pair"
    assert np.array_equal(negative[:, half:], x[partner]), "second of the negative pair"


def test_partners_are_drawn_evenly(side: Side) -> None:
    from scipy.stats import chisquare

    drawn = [sampled(side, lambda g: side.negatives.random_partners(6, g, **place(side)), seed) for seed in range(900)]
    counts = np.array([np.bincount(np.array(drawn)[:, i], minlength=6) for i in range(6)])
    for i in range(6):
        assert counts[i, i] == 0
        assert chisquare(np.delete(counts[i], i)).pvalue > SIGNIFICANCE
