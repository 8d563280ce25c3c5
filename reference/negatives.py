"""Negative data, on which goodness is trained to be low.

    (1)  hard labels:     P(k) proportional to sqrt(max(0, score_k)), or to e^(score_k), for k other than the label
    (2)  hybrid images:   x^- = mask x_1 + (1 - mask) x_2
    (3)  their masks:     a random bit image, `passes` times blurred with [1/4, 1/2, 1/4] along both axes; 1 where > 1/2
    (4)  pairs:           x^+ = [x_i, x_i],  x^- = [x_i, x_j] with j other than i

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| score | scores | (batch, K) | goodness of every label, or scores of a read-out of the neutral pass |
| | labels | (batch,) | the right ones |
| mask | mask | (batch, height, width) | large regions of 0 and 1 |
| j | partner | (batch,) | for every sample the other one |

The root in (1) is that of a public comparison of losses on MNIST; the softmax is Hinton's, from a read-out (arXiv
2212.13345). (2) and (3) are Hinton's for learning without labels; the paper gives neither the number of passes nor what
is beyond the border, which is the border's own pixel here. (4) is SCFF (arXiv 2409.11593), channels side by side.
Through the same weights W for both parts a pair's product is that of a sum: [W, W]/2 [x_i, x_j] = W (x_i + x_j)/2. With
samples of root mean square 1, x_i for the positive pair and (x_i + x_j)/2 for the negative are to be taken as they are
(`normalised` in `forward_forward`): the latter is shorter, and its length separates them.

Along a row, values of a mask last for pi sqrt(passes) pixels in the mean, far from the border: the blurred bits are
nearly normal, with a correlation of e^(-distance^2 / (2 passes)), and cross their mean as often as Rice's formula says.
Exact ties with 1/2, which few passes leave, count as 0.
"""

from typing import Literal, TypeAlias

import numpy as np
from scipy.special import softmax

from ._arrays import (
    Array,
    Labels,
    check_batch,
    check_count,
    check_labels,
    check_numbers,
    check_option,
    check_range,
    check_shape,
)

__all__ = [
    "blurred_masks",
    "hard_wrong_labels",
    "hybrid_images",
    "random_masks",
    "random_partners",
    "self_supervised_pairs",
    "wrong_label_probabilities",
]


Law: TypeAlias = Literal["root", "softmax"]
"""What the probability of a wrong label is proportional to: the root of its score, or the exponential."""


def wrong_label_probabilities(scores: Array, labels: Labels, law: Law = "root") -> Array:
    """P(k) of equation (1): (batch, K), 0 at the label. Where all wrong roots are 0, they are equal.

    Raises ValueError for another law, for fewer than 2 classes and for NaN.

    >>> scores = np.array([[7.0, 9.0, 4.0], [7.0, -1.0, 0.0]])  # roots 3 and 2; of the second sample 0 and 0
    >>> wrong_label_probabilities(scores, np.array([0, 0])).tolist()
    [[0.0, 0.6, 0.4], [0.0, 0.5, 0.5]]
    """
    check_labels(labels, scores.shape[1], len(scores))
    check_numbers("scores", scores)
    check_option("law", law, Law)
    if scores.shape[1] < 2:
        raise ValueError(f"scores: {scores.shape[1]} classes, expected 2 or more")
    wrong = np.arange(scores.shape[1]) != labels[:, None]  # (batch, K)
    if law == "softmax":
        return softmax(np.where(wrong, scores, -np.inf).astype(scores.dtype), axis=1)
    roots = np.sqrt(np.maximum(scores, 0)) * wrong
    roots = np.where(np.sum(roots, axis=1, keepdims=True) > 0, roots, wrong.astype(scores.dtype))
    return roots / np.sum(roots, axis=1, keepdims=True)


