"""Embedding of tokens, with learned positions or without, as a layer.

    (1)  a_t = E[z_t] + P[t],    t = 1..T
    (2)  updates:  G_E[v] = 1/B sum of d_t over all samples and positions with z_t = v,    G_P[t] = 1/B sum_samples d_t

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z | z | (batch, T) | integers 0..V-1: tokens |
| E | table | (V, n) | a row for each token |
| P | positions | (T or more, n) or None | a row for each position |

Integers neither move by a difference nor have a gradient: what a rule sends back ends here. A first layer that embeds
learns by its update alone.
"""

from typing import NamedTuple

import numpy as np

from ._arrays import Array, Labels, check_range, check_shape
from .layers import Step, Update

__all__ = ["Embedding"]


class Embedding(NamedTuple):
    """Equation (1); its parameters are the table, then the positions where there are some.

    >>> embedding = Embedding(np.array([[1.0], [5.0]]))
    >>> embedding.value(np.array([[1, 1, 0]])).tolist()
    [[[5.0], [5.0], [1.0]]]
    >>> embedding.update(np.array([[1, 1, 0]]), np.ones((1, 3, 1)))[0].tolist()  # a token's positions add up
    [[1.0], [2.0]]
    """

    table: Array
    positions: Array | None = None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Labels) -> Array:
        """a: (batch, T, n). Raises ValueError unless z has integers of the table, no more of them than positions."""
        if self.table.ndim != 2 or 0 in self.table.shape:
            raise ValueError(f"table: shape {self.table.shape}, expected (V, n), at least one of each")
        if z.ndim != 2 or 0 in z.shape:
            raise ValueError(f"z: shape {z.shape}, expected (batch, T), at least one of each")
        if z.dtype.kind not in "iu":
            raise ValueError(f"z: dtype {z.dtype}, expected integers")
        check_range("z", z, len(self.table))
        if self.positions is None:
            return self.table[z]
        if z.shape[1] > len(self.positions):
            raise ValueError(f"z: {z.shape[1]} positions, expected at most {len(self.positions)}")
        check_shape("positions", self.positions, (len(self.positions), self.table.shape[1]))
        return self.table[z] + self.positions[: z.shape[1]]

    def difference(self, z: Labels, u: Array) -> Array:
        """Raises ValueError, whatever u, shaped as z, is."""
        raise ValueError("Embedding: z are integers, which no u is taken from; begin behind the embedding")

    def adjoint(self, z: Labels, d: Array) -> Array:
        """Raises ValueError, whatever d, shaped as the value, is."""
        raise ValueError("Embedding: z are integers, which have no gradient; end behind the embedding")

    def update(self, z: Labels, delta: Array) -> Update:
        """Equation (2), shaped as the parameters. Raises ValueError where delta does not fit."""
        check_shape("delta", delta, (*z.shape, self.table.shape[1]))
        is_token = np.arange(len(self.table))[:, None] == z.reshape(-1)  # (V, batch T)
        table = is_token.astype(delta.dtype) @ delta.reshape(-1, delta.shape[2]) / len(z)
        if self.positions is None:
            return (table,)
        positions = np.zeros_like(self.positions)
        positions[: z.shape[1]] = delta.sum(axis=0) / len(z)
        return table, positions
