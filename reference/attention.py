"""Attention of a sequence to itself, by scaled dot products with heads (Vaswani et al., 2017), as a layer.

    (1)  (Q, K, V) = W_in z_t + b_in at every position t, each cut into heads of m = n / heads units; then for each head
    (2)  S = Q K^T / sqrt(m),    S_ts = -inf for s > t if causal
    (3)  P = softmax over s of S,    O = P V
    (4)  a_t = W_out (the heads' O_t beside one another) + b_out

    (5)  of the softmax:   P'(S)^T g = P (g - sum_s P g)
    (6)  A'(z)^T d:        g_O = W_out^T d,    g_V = P^T g_O,    g_S = P'(S)^T (g_O V^T),
                           g_Q = g_S K / sqrt(m),    g_K = g_S^T Q / sqrt(m),    W_in^T (g_Q, g_K, g_V)
    (7)  updates:          1/B sum of (g_Q, g_K, g_V) z^T and d O^T, and of (g_Q, g_K, g_V) and d for the biases
    (8)  A(z) - A(z - u):  with the values Q', K', V', S', P' at z - u, which is their differences' source,
                           S - S' = ((Q - Q') K^T + Q' (K - K')^T) / sqrt(m),    Q - Q' = W_Q u, without b,
                           O - O' = (P - P') V + P' (V - V')

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z | z | (batch, T, n) | input: T positions, tokens for one |
| W_in, b_in | in_weight, in_bias | (3 n, n), (3 n,) | projections of queries, keys and values, in this order |
| W_out, b_out | out_weight, out_bias | (n, n), (n,) | projection of the heads |
| Q, K, V, O | queries, keys, values, read | (batch, heads, T, m) | queries, keys, values, and what is read |
| S, P | logits, shares | (batch, heads, T, T) | of position t (axis 2) in position s (axis 3) |

The parameters are those of torch.nn.MultiheadAttention, in its layout and order.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from ._arrays import Array, check_batch, check_count, check_shape
from .layers import Step, Update

__all__ = ["Attention"]


class Attention(NamedTuple):
    """Equations (1) to (4); its parameters are W_in, b_in, W_out, b_out, biases None where there are none.

    >>> weights = np.array([[0.0], [0.0], [1.0]]), None, np.array([[1.0]]), None  # queries and keys are 0, values z
    >>> Attention(*weights).value(np.array([[[2.0], [4.0]]])).tolist()  # every position reads all alike
    [[[3.0], [3.0]]]
    >>> Attention(*weights, causal=True).value(np.array([[[2.0], [4.0]]])).tolist()  # the first reads itself alone
    [[[2.0], [3.0]]]
    """

    in_weight: Array
    in_bias: Array | None
    out_weight: Array
    out_bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    heads: int = 1
    causal: bool = False

    def value(self, z: Array) -> Array:
        """a: (batch, T, n). Raises ValueError where sizes do not fit."""
        self._check(z)
        queries, keys, values = self._projected(z)
        a = _joined(self._shares(queries, keys) @ values) @ self.out_weight.T
        return a if self.out_bias is None else a + self.out_bias

    def difference(self, z: Array, u: Array) -> Array:
        """A(z) - A(z - u), equation (8): (batch, T, n)."""
        queries, keys, values = self._projected(z)
        _, _, value_change = self._heads(u @ self.in_weight.T)
        shares = self._shares(queries, keys)
        shares_before = self._shares(*self._projected(z - u)[:2])
        read_change = (shares - shares_before) @ values + shares_before @ value_change
        return _joined(read_change) @ self.out_weight.T

    def adjoint(self, z: Array, d: Array) -> Array:
        """A'(z)^T d, equation (6): (batch, T, n)."""
        return self._gradients(z, d)[0] @ self.in_weight

    def update(self, z: Array, delta: Array) -> Update:
        """Equation (7), shaped as the parameters. Raises ValueError unless delta is shaped as z."""
        check_shape("delta", delta, z.shape)
        projected, read = self._gradients(z, delta)
        found = []
        for weight, bias, d, of in (
            (self.in_weight, self.in_bias, projected, z),
            (self.out_weight, self.out_bias, delta, read),
        ):
            rows = d.reshape(-1, len(weight))  # one for each position of each sample
            found.append(rows.T @ of.reshape(-1, of.shape[2]) / len(z))
            if bias is not None:
                found.append(rows.sum(axis=0) / len(z))
        return tuple(found)

    def _check(self, z: Array) -> None:
        check_batch("z", z, "T, n", 2)
        n = z.shape[2]
        check_count("heads", self.heads)
        if n % self.heads:
            raise ValueError(f"z: {n} units, expected a multiple of {self.heads} heads")
        check_shape("in_weight", self.in_weight, (3 * n, n))
        check_shape("out_weight", self.out_weight, (n, n))
        if self.in_bias is not None:
            check_shape("in_bias", self.in_bias, (3 * n,))
        if self.out_bias is not None:
            check_shape("out_bias", self.out_bias, (n,))

    def _heads(self, projected: Array) -> tuple[Array, Array, Array]:
        """(batch, T, 3 n) as three of (batch, heads, T, m)."""
        batch, length, width = projected.shape
        parts = projected.reshape(batch, length, 3, self.heads, width // (3 * self.heads))
        queries, keys, values = parts.transpose(2, 0, 3, 1, 4)
        return queries, keys, values

    def _projected(self, z: Array) -> tuple[Array, Array, Array]:
        """Q, K, V of equation (1)."""
        projected = z @ self.in_weight.T
        return self._heads(projected if self.in_bias is None else projected + self.in_bias)

    def _shares(self, queries: Array, keys: Array) -> Array:
        """P of equations (2) and (3)."""
        logits = queries @ keys.swapaxes(2, 3) / math.sqrt(queries.shape[3])
        if self.causal:
            logits = np.where(np.tri(logits.shape[2], dtype=bool), logits, -np.inf)
        return softmax(logits, axis=3)

    def _gradients(self, z: Array, d: Array) -> tuple[Array, Array]:
        """(g_Q, g_K, g_V) of equation (6), (batch, T, 3 n), and O, (batch, T, n)."""
        queries, keys, values = self._projected(z)
        shares = self._shares(queries, keys)
        batch, length, _ = z.shape
        of_read = (d @ self.out_weight).reshape(batch, length, self.heads, -1).swapaxes(1, 2)
        of_shares = of_read @ values.swapaxes(2, 3)
        of_logits = shares * (of_shares - np.sum(shares * of_shares, axis=3, keepdims=True))
        of_logits = of_logits / math.sqrt(queries.shape[3])
        parts = of_logits @ keys, of_logits.swapaxes(2, 3) @ queries, shares.swapaxes(2, 3) @ of_read
        return np.concatenate([_joined(part) for part in parts], axis=2), _joined(shares @ values)


def _joined(heads: Array) -> Array:
    """(batch, heads, T, m) as (batch, T, n)."""
    batch, _, length, _ = heads.shape
    return heads.swapaxes(1, 2).reshape(batch, length, -1)
