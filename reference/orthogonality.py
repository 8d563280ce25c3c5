"""Orthogonal weight matrices: how far from orthogonal, and back to the nearest one.

Bjorck and Bowie, "An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix", SIAM Journal on
Numerical Analysis 1971; (4) is what the authors of FOTON run (see `foton`).

    (1)  G = W W^T if W is wide or square, W^T W if it is tall;    E = I - G,    defect = max |E|
    (2)  polar factor of W = U S V^T:  U V^T, the nearest matrix with orthonormal rows (or columns)
    (3)  Bjorck step of order p:  W <- q_p(E) W (wide),  W q_p(E) (tall),
         q_p(E) = sum_(k<=p) c_k E^k,    c_k = binom(2k, k) / 4^k = 1, 1/2, 3/8, 5/16, 35/128, ...
    (4)  W <- W / sigma, then 20 steps (3) of order 1,    sigma = |W v| after ten steps of v <- W^T W v / |W^T W v|

Ours.

    (a)  the polar factor in the span of a few orthonormal rows Q alone:
         W <- A W (wide),  W A (tall),    A = I + Q^T C Q,    C = (Q G Q^T)^(-1/2) - I
    (b)  (a) leaves  E' = I - A G A:    v E' = v - (v A G) A,    v A G = v G + v Q^T C Q G
    (c)  polar iteration:  W <- r_k(E) W (wide),  W r_k(E) (tall),    k = 1, 2, 3,    rho = |E^2|_F^(1/2)
         rho <= 0.9:  r_k = q_4;    otherwise W is divided by sqrt(1 + rho) first, and r_k of degree 4 has the least
         max |1 - s r_k(1 - s^2)| over the s that step k - 1 makes of [1/64, 1] and 1 % beyond
    (d)  (3) after a plain gradient step W' = W - s delta^T z, s = rate / B, from W with G = I, by its factors:
         wide:  E = s (delta^T a + a^T delta) - s^2 delta^T z z^T delta,    a = W z
         tall:  E = s (r^T z + z^T r) - s^2 z^T delta delta^T z,            r = delta W
    (e)  W = Q^T J Q of a square Q,    J (r_1, r_2, r_3, r_4, ...) = (-r_2, r_1, -r_4, r_3, ...):    W^T = -W,
         W W^T = I if Q Q^T = I;    <G, W> has the gradient J Q (G^T - G) by Q

q_p is the Taylor polynomial of (I - E)^(-1/2), so a step of order p leaves a defect of order p + 1 in the old one. A
singular value s moves to s q_p(1 - s^2), whatever the other ones are; it reaches 1 from anywhere in (0,
`convergence_limit(p)`).

rho is at least |E|_2, so that (c) needs no search for the largest singular value and takes one decision. For rho <= 0.9
it ends within 1e-8 of the polar factor. Beyond, every singular value of at least sqrt(1 + rho) / 64 ends within 3.4e-4
of 1. The coefficients are from Remez's algorithm, each step for what the one before leaves (Amsel et al., 2025, arXiv
2505.16932). The 1 % is for rounding: factors of 11 digits (TF32) move singular values by up to 0.6 % in the first step,
and r_k grows fast where it was not made for.

(e) has all orthogonal matrices that are skew, W^T = -W. J turns each pair of rows by a quarter. W is skew for any Q. Of
an update G of W the skew part S = (G - G^T) / 2 alone enters. A step of Q by eta times (e) moves W by -4 eta S to first
order. The polar factor of Q then takes off the part of S that commutes with W, which is normal to the set of such
matrices, and leaves -2 eta (S + W S W).

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| W | weight | (n_out, n_in) | weight matrix |
| G | gram | (n, n), n = min(n_out, n_in) | Gram matrix on the smaller side |
| E | residual | (n, n) | I - G |
| rho | radius | | bound on the spectral norm of E |
| Q | q | (p, n) | orthonormal rows |
| C | change | (p, p) | what is to be added in their span |
| delta, z | delta, z | (batch, n_out), (batch, n_in) | factors of the weight's last update |
| a | preactivation | (batch, n_out) | W z with the weight before the update, without bias |
"""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from ._arrays import Array

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
"""rho of equation (c) up to which its steps are those of Bjorck."""