def hard_wrong_labels(scores: Array, labels: Labels, rng: np.random.Generator, law: Law = "root") -> Labels:
    """Wrong labels drawn by equation (1): (batch,). Raises ValueError as `wrong_label_probabilities` does.

    >>> scores = np.array([[7.0, 0.0, 1.0]])  # class 0 is right, and class 1 has probability 0
    >>> hard_wrong_labels(scores, np.array([0]), np.random.default_rng(0)).tolist()
    [2]
    """
    probabilities = wrong_label_probabilities(scores, labels, law)
    # The first of independent events with these rates; one of rate 0 never happens.
    return np.argmax(probabilities / rng.exponential(size=probabilities.shape), axis=1)


def hybrid_images(x1: Array, x2: Array, mask: Array) -> Array:
    """mask x_1 + (1 - mask) x_2, (2): as x1, and so is x2, (batch, ...).

    Raises ValueError unless the mask broadcasts to that shape.

    >>> hybrid_images(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])).tolist()
    [[1.0, 4.0]]
    """
    check_shape("x2", x2, x1.shape)
    if mask.ndim != x1.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x1.shape, strict=True)):
        raise ValueError(f"mask: shape {tuple(mask.shape)}, expected {tuple(x1.shape)}, or 1 for some of it")
    return mask * x1 + (1 - mask) * x2


def blurred_masks(noise: Array, passes: int) -> Array:
    """Bits blurred `passes` times, cut at 1/2, (3): as the noise, (batch, height, width). Raises ValueError for NaN.

    >>> blurred_masks(np.array([[[0.0, 1.0, 0.0]]]), 1).tolist()  # 1/4, 1/2, 1/4: none is above 1/2
    [[[0.0, 0.0, 0.0]]]
    >>> blurred_masks(np.array([[[1.0, 1.0, 0.0]]]), 1).tolist()  # 1, 3/4, 1/4: beyond the border is its own pixel
    [[[1.0, 1.0, 0.0]]]
    """
    check_batch("noise", noise, "height, width", 2)
    check_count("passes", passes, 0)
    check_numbers("noise", noise)
    blurred = noise
    for _ in range(passes):
        for axis in (1, 2):
            padded = np.pad(blurred, [(0, 0), *((1, 1) if axis == a else (0, 0) for a in (1, 2))], mode="edge")
            before, at, after = (np.take(padded, np.arange(i, i + noise.shape[axis]), axis) for i in range(3))
            blurred = before / 4 + at / 2 + after / 4
    return (blurred > 0.5).astype(noise.dtype)


def random_masks(shape: tuple[int, int, int], passes: int, rng: np.random.Generator) -> Array:
    """Masks of that shape, (batch, height, width), from bits that are 0 or 1 with even chances, equation (3).

    Raises ValueError unless all of the shape are positive and passes 0 or more.

    >>> np.shape(random_masks((2, 3, 4), 1, np.random.default_rng(0)))
    (2, 3, 4)
    """
    return blurred_masks(rng.integers(0, 2, shape).astype(np.float64), passes)


def self_supervised_pairs(x: Array, partner: Labels) -> tuple[Array, Array]:
    """x^+ and x^- of (4): (batch, 2 n, ...) each. Raises ValueError unless each sample has a partner in the batch.

    >>> positive, negative = self_supervised_pairs(np.array([[1.0], [2.0]]), np.array([1, 0]))
    >>> positive.tolist(), negative.tolist()
    ([[1.0, 1.0], [2.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]])
    """
    check_range("partner", partner, len(x))
    check_shape("partner", partner, (len(x),))
    return np.concatenate([x, x], axis=1), np.concatenate([x, x[partner]], axis=1)


def random_partners(batch: int, rng: np.random.Generator) -> Labels:
    """For every sample another one, each taken once: (batch,). Raises ValueError for a batch of less than 2.

    The samples in a random order, each followed by its partner, the last by the first.

    >>> random_partners(2, np.random.default_rng(0)).tolist()  # never itself
    [1, 0]
    """
    check_count("batch", batch, 2)
    order = rng.permutation(batch)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    return partner
