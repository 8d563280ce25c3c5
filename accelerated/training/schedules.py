"""Learning-rate schedules: a factor for the share of training that is done, 0 <= progress < 1."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(progress: float) -> float:
    """The same rate throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0."""
    return 0.5 * (1 + cos(pi * progress))


def steps(progress: float) -> float:
    """A tenth from 60 % of training on, a hundredth from 90 % on: PEPITA's own."""
    return 1.0 if progress < 0.6 else 0.1 if progress < 0.9 else 0.01


def linear_tail(progress: float) -> float:
    """Constant for the first half, then linear to 0: Forward-Forward's own."""
    return min(1.0, 2 * (1 - progress))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "steps": steps,
    "linear-tail": linear_tail,
}
"""The schedules by the names that recipes use."""


class Schedule(LambdaLR):
    """A schedule of SCHEDULES over so many steps: the rate changes after each."""

    def __init__(self, optimizer: Optimizer, name: str, steps: int) -> None:
        factor = SCHEDULES[name]
        super().__init__(optimizer, lambda step: factor(min(1, step / steps)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on over its own number of steps, where the state is of a shorter or longer training."""
        super().load_state_dict(state_dict)
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self.last_epoch)
