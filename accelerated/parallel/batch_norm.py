"""Batch normalisation over the shares of all processes, with derivatives by autograd."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._arrays import widened
from .processes import Processes


class _Summed(torch.autograd.Function):
    """The sum over processes. Each differentiates the loss of its share, of which it has that part in the whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes, part: float) -> Tensor:
        ctx.processes, ctx.part = processes, part
        return _sum(x, processes)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        found = _sum(ctx.part * d, ctx.processes)
        return found / ctx.part if ctx.part else found, None, None


def _summed(x: Tensor, processes: Processes, part: float) -> Tensor:
    total: Tensor = _Summed.apply(x, processes, part)  # type: ignore[no-untyped-call]
    return total


def _sum(x: Tensor, processes: Processes) -> Tensor:
    total = x.clone()
    processes.sum(total)
    return total


def _moments(x: Tensor, processes: Processes, part: float) -> tuple[Tensor, Tensor, Tensor]:
    """The variance and the mean of each channel over samples and positions of all processes, and how many these are."""
    axes = [0, *range(2, x.dim())]
    sums = torch.cat([x.sum(axes), x.new_full((1,), x.numel() // x.shape[1])])
    sums = _summed(sums, processes, part)
    mean, count = sums[:-1] / sums[-1], sums[-1]
    squares = (x - _across(mean, x)).square().sum(axes)
    return _summed(squares, processes, part) / count, mean, count


def _across(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, as x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _normalised(norm: _BatchNorm, processes: Processes, part: float, x: Tensor) -> Tensor:
    """What the module gives, over all shares of the batch; they are counted in its running statistics."""
    if not (norm.training or norm.running_mean is None):
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)
    h = widened(x)
    variance, mean, count = _moments(h, processes, part)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), share)
    y = (h - _across(mean, h)) * _across((variance + norm.eps).rsqrt(), h)
    if norm.weight is not None:
        y = y * _across(norm.weight, y) + _across(norm.bias, y)
    return y.to(x.dtype)


@contextmanager
def synchronised(norms: Iterable[nn.Module], processes: Processes, part: float) -> Iterator[None]:
    """Inside, these modules normalise over the shares of all processes, of which this one's has that part."""
    with ExitStack() as stack:
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            norm.__dict__["forward"] = partial(_normalised, norm, processes, part)
            norm.__dict__["statistics"] = lambda x: _moments(widened(x), processes, part)[:2]
            stack.callback(norm.__dict__.pop, "forward")
            stack.callback(norm.__dict__.pop, "statistics")
        yield
