"""Orthogonal weight matrices: how far from orthogonal, and back to the nearest one; see the reference.

Bjorck steps run on the small Gram matrix: the weight itself is multiplied twice in all, however many steps there are.
Nothing here waits for the device.
"""

from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np
import torch

from ._arrays import Array, few_rows, widened

__all__ = [
    "PolarStep",
    "basis",
    "bjorck",
    "bjorck_factor",
    "convergence_limit",
    "defect",
    "drift",
    "drift_after",
    "gram",
    "orthogonal",
    "polar_factor",
    "polar_iteration",
    "polar_within",
    "quarter_turns",
    "retract",
    "scaled_bjorck",
    "skew_orthogonal",
    "skew_orthogonal_vjp",
    "spectral_bound",
]


NEAR = 0.9
"""A bound on |I - G|_2 up to which the steps of `polar_iteration` are those of Bjorck."""

WIDE = (
    (1.793182, -31.981693, 200.178271, -382.880153, 226.157094),
    (0.780541, 0.271313, 1.366665, 1.367164, 0.355710),
    (0.999857, 0.496631, 0.380998, 0.379133, 0.273516),
)
"""The coefficients of its first three steps beyond, constant terms first."""


def gram(weight: Array) -> Array:
    """W W^T if W is wide or square, W^T W if it is tall: (..., n, n) with n = min(n_out, n_in)."""
    n_out, n_in = weight.shape[-2:]
    return weight @ weight.mT if n_out <= n_in else weight.mT @ weight


def _residual(gram: Array) -> Array:
    """I - G; the diagonal is the only place where the identity is added."""
    return _with_diagonal(-gram, 1)


