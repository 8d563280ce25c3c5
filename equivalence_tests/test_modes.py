"""Steps in PyTorch's inference mode, and with its deterministic algorithms, train as any others."""

import copy
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from prograde.accelerated.rules import accumulate
from prograde.equivalence_tests.rule_examples import EXAMPLES
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.usefixtures("ours_only")


def trained(name: str, device: Any, mode: Callable[[], AbstractContextManager[Any]]) -> list[torch.Tensor]:
    """The parameters after steps in that mode, whose gradients are clipped outside."""
    rule = EXAMPLES[name].build(device)
    x, y = EXAMPLES[name].batch(device)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    for _ in range(2):
        with mode():
            rule.assign_credit(x.clone(), y.clone())
        assert not any(p.grad.is_inference() for p in rule.parameters() if p.grad is not None), "lasting gradients"
        torch.nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimizer.step()
        rule.constrain(optimizer)
    with mode():
        for update in rule.stream(x.clone(), y.clone()):
            for parameter, gradient in update.pairs:
                assert gradient.shape == parameter.shape
    return [p.detach().clone() for p in rule.parameters()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_inference_mode(name: str, twin: TwinSide) -> None:
    """A step leaves it: x and y made inside and gradients that are written over outside are no inference tensors."""
    inside, outside = (trained(name, twin.device, mode) for mode in (torch.inference_mode, nullcontext))
    assert all(map(torch.equal, inside, outside)), "as outside"


def stepped(name: str, device: Any, mode: Callable[[], AbstractContextManager[Any]]) -> list[torch.Tensor]:
    """The parameters after `step`s and sums of gradients in that mode, with which it goes on outside."""
    rule = EXAMPLES[name].build(device)
    x, y = EXAMPLES[name].batch(device)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    with mode():
        rule.step(x.clone(), y.clone(), optimizer)
    kept = [held for state in optimizer.state.values() for held in state.values()]
    assert [held.is_inference() for held in kept] == [False] * max(1, len(kept)), "lasting state"
    rule.step(x, y, optimizer)
    with mode():
        accumulate(rule, x.clone(), y.clone(), 0.5)
    assert not any(p.grad.is_inference() for p in rule.parameters() if p.grad is not None), "lasting sums"
    accumulate(rule, x, y, 0.5)
    optimizer.step()
    return [p.detach().clone() for p in rule.parameters()]


@pytest.mark.parametrize("name", ["foton", "mono-forward", "backprop"])
def test_whole_steps_in_inference_mode(name: str, twin: TwinSide) -> None:
    inside, outside = (stepped(name, twin.device, mode) for mode in (torch.inference_mode, nullcontext))
    assert all(map(torch.equal, inside, outside)), "as outside"


@pytest.mark.parametrize("name", ["foton", "mono-forward", "backprop"])
def test_the_loss_is_not_backpropagated(name: str, twin: TwinSide) -> None:
    """By itself, accumulated, or in the hands of a GradScaler; in all else it is a tensor as any other."""
    rule = EXAMPLES[name].build(twin.device)
    loss = rule.assign_credit(*EXAMPLES[name].batch(twin.device))
    scaler = torch.amp.GradScaler(torch.device(twin.device).type)
    for given in (loss, loss / 2, 2 * loss, scaler.scale(loss)):
        with pytest.raises(RuntimeError) as raised:
            given.backward()
        assert "leave the line out, and a GradScaler with it" in str(raised.value), "what to do instead"
    assert type(loss + 1) is type(torch.stack([loss, loss])) is type(loss.detach()) is torch.Tensor
    assert not loss.requires_grad
    assert float(loss) == loss.item() == float(loss.cpu().numpy())
    plain = loss.detach()
    assert (f"{loss:.3f}", f"{2 * loss}", repr(loss)) == (f"{plain:.3f}", f"{2 * plain}", repr(plain))
    assert torch.equal(copy.deepcopy(loss), plain)
    weight = torch.ones((), device=twin.device, requires_grad=True)
    (loss * weight).backward()
    assert torch.equal(weight.grad, loss.to(weight.dtype)), "a graph of one's own"
    kept = io.BytesIO()
    torch.save(loss, kept)
    kept.seek(0)
    assert torch.equal(torch.load(kept), loss), "saved as any tensor"


@pytest.mark.parametrize("name", EXAMPLES)
def test_deterministic_algorithms(name: str, twin: TwinSide) -> None:
    if torch.device(twin.device).type != "cpu":
        pytest.skip("the device's own list of operations without one")
    once, plain = trained(name, twin.device, nullcontext), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = trained(name, twin.device, nullcontext)
    finally:
        torch.use_deterministic_algorithms(plain)
    assert all(map(torch.equal, found, once)), "the same"
