"""Embedding of tokens, with learned positions or without, as a layer; see the reference."""

from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, Labels, check_range, check_shape, widened
from .layers import Step, Update

__all__ = ["Embedding"]


class Embedding(NamedTuple):
    """E[z_t] + P[t]; its parameters are the table, then the positions where there are some."""

    table: Array
    positions: Array | None = None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Labels) -> Array:
        """(batch, T, n). Raises ValueError unless z has integers of the table, no more of them than positions."""
        if self.table.dim() != 2 or 0 in self.table.shape:
            raise ValueError(f"table: shape {tuple(self.table.shape)}, expected (V, n), at least one of each")
        if z.dim() != 2 or 0 in z.shape:
            raise ValueError(f"z: shape {tuple(z.shape)}, expected (batch, T), at least one of each")
        if z.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"z: dtype {z.dtype}, expected integers")
        check_range("z", z, len(self.table))
        a = functional.embedding(z, self.table)
        if self.positions is None:
            return a
        if z.shape[1] > len(self.positions):
            raise ValueError(f"z: {z.shape[1]} positions, expected at most {len(self.positions)}")
        check_shape("positions", self.positions, (len(self.positions), self.table.shape[1]))
        return a + self.positions[: z.shape[1]]

    def difference(self, z: Labels, u: Array) -> Array:
        """Raises ValueError."""
        raise ValueError("Embedding: z are integers, which no u is taken from; begin behind the embedding")

    def adjoint(self, z: Labels, d: Array) -> Array:
        """Raises ValueError."""
        raise ValueError("Embedding: z are integers, which have no gradient; end behind the embedding")

    def update(self, z: Labels, delta: Array) -> Update:
        """1/B delta added up by tokens, and by positions; sums of half precision are taken in float32."""
        check_shape("delta", delta, (*z.shape, self.table.shape[1]))
        scaled = widened(delta) / len(z)
        table = torch.zeros(self.table.shape, dtype=scaled.dtype, device=delta.device)
        table.index_add_(0, z.flatten(), scaled.flatten(0, 1))
        if self.positions is None:
            return (table.to(delta.dtype),)
        positions = torch.zeros_like(self.positions)
        positions[: z.shape[1]] = scaled.sum(dim=0)
        return table.to(delta.dtype), positions