def _with_diagonal(matrices: Array, value: float | Array) -> Array:
    """With the value, or one for each matrix (..., 1), added to the diagonal in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(value)
    return matrices


def defect(weight: Array) -> Array:
    """Largest entry of |G - I|, a scalar tensor (...); 0 for orthonormal rows (wide) or columns (tall)."""
    return _residual(gram(weight)).abs().amax(dim=(-2, -1))


def drift(weight: Array, rows: Array) -> Array:
    """(I - G) of every row, by two products with p rows: (p, n) for rows (p, n)."""
    wide = weight.shape[0] <= weight.shape[1]
    there, back = (weight, weight.T) if wide else (weight.T, weight)
    return few_rows(few_rows(rows, there), back, less=rows)


def polar_factor(weight: Array) -> Array:
    """U V^T of the thin singular value decomposition: same shape as the weight."""
    u, _, vt = torch.linalg.svd(weight.to(_decomposable(weight.dtype)), full_matrices=False)
    return (u @ vt).to(weight.dtype)


def _decomposable(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half precisions, which LAPACK and its kin do not have."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _coefficients(order: int) -> list[float]:
    if isinstance(order, float) or order < 1:
        raise ValueError(f"order: {order}, expected a positive integer")
    return [comb(2 * k, k) / 4**k for k in range(order + 1)]


def convergence_limit(order: int) -> float:
    """Supremum of the singular values from which steps of this order converge to 1: sqrt(3) for order 1."""
    polynomial = np.polynomial.Polynomial(_coefficients(order))
    roots = (polynomial if order % 2 else polynomial - 1).roots()  # in E = 1 - s^2
    squares = [1 - root.real for root in map(complex, roots) if abs(root.imag) < 1e-9 and root.real < -1e-9]
    return float(np.sqrt(min(squares)))


def spectral_bound(gram: Array) -> Array:
    """An upper bound on the largest eigenvalue of a Gram matrix (..., n, n), without iterating: a scalar tensor (...).

    The smaller of the largest absolute row sum and 1 + |G - I|_F.
    """
    row_sum = gram.abs().sum(dim=-1).amax(dim=-1)
    frobenius = 1 + torch.linalg.matrix_norm(_residual(gram))
    return torch.minimum(row_sum, frobenius)


def bjorck_factor(gram: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """Q with which Bjorck steps are W <- Q W (wide) or W Q (tall), from the Gram matrix alone: (..., n, n).

    With `rescale`, a Gram matrix that may lie outside the region of convergence is first divided by a bound on its
    largest eigenvalue, so that the iteration cannot diverge; more steps are needed then.
    """
    coefficients = _coefficients(order)
    factor = None
    for step in range(steps):
        scale = None
        if rescale:
            bound = spectral_bound(gram)
            scale = torch.where(bound >= convergence_limit(order) ** 2, bound, 1)[..., None, None]
            gram = gram / scale
        residual = _residual(gram)
        q = coefficients[order] * residual
        for coefficient in reversed(coefficients[1:order]):  # Horner: order - 1 products
            q = _with_diagonal(q, coefficient) @ residual
        q = _with_diagonal(q, coefficients[0])
        if step < steps - 1:
            gram = q @ gram @ q
        if scale is not None:
            q = q / scale.sqrt()
        factor = q if factor is None else q @ factor
    return _with_diagonal(torch.zeros_like(gram), 1) if factor is None else factor


def bjorck(weight: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """Bjorck steps, see `bjorck_factor`: same shape as the weight."""
    factor = bjorck_factor(gram(weight), order, steps, rescale)
    return factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor


def scaled_bjorck(weight: Array, start: Array, order: int = 1, steps: int = 20, iterations: int = 10) -> Array:
    """As FOTON's authors orthogonalise: Bjorck steps of the weight over its largest singular value, by power iteration.

    `start` is a random vector, (n_in,).
    """
    v = start / torch.linalg.vector_norm(start)
    for _ in range(iterations):
        v = weight.T @ (weight @ v)
        v = v / torch.linalg.vector_norm(v)
    return bjorck(weight / torch.linalg.vector_norm(weight @ v), order, steps, rescale=False)


def basis(rows: Array) -> Array:
    """Orthonormal rows with the span of the given ones: (p, n), p <= n."""
    return torch.linalg.qr(rows.T.to(_decomposable(rows.dtype)))[0].T.to(rows.dtype)


class PolarStep(NamedTuple):
    """What `polar_within` gives: the new weight, what it adds in the span (p, p), and I - G of q before (p, n)."""

    weight: Array
    change: Array
    drift: Array


def polar_within(weight: Array, q: Array, *, out: Array | None = None) -> PolarStep:
    """The polar factor in the span of q (p, n) alone, whose rows are orthonormal; `out` may be `weight`.

    By three products with p rows. Directions in which the weight is 0 to rounding stay as they are.
    """
    dtype = _decomposable(q.dtype)
    wide = weight.shape[0] <= weight.shape[1]
    there, back = (weight, weight.T) if wide else (weight.T, weight)
    image = few_rows(q, there)
    found = few_rows(image, back, less=q)
    eigenvalues, vectors = torch.linalg.eigh((image @ image.T).to(dtype))
    rank = eigenvalues > len(q) * torch.finfo(dtype).eps * eigenvalues[-1]
    factors = torch.where(rank, eigenvalues, 1).rsqrt() - 1
    change = ((vectors * factors) @ vectors.T).to(q.dtype)
    left, right = (q.T, change @ image) if wide else (image.T, change @ q)
    return PolarStep(torch.addmm(weight, left, right, out=out), change, found)


def drift_after(rows: Array, drifts: Array, q: Array, step: PolarStep) -> Array:
    """I - G of rows after a step within q, from what it was of them before, the weight unread: (rows, n)."""
    through = torch.addmm(rows - drifts, rows @ q.T @ step.change, q - step.drift)
    return rows - through - through @ q.T @ step.change @ q


def polar_iteration(weight: Array, steps: int = 3) -> Array:
    """The polar factor by a fixed number of steps, four products each: same shape as the weight, (..., n_out, n_in).

    The weight is multiplied anew in each step, so that none works on what rounding has left of another's Gram matrix,
    and only the change is multiplied, so that products of few digits (TF32) keep all of the weight's.
    """
    is_wide = weight.shape[-2] <= weight.shape[-1]
    w = widened(weight if is_wide else weight.mT)
    bjorck, beyond = _polar_coefficients(steps, w.device, w.dtype)
    coefficients = bjorck
    for step in range(steps):
        residual = _residual(w @ w.mT)
        square = residual @ residual
        if step == 0:
            radius = torch.linalg.matrix_norm(square).sqrt()[..., None]  # (..., 1)
            is_far = radius > NEAR
            coefficients = torch.where(is_far[..., None, None], beyond, bjorck)  # (..., 1, steps, 5)
            scale = 1 / (1 + radius * is_far)
            # I - scale G from I - G, and its square
            square = (scale**2)[..., None] * square + (2 * scale * (1 - scale))[..., None] * residual
            square = _with_diagonal(square, (1 - scale) ** 2)
            residual = _with_diagonal(scale[..., None] * residual, 1 - scale)
            w = scale.sqrt()[..., None] * w
        c = coefficients[..., step, :, None]  # (..., 1, 5, 1)
        q = _with_diagonal(torch.addcmul(c[..., 4, :] * square, c[..., 3, :], residual), c[..., 2, 0])
        q = _with_diagonal(torch.addcmul(q @ square, c[..., 1, :], residual), c[..., 0, 0] - 1)
        w = w + q @ w
    return (w if is_wide else w.mT).to(weight.dtype)


@cache
def _polar_coefficients(steps: int, device: torch.device, dtype: torch.dtype) -> tuple[Array, Array]:
    """Of Bjorck's steps of order 4, and of `WIDE` followed by those: (steps, 5) each.

    Held, since a tensor made from numbers waits for the device that it goes to.
    """
    bjorck = [_coefficients(4)] * steps
    both = torch.tensor([bjorck, [*WIDE, *bjorck][:steps]], device=device, dtype=dtype)
    return both[0], both[1]


def retract(
    stepped: Array,
    delta: Array,
    z: Array,
    preactivation: Array,
    rate: float,
    order: int = 9,
    *,
    out: Array | None = None,
) -> Array:
    """`bjorck` of W' = W - rate/B delta^T z for a weight W that was orthogonal: same shape; `out` may be `stepped`.

    E has rank 2B: E = V^T C V with V of 2B rows. So q_p(E) W' = W' + V^T S (V W') with S of size 2B: products with 2B
    rows in place of n, about 5 B n_out n_in multiplications in place of 2 n^2 max(n_out, n_in). W' itself where tr
    E^6 >= 1.
    """
    coefficients = _coefficients(order)
    batch = len(z)
    s = rate / batch
    wide = stepped.shape[0] <= stepped.shape[1]
    if wide:
        v = torch.cat([preactivation, delta])
        square = z @ z.T
    else:
        square = delta @ delta.T
        v = torch.cat([torch.addmm(delta @ stepped, square, z, alpha=s), z])
    c = torch.zeros(2 * batch, 2 * batch, device=v.device, dtype=v.dtype)
    c[:batch, batch:].fill_diagonal_(s)
    c[batch:, :batch].fill_diagonal_(s)
    c[batch:, batch:] = square * -(s**2)
    t = (v @ v.T) @ c
    square = t @ t
    cube = square @ t
    converges = torch.sum(cube * cube.T) < 1  # tr E^6 = tr T^6
    small = torch.where(converges, c @ _shifted_series(coefficients[1:], t, square, cube), 0)
    if wide:
        return torch.addmm(stepped, v.T, small @ (v @ stepped), out=out)
    return torch.addmm(stepped, (stepped @ v.T) @ small, v, out=out)


def _shifted_series(coefficients: list[float], t: Array, square: Array, cube: Array) -> Array:
    """sum_k coefficients[k] t^k from t, t^2 and t^3, in blocks of three powers (Paterson and Stockmeyer)."""
    total = None
    for start in reversed(range(0, len(coefficients), 3)):
        constant, linear, quadratic = [*coefficients[start : start + 3], 0.0, 0.0][:3]
        block = torch.add(linear * t, square, alpha=quadratic)
        block.diagonal().add_(constant)
        total = block if total is None else torch.addmm(block, cube, total)
    assert total is not None
    return total


def orthogonal(
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
    gain: float = 1.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """A random matrix with orthonormal rows (wide) or columns (tall), times gain; uniform over all such matrices."""
    dtype = dtype or torch.get_default_dtype()
    weight = torch.empty(shape, device=device, dtype=_decomposable(dtype))
    return torch.nn.init.orthogonal_(weight, gain, generator=generator).to(dtype)


def quarter_turns(rows: Array) -> Array:
    """J: (-r_2, r_1, -r_4, r_3, ...) on the first axis. Raises ValueError for an odd number of rows."""
    if len(rows) % 2:
        raise ValueError(f"rows: {len(rows)}, expected an even number, which pairs of them are turned")
    pairs = rows.unflatten(0, (-1, 2))
    return torch.stack([-pairs[:, 1], pairs[:, 0]], dim=1).flatten(0, 1)


def skew_orthogonal(q: Array) -> Array:
    """Q^T J Q: (n, n), n even."""
    return q.T @ quarter_turns(q)


def skew_orthogonal_vjp(q: Array, gradient: Array) -> Array:
    """What an update G of Q^T J Q means for Q, J Q (G^T - G): (n, n)."""
    return quarter_turns(q) @ (gradient.T - gradient)
