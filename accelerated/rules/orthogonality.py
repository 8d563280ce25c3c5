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

    After every change a weight is checked by eight random sign vectors v: the mean square of an entry of (G - I) v is
    the square of the norm of that row of G - I, which bounds each entry in it. Where the check exceeds half the
    limit, Bjorck steps from the Gram matrix follow, of the order and number that bring every entry below the limit. A
    plain gradient step whose factors are known is first taken back by products with 2B rows, which seldom leaves
    anything to do.

    A check costs two products with eight rows. It is read at once on the CPU and a step later on CUDA, so as not to
    wait for the device; Bjorck steps wait for it, to choose their order. Raises FloatingPointError, naming the layer
    and the step, where a weight is no longer finite.
    """

    PROBES = 8

    def __init__(self, layers: Mapping[str, nn.Linear], *, limit: float = 5e-3) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit: {limit}, expected a positive number")
        for layer in layers.values():
            dtype = layer.weight.dtype
            if limit < 2 * torch.finfo(dtype).eps:
                raise ValueError(
                    f"limit: {limit}, expected at least {2 * torch.finfo(dtype).eps}, what {dtype} resolves"
                )
        self.layers = dict(layers)
        self.limit = limit
        self.steps = 0
        self.checks = {name: _Check() for name in layers}
        generator = torch.Generator().manual_seed(0)
        for index, layer in enumerate(layers.values()):
            signs = torch.randint(0, 2, (self.PROBES, min(layer.weight.shape)), generator=generator) * 2 - 1
            self.register_buffer(f"probe_{index}", signs.to(layer.weight), persistent=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place."""
        for layer in self.layers.values():
            layer.weight.copy_(polar_factor(layer.weight))

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep] | None = None) -> None:
        """To be called after every change of the weights, with the factors of those that took a plain step."""
        self.steps += 1
        for index, (name, layer) in enumerate(self.layers.items()):
            weight = layer.weight
            plain = (plain_steps or {}).get(name)
            if plain is not None and 4 * len(plain.z) <= min(weight.shape):  # else the Gram matrix is the smaller one
                retract(weight, *plain, out=weight)
            found = _largest_row(weight, self.get_buffer(f"probe_{index}").to(weight))
            if not self.checks[name].exchange(found) <= self.limit / 2:
                self._restore(name, weight)

    def _restore(self, name: str, weight: Tensor) -> None:
        """Bjorck steps of sufficient order and number, in place."""
        g = gram(weight)
        order, steps = self._sufficient(name, torch.eye(len(g), device=g.device, dtype=g.dtype) - g)
        factor = bjorck_factor(g, order, steps, rescale=steps > 2)
        weight.copy_(factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor)

    def _sufficient(self, name: str, residual: Tensor) -> tuple[int, int]:
        """The least order and number of steps that leave at most `limit` in every entry, for E = residual.

        A step of order p leaves at most 3/4 |E|^(p+1) / (1 - |E|), so long as |E| < 1, and an entry of a product of
        symmetric matrices is at most the product of their largest column norms. Any norm bounds |E|.
        """
        column, frobenius = torch.stack([_largest_column(residual), torch.linalg.matrix_norm(residual)]).tolist()
        if not frobenius < float("inf"):
            raise FloatingPointError(
                f"weight of layer '{name}': not finite at step {self.steps}; lower the learning rate"
            )
        if frobenius < 1 and column**2 <= self.limit:
            return 1, 1
        square = residual @ residual
        fourth = square @ square
        norms = [_largest_column(square), _largest_column(fourth), torch.linalg.matrix_norm(fourth)]
        column_2, column_4, frobenius_4 = torch.stack(norms).tolist()
        radius = min(frobenius, frobenius_4**0.25)
        if radius >= 0.9:
            return 3, 16
        for order, product in ((2, column_2 * column), (3, column_2**2), (4, column_4 * column)):
            if 0.75 * product <= self.limit * (1 - radius):
                return order, 1
        left = 0.75 * radius**5 / (1 - radius)
        return (4, 2) if left < 0.9 and 0.75 * left**5 <= self.limit * (1 - left) else (3, 16)

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "unread": {name: check.unread() for name, check in self.checks.items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in state["unread"].items():
            self.checks[name] = _Check(value)


def _largest_row(weight: Tensor, probes: Tensor) -> Tensor:
    """An estimate of the largest norm of a row of G - I, from (G - I) v for the rows v of probes: a scalar tensor."""
    wide = weight.shape[0] <= weight.shape[1]
    image = (probes @ weight) @ weight.T if wide else (probes @ weight.T) @ weight
    return (image - probes).square().mean(dim=0).amax().sqrt()


def _largest_column(symmetric: Tensor) -> Tensor:
    """The largest Euclidean norm of a column: a scalar tensor."""
    return torch.linalg.vector_norm(symmetric, dim=0).amax()


class _Check:
    """The last check of a weight, where it is read a step later."""

    def __init__(self, value: float | None = None) -> None:
        self._value = value
        self._copy: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, found: Tensor) -> float:
        """Hands over a check; returns it, or on CUDA the one before, without waiting."""
        if not found.is_cuda:
            return float(found.item())
        before = self.unread()
        copy = torch.empty((), dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        self._copy = (copy, torch.cuda.current_stream(found.device).record_event())
        return 0.0 if before is None else before

    def unread(self) -> float | None:
        """The value not handed out so far, if any."""
        if self._copy is not None:
            copy, event = self._copy
            event.synchronize()  # queued a whole training step ago
            self._value, self._copy = float(copy.item()), None
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Check":
        return _Check(self.unread())
