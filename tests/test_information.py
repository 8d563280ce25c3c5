"""Estimates of information, where the truth is known: by hand, in closed form or by integration."""

from collections.abc import Callable
from functools import partial
from math import log, log2

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import digamma

from prograde.accelerated.training.diagnostics.information import (
    Probe,
    confident_fano_bound,
    fano_bound,
    gaussian_information,
    histogram,
    information,
    label_entropy,
    linear_probe,
    nearest_neighbours,
)

Data = tuple[NDArray[np.float64], NDArray[np.int64]]


def gaussian_classes(samples: int, means: NDArray[np.float64], generator: np.random.Generator) -> Data:
    labels = generator.integers(len(means), size=samples)
    return means[labels] + generator.standard_normal(samples), labels


ESTIMATORS: dict[str, Callable[..., float]] = {
    "nearest_neighbours": nearest_neighbours,
    "histogram": partial(histogram, bins=16),
}
every = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def test_nearest_neighbours_sample_by_sample() -> None:
    """The published sum, over all pairs of samples: m counts those at most as far as the k-th of the own class.

    By default k is 4, as for DTG-FF.
    """
    generator = np.random.default_rng(0)
    x, y = gaussian_classes(37, np.array([0.0, 1.0, 1.5]), generator)
    x, y = np.append(x, 0.3), np.append(y, 3)  # alone in its class
    for k, found in ((2, nearest_neighbours(x, y, neighbours=2)), (4, nearest_neighbours(x, y))):
        terms = []
        for i in range(37):
            own = sorted(abs(x[j] - x[i]) for j in range(37) if j != i and y[j] == y[i])
            m = sum(abs(x[j] - x[i]) <= own[k - 1] for j in range(37) if j != i)
            terms.append(digamma(k) - digamma(len(own) + 1) - digamma(m))
        assert found == pytest.approx((digamma(37) + np.mean(terms)) / log(2), rel=1e-12)


def test_no_more_neighbours_than_a_class_has() -> None:
    """Two of a class have one neighbour each, whatever k is."""
    x, y = np.array([0.0, 1.0, 10.0, 12.0]), np.array([0, 0, 1, 1])
    expected = (digamma(4) + digamma(1) - digamma(2) - digamma(1)) / log(2)
    assert nearest_neighbours(x, y) == pytest.approx(expected, rel=1e-12)


