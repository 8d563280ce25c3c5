"""A shortcut that stays orthogonal, for FOTON through many layers."""

from math import cos, sin

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..convolution import circular_convolve, skew_kernel
from ..orthogonality import orthogonal, skew_orthogonal
from .orthogonal_conv import OrthogonalConv2d


class Rotation(nn.Module):
    """x cos(angle) + s(W x + b) sin(angle), W = Q^T J Q skew and orthogonal; see `Rotation` of `reference.layers`.

    (batch, ..., features) to the same, s being `activation`, a module. With `kernel_size` Q is an `OrthogonalConv2d`,
    and images (batch, features, height, width) go to the same; W then sees 2 kernel_size - 1 pixels a side. An even
    number of features. Without an activation the layer keeps all norms, as long as Q is orthogonal, which
    `Foton.constrain` sees to. W is skew for any Q. Many layers want small angles: 0.15 for 50, say.

    Raises ValueError unless there is an even number of features.

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> torch.allclose(Rotation(2, 0.5, bias=False)(x).norm(), torch.tensor(5.0))
    True
    """

    def __init__(
        self,
        features: int,
        angle: float,
        activation: nn.Module | None = None,
        kernel_size: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(features, int) or features < 2 or features % 2:
            raise ValueError(f"features: {features}, expected a positive even number")
        self.angle = angle
        self.orthogonal: nn.Linear | OrthogonalConv2d
        if kernel_size is None:
            self.orthogonal = nn.Linear(features, features, bias, device=device, dtype=dtype)
            self.orthogonal.weight = nn.Parameter(orthogonal((features, features), device=device, dtype=dtype))
            if bias:
                nn.init.zeros_(self.orthogonal.bias)
        else:
            self.orthogonal = OrthogonalConv2d(features, features, kernel_size, bias, device, dtype)
        self.activation = nn.Identity() if activation is None else activation

    def skew(self) -> Tensor:
        """W: (features, features), or the kernel (features, features, 2 kernel_size - 1, 2 kernel_size - 1)."""
        if isinstance(self.orthogonal, OrthogonalConv2d):
            return skew_kernel(self.orthogonal.kernel())
        return skew_orthogonal(self.orthogonal.weight)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.orthogonal.bias
        if isinstance(self.orthogonal, OrthogonalConv2d):
            a = circular_convolve(self.skew(), x)
            a = a if bias is None else a + bias[:, None, None]
        else:
            a = functional.linear(x, self.skew(), bias)
        h: Tensor = cos(self.angle) * x + sin(self.angle) * self.activation(a)
        return h

    def extra_repr(self) -> str:
        return f"angle={self.angle}"
