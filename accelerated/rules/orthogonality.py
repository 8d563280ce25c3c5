"""Keeping weights orthogonal during training, with as few products as the drift needs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..orthogonality import bjorck_factor, gram, polar_factor, retract


class PlainStep(NamedTuple):
    """A weight's last change, W <- W - rate/B delta^T z, by its factors, and its pre-activation W z before it."""

    delta: Tensor
    z: Tensor
    preactivation: Tensor
    rate: float


class Orthogonality(nn.Module):
    """Holds weights at orthonormal rows (wide) or columns (tall), to within `limit` in each entry of the Gram matrix.

    After a plain gradient step whose factors are known the weight is retracted by products with 2B rows, and the
    result is checked by a few random vectors v: the mean of |(G - I) v|^2 is |G - I|_F^2. After any other change, and
    where the check fails, only the weight itself is looked at: a Bjorck step from its Gram matrix, of the order that
    brings the residual below the limit. Such a step measures the defect that it removes, and the next one is put off
    for as long as the drift, at four times the measured rate, stays within the limit.

    A Bjorck step waits for the device, to choose its order; a retraction does not: on CUDA its check is read a step
    later. Raises FloatingPointError, naming the weight and the step, where a weight is no longer finite.
    """

    LONGEST_INTERVAL = 50
    PROBES = 8

    def __init__(self, weights: Mapping[str, Tensor], *, limit: float = 5e-3) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit: {limit}, expected a positive number")
        self.names = list(weights)
        self.weights = list(weights.values())
        self.limit = limit
        self.steps = 0
        self.schedules = [_Schedule() for _ in self.weights]
        generator = torch.Generator().manual_seed(0)
        for index, weight in enumerate(self.weights):
            signs = torch.randint(0, 2, (self.PROBES, min(weight.shape)), generator=generator) * 2 - 1
            self.register_buffer(f"probe_{index}", signs.to(weight.device, weight.dtype), persistent=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place."""
        for weight in self.weights:
            weight.copy_(polar_factor(weight))

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep] | None = None) -> None:
        """To be called after every change of the weights, with the factors of those that took a plain step."""
        self.steps += 1
        for index, (name, weight, schedule) in enumerate(zip(self.names, self.weights, self.schedules, strict=True)):
            plain = (plain_steps or {}).get(name)
            if plain is None:
                due = schedule.is_due()
            else:
                retract(weight, *plain, out=weight)
                defect = schedule.exchange(_probed_defect(weight, self.get_buffer(f"probe_{index}")))
                due = not defect <= self.limit
            if due:
                schedule.plan(self._restore(name, weight), self.limit, self.LONGEST_INTERVAL)

    def _restore(self, name: str, weight: Tensor) -> float:
        """Bjorck steps of sufficient order and number, in place; returns the defect that they found."""
        g = gram(weight)
        residual = torch.eye(len(g), device=g.device, dtype=g.dtype) - g
        defect, column = torch.stack([residual.abs().amax(), _largest_column(residual)]).tolist()
        if not defect < float("inf"):
            raise FloatingPointError(
                f"weight of layer '{name}': not finite at step {self.steps}; lower the learning rate"
            )
        order, steps = self._sufficient(residual, column)
        factor = bjorck_factor(g, order, steps, rescale=steps > 2)
        weight.copy_(factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor)
        return float(defect)

    def _sufficient(self, residual: Tensor, column: float) -> tuple[int, int]:
        """The least order and number of steps that leave at most `limit` in every entry.

        A step of order p leaves less than 3/4 E^(p+1) / (1 - |E|), and an entry of a product of symmetric matrices is
        at most the product of their largest column norms.
        """
        if column**2 <= self.limit:
            return 1, 1
        square = residual @ residual
        column_2, column_4 = torch.stack([_largest_column(square), _largest_column(square @ square)]).tolist()
        radius = len(residual) ** 0.125 * column_4**0.25  # at least |E|, since |E|^8 <= tr E^8 <= n column_4^2
        for order, bound in ((2, column_2 * column), (3, column_2**2), (4, column_4 * column)):
            if radius < 0.9 and 0.75 * bound <= self.limit * (1 - radius):
                return order, 1
        return (4, 2) if radius < 0.9 else (3, 16)

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "schedules": [schedule.state() for schedule in self.schedules]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.interval, schedule.waited, schedule.unread = saved


def _probed_defect(weight: Tensor, probes: Tensor) -> Tensor:
    """An estimate of |G - I|_F from (G - I) v for the rows v of probes: a scalar tensor."""
    wide = weight.shape[0] <= weight.shape[1]
    image = (probes @ weight) @ weight.T if wide else (probes @ weight.T) @ weight
    return torch.linalg.matrix_norm(image - probes) / len(probes) ** 0.5


def _largest_column(symmetric: Tensor) -> Tensor:
    """The largest Euclidean norm of a column: a scalar tensor."""
    return torch.linalg.vector_norm(symmetric, dim=0).amax()


class _Schedule:
    """When one weight is due for its next Bjorck step; and its last check, where that is read later."""

    def __init__(self) -> None:
        self.interval = 1
        self.waited = 0
        self.unread: float | None = None
        self._copy: tuple[Tensor, torch.cuda.Event] | None = None

    def is_due(self) -> bool:
        """Counts one more step that was not retracted."""
        self.waited += 1
        return self.waited >= self.interval

    def plan(self, defect: float, limit: float, longest_interval: int) -> None:
        """Puts the next Bjorck step off for as long as four times the drift found stays within the limit."""
        affordable = self.waited * limit / (4 * defect) if defect > 0 else longest_interval
        self.interval = int(max(1, min(affordable, 2 * self.interval, longest_interval)))
        self.waited = 0

    def exchange(self, check: Tensor) -> float:
        """Hands over a check of a retracted weight; returns it, or on CUDA the one before, without waiting."""
        self.interval, self.waited = 1, 0  # whatever changes the weight next, its drift is unknown
        if not check.is_cuda:
            return float(check.item())
        before = self._read()
        copy = torch.empty((), dtype=check.dtype, pin_memory=True).copy_(check, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._copy = (copy, event)
        return 0.0 if before is None else before

    def _read(self) -> float | None:
        if self._copy is not None:
            copy, event = self._copy
            event.synchronize()  # queued a whole training step ago
            self.unread, self._copy = float(copy.item()), None
        value, self.unread = self.unread, None
        return value

    def state(self) -> tuple[int, int, float | None]:
        self.unread = self._read()
        return self.interval, self.waited, self.unread
