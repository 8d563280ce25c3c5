"""Goodness: how active a layer is, the number that separates positive from negative data.

    (1)  sum of squares:  sum_j h_j^2                                                scale n
    (2)  mean square:     1/n sum_j h_j^2                                            scale 1
    (3)  mean activity:   1/n sum_j h_j                                              scale 1

Ours.

    (a)  top k:           sum of the k largest h_j^2, k = ceil(share n)              scale k
    (b)  maximum:         (a) with k = 1                                             scale 1
    (c)  entmax:          sum_j w_j h_j^2,  w_j = s_j^2,  s_j = max(h_j^2 / 2 - t, 0),  t such that sum_j w_j = 1
                          gradient 2 h_j w_j for constant w,                         scale 1
                          else 2 h_j (w_j + s_j (h_j^2 - sum_i s_i h_i^2 / sum_i s_i))
    (d)  kurtosis:        1/n sum_j u_j^4 - 3,  u_j = (h_j - mean h) / sqrt(v + eps),  v = mean (h - mean h)^2
                          gradient 4/n (u_j^3 - mean u^3 - u_j mean u^4) / sqrt(v + eps),   scale 1
    (e)  negated:         -g of another goodness g                                   scale minus its own

| field | meaning | shape |
| --- | --- | --- |
| value | the goodness of activities h | (batch, ...) to (batch,); all axes but the first are units |
| gradient | its derivative by h | as h |
| scale | what n units of activity 1 amount to; threshold times scale is a layer's theta | n to a number |

(1) is Hinton's (arXiv 2212.13345), and so is (e) in words: low activity for positive data; (2) that of SymBa (arXiv
2303.08418), and of many implementations of the former; (3) that of DeeperForward (Sun et al., ICLR 2025), which asks
for activities that are not negative, and for a normalisation that removes their mean. (a) to (d) are after "Selectivity
and Shape in the Design of Forward-Forward Goodness Functions" (arXiv 2604.13081), of which we had only the abstract and
a summary of its first version. By that summary the paper takes the mean of the k largest h_j, k = max(5, 0.02 n), where
(a) has the sum of squares, and the entmax of h, where (c) has that of h^2. The 1.5-entmax is that of Peters et al.
(arXiv 1905.05702). The paper's kurtosis and its eps are not known to us. Kurtosis does not change with the scale of
activities, so its theta is the threshold itself; n equal units have no spread, which gives -3. Of 2 units it is always
-2 and of 3 always -1.5, but for eps: there is nothing to learn below 4.

Which units are the largest in (a) and (b) is a constant to the gradient. Of units with the same |h_j| any may be
taken, but no more than k in all, and value and gradient take the same ones.

>>> h = np.array([[3.0, -4.0]])
>>> [g.value(h).tolist() for g in (sum_of_squares, mean_square, mean_activation, maximum)]
[[25.0], [12.5], [-0.5], [16.0]]
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._arrays import Array, check_not_negative

__all__ = [
    "GOODNESS",
    "Goodness",
    "entmax_weighted",
    "excess_kurtosis",
    "maximum",
    "mean_activation",
    "mean_square",
    "negated",
    "sum_of_squares",
    "top_k",
]


class Goodness(NamedTuple):
    """A goodness with its gradient; see the module's table. Both raise ValueError unless h is (batch, ...)."""

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    scale: Callable[[int], float]


def _rows(h: Array) -> Array:
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {h.shape}, expected (batch, ...), at least one of each")
    return h.reshape(len(h), -1)  # (batch, n)


sum_of_squares: Goodness = Goodness(
    value=lambda h: np.sum(_rows(h) ** 2, axis=1),
    gradient=lambda h: 2 * h,
    scale=lambda n: float(n),
)
mean_square: Goodness = Goodness(
    value=lambda h: np.mean(_rows(h) ** 2, axis=1),
    gradient=lambda h: 2 * h / _rows(h).shape[1],
    scale=lambda n: 1.0,
)
mean_activation: Goodness = Goodness(
    value=lambda h: np.mean(_rows(h), axis=1),
    gradient=lambda h: np.full_like(h, 1 / _rows(h).shape[1]),
    scale=lambda n: 1.0,
)


def _largest(count: Callable[[int], int]) -> Goodness:
    """The sum of the count(n) largest squares."""

    def chosen(h: Array) -> Array:
        magnitudes = np.abs(_rows(h))
        largest = np.argsort(-magnitudes, axis=1, kind="stable")[:, : count(magnitudes.shape[1])]
        mask = np.zeros_like(magnitudes)
        np.put_along_axis(mask, largest, 1, axis=1)
        return mask.reshape(h.shape)

    return Goodness(
        value=lambda h: np.sum(_rows(chosen(h) * h**2), axis=1),
        gradient=lambda h: chosen(h) * 2 * h,
        scale=lambda n: float(count(n)),
    )


