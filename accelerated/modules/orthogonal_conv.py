"""Convolutions for FOTON as modules: orthogonal kernels, and pooling that keeps norms."""

import torch
from torch import Tensor, nn

from ..convolution import circular_convolve, orthogonal_kernel
from ..orthogonality import orthogonal
from ..pooling import scaled_average_pool


class OrthogonalConv2d(nn.Module):
    """A circular convolution with an orthogonal kernel; see `prograde.reference.convolution`.

    (batch, in_channels, height, width) to (batch, out_channels, height, width), any kernel size, stride 1: to sample
    down, put nn.PixelUnshuffle before it or ScaledAvgPool2d behind it. The kernel is made of `mixing`, (out_channels,
    in_channels), and 2 (kernel_size - 1) `bases`, (c, c // 2) with c = max(in_channels, out_channels). They start
    as random orthogonal matrices; the kernel is orthogonal as long as they are. In a linear
    network, FOTON gives a layer backpropagation's update where out_channels <= in_channels and nothing before it widens
    either. There is no padding and no stride to choose.

    Raises ValueError unless channels and kernel size are positive, and for a kernel that one channel in and out
    cannot have.

    >>> x = torch.eye(4)[None, None].expand(1, 2, 4, 4)
    >>> y = OrthogonalConv2d(2, 3, 3, bias=False)(x)
    >>> y.shape, torch.allclose(y.norm(), x.norm(), atol=1e-4)
    (torch.Size([1, 3, 4, 4]), True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value}, expected a positive integer")
        c = max(in_channels, out_channels)
        if c < 2 and kernel_size > 1:
            raise ValueError(f"kernel_size: {kernel_size}, expected 1 where there is one channel in and one out")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.mixing = nn.Parameter(orthogonal((out_channels, in_channels), device=device, dtype=dtype))
        bases = [orthogonal((c, c // 2), device=device, dtype=dtype) for _ in range(2 * (kernel_size - 1))]
        self.bases = nn.ParameterList(bases)
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    def kernel(self) -> Tensor:
        """(out_channels, in_channels, kernel_size, kernel_size)."""
        return orthogonal_kernel(self.mixing, list(self.bases))

    def forward(self, x: Tensor) -> Tensor:
        y = circular_convolve(self.kernel(), x)
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


class ScaledAvgPool2d(nn.Module):
    """Average pooling times kernel_size, which keeps the norms of what it averages; its stride is kernel_size.

    (batch, channels, height, width) to (batch, channels, height / kernel_size, width / kernel_size).

    Raises ValueError unless the kernel size is positive.

    >>> ScaledAvgPool2d(2)(torch.ones(1, 1, 2, 4)).tolist()
    [[[[2.0, 2.0]]]]
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        if not isinstance(kernel_size, int) or kernel_size < 1:
            raise ValueError(f"kernel_size: {kernel_size}, expected a positive integer")
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return scaled_average_pool(x, self.kernel_size)

    def extra_repr(self) -> str:
        return str(self.kernel_size)
