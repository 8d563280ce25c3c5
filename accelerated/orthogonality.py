"""Orthogonal weight matrices: how far from orthogonal, and back to the nearest one; see the reference.

Bjorck steps run on the small Gram matrix: the weight itself is multiplied twice in all, however many steps there are.
Nothing here waits for the device.
"""

from math import comb

import numpy as np
import torch

from ._arrays import Array

__all__ = [
    "bjorck",
    "bjorck_factor",
    "convergence_limit",
    "defect",
    "gram",
    "orthogonal",
    "polar_factor",
    "spectral_bound",
]


def gram(weight: Array) -> Array:
    """W W^T if W is wide or square, W^T W if it is tall: (n, n) with n = min(n_out, n_in)."""
    n_out, n_in = weight.shape
    return weight @ weight.T if n_out <= n_in else weight.T @ weight


def _residual(gram: Array) -> Array:
    """I - G; the diagonal is the only place where the identity is added."""
    residual = -gram
    residual.diagonal().add_(1)
    return residual


def defect(weight: Array) -> Array:
    """Largest entry of |G - I|, a scalar tensor; 0 for orthonormal rows (wide) or columns (tall)."""
    return _residual(gram(weight)).abs().amax()


def polar_factor(weight: Array) -> Array:
    """U V^T of the thin singular value decomposition: same shape as the weight."""
    u, _, vt = torch.linalg.svd(weight.to(_decomposable(weight.dtype)), full_matrices=False)
    return (u @ vt).to(weight.dtype)


def _decomposable(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half precisions, which LAPACK and its kin do not have."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _coefficients(order: int) -> list[float]:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: {order}, expected 1, 2, 3 or 4")
    return [comb(2 * k, k) / 4**k for k in range(order + 1)]


def convergence_limit(order: int) -> float:
    """Supremum of the singular values from which steps of this order converge to 1: sqrt(3) for order 1."""
    polynomial = np.polynomial.Polynomial(_coefficients(order))
    roots = (polynomial if order % 2 else polynomial - 1).roots()  # in E = 1 - s^2
    squares = [1 - root.real for root in roots if abs(root.imag) < 1e-9 and 1 - root.real > 1 + 1e-9]
    return float(np.sqrt(min(squares)))


def spectral_bound(gram: Array) -> Array:
    """An upper bound on the largest eigenvalue of a Gram matrix, without iterating: a scalar tensor.

    The smaller of the largest absolute row sum and 1 + |G - I|_F.
    """
    row_sum = gram.abs().sum(dim=1).amax()
    frobenius = 1 + torch.linalg.matrix_norm(_residual(gram))
    return torch.minimum(row_sum, frobenius)


def bjorck_factor(gram: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """Q with which Bjorck steps are W <- Q W (wide) or W Q (tall), from the Gram matrix alone: (n, n).

    With `rescale`, a Gram matrix that may lie outside the region of convergence is first divided by a bound on its
    largest eigenvalue, so that the iteration cannot diverge; more steps are needed then.
    """
    coefficients = _coefficients(order)
    factor = None
    for step in range(steps):
        scale = None
        if rescale:
            bound = spectral_bound(gram)
            scale = torch.where(bound >= convergence_limit(order) ** 2, bound, 1)
            gram = gram / scale
        residual = _residual(gram)
        q = coefficients[order] * residual
        for coefficient in reversed(coefficients[1:order]):  # Horner: order - 1 products
            q.diagonal().add_(coefficient)
            q = q @ residual
        q.diagonal().add_(coefficients[0])
        if step < steps - 1:
            gram = q @ gram @ q
        if scale is not None:
            q = q / scale.sqrt()
        factor = q if factor is None else q @ factor
    if factor is None:
        return torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    return factor


def bjorck(weight: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """Bjorck steps, see `bjorck_factor`: same shape as the weight."""
    factor = bjorck_factor(gram(weight), order, steps, rescale)
    return factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor


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
