"""MaxMin as a module."""

from torch import Tensor, nn

from ..activations import maxmin


class MaxMin(nn.Module):
    """Replaces units 2i and 2i+1 of axis 1 by their maximum and minimum; shape unchanged, an even number of units."""

    def forward(self, x: Tensor) -> Tensor:
        return maxmin.value(x)
