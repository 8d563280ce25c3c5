"""Mutual information of a scalar or a vector with a label, in bits, and the errors of its estimates.

    I(X; Y) = sum_k p_k int p(x | k) log2(p(x | k) / p(x)) dx,  Y one of K classes with shares p_k

Nearest neighbours: Ross, PLoS ONE 9(2) e87357, 2014, who takes the estimators of Kraskov, Stögbauer and Grassberger,
Phys. Rev. E 69, 066138, 2004, to a discrete label; tied values as Gao et al. count them, arXiv 1709.06212. Vectors: the
accuracy of a linear classifier, and Fano's inequality. Both are the choices of DTG-FF, arXiv 2606.06539, app. C.2.

No estimator is without bias, and a histogram's can be as large as what is to be measured: with b bins all in use about
(b - 1)(K - 1) / (2 N ln 2) bits, .32 for b = 500, K = 10 and N = 10,000. So `information` gives every estimate together
with what is found where there is nothing to find, and where the truth is known.

Most of SciPy is imported where it is used, since that takes longer than to import all else of a command.
"""

from collections.abc import Callable
from functools import partial
from math import log, log2, pi
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, digamma
from torch import Tensor

from ...losses import cross_entropy_gradient

Floats: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int64]
Estimator: TypeAlias = Callable[[Floats, Labels], float]
"""Values and labels, (N,) both, to bits."""

NEIGHBOURS = 4
"""As published for DTG-FF. Kraskov et al. recommend 2 to 4."""
BINS = (50, 100, 200, 500)
"""As published for DTG-FF."""
CONFIDENCE = 0.95
"""With which "at least" holds in a `Probe`."""


