"""Keeping weights orthogonal during training, with as few products as the drift needs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..orthogonality import bjorck_factor, gram, polar_factor


class Orthogonality(nn.Module):
    """Holds weights at orthonormal rows (wide) or columns (tall), to within `limit` in every entry of their Gram matrix.

    A Bjorck step measures the defect that it removes, so the defect costs nothing to know; the next step on that weight is
    put off for as long as the drift, at twice the measured rate, stays within the limit. Large updates get a higher
    order, and a defect beyond `BREAKDOWN` the exact polar factor. Nothing waits for the device: a measurement is read
    on the step after the one that made it. Any optimizer will do, since only the weights are looked at.

    Raises FloatingPointError, naming the weight, where it is no longer finite.
    """

    BREAKDOWN = 0.3

    def __init__(self, weights: dict[str, nn.Parameter], *, limit: float = 5e-3, longest_interval: int = 100) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"limit: {limit}, expected a positive number")
        self.names = list(weights)
        self.weights = list(weights.values())
        self.limit = limit
        self.longest_interval = longest_interval
        self.steps = 0
        self.schedules = [_Schedule() for _ in self.weights]

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place."""
        for weight in self.weights:
            weight.copy_(polar_factor(weight))

    @torch.no_grad()
    def step(self) -> None:
        """To be called after every change of the weights."""
        self.steps += 1
        for name, weight, schedule in zip(self.names, self.weights, self.schedules, strict=True):
            schedule.read(self.limit, self.longest_interval)
            if schedule.broken:
                if not torch.isfinite(weight).all():
                    raise FloatingPointError(f"{name}: not finite at step {self.steps}; lower the learning rate")
                weight.copy_(polar_factor(weight))
                schedule.restart()
                continue
            schedule.waited += 1
            if schedule.waited < schedule.interval:
                continue
            g = gram(weight)
            factor = bjorck_factor(g, schedule.order)
            weight.copy_(factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor)
            g.diagonal().sub_(1)
            schedule.measured(g.abs_().amax())

    def get_extra_state(self) -> dict[str, Any]:
        for schedule in self.schedules:
            schedule.read(self.limit, self.longest_interval)
        return {
            "steps": self.steps,
            "schedules": [(s.interval, s.waited, s.order, s.broken) for s in self.schedules],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.restart()
            schedule.interval, schedule.waited, schedule.order, schedule.broken = saved


class _Schedule:
    """When one weight is due for its next Bjorck step, and of which order."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.interval = 1
        self.waited = 0
        self.order = 1
        self.broken = False
        self._defect: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def measured(self, defect: Tensor) -> None:
        """Notes the defect found after `waited` steps, without waiting for its value."""
        if defect.is_cuda:
            self._defect = torch.empty((), dtype=defect.dtype, pin_memory=True).copy_(defect, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._defect = defect
        self.waited = 0

    def read(self, limit: float, longest_interval: int) -> None:
        """Plans from the last measurement, if there is one that was not read."""
        if self._defect is None:
            return
        if self._event is not None:
            self._event.synchronize()  # its work was queued a whole training step ago
        defect = self._defect.item()
        self._defect = self._event = None
        self.broken = not defect <= Orthogonality.BREAKDOWN
        self.order = 1 if defect <= limit else 3
        affordable = self.interval * limit / (2 * defect) if defect > 0 else longest_interval
        self.interval = int(max(1, min(affordable, 2 * self.interval, longest_interval)))
