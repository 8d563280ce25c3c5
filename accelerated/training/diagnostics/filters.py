"""What the units of a first layer look for in images."""

from math import prod

import torch
from torch import Tensor, nn

from ...modules import OrthogonalConv2d
from ...rules import Rule


@torch.no_grad()
def first_filters(rule: Rule, channels: int, height: int, width: int) -> Tensor | None:
    """The first layer's weights as images, (n, c, h, w): of a dense layer as large as the samples, else kernels.

    The samples are images of that size, of 1 or 3 channels. None where the weights are no such images.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> first_filters(rule, 1, 2, 3).shape
    torch.Size([4, 1, 2, 3])
    """
    module = rule.units[0].module
    match module:
        case nn.Linear() if module.in_features == prod((channels, height, width)):
            found = module.weight.unflatten(1, (channels, height, width))
        case nn.Conv2d() if module.groups == 1:
            found = module.weight
        case OrthogonalConv2d():
            found = module.kernel()
        case _:
            return None
    return found.detach() if found.shape[1] in (1, 3) and min(found.shape[2:]) > 1 else None
