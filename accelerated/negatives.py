"""Negative data, on which goodness is trained to be low; see the reference.

A blur with its border repeated is a matrix of one axis, and that of many passes its power: two products for any number
of passes. Half precision has too few digits for it, and blurs in float32.
"""

from typing import Literal, TypeAlias

import torch

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
    """For labels other than the right one proportional to the root of their score, or to its exponential: (batch, K).

    Where all wrong roots are 0, they are equal. Raises ValueError for another law than `root` or `softmax`, and for
    fewer than 2 classes.
    """
    check_labels(labels, scores.shape[1], len(scores))
    check_numbers("scores", scores)
    check_option("law", law, Law)
    if scores.shape[1] < 2:
        raise ValueError(f"scores: {scores.shape[1]} classes, expected 2 or more")
    if law == "softmax":
        return scores.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    roots = scores.clamp(min=0).sqrt().scatter(1, labels[:, None], 0)
    silent = roots.sum(dim=1, keepdim=True) == 0
    roots = torch.where(silent, torch.ones_like(roots).scatter_(1, labels[:, None], 0), roots)
    return roots / roots.sum(dim=1, keepdim=True)


def hard_wrong_labels(
    scores: Array, labels: Labels, generator: torch.Generator | None = None, law: Law = "root"
) -> Labels:
    """Wrong labels drawn by these probabilities: (batch,)."""
    probabilities = wrong_label_probabilities(scores, labels, law)
    # p / e is largest at each label as often as p says, for e exponential; multinomial would wait for the device.
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(dim=1)


def hybrid_images(x1: Array, x2: Array, mask: Array) -> Array:
    """mask x_1 + (1 - mask) x_2, of any shape that the mask's broadcasts to."""
    check_shape("x2", x2, x1.shape)
    if mask.ndim != x1.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x1.shape, strict=True)):
        raise ValueError(f"mask: shape {tuple(mask.shape)}, expected {tuple(x1.shape)}, or 1 for some of it")
    return torch.lerp(x2, x1, mask)


def _blur(n: int, passes: int, like: Array) -> Array:
    """The matrix of so many blurs of n pixels: (n, n)."""
    neighbours = torch.eye(n, dtype=like.dtype, device=like.device) / 2
    off = torch.full((n - 1,), 0.25, dtype=like.dtype, device=like.device)
    matrix = neighbours + off.diag(1) + off.diag(-1)
    matrix[0, 0] += 0.25
    matrix[-1, -1] += 0.25
    return torch.linalg.matrix_power(matrix, passes)


def blurred_masks(noise: Array, passes: int) -> Array:
    """Bits, blurred with [1/4, 1/2, 1/4] along both axes, 1 where > 1/2: (batch, height, width), as is the noise."""
    check_batch("noise", noise, "height, width", 2)
    check_count("passes", passes, 0)
    check_numbers("noise", noise)
    wide = noise.float() if noise.element_size() < 4 else noise
    blurred = _blur(noise.shape[1], passes, wide) @ wide @ _blur(noise.shape[2], passes, wide)
    return (blurred > 0.5).to(noise.dtype)


def random_masks(
    shape: tuple[int, int, int],
    passes: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """Masks of that shape, (batch, height, width), from bits that are 0 or 1 with even chances."""
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return blurred_masks(bits.to(dtype or torch.get_default_dtype()), passes)


def self_supervised_pairs(x: Array, partner: Labels) -> tuple[Array, Array]:
    """Positive pairs [x_i, x_i] and negative ones [x_i, x_j] side by side along axis 1: (batch, 2 n, ...) each."""
    check_range("partner", partner, len(x))
    check_shape("partner", partner, (len(x),))
    return torch.cat([x, x], dim=1), torch.cat([x, x[partner]], dim=1)


def random_partners(
    batch: int, generator: torch.Generator | None = None, *, device: torch.device | str | None = None
) -> Labels:
    """For every sample another one, each taken once: (batch,). Raises ValueError for a batch of less than 2."""
    check_count("batch", batch, 2)
    order = torch.randperm(batch, generator=generator, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))
