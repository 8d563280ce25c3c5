"""The activations as modules: what models are made with, and what rules read."""

from torch import Tensor, nn

from ..activations import ACTIVATIONS, Activation, leaky_relu, maxmin


class MaxMin(nn.Module):
    """Replaces units 2i and 2i+1 of axis 1 by their maximum and minimum; shape unchanged, an even number of units.

    >>> MaxMin()(torch.tensor([[1.0, 2.0, 4.0, 3.0]])).tolist()
    [[2.0, 1.0, 4.0, 3.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return maxmin.value(x)


MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "maxmin": MaxMin,
}
"""The module of each of `ACTIVATIONS` but the identity, by its name there."""


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None; GELU's approximation by tanh is none."""
    if isinstance(module, nn.LeakyReLU):
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return next((ACTIVATIONS[name] for name, kind in MODULES.items() if isinstance(module, kind)), None)
