"""Layer normalisation over channels, position by position, as a module."""

from torch import Tensor, nn

from ..normalisations import channel_norm


class ChannelNorm(nn.Module):
    """Mean 0 and variance 1 over the channels at each position of a sample; shape unchanged, nothing learned.

    (batch, channels, height, width), or (batch, features), of which it is the layer normalisation.

    >>> ChannelNorm()(torch.tensor([[1.0, 3.0]])).round(decimals=3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
