"""Convolutions in a graph of autograd with the gradient by their weight that `convolution` has, on CPUs the faster."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from .._autocast import is_lowered
from ..convolution import multiplies_windows, weight_gradient
from .cutting import is_plain


class _OfInput(torch.autograd.Function):
    """Zeros shaped as what a convolution gives. Its gradient by these goes on to the input, where that is asked for."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, shape: tuple[int, ...], place: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.place = z.shape, place
        return z.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, delta, *ctx.place), None, None, None


class _OfWeight(torch.autograd.Function):
    """The same for the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, z: Tensor, shape: tuple[int, ...], place: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(z)
        ctx.shape, ctx.place = weight.shape, place
        return z.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return weight_gradient(z, ctx.shape, delta, *ctx.place), None, None, None


class _OfBias(torch.autograd.Function):
    """The same for the bias."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, shape: tuple[int, ...]) -> Tensor:
        return bias.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> Any:
        return delta.sum(dim=(0, 2, 3)), None


class _Convolved(torch.autograd.Function):
    """a, which has no graph, with that of the zeros."""

    @staticmethod
    def forward(ctx: Any, convolve: Any, *zeros: Tensor | None) -> Tensor:
        a: Tensor = convolve()
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> Any:
        return None, *(delta if needed else None for needed in ctx.needs_input_grad[1:])


class _Convolving(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.conv2d:
            return _convolved(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _pair(n: Any) -> Any:
    """Rows and columns, as PyTorch reads a setting; a name as it is."""
    if isinstance(n, str):
        return n
    return (n, n) if isinstance(n, int) else tuple(n) * (2 // len(n))


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    stride, padding, dilation = (_pair(n) for n in (stride, padding, dilation))
    place = stride, padding, dilation, groups
    is_ours = weight.requires_grad and torch.is_grad_enabled()
    if not is_ours or not multiplies_windows(padding, input, weight.shape, dilation, groups):
        return functional.conv2d(input, weight, bias, *place)
    sides = zip(input.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = (len(input), len(weight), *((n + 2 * around - k) // step + 1 for n, k, step, around in sides))
    z, kernel = input.detach(), weight.detach()

    def convolve() -> Tensor:
        return functional.conv2d(z, kernel, bias, *place)

    of_input = _applied(_OfInput, input, kernel, shape, place) if input.requires_grad else None
    of_bias = _applied(_OfBias, bias, shape) if bias is not None and bias.requires_grad else None
    return _applied(_Convolved, convolve, of_input, _applied(_OfWeight, weight, z, shape, place), of_bias)


def _applied(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    found: Tensor = function.apply(*arguments)
    return found


class _Mode(local):
    def __init__(self) -> None:
        self.on = False  # of the thread, not the class: the compiler asks where it is


_MODE = _Mode()


@contextmanager
def convolving() -> Iterator[None]:
    """Inside, in this thread, `applied` makes graphs of ours. To differentiate these twice is an error."""
    before, _MODE.on = _MODE.on, not (torch.compiler.is_compiling() or is_lowered())
    try:
        yield
    finally:
        _MODE.on = before


def applied(module: nn.Module, x: Tensor) -> Tensor:
    """What the module gives, of a Conv2d with the graph of ours inside `convolving`.

    A convolution within another module, which may run it once more in a backward pass, is left to PyTorch.
    """
    with _Convolving() if _MODE.on and is_plain(module, nn.Conv2d) else nullcontext():
        given: Tensor = module(x)
    return given