WIDE = (
    (1.793182, -31.981693, 200.178271, -382.880153, 226.157094),
    (0.780541, 0.271313, 1.366665, 1.367164, 0.355710),
    (0.999857, 0.496631, 0.380998, 0.379133, 0.273516),
)
"""The coefficients of r_1, r_2 and r_3 beyond, constant terms first."""


def gram(weight: Array) -> Array:
    """G of equation (1): (n, n) with n = min(n_out, n_in).

    >>> gram(np.array([[3.0], [4.0]])).tolist()  # on the smaller side
    [[25.0]]
    """
    n_out, n_in = weight.shape
    return weight @ weight.T if n_out <= n_in else weight.T @ weight


def defect(weight: Array) -> Array:
    """Largest entry of |G - I|, a scalar array; 0 for orthonormal rows (wide) or columns (tall).

    >>> float(defect(np.array([[2.0, 0.0]]))), float(defect(np.eye(2)))
    (3.0, 0.0)
    """
    g = gram(weight)
    return np.max(np.abs(g - np.eye(len(g), dtype=g.dtype)))


def drift(weight: Array, rows: Array) -> Array:
    """v E, equation (1), of every row v: (p, n) for rows (p, n).

    >>> drift(np.array([[2.0]]), np.array([[1.0]])).tolist()  # 1 - 4
    [[-3.0]]
    """
    g = gram(weight)
    return rows @ (np.eye(len(g), dtype=g.dtype) - g)


def polar_factor(weight: Array) -> Array:
    """U V^T of the thin singular value decomposition, equation (2): same shape as the weight.

    >>> np.round(polar_factor(np.array([[3.0], [4.0]])), 6).tolist()
    [[0.6], [0.8]]
    """
    u, _, vt = np.linalg.svd(weight, full_matrices=False)
    return u @ vt


def _coefficients(order: int) -> list[float]:
    if isinstance(order, float) or order < 1:
        raise ValueError(f"order: {order}, expected a positive integer")
    return [comb(2 * k, k) / 4**k for k in range(order + 1)]


def _polynomial(residual: Array, coefficients: Sequence[float]) -> Array:
    """sum_k c_k E^k: (n, n)."""
    power = np.eye(len(residual), dtype=residual.dtype)
    q = np.zeros_like(power)
    for coefficient in coefficients:
        q = q + coefficient * power
        power = power @ residual
    return q


def convergence_limit(order: int) -> float:
    """Supremum of the singular values from which steps of this order converge to 1: sqrt(3) for order 1.

    Odd orders: where q_p vanishes (beyond, s changes sign). Even orders: where q_p returns to 1 (beyond, s grows).
    Raises ValueError unless the order is a positive integer.

    >>> [round(convergence_limit(order) ** 2, 6) for order in (1, 2)]  # E / 2 = -1; E / 2 + 3 E^2 / 8 = 0
    [3.0, 2.333333]
    """
    polynomial = np.polynomial.Polynomial(_coefficients(order))
    roots = (polynomial if order % 2 else polynomial - 1).roots()  # in E = 1 - s^2
    squares = [1 - root.real for root in map(complex, roots) if abs(root.imag) < 1e-9 and root.real < -1e-9]
    return float(np.sqrt(min(squares)))


def spectral_bound(gram: Array) -> Array:
    """An upper bound on the largest eigenvalue of a Gram matrix, without iterating: a scalar array.

    The smaller of the largest absolute row sum and 1 + |G - I|_F.

    >>> float(spectral_bound(np.array([[2.0, 0.0], [0.0, 1.0]])))  # both bounds agree here
    2.0
    """
    row_sum = np.max(np.sum(np.abs(gram), axis=1))
    frobenius = 1 + np.linalg.norm(gram - np.eye(len(gram), dtype=gram.dtype))
    return np.minimum(row_sum, frobenius)


