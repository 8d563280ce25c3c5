"""Second passes that run in full and are subtracted from the first, as on hardware.

The twins carry the difference h_l - h~_l through the layers, which is equal in exact arithmetic. It differs where
products are rounded: a difference is rounded at its own scale, which two separate passes cannot use.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from .._autocast import in_full, is_lowered
from ..activations import Activation
from ..ftp import Feedback, project
from ..layers import Layer, Pass, activity, changed, forward, pushed, without_dropped

SecondPass: TypeAlias = Literal["difference", "full"]
"""How the second pass is run."""


def check_second_pass(second_pass: str, recompute: bool) -> None:
    """Raises ValueError for any other, and for a full pass, which is held, where one layer at a time is to be."""
    if second_pass not in get_args(SecondPass):
        raise ValueError(f"second_pass: {second_pass!r}, expected 'difference' or 'full'")
    if recompute and second_pass == "full":
        raise ValueError("recompute: True, with second_pass='full', which holds all of a pass; expected one of them")


def full_first_difference(feedback: Feedback, targets: Tensor, error: Tensor, phi: Activation, gain: float) -> Tensor:
    """`ftp.first_difference` by one product with the outputs and one with the targets: (batch, n_j)."""
    outputs = targets + error
    return gain * (phi.value(project(feedback, outputs)) - phi.value(project(feedback, targets)))


def full_differences(layers: Sequence[Layer], clean: Pass, first: Tensor, inject: int) -> Iterator[Tensor]:
    """`ftp.differences` by carrying the targets themselves: each as h_l."""
    clean = _in_full(layers, clean)
    h = (clean.inputs[0], *clean.activities)[inject]
    steps, outlet = (layers[inject - 1].steps, layers[inject - 1].outlet) if inject > 0 else ((), ())
    first = without_dropped(steps, first)
    yield first
    target = h - first
    for layer, following in zip(layers[inject:-1], clean.activities[inject:-1], strict=True):
        with in_full():
            target = activity(layer.steps, layer.value(pushed(outlet, h, target)))
        h, outlet = following, layer.outlet
        yield h - target


def _in_full(layers: Sequence[Layer], clean: Pass) -> Pass:
    """The clean pass as a second one of full precision is subtracted from it."""
    if not is_lowered():
        return clean
    with in_full():
        return forward(layers, clean.inputs[0].clone())  # another array: modules know one they have seen


def carried_modulated_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Tensor,
    projection: Tensor,
    output_gradient: Callable[[Tensor], Tensor] | None,
    presynaptic: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`pepita.update_factors` by differences of samples, as modules take them, or of positions with labels."""
    u = -torch.tensordot(error, projection, dims=1)
    for layer, z, a, h in zip(layers[:-1], *clean, strict=False):
        difference = changed(layer.steps, a, layer.difference(z, u))
        yield difference, z - u if presynaptic == "modulated" else z
        u = changed(layer.outlet, h, difference)
    z = clean.inputs[-1] - u
    if output_gradient is not None:
        error = output_gradient(activity(layers[-1].steps, layers[-1].value(z)))
    yield error, z if presynaptic == "modulated" else clean.inputs[-1]


def full_modulated_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Tensor,
    projection: Tensor,
    output_gradient: Callable[[Tensor], Tensor] | None,
    presynaptic: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`pepita.update_factors` by a modulated pass."""
    clean = _in_full(layers, clean)
    with in_full():
        modulated = forward(layers, clean.inputs[0] + torch.tensordot(error, projection, dims=1))
    inputs = modulated.inputs if presynaptic == "modulated" else clean.inputs
    for z, h, h_modulated in zip(inputs[:-1], clean.activities, modulated.activities, strict=False):
        yield h - h_modulated, z
    yield error if output_gradient is None else output_gradient(modulated.scores), inputs[-1]