def top_k(share: float = 0.02) -> Goodness:
    """The sum of the k = ceil(share n) largest squares, equation (a): of (batch, ...), one for each sample.

    The gradient, shaped as h, is of k units; which of equal ones is free. Raises ValueError unless 0 < share <= 1.

    >>> top_k(0.5).value(np.array([[1.0, -3.0, 2.0]])).tolist()  # k = 2 of 3
    [13.0]
    >>> top_k(0.5).gradient(np.array([[1.0, -3.0, 2.0]])).tolist()
    [[0.0, -6.0, 4.0]]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: {share}, expected more than 0 and at most 1")
    return _largest(lambda n: math.ceil(share * n * (1 - 1e-12)))  # 0.07 of 100 is 7, not 7.000000000000001


maximum: Goodness = _largest(lambda n: 1)
"""The largest h_j^2, equation (b)."""


def _entmax_root(z: Array) -> Array:
    """s of equation (c), the square root of the 1.5-entmax of every row: (batch, n).

    Units more than 1 below the largest z / 2 have no part in it, whatever they are: they are lifted to there, so that
    their squares stay finite. With t at the k-th largest, only those above it have a part: where their squares sum to
    less than 1, the k-th has one too, and t is lower. Both sums are of gaps, none of them negative: nothing cancels.
    """
    x = np.maximum((z - np.max(z, axis=1, keepdims=True)) / 2, -1)
    descending = -np.sort(-x, axis=1)
    above = np.arange(x.shape[1])  # how many units are above the one of this place
    gap = -np.diff(descending, axis=1, prepend=descending[:, :1])
    sums = np.cumsum(above * gap, axis=1)  # (batch, n), of s_j, with t at the unit of each place
    squares = np.cumsum(gap * (2 * sums - above * gap), axis=1)  # of s_j^2
    support = np.sum(squares < 1, axis=1, keepdims=True)
    least, total, missing = (np.take_along_axis(a, support - 1, axis=1) for a in (descending, sums, 1 - squares))
    # t is lower than the least by the root of: support u^2 + 2 total u = missing.
    root = missing / (total + np.sqrt(total**2 + support * missing))
    return np.maximum(x - least + root, 0).astype(z.dtype)  # counts are integers, which make float64 of float32


def entmax_weighted(stop_gradient: bool = True) -> Goodness:
    """sum_j w_j h_j^2 of equation (c); with stop_gradient, the weights are constants to the gradient, shaped as h.

    Its functions raise ValueError unless h is (batch, n, ...).

    >>> np.round(entmax_weighted().value(np.array([[2.0, 0.0], [1.0, 1.0]])), 6).tolist()  # weights 1, 0 and 1/2, 1/2
    [4.0, 1.0]
    """

    def gradient(h: Array) -> Array:
        z = _rows(h) ** 2
        s = _entmax_root(z)
        by_z = s**2
        if not stop_gradient:
            by_z = by_z + s * (z - np.sum(s * z, axis=1, keepdims=True) / np.sum(s, axis=1, keepdims=True))
        return 2 * h * by_z.reshape(h.shape)

    return Goodness(
        value=lambda h: np.sum(_entmax_root(_rows(h) ** 2) ** 2 * _rows(h) ** 2, axis=1),
        gradient=gradient,
        scale=lambda n: 1.0,
    )


def excess_kurtosis(eps: float = 1e-6) -> Goodness:
    """The excess kurtosis of a layer's activities, equation (d): of (batch, ...), one for each sample.

    Raises ValueError unless eps >= 0.

    >>> np.round(excess_kurtosis().value(np.array([[1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])), 3).tolist()
    [-3.0, -2.0]
    """
    check_not_negative("eps", eps)

    def standardised(h: Array) -> tuple[Array, Array]:
        centred = _rows(h) - np.mean(_rows(h), axis=1, keepdims=True)
        deviation = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + eps)
        return centred / deviation, deviation

    def gradient(h: Array) -> Array:
        u, deviation = standardised(h)
        cubed, fourth = np.mean(u**3, axis=1, keepdims=True), np.mean(u**4, axis=1, keepdims=True)
        return (4 / u.shape[1] * (u**3 - cubed - fourth * u) / deviation).reshape(h.shape)

    return Goodness(
        value=lambda h: np.mean(standardised(h)[0] ** 4, axis=1) - 3,
        gradient=gradient,
        scale=lambda n: 1.0,
    )


def negated(goodness: Goodness) -> Goodness:
    """-g, for a layer that is to be less active on positive data, equation (e): theta is -threshold * scale.

    Shapes are those of g. The threshold loss then is softplus(g^+ - theta) + softplus(theta - g^-) for the theta of g,
    and the best score is that of the smallest g. Its functions raise ValueError as those of g do.

    >>> negated(sum_of_squares).value(np.array([[3.0, 4.0]])).tolist(), negated(sum_of_squares).scale(2)
    ([-25.0], -2.0)
    """
    return Goodness(
        value=lambda h: -goodness.value(h),
        gradient=lambda h: -goodness.gradient(h),
        scale=lambda n: -goodness.scale(n),
    )


GOODNESS = {
    "sum-of-squares": sum_of_squares,
    "mean-square": mean_square,
    "mean": mean_activation,
    "top-k": top_k(),
    "max": maximum,
    "entmax": entmax_weighted(),
    "kurtosis": excess_kurtosis(),
}
"""Every goodness by the name that rules take."""