def test_histogram_by_hand() -> None:
    """Bins [0, 1) and [1, 2]; shares 3, 1 / 0, 4 of 8."""
    x, y = np.array([0.0, 0.1, 0.9, 0.5, 1.0, 1.2, 1.9, 2.0]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    shares = {(0, 0): (3, 4 * 3), (0, 1): (1, 4 * 5), (1, 1): (4, 4 * 5)}
    expected = sum(n / 8 * log2(n * 8 / product) for n, product in shares.values())
    assert histogram(x, y, 2) == pytest.approx(expected, rel=1e-12)
    assert histogram(x, y, 1) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
def test_two_intervals(overlap: float) -> None:
    """Uniform on [0, 1] and on [1 - o, 2 - o]: the label is told outside the overlap, and not at all inside."""
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for _ in range(20):
        y = generator.integers(2, size=2000)
        x = generator.random(2000) + y * (1 - overlap)
        for name, estimator in ESTIMATORS.items():
            found[name].append(estimator(x, y))
    entropy_spread = 4 * 0.02 / 20**0.5  # of the share outside the overlap, and of the label's own shares
    assert abs(np.mean(found["nearest_neighbours"]) - (1 - overlap)) < entropy_spread + 0.002
    # Some bins reach across an interval's end, by a sample's distance from it, and lose what is there.
    assert -0.03 < np.mean(found["histogram"]) - (1 - overlap) < entropy_spread + 16 / (2 * 2000 * log(2))


def test_gaussian_truth() -> None:
    """By symmetry, by limits, and two classes by the entropy of their posterior at drawn points."""
    assert gaussian_information([0, 0, 0], [0.2, 0.3, 0.5]) == pytest.approx(0, abs=1e-12)
    assert gaussian_information([0, 30, 60, 90], [0.25] * 4) == pytest.approx(2, rel=1e-9)
    assert gaussian_information([0, 30], [0.9, 0.1]) == pytest.approx(-0.9 * log2(0.9) - 0.1 * log2(0.1), rel=1e-9)
    x, y = gaussian_classes(400_000, np.array([-0.5, 0.5]), np.random.default_rng(0))
    told = 1 - np.log2(1 + np.exp(-x * (2 * y - 1)))  # log2 p(y | x) + 1 bit
    assert abs(told.mean() - gaussian_information([0, 1], [0.5, 0.5])) < 4 * told.std() / 400_000**0.5


@pytest.mark.parametrize(("classes", "distance"), [(2, 1.0), (10, 0.2), (10, 1.0)])
def test_gaussian_classes(classes: int, distance: float) -> None:
    """Nearest neighbours within .01 bits of the integral."""
    generator = np.random.default_rng(0)
    means = distance * np.arange(classes)
    truth = gaussian_information(means, np.full(classes, 1 / classes))
    data = [gaussian_classes(2000, means, generator) for _ in range(12)]
    found = np.array([nearest_neighbours(*each) for each in data]) - truth
    assert abs(found.mean()) < 0.01 + 4 * found.std() / 12**0.5


def test_a_histogram_finds_what_its_bins_make() -> None:
    """Where there is nothing, (b - 1)(K - 1) / (2 N ln 2) bits, with as many samples to a bin as to another."""
    generator = np.random.default_rng(0)
    x = (np.arange(6000) + 0.5) / 6000
    found = [histogram(x, generator.integers(4, size=6000), 50) for _ in range(30)]
    assert np.mean(found) == pytest.approx(49 * 3 / (2 * 6000 * log(2)), rel=0.05)


def test_published_bits_rise_with_the_bins_as_their_bias_does() -> None:
    """.22, .24, .28, .38 bits at 50, 100, 200, 500 bins are published for 10,000 samples of 10 classes, and .20 or .24

    by neighbours: what Gaussian classes with .2 bits give is .03 more at the fewest bins, and .2 more at the most.
    """
    means = 0.2 * np.arange(10)
    data = gaussian_classes(10_000, means, np.random.default_rng(0))
    truth = gaussian_information(means, np.full(10, 0.1))
    rises = [histogram(*data, bins) - truth for bins in (50, 100, 200, 500)]
    assert truth == pytest.approx(0.206, abs=1e-3)
    assert rises == sorted(rises)
    assert 0.01 < rises[0] < 0.04
    assert 0.18 < rises[3] < 0.26


@every
def test_units_order_and_place_do_not_matter(estimator: Callable[..., float]) -> None:
    x, y = gaussian_classes(300, np.array([0.0, 0.5, 2.0]), np.random.default_rng(1))
    found = estimator(x, y)
    assert found > 0.1
    assert estimator(8 * x, y) == pytest.approx(found, rel=1e-9)
    assert estimator(x - 2.0, y) == pytest.approx(found, rel=1e-9)
    order = np.random.default_rng(2).permutation(300)
    assert estimator(x[order], y[order]) == pytest.approx(found, rel=1e-9)
    assert estimator(x, np.array([2, 0, 1])[y]) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("estimator", [nearest_neighbours, partial(histogram, bins=50)])
def test_tied_values(estimator: Callable[..., float]) -> None:
    """A dead layer has one value for all; values that are the labels tell all of them; half of them dead, half."""
    y = np.arange(1000) % 4
    assert estimator(np.zeros(1000), y) == pytest.approx(0, abs=0.01)
    assert estimator(y.astype(float), y) == pytest.approx(2, abs=0.01)
    assert estimator(np.where(np.arange(1000) < 500, -1.0, y), y) == pytest.approx(1, abs=0.02)


def test_rare_classes() -> None:
    """A class's share counts, not its place: at most the label's entropy, and near it where classes are far apart."""
    y = np.repeat([0, 1, 2], [900, 80, 20])
    x = 10.0 * y + np.random.default_rng(0).standard_normal(1000)
    entropy = -sum(p * log2(p) for p in (0.9, 0.08, 0.02))
    assert label_entropy(y) == pytest.approx(entropy, rel=1e-12)
    assert nearest_neighbours(x, y) == pytest.approx(entropy, abs=0.01)
    assert histogram(x, y, 200) == pytest.approx(entropy, abs=1e-9)
    assert label_entropy(np.arange(30) % 5) == pytest.approx(log2(5))


def test_estimates_stand_beside_their_bias() -> None:
    generator = np.random.default_rng(0)
    means = 0.3 * np.arange(10)
    x, y = gaussian_classes(2000, means, generator)
    truth = gaussian_information(means, np.full(10, 0.1))
    found = information(x, y, generator, repeats=4)
    assert list(found) == ["nearest neighbours", "50 bins", "100 bins", "200 bins", "500 bins"]
    nearest, many = found["nearest neighbours"], found["500 bins"]
    assert abs(nearest.permuted) < 4 * nearest.spread
    assert abs(nearest.bias) < 0.01 + 4 * nearest.spread / 4**0.5
    assert many.permuted > 0.5
    assert many.bits - truth > 0.5
    for estimate in found.values():  # these are Gaussian classes, so that the bias is just that
        assert estimate.bits - estimate.bias == pytest.approx(truth, abs=0.08)


def test_what_is_known_has_the_classes_sizes() -> None:
    """Values that tell nothing, and values that tell all: the known case follows, and stays below the entropy."""
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [500, 400, 100])
    nothing = information(generator.standard_normal(1000), y, generator, bins=(50,))
    everything = information(100.0 * y + generator.random(1000), y, generator, bins=(50,))
    assert abs(nothing["nearest neighbours"].bias) < 0.05
    assert abs(everything["nearest neighbours"].bias) < 0.05
    assert everything["50 bins"].bits == pytest.approx(label_entropy(y), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 10])