def bjorck_factor(gram: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """Q with which steps of equation (3) are W <- Q W (wide) or W Q (tall), from the Gram matrix alone: (n, n).

    With `rescale`, a Gram matrix that may lie outside the region of convergence is first divided by a bound on its
    largest eigenvalue, so that the iteration cannot diverge; more steps are needed then. Raises ValueError unless the
    order is a positive integer.

    >>> np.round(bjorck_factor(np.array([[0.8]])), 6).tolist()  # 1 + (1 - 0.8) / 2
    [[1.1]]
    """
    identity = np.eye(len(gram), dtype=gram.dtype)
    factor = identity
    for _ in range(steps):
        bound = spectral_bound(gram)
        if rescale and bound >= convergence_limit(order) ** 2:
            factor, gram = factor / np.sqrt(bound), gram / bound
        q = _polynomial(identity - gram, _coefficients(order))
        factor, gram = q @ factor, q @ gram @ q
    return factor


def bjorck(weight: Array, order: int = 1, steps: int = 1, rescale: bool = True) -> Array:
    """W after steps of equation (3): shaped as the weight, (n_out, n_in); settings and errors as for `bjorck_factor`.

    >>> np.round(bjorck(np.array([[0.8]])), 6).tolist(), np.round(bjorck(np.array([[0.8]]), steps=9), 6).tolist()
    ([[0.944]], [[1.0]])
    """
    factor = bjorck_factor(gram(weight), order, steps, rescale)
    return factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor


def scaled_bjorck(weight: Array, start: Array, order: int = 1, steps: int = 20, iterations: int = 10) -> Array:
    """W after equation (4), v starting from `start`, (n_in,), at random: shaped as the weight.

    sigma is at most the largest singular value. Singular values of less than 1e-3 of it do not reach 1.

    >>> np.round(scaled_bjorck(np.array([[4.0, 0.0], [0.0, 2.0]]), np.ones(2)), 6).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    v = start / np.linalg.norm(start)
    for _ in range(iterations):
        v = weight.T @ (weight @ v)
        v = v / np.linalg.norm(v)
    return bjorck(weight / np.linalg.norm(weight @ v), order, steps, rescale=False)


def basis(rows: Array) -> Array:
    """Q, orthonormal rows with the span of the given ones: (p, n), p <= n.

    >>> np.round(abs(basis(np.array([[3.0, 4.0]]))), 6).tolist()  # up to its sign
    [[0.6, 0.8]]
    """
    return np.linalg.qr(rows.T)[0].T


class PolarStep(NamedTuple):
    """What `polar_within` gives: the new weight, C of equation (a), (p, p), and E of q before, (p, n)."""

    weight: Array
    change: Array
    drift: Array


def polar_within(weight: Array, q: Array) -> PolarStep:
    """The polar factor in the span of q alone, (p, n) with orthonormal rows, equation (a).

    With q = basis(drift(weight, drift(weight, v))) for random v (p, n), these are the directions in which the weight is
    farthest from orthogonal (Halko, Martinsson and Tropp, 2011, section 4.5); a gradient's drift has few of them.
    Directions in which the weight is 0 to rounding stay as they are.

    >>> step = polar_within(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 0.0]]))
    >>> step.weight.tolist(), step.change.tolist()  # the other direction stays
    ([[1.0, 0.0], [0.0, 3.0]], [[-0.5]])
    """
    wide = weight.shape[0] <= weight.shape[1]
    image = q @ (weight if wide else weight.T)  # (p, max(n_out, n_in))
    eigenvalues, vectors = np.linalg.eigh(image @ image.T)
    rank = eigenvalues > len(q) * np.finfo(q.dtype).eps * eigenvalues[-1]
    change = (vectors * (1 / np.sqrt(np.where(rank, eigenvalues, 1)) - 1)) @ vectors.T
    new = weight + (q.T @ change @ image if wide else image.T @ change @ q)
    return PolarStep(new, change, drift(weight, q))


def drift_after(rows: Array, drifts: Array, q: Array, step: PolarStep) -> Array:
    """v E' of every row v after a step within q, from drifts, v E before, the weight unread, equation (b): (rows, n).

    >>> weight, rows = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> step = polar_within(weight, rows[:1])
    >>> drift_after(rows, drift(weight, rows), rows[:1], step).tolist()  # I - diag(1, 9)
    [[0.0, 0.0], [0.0, -8.0]]
    """
    a = np.eye(q.shape[1], dtype=q.dtype) + q.T @ step.change @ q
    through = rows - drifts + rows @ q.T @ step.change @ (q - step.drift)  # v A G
    return rows - through @ a


def polar_iteration(weight: Array, steps: int = 3) -> Array:
    """The polar factor by a fixed number of steps, equation (c): shaped as the weight.

    Steps beyond the third are Bjorck's.

    >>> np.round(polar_iteration(np.array([[5.0, 0.0], [0.0, 1.0]])), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    n_out, n_in = weight.shape
    identity = np.eye(min(weight.shape), dtype=weight.dtype)
    residual = identity - gram(weight)
    radius = np.sqrt(np.linalg.norm(residual @ residual))
    is_far = radius > NEAR
    if is_far:
        weight = weight / np.sqrt(1 + radius)
    for step in range(steps):
        coefficients = WIDE[step] if is_far and step < len(WIDE) else _coefficients(4)
        q = _polynomial(identity - gram(weight), coefficients)
        weight = q @ weight if n_out <= n_in else weight @ q
    return weight


def retract(stepped: Array, delta: Array, z: Array, preactivation: Array, rate: float, order: int = 9) -> Array:
    """`bjorck` of W' = `stepped` by the step's factors, for a weight that was orthogonal before it, equation (d).

    W' itself where tr E^6 >= 1, which bounds the spectral radius of E: the series need not converge there. Raises
    ValueError unless the order is a positive integer.

    >>> one, stepped = np.array([[1.0]]), np.array([[0.9]])  # 1 less 0.1 delta^T z
    >>> np.round(retract(stepped, one, one, one, 0.1), 6).tolist()
    [[1.0]]
    """
    s = rate / len(z)
    n_out, n_in = stepped.shape
    if n_out <= n_in:
        cross, outer = delta.T @ preactivation, delta.T @ (z @ z.T) @ delta
    else:
        r = delta @ stepped + s * (delta @ delta.T) @ z
        cross, outer = r.T @ z, z.T @ (delta @ delta.T) @ z
    residual = s * (cross + cross.T) - s**2 * outer
    if np.trace(np.linalg.matrix_power(residual, 6)) >= 1:
        return stepped
    q = _polynomial(residual, _coefficients(order))
    return q @ stepped if n_out <= n_in else stepped @ q


def orthogonal(shape: tuple[int, int], rng: np.random.Generator, gain: float = 1.0) -> Array:
    """A random matrix of that shape, with orthonormal rows (wide) or columns (tall), times gain.

    It is uniform over all such matrices.

    >>> weight = orthogonal((1, 3), np.random.default_rng(0), gain=2.0)
    >>> np.shape(weight), round(float((weight**2).sum()), 5)
    ((1, 3), 4.0)
    """
    n_out, n_in = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q = q * np.sign(np.diag(r))  # makes the distribution uniform (Mezzadri, 2007)
    return gain * (q.T if n_out <= n_in else q)


def quarter_turns(rows: Array) -> Array:
    """J of equation (e) on the first axis: shaped as the rows. Raises ValueError for an odd number of them.

    >>> quarter_turns(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[-3.0, -4.0], [1.0, 2.0]]
    """
    if len(rows) % 2:
        raise ValueError(f"rows: {len(rows)}, expected an even number, which pairs of them are turned")
    turned = np.empty_like(rows)
    turned[0::2], turned[1::2] = -rows[1::2], rows[0::2]
    return turned


def skew_orthogonal(q: Array) -> Array:
    """Q^T J Q, equation (e): (n, n) of a square Q, n even. Raises ValueError for any other n.

    >>> skew_orthogonal(np.eye(2)).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    return q.T @ quarter_turns(q)


def skew_orthogonal_vjp(q: Array, gradient: Array) -> Array:
    """What an update G of Q^T J Q, the gradient, means for Q, J Q (G^T - G) of equation (e): (n, n) each.

    Raises ValueError for odd n.

    >>> skew_orthogonal_vjp(np.eye(2), np.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[-2.0, 0.0], [0.0, -2.0]]
    """
    return quarter_turns(q) @ (gradient.T - gradient)
