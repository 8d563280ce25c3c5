"""A dense layer's value and update, for recurrent networks."""

from typing import NamedTuple

from ._arrays import Array, check_batch, check_shape

__all__ = ["LayerUpdate", "affine", "layer_update"]


class LayerUpdate(NamedTuple):
    """What an optimizer is to subtract from one layer's weight and bias (or None)."""

    weight: Array
    bias: Array | None


def affine(weight: Array, bias: Array | None, z: Array) -> Array:
    """W z + b for every sample z: (batch, n_out)."""
    return z @ weight.T if bias is None else z @ weight.T + bias


def layer_update(delta: Array, z: Array, bias: Array | None) -> LayerUpdate:
    """G_l for one layer, and its bias's where it has one."""
    check_batch("delta", delta)
    check_shape("z", z, (len(delta), z.shape[-1]))
    return LayerUpdate(delta.T @ z / len(delta), None if bias is None else delta.mean(axis=0))