def test_fano_is_exact_for_evenly_spread_errors(classes: int) -> None:
    """Then the bound is the information of the guess itself; nothing is left at chance."""
    assert fano_bound(0, classes) == pytest.approx(log2(classes))
    assert fano_bound(1 - 1 / classes, classes) == pytest.approx(0, abs=1e-12)
    error = 0.3
    joint = np.full((classes, classes), error / (classes - 1) / classes)
    np.fill_diagonal(joint, (1 - error) / classes)
    told = np.sum(joint * np.log2(joint * classes**2))
    assert fano_bound(error, classes) == pytest.approx(told, rel=1e-12)


def test_fano_bounds_any_guess() -> None:
    """And with log2 K in place of the entropy, for labels of unequal shares, it does not."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        joint = generator.dirichlet(np.full(9, 0.2)).reshape(3, 3) + 1e-300
        labels, guesses = joint.sum(axis=1), joint.sum(axis=0)
        told = np.sum(joint * np.log2(joint / np.outer(labels, guesses)))
        entropy = -np.sum(labels * np.log2(labels))
        assert fano_bound(min(1.0, max(0.0, 1 - np.trace(joint))), 3, entropy) <= told + 1e-12
    always = 0.05  # errors of always guessing a class that 95 % have
    assert fano_bound(always, 3) > 1
    assert fano_bound(always, 3, -0.95 * log2(0.95) - 0.05 * log2(0.05)) == 0


@pytest.mark.parametrize(("error", "classes"), [(-0.1, 3), (1.1, 3), (0.5, 1)])
def test_fano_refuses(error: float, classes: int) -> None:
    with pytest.raises(ValueError, match="error, num_classes"):
        fano_bound(error, classes)


def even_errors(
    labels: NDArray[np.int64], error: float, classes: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Guesses of which this share is wrong, each wrong class as often: what is told is Fano's bound, and no more."""
    wrong = generator.random(len(labels)) < error
    return (labels + wrong * generator.integers(1, classes, size=len(labels))) % classes


@pytest.mark.parametrize(("classes", "error"), [(2, 0.01), (2, 0.1), (2, 0.4), (10, 0.01), (10, 0.4), (10, 0.8)])
def test_a_confident_bound_is_below_the_truth(classes: int, error: float) -> None:
    """In 95 % of draws at least; not much below; and at the measured error it would be in far fewer."""
    generator, truth, draws = np.random.default_rng(0), fano_bound(error, classes), 400
    y = np.arange(500) % classes
    wrong = [int((even_errors(y, error, classes, generator) != y).sum()) for _ in range(draws)]
    bounds = np.array([confident_fano_bound(count, 500, classes) for count in wrong])
    estimates = np.array([fano_bound(min(count / 500, 1 - 1 / classes), classes) for count in wrong])
    slack = 2 * (0.05 * 0.95 / draws) ** 0.5
    assert (bounds <= truth).mean() >= 0.95 - slack
    assert (estimates <= truth).mean() < 0.75
    assert (bounds <= estimates).all()
    spread = (error * (1 - error) / 500) ** 0.5
    assert np.mean(bounds) >= fano_bound(min(error + 3 * spread + 0.005, 1 - 1 / classes), classes)


def test_a_confident_bound_by_hand() -> None:
    """None wrong of n: an error of 1 - .05^(1/n) would have shown itself with 95 %. All wrong: nothing is promised."""
    assert confident_fano_bound(0, 100, 4) == pytest.approx(fano_bound(1 - 0.05**0.01, 4), rel=1e-9)
    assert confident_fano_bound(0, 100, 4, confidence=0.5) == pytest.approx(fano_bound(1 - 0.5**0.01, 4), rel=1e-9)
    assert confident_fano_bound(0, 100, 4, entropy=1.5) == pytest.approx(fano_bound(1 - 0.05**0.01, 4, 1.5), rel=1e-9)
    assert fano_bound(1, 4) > 0.4
    assert confident_fano_bound(100, 100, 4) == pytest.approx(0, abs=1e-12)
    for wrong, samples in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="wrong, samples"):
            confident_fano_bound(wrong, samples, 4)


