"""Samplers draw from different generators, so they are compared by distribution, with seeds fixed."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from prograde import accelerated
from prograde.equivalence_tests.placement import Placement, seeded
from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.reference import orthogonality

SIGNIFICANCE = 1e-4


def generator_of(side: Side, seed: int) -> Any:
    """Of NumPy, or of torch for a package that takes its tensors."""
    if isinstance(side, ReferenceSide):
        return np.random.default_rng(seed)
    if not side.takes_tensors:
        pytest.skip("its samplers have a generator of its own framework's")
    return seeded(seed)


def drawn(side: Side, function: Any, *arguments: Any) -> Any:
    """A draw of either side, from a fixed seed, in float64."""
    generator = generator_of(side, 1)
    if isinstance(side, ReferenceSide):
        return side.results(function(*arguments, generator))
    out = function(*arguments, generator, device=Placement.device, dtype=torch.float64)
    return tuple(None if o is None else o.cpu().numpy() for o in out) if isinstance(out, tuple) else out.cpu().numpy()


def test_he_uniform(side: Side) -> None:
    weight = drawn(side, side.layers.he_uniform, (200, 50))
    assert weight.shape == (200, 50)
    bound = np.sqrt(6 / 50)
    assert stats.kstest(weight.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE


def test_error_projection_of_pepita(side: Side) -> None:
    projection = drawn(side, side.pepita.error_projection, (4, 14, 14), 10)
    assert projection.shape == (10, 4, 14, 14)
    bound = 0.05 * np.sqrt(6 / 784)
    assert stats.kstest(projection.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE


def test_feedback_of_ftp(side: Side) -> None:
    drawn_feedback = drawn(side, lambda g, **place: side.ftp.random_feedback(300, 10, g, 0.5, **place))
    assert drawn_feedback.shape == (300, 10)
    bound = 0.5 * np.sqrt(6 / 10)
    assert stats.kstest(drawn_feedback.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE
    normal = drawn(side, lambda g, **place: side.ftp.random_feedback(300, 10, g, 0.5, "normal", **place))
    assert stats.kstest(normal.ravel(), stats.norm(0, bound / np.sqrt(3)).cdf).pvalue > SIGNIFICANCE
    orthogonal = drawn(side, lambda g, **place: side.ftp.random_feedback(300, 10, g, 0.5, "orthogonal", **place))
    assert orthogonality.defect(orthogonal / np.sqrt(300 * bound**2 / 3)) < 1e-12


def test_feedback_straight_from_the_output(side: Side) -> None:
    random_feedback = side.direct_feedback_alignment.random_feedback
    (feedback,) = drawn(side, lambda g, **place: random_feedback((300,), 10, g, 0.5, **place))
    bound = 0.5 * np.sqrt(6 / 10)
    assert stats.kstest(feedback.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE


def test_feedback_of_low_rank(side: Side) -> None:
    """Its entries have the mean square of the full one's."""
    left, right = drawn(side, lambda g, **place: side.ftp.low_rank_feedback(400, 10, 3, g, 0.5, **place))
    assert left.shape == (400, 3)
    assert right.shape == (3, 10)
    assert stats.kstest(left.ravel(), stats.norm(0, 0.5 * np.sqrt(2 / 10)).cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(right.ravel(), stats.norm(0, 1 / np.sqrt(3)).cdf).pvalue > SIGNIFICANCE
    with side.refuses(r"rank: 11, expected 1\.\.10"):
        drawn(side, lambda g, **place: side.ftp.low_rank_feedback(400, 10, 11, g, **place))


def test_feedback_of_the_relatives(side: Side) -> None:
    direct = drawn(side, lambda g, **place: side.direct_feedback_alignment.random_feedback((300, 40), 10, g, **place))
    assert [matrix.shape for matrix in direct] == [(300, 10), (40, 10)]
    bound = np.sqrt(6 / 10)
    assert stats.kstest(direct[0].ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE
    chain = drawn(side, side.feedback_alignment.random_feedback, [(50, 90), (60, 10, 3, 3)])
    assert [matrix.shape for matrix in chain] == [(50, 90), (60, 10, 3, 3)]
    bound = np.sqrt(6 / 90)
    for weight in chain:
        assert stats.kstest(weight.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > SIGNIFICANCE


def test_noise_of_inverses(side: Side) -> None:
    inverse_noise = side.difference_target_propagation.inverse_noise
    noise = drawn(side, lambda g, **place: inverse_noise((300, 40, 10), 50, g, 0.2, **place))
    assert [part.shape for part in noise] == [(50, 300), (50, 40)]
    assert stats.kstest(noise[0].ravel(), stats.norm(0, 0.2).cdf).pvalue > SIGNIFICANCE


def test_read_outs_of_scores(side: Side) -> None:
    """A variance of 1 / K, whatever the number of features is."""
    projection, offset = drawn(side, side.scores.random_projection, 400, 9)
    assert (projection.shape, offset.shape) == ((400, 9), (9,))
    assert stats.kstest(projection.ravel(), stats.norm(0, 1 / 3).cdf).pvalue > SIGNIFICANCE
    _, offset = drawn(side, side.scores.random_projection, 1, 900)
    assert stats.kstest(offset, stats.norm(0, 1 / 30).cdf).pvalue > SIGNIFICANCE


def test_anchors_of_scores(side: Side) -> None:
    logits = drawn(side, lambda g, **place: side.learned_scores.random_logits(300, 10, g, 0.2, **place))
    assert logits.shape == (300, 10)
    assert stats.kstest(logits.ravel(), stats.norm(0, 0.2).cdf).pvalue > SIGNIFICANCE
    standard = drawn(side, side.learned_scores.random_logits, 300, 10)
    assert stats.kstest(standard.ravel(), stats.norm(0, 0.5).cdf).pvalue > SIGNIFICANCE
    prototypes = drawn(side, side.learned_scores.random_prototypes, 10, 3, 64)
    assert prototypes.shape == (10, 3, 64)
    assert stats.kstest(prototypes.ravel(), stats.norm(0, 1 / 8).cdf).pvalue > SIGNIFICANCE


def test_dropout_masks(side: Side) -> None:
    masks = drawn(side, side.layers.dropout_masks, [40, 30, 10], 100, 0.25)
    assert [None if mask is None else mask.shape for mask in masks] == [(100, 40), (100, 30), None]
    kept = np.concatenate([masks[0].ravel(), masks[1].ravel()])
    assert np.allclose(np.unique(kept), [0, 1 / 0.75])
    assert stats.binomtest(int((kept > 0).sum()), kept.size, 0.75).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_orthogonal_is_orthogonal(side: Side, shape: tuple[int, int]) -> None:
    assert orthogonality.defect(drawn(side, side.orthogonality.orthogonal, shape)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.usefixtures("ours_only")
def test_orthogonal_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    assert accelerated.orthogonality.orthogonal((4, 3), dtype=dtype).dtype == dtype


def test_orthogonal_is_uniform(side: Side) -> None:
    """Haar: sqrt(n) times an entry of a random orthogonal matrix is close to normal, and signs are even."""
    entries = np.concatenate([m.diagonal() for m in (drawn_many(side, 300))])
    assert stats.binomtest(int((entries > 0).sum()), entries.size, 0.5).pvalue > SIGNIFICANCE
    squares = np.array([m[0, 0] ** 2 for m in drawn_many(side, 300)])
    assert stats.kstest(squares, stats.beta(0.5, 3.5).cdf).pvalue > SIGNIFICANCE


def drawn_many(side: Side, count: int) -> list[Any]:
    generator, place = generator_of(side, 2), {"device": Placement.device, "dtype": torch.float64}
    if isinstance(side, ReferenceSide):
        return [side.orthogonality.orthogonal((8, 8), generator) for _ in range(count)]
    return [side.orthogonality.orthogonal((8, 8), generator, **place).cpu().numpy() for _ in range(count)]


def test_wrong_labels_are_wrong_and_even(side: Side) -> None:
    labels = np.tile(np.arange(5), 2000)
    generator = generator_of(side, 3)
    if isinstance(side, ReferenceSide):
        wrong = side.forward_forward.wrong_labels(labels, 5, generator)
    else:
        wrong = side.forward_forward.wrong_labels(torch.tensor(labels), 5, generator).cpu().numpy()
    assert not np.any(wrong == labels)
    offsets = np.bincount((wrong - labels) % 5, minlength=5)
    assert offsets[0] == 0
    assert stats.chisquare(offsets[1:]).pvalue > SIGNIFICANCE
