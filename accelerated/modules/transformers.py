"""Transformers for images and for text: chains of pre-norm blocks (Vaswani et al., 2017; Xiong et al., 2020).

Each is an `nn.Sequential` whose children are the units of a rule: an embedding, the blocks, and the linear layer to the
scores. A rule takes it as it is.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


def _positions(count: int, width: int) -> nn.Parameter:
    """Learned, (count, width), as small as GPT-2 starts them."""
    return nn.Parameter(0.02 * torch.randn(count, width))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), and to this the same of two linear layers with GELU between: (batch, tokens, width).

    `causal` lets a token attend to itself and those before it. `heads` divides `width`, or ValueError is raised.

    >>> block, x = TransformerBlock(4, 2, causal=True), torch.ones(1, 3, 4)
    >>> torch.allclose(block(x)[:, :2], block(x[:, :2]), atol=1e-6)  # the third token has no effect on the first two
    True
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: {heads!r}, expected a divisor of the width {width}")
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        """Scaled dot-product attention in `heads` parts of the features; shape unchanged."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)  # (batch, heads, ...)
        projected: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return projected

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        sums: Tensor = x + self.mlp(self.norm2(x))
        return sums

    def extra_repr(self) -> str:
        return f"heads={self.heads}, causal={self.causal}"


class PatchEmbedding(nn.Module):
    """Square images (batch, image_channels, size, size) to (batch, (size / patch)^2, width): one token a patch.

    A linear map of each patch, plus what is learned of its position. `patch` divides `image_size`, or ValueError is
    raised.

    >>> PatchEmbedding(1, 8, 4, 6)(torch.ones(2, 1, 8, 8)).shape  # four patches
    torch.Size([2, 4, 6])
    """

    def __init__(self, image_channels: int, image_size: int, patch: int, width: int) -> None:
        super().__init__()
        if patch < 1 or image_size % patch:
            raise ValueError(f"patch: {patch!r}, expected a divisor of the image size {image_size}")
        self.project = nn.Conv2d(image_channels, width, patch, patch)
        self.positions = _positions((image_size // patch) ** 2, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return tokens + self.positions


class TokenEmbedding(nn.Module):
    """int64 tokens (batch, tokens) to (batch, tokens, width): what is learned of each, and of its position.

    There are at most `context` tokens.

    >>> TokenEmbedding(10, 5, 4)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = _positions(context, width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.positions):
            raise ValueError(f"x: {x.shape[1]} tokens, expected at most {len(self.positions)}")
        embedded: Tensor = self.tokens(x) + self.positions[: x.shape[1]]
        return embedded


class MeanToken(nn.Module):
    """The mean over tokens: (batch, tokens, width) to (batch, width).

    >>> MeanToken()(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
    [[2.0, 3.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def vit(
    num_classes: int = 10,
    image_channels: int = 3,
    image_size: int = 32,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
) -> nn.Sequential:
    """A vision transformer (Dosovitskiy et al., ICLR 2021) that classifies the mean of its tokens: (batch, K).

    That of ViT-B/16, but for its class token: 86,566,120 parameters.

    >>> model = vit(3, image_channels=1, image_size=8, patch=4, width=6, depth=1, heads=2)
    >>> model(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """
    blocks = [TransformerBlock(width, heads) for _ in range(depth)]
    return _chain(
        embedding=PatchEmbedding(image_channels, image_size, patch, width),
        blocks=nn.Sequential(*blocks),
        norm=nn.LayerNorm(width),
        pool=MeanToken(),
        output=nn.Linear(width, num_classes),
    )


def char_transformer(
    vocabulary: int, context: int = 64, width: int = 128, depth: int = 4, heads: int = 4
) -> nn.Sequential:
    """A causal transformer for characters or other tokens: int64 (batch, tokens) to scores (batch, tokens, vocabulary).

    The scores of a token are those of the token after it. GPT-2's form, with an output layer of its own weights.

    >>> char_transformer(10, context=5, width=4, depth=1, heads=2)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 10])
    """
    blocks = [TransformerBlock(width, heads, causal=True) for _ in range(depth)]
    return _chain(
        embedding=TokenEmbedding(vocabulary, context, width),
        blocks=nn.Sequential(*blocks),
        norm=nn.LayerNorm(width),
        output=nn.Linear(width, vocabulary),
    )


def _chain(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