def test_a_confident_bound_of_labels_of_unequal_shares() -> None:
    """A class that is guessed worse than another: the truth is that of the joint shares."""
    generator, draws = np.random.default_rng(0), 400
    y = np.repeat([0, 1], [400, 100])
    flipped = np.array([0.02, 0.15])
    joint = np.array([0.8, 0.2])[:, None] * np.array([[0.98, 0.02], [0.15, 0.85]])
    truth = np.sum(joint * np.log2(joint / np.outer(joint.sum(axis=1), joint.sum(axis=0))))
    wrong = [int((generator.random(500) < flipped[y]).sum()) for _ in range(draws)]
    held = [confident_fano_bound(count, 500, 2, label_entropy(y)) <= truth for count in wrong]
    assert np.mean(held) >= 0.95


def test_what_a_probe_has_at_least_it_has() -> None:
    """Features are guesses with evenly spread errors: the probe finds them, and nothing more is in them."""
    generator, draws, error = np.random.default_rng(0), 60, 0.2
    truth, y = fano_bound(error, 3), np.arange(1000) % 3
    found = []
    for seed in range(draws):
        guesses = torch.from_numpy(even_errors(y, error, 3, generator))
        features, labels = torch.eye(3)[guesses], torch.from_numpy(y)
        found.append(linear_probe(features, labels, 3, torch.Generator().manual_seed(seed), epochs=2))
    assert np.mean([each.at_least <= truth for each in found]) >= 0.95
    assert np.mean([each.bits <= truth for each in found]) < 0.75
    assert all(0 < each.at_least < each.bits for each in found)
    assert np.mean([each.accuracy for each in found]) == pytest.approx(1 - error, abs=0.01)


def probe(features: torch.Tensor, labels: torch.Tensor, classes: int, **changes: int) -> Probe:
    return linear_probe(features, labels, classes, torch.Generator().manual_seed(0), **changes)


def test_a_probe_reads_what_is_linear() -> None:
    """Held-out corners of a cube are told apart, whatever the units; random labels are not."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(1000) % 4
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])[y] + 0.05 * torch.randn(1000, 2, generator=generator)
    features = torch.cat([corners, torch.full((1000, 1), 7.0), torch.randn(1000, 3, generator=generator)], dim=1)
    found = probe(features, y, 4)
    assert (found.accuracy, found.samples) == (1, 200)
    assert found.bits == pytest.approx(2, abs=0.03)
    assert found.at_least == pytest.approx(found.bits - 2 + fano_bound(1 - 0.05 ** (1 / 200), 4), abs=1e-9)
    noisy = features + torch.randn(1000, 6, generator=generator) / 2
    assert 0.4 < probe(noisy, y, 4).accuracy < 0.9
    assert probe(torch.logspace(-3, 3, 6) * noisy - 5, y, 4).accuracy == pytest.approx(
        probe(noisy, y, 4).accuracy, abs=0.01
    )
    chance = probe(features, y[torch.randperm(1000, generator=generator)], 4)
    assert chance.accuracy == pytest.approx(0.25, abs=0.12)
    assert chance.at_least < 0.02
    assert chance.bits < 0.05


def test_a_probe_is_held_to_samples_it_has_not_seen() -> None:
    """Enough features to learn any labels by heart."""
    generator = torch.Generator().manual_seed(1)
    features, y = torch.randn(200, 300, generator=generator), torch.arange(200) % 2
    y = y[torch.randperm(200, generator=generator)]
    assert probe(features, y, 2).accuracy < 0.75


def test_a_probe_draws_from_its_generator_alone() -> None:
    features, y = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 2
    before = torch.get_rng_state()
    assert probe(features, y, 2, epochs=2) == probe(features, y, 2, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert features.requires_grad is False


def test_unequal_labels_promise_no_more_than_they_have() -> None:
    y = (torch.arange(1000) % 20 == 0).long()
    found = probe(torch.randn(1000, 2, generator=torch.Generator().manual_seed(1)), y, 2, epochs=5)
    assert found.accuracy > 0.9
    assert found.bits < 0.05


def test_bad_input() -> None:
    x, y = np.arange(6.0), np.arange(6) % 2
    with pytest.raises(ValueError, match=r"values, labels: shapes \(6,\), \(5,\)"):
        nearest_neighbours(x, y[:5])
    with pytest.raises(ValueError, match="labels: float64"):
        histogram(x, y.astype(float), 3)
    with pytest.raises(ValueError, match="labels: int64 from -1"):
        histogram(x, y - 1, 3)
    with pytest.raises(ValueError, match="values: not all finite"):
        histogram(np.where(x > 4, np.nan, x), y, 3)
    with pytest.raises(ValueError, match="bins: 0"):
        histogram(x, y, 0)
    with pytest.raises(ValueError, match="no class has two samples"):
        nearest_neighbours(x, np.arange(6))
    with pytest.raises(ValueError, match="features, labels: shapes"):
        probe(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64), 2)
