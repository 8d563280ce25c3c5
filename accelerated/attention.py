"""Attention of a sequence to itself, by scaled dot products with heads, as a layer; see the reference.

`difference` loses nothing where u is small: Q', K' and V' are those of z minus the projections of u, and of the softmax

    P - P' = P (sum_s P E - E) / (1 + sum_s P E),    E = exp(S' - S) - 1,

while no logit moves by 1 or more; beyond, two values do not cancel. `value` is PyTorch's fused attention.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, check_batch, check_count, check_shape, widened
from .layers import Step, Update

__all__ = ["Attention"]


class Attention(NamedTuple):
    """The layer; its parameters are W_in, b_in, W_out, b_out, biases None where there are none."""

    in_weight: Array
    in_bias: Array | None
    out_weight: Array
    out_bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    heads: int = 1
    causal: bool = False

    def value(self, z: Array) -> Array:
        """(batch, T, n). Raises ValueError where sizes do not fit."""
        self._check(z)
        read = functional.scaled_dot_product_attention(*self._projected(z), is_causal=self.causal)
        return functional.linear(_joined(read), self.out_weight, self.out_bias)

    def difference(self, z: Array, u: Array) -> Array:
        """A(z) - A(z - u)."""
        queries, keys, values = self._projected(z)
        of_queries, of_keys, of_values = self._heads(u @ self.in_weight.T)
        shares = self._shares(queries, keys)
        moved = of_queries @ keys.mT + (queries - of_queries) @ of_keys.mT
        moved = self._masked(widened(moved) / sqrt(queries.shape[3]), 0.0)
        grown = torch.expm1(-moved)
        total = (shares * grown).sum(dim=3, keepdim=True)
        change = shares * (total - grown) / (1 + total)
        before = self._shares(queries - of_queries, keys - of_keys)
        small = moved.abs().amax(dim=3, keepdim=True) < 1
        change = torch.where(small, change, shares - before)
        read = change.to(z.dtype) @ values + before.to(z.dtype) @ of_values
        return _joined(read) @ self.out_weight.T

    def adjoint(self, z: Array, d: Array) -> Array:
        """A'(z)^T d: (batch, T, n)."""
        return self._gradients(z, d)[0] @ self.in_weight

    def update(self, z: Array, delta: Array) -> Update:
        """1/B of the sum over samples and positions, in the order of the parameters."""
        check_shape("delta", delta, z.shape)
        projected, read = self._gradients(z, delta)
        found = []
        for bias, d, of in ((self.in_bias, projected, z), (self.out_bias, delta, read)):
            rows = (d / len(z)).flatten(0, 1)
            found.append(rows.T @ of.flatten(0, 1))
            if bias is not None:
                found.append(rows.sum(dim=0))
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
        queries, keys, values = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return queries, keys, values

    def _projected(self, z: Array) -> tuple[Array, Array, Array]:
        return self._heads(functional.linear(z, self.in_weight, self.in_bias))

    def _masked(self, logits: Array, fill: float) -> Array:
        if not self.causal:
            return logits
        length = logits.shape[3]
        later = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu(1)
        return logits.masked_fill(later, fill)

    def _shares(self, queries: Array, keys: Array) -> Array:
        """The softmax, in float32 at least."""
        logits = widened(queries @ keys.mT) / sqrt(queries.shape[3])
        return self._masked(logits, float("-inf")).softmax(dim=3)

    def _gradients(self, z: Array, d: Array) -> tuple[Array, Array]:
        """Those by Q, K and V, (batch, T, 3 n), and what the heads read, (batch, T, n)."""
        queries, keys, values = self._projected(z)
        shares = self._shares(queries, keys)
        of_read = (d @ self.out_weight).unflatten(2, (self.heads, -1)).transpose(1, 2)
        of_shares = widened(of_read @ values.mT)
        of_logits = shares * (of_shares - (shares * of_shares).sum(dim=3, keepdim=True)) / sqrt(queries.shape[3])
        of_logits, shares = of_logits.to(z.dtype), shares.to(z.dtype)
        parts = of_logits @ keys, of_logits.mT @ queries, shares.mT @ of_read
        return torch.cat([_joined(part) for part in parts], dim=2), _joined(shares @ values)


def _joined(heads: Array) -> Array:
    """(batch, heads, T, m) as (batch, T, n)."""
    return heads.transpose(1, 2).flatten(2)
