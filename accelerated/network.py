"""A dense layer's value and update, for recurrent networks."""

from typing import NamedTuple

from torch.nn import functional

from ._arrays import Array, check_batch, check_shape

__all__ = ["LayerUpdate", "affine", "layer_update"]


class LayerUpdate(NamedTuple):
    """What an optimizer is to subtract from one layer's weight and bias (or None)."""

    weight: Array
    bias: Array | None


def affine(weight: Array, bias: Array | None, z: Array) -> Array:
    """W z + b for every sample z: (batch, n_out)."""
    return functional.linear(z, weight, bias)


def layer_update(delta: Array, z: Array, bias: Array | None) -> LayerUpdate:
    """1/B delta^T z for one layer, and its bias's where it has one."""
    check_batch("delta", delta)
    check_shape("z", z, (len(delta), z.shape[-1]))
    scaled = delta / len(delta)  # the batch mean costs n_l, not n_l n_(l-1), divisions a sample
    return LayerUpdate(scaled.T @ z, None if bias is None else scaled.sum(dim=0))
