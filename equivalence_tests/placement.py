"""Where tests make their tensors: on the device under test, while the package under test places its own itself.

A default device would place both, and hide what the package makes on the CPU.
"""

import sys
from types import FrameType
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

ROOT = __name__.split(".")[0] + "."
MODELS = ROOT + "accelerated.modules"
"""Layers and networks, which stand in a test's model as PyTorch's do."""
FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand,
    torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


class Placement(TorchFunctionMode):
    """Within it, what tests make is on `device`, models included, unless they name another or draw it elsewhere."""

    device: ClassVar[torch.device] = torch.device("cpu")
    """The device under test."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES and kwargs.get("device") is None and _is_made_by_a_test():
            generator = kwargs.get("generator")
            kwargs = {**kwargs, "device": self.device if generator is None else generator.device}
        return func(*args, **kwargs)


def _is_made_by_a_test() -> bool:
    """Whether no part of this project stands between it and a test, but for layers of models and what they call."""
    within = False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(f"{__package__}."):
            return not within
        if name.startswith(ROOT):
            within = not name.startswith(MODELS)
        frame = frame.f_back
    return False


def seeded(seed: int) -> torch.Generator:
    """A generator on the device under test."""
    return torch.Generator(Placement.device).manual_seed(seed)