def label_entropy(labels: ArrayLike) -> float:
    """H(Y) of the shares of the labels, (N,), in bits: log2 K where all K classes are as frequent."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log2(shares)))


def nearest_neighbours(values: ArrayLike, labels: ArrayLike, neighbours: int = NEIGHBOURS) -> float:
    """psi(N) + <psi(k) - psi(N_y) - psi(m)>, in bits, for values and labels (N,); may be slightly below 0.

    Of a sample, N_y are those of its class, and m those at most as far as its k-th nearest neighbour of its class is.
    Where that is at distance 0, k is the number of its class at distance 0, itself included, and so is m. A class has
    N_y - 1 neighbours at most; a sample alone in its class is left out. ValueError where all are.
    """
    x, y = _checked(values, labels)
    counts = np.bincount(y)
    x, y = x[counts[y] > 1], y[counts[y] > 1]
    if not len(x):
        raise ValueError("labels: no class has two samples, expected one that has")
    from scipy.spatial import cKDTree

    points = x[:, None]
    radius, k = np.empty(len(x)), np.empty(len(x))
    for label in np.unique(y):
        own = np.flatnonzero(y == label)
        tree = cKDTree(points[own])
        k[own] = min(neighbours, len(own) - 1)
        radius[own] = np.asarray(tree.query(points[own], [int(k[own[0]]) + 1])[0])[:, 0]
        tied = own[radius[own] == 0]
        k[tied] = tree.query_ball_point(points[tied], 0.0, return_length=True)
    within = cKDTree(points).query_ball_point(points, np.nextafter(radius, 0), return_length=True)
    bits = digamma(len(x)) + np.mean(digamma(k) - digamma(counts[y]) - digamma(within))
    return float(bits / log(2))


def histogram(values: ArrayLike, labels: ArrayLike, bins: int) -> float:
    """Of the shares in bins of equal width between the least and the greatest value, in bits; never below 0."""
    x, y = _checked(values, labels)
    if bins < 1:
        raise ValueError(f"bins: {bins}, expected at least 1")
    inner = np.histogram_bin_edges(x, bins)[1:-1]
    counts = np.zeros((bins, y.max() + 1))
    np.add.at(counts, (np.searchsorted(inner, x, side="right"), y), 1)
    joint = counts / len(x)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    used = joint > 0
    return float(np.sum(joint[used] * np.log2(joint[used] / product[used])))


def gaussian_information(means: ArrayLike, shares: ArrayLike) -> float:
    """Bits about the class in a Gaussian of variance 1 with the class's mean, (K,), by numerical integration."""
    centres, p = np.asarray(means, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    reach = 9.0  # standard deviations, beyond which there is 1e-19
    step = 0.02
    x = np.arange(centres.min() - reach, centres.max() + reach, step)
    logs = -0.5 * ((x[:, None] - centres) ** 2 + log(2 * pi))  # (points, K)
    mixture = np.logaddexp.reduce(logs + np.log(np.maximum(p, np.finfo(float).tiny)), axis=1, keepdims=True)
    return float(step * np.sum(np.exp(logs) * (logs - mixture) @ p) / log(2))  # trapezoids, since both ends are 0


class Estimate(NamedTuple):
    """Bits. Beside them, mean and standard deviation of what is found under permuted labels, where the truth is 0, and

    `bias`: the mean error for Gaussian classes of the same sizes with about as many bits, where the truth is known.
    """

    bits: float
    permuted: float
    spread: float
    bias: float


def information(
    values: ArrayLike,
    labels: ArrayLike,
    generator: np.random.Generator,
    *,
    bins: tuple[int, ...] = BINS,
    repeats: int = 10,
) -> dict[str, Estimate]:
    """What each estimator finds in values (N,) about labels (N,), and how far it is off in `repeats` trials.

    The Gaussian classes stand in a row, as far from one another as it takes for as many bits as the nearest neighbours
    find, and no more than 98 % of the label's entropy.
    """
    x, y = _checked(values, labels)
    estimators: dict[str, Estimator] = {
        "nearest neighbours": nearest_neighbours,
        **{f"{count} bins": partial(histogram, bins=count) for count in bins},
    }
    permuted = [generator.permutation(y) for _ in range(repeats)]
    means, truth = _gaussian_classes(y, nearest_neighbours(x, y))
    known = [means[y] + generator.standard_normal(len(y)) for _ in range(repeats)]
    found = {}
    for name, estimator in estimators.items():
        nothing = [estimator(x, labels) for labels in permuted]
        bias = np.mean([estimator(values, y) for values in known]) - truth
        found[name] = Estimate(estimator(x, y), float(np.mean(nothing)), float(np.std(nothing, ddof=1)), float(bias))
    return found


def _gaussian_classes(labels: Labels, bits: float) -> tuple[Floats, float]:
    """Means, (K,), of Gaussian classes of these sizes with about so many bits, and the exact number of bits."""
    shares = np.bincount(labels) / len(labels)
    row = np.arange(len(shares), dtype=np.float64)
    wanted = min(max(bits, 0.0), 0.98 * label_entropy(labels))
    if wanted == 0:
        return 0 * row, 0.0
    from scipy.optimize import brentq

    distance = brentq(lambda d: gaussian_information(d * row, shares) - wanted, 0.0, 10.0, xtol=1e-6)
    return distance * row, gaussian_information(distance * row, shares)


def fano_bound(error: float, num_classes: int, entropy: float | None = None) -> float:
    """H(Y) - H2(P) - P log2(K - 1) or 0, in bits: no less is in what the label was guessed from, with a share P wrong.

    P is the `error`. For a uniform label H(Y) = log2 K, which stands where no `entropy` is given: eq. 12 of DTG-FF. Of
    other labels pass `entropy`, as `label_entropy` gives it: the remaining terms bound H(Y | guess) for any label,
    but with log2 K in place of a smaller H(Y) the bound would promise bits that the label does not have. Always
    guessing a class that nearly all samples have then has a small P, and a bound of 0.
    """
    if not 0 <= error <= 1 or num_classes < 2:
        raise ValueError(f"error, num_classes: {error}, {num_classes}, expected 0..1 and at least 2")
    binary = -sum(p * log2(p) for p in (error, 1 - error) if p > 0)
    own = log2(num_classes) if entropy is None else entropy
    return max(0.0, own - binary - error * log2(num_classes - 1))


def confident_fano_bound(
    wrong: int, samples: int, num_classes: int, entropy: float | None = None, confidence: float = CONFIDENCE
) -> float:
    """`fano_bound` at the greatest error that goes with so many `wrong` guesses of held-out samples, in bits.

    That is the one-sided upper limit of Clopper and Pearson, Biometrika 26, 404, 1934, or 1 - 1/K where it is more, as
    the bound is 0 there and rises again beyond. It is above the guesser's true error with this `confidence` at least,
    and the bound below the information. At the measured error itself it can be too high every other time.
    ValueError for other numbers than 0 <= wrong <= samples, samples at least 1.
    """
    if not 0 <= wrong <= samples or samples < 1:
        raise ValueError(f"wrong, samples: {wrong}, {samples}, expected 0..samples, and at least 1 sample")
    error = betaincinv(wrong + 1, samples - wrong, confidence) if wrong < samples else 1.0
    return fano_bound(min(float(error), 1 - 1 / num_classes), num_classes, entropy)


class Probe(NamedTuple):
    """A linear classifier's accuracy on held-out samples, how many these are, and what it shows, in bits.

    `at_least` is Fano's bound with a confidence of 95 %; `bits` is the bound at the measured error, an estimate of it
    that may be above the information.
    """

    accuracy: float
    samples: int
    bits: float
    at_least: float


def linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    epochs: int = 50,
    rate: float = 0.01,
    batch: int | None = None,
) -> Probe:
    """Softmax regression by Adam on 80 % of the samples, tested on the others: features (N, n), labels (N,).

    Features are standardised by mean and deviation of the 80 %; one that is constant there is left out. Split, epochs
    and rate are those of DTG-FF, which is silent on the batch: 128 samples here, or the 20th part of all where that is
    more, 800 steps. The bounds are for labels of the held-out ones' shares. Features below float32 are taken to it.
    `generator`, a CPU's, draws split and batches. ValueError for fewer than 10 samples.
    """
    if features.dim() != 2 or labels.shape != (len(features),) or len(features) < 10:
        shapes = f"{tuple(features.shape)}, {tuple(labels.shape)}"
        raise ValueError(f"features, labels: shapes {shapes}, expected (N, n) and (N,) with N at least 10")
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    train, held = order.tensor_split([len(order) * 4 // 5])
    batch = max(128, len(labels) // 20) if batch is None else batch
    x, y = features.to(torch.promote_types(features.dtype, torch.float32))[train], labels[train]
    deviation, mean = torch.std_mean(x, dim=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    x = (x - mean) * scale
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, dtype=x.dtype)
    bias = torch.zeros(num_classes, device=x.device, dtype=x.dtype)
    optimizer = torch.optim.Adam([weight, bias], lr=rate, fused=x.device.type in ("cpu", "cuda"))
    for _ in range(epochs):
        for part in torch.randperm(len(train), generator=generator).to(labels.device).split(batch):
            chosen = x.index_select(0, part)
            error = cross_entropy_gradient(torch.addmm(bias, chosen, weight.T), y[part]) / len(part)
            weight.grad, bias.grad = error.T @ chosen, error.sum(dim=0)
            optimizer.step()
    guesses = torch.addmm(bias, (features[held] - mean) * scale, weight.T).argmax(dim=1)
    samples, wrong = len(held), int((guesses != labels[held]).sum())
    entropy = label_entropy(labels[held].numpy(force=True))
    bits = fano_bound(wrong / samples, num_classes, entropy)
    at_least = confident_fano_bound(wrong, samples, num_classes, entropy)
    return Probe(1 - wrong / samples, samples, bits, at_least)


def _checked(values: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Both as arrays of one length. Raises ValueError for other shapes, labels or values."""
    x, y = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"values, labels: shapes {x.shape}, {y.shape}, expected (N,) for both, N at least 1")
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(f"labels: {y.dtype} from {y.min()}, expected integers from 0 on")
    if not np.isfinite(x).all():
        raise ValueError("values: not all finite")
    return x, y.astype(np.int64)
