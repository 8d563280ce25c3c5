"""Keeping weights orthogonal during training, with as few products as the drift needs."""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ..orthogonality import bjorck, bjorck_factor, drift, gram, polar_factor, polar_within, retract
from .chain import Held
from .rule import Rule

CHECKS, CHECKED_ROWS = 8, 16
"""Sign vectors by which a weight is checked, and rows of its Gram matrix looked at where these leave it open."""

ROUNDS = 2
"""How often the directions of the largest drift are set right before the Gram matrix is."""


def hidden_weights(rule: Rule) -> dict[str, Held]:
    """The weights of all layers but the last, which is left free, by their names in the model."""
    return {name: held for unit in rule.units[:-1] for name, held in unit.held.items()}


class PlainStep(NamedTuple):
    """A weight's last change, W <- W - rate/B delta^T z, by its factors, and its pre-activation W z before it."""

    delta: Tensor
    z: Tensor
    preactivation: Tensor
    rate: float


class Orthogonality(nn.Module):
    """Holds weights at orthonormal rows (wide) or columns (tall), to within `limit` in each entry of the Gram matrix.

    After every change (or every so many, `every`) a weight is checked by random sign vectors v: the mean square of an
    entry of (G - I) v is the square of the norm of that row of G - I, which bounds each entry in it. Where that does
    not do, the rows with the largest norms are looked at entry by entry. Where one exceeds half the limit, what comes
    next is the cheapest that helps:

    1. A plain gradient step on a small batch, its factors known, is taken back by products with 2B rows.
    2. The directions of the largest drift are found from the check's own products and set right. Training drifts in
       few directions, whatever the optimizer is, so that this is seldom all there is to do.
    3. Bjorck steps from the Gram matrix, of the order and number that bring every entry below the limit.

    On CUDA, where looking would wait for the device and the Gram matrix is cheap, one step of order 3 follows every
    change, and the check is read a step later: more steps then follow where it has asked for them. Raises
    FloatingPointError, naming the layer and the step, where a weight is no longer finite.
    """

    def __init__(self, weights: Mapping[str, Held], *, limit: float = 5e-3, every: int = 1) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit: {limit}, expected a positive number")
        if every < 1:
            raise ValueError(f"every: {every}, expected a positive integer")
        for module, attribute in weights.values():
            dtype = getattr(module, attribute).dtype
            if limit < 2 * torch.finfo(dtype).eps:
                raise ValueError(
                    f"limit: {limit}, expected at least {2 * torch.finfo(dtype).eps}, what {dtype} resolves"
                )
        self._held = dict(weights)  # by where they are, since others may be put there: load_state_dict(assign=True)
        self.limit = limit
        self.every = every
        self.steps = 0
        self.checks = {name: _Check() for name in weights}
        generator = torch.Generator().manual_seed(0)
        for index, weight in enumerate(self.weights().values()):
            n = min(weight.shape)
            signs = torch.randint(0, 2, (CHECKS + _directions(n), n), generator=generator) * 2 - 1
            self.register_buffer(f"probe_{index}", signs.to(weight), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """The parameters that are held, by their names in the model."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._held.items()}

    def knows_steps_of(self, batch: int, weight: Tensor) -> bool:
        """Whether the factors of a plain step are of use: few beside the directions that would be sought without."""
        return self.every == 1 and not weight.is_cuda and 4 * batch <= min(128, *weight.shape)

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place."""
        for weight in self.weights().values():
            weight.copy_(polar_factor(weight))

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep] | None = None) -> None:
        """To be called after every change of the weights, with the factors of those that took a plain step."""
        self.steps += 1
        if self.steps % self.every:
            return
        for index, (name, weight) in enumerate(self.weights().items()):
            probes = self.get_buffer(f"probe_{index}").to(weight)
            plain = (plain_steps or {}).get(name)
            if weight.is_cuda:
                self._restore_unseen(name, weight, probes)
            elif not self._is_kept(name, weight, probes, plain):
                self._restore(weight)

    def _is_kept(self, name: str, weight: Tensor, probes: Tensor, plain: PlainStep | None) -> bool:
        """Whether the limit is kept, if need be after steps that cost thin products only."""
        if plain is not None and self.knows_steps_of(len(plain.z), weight):
            retract(weight, *plain, out=weight)
        search, check = probes.split([len(probes) - CHECKS, CHECKS])
        for _ in range(ROUNDS if len(search) else 0):
            drifts = drift(weight, search)
            if self._is_small(name, weight, drifts):
                return True
            polar_within(weight, drift(weight, drifts), out=weight)
        return self._is_small(name, weight, drift(weight, check))

    def _is_small(self, name: str, weight: Tensor, drifts: Tensor) -> bool:
        """Whether all entries of I - G are within half the limit, from the drifts of sign vectors."""
        squares = drifts.square().mean(dim=0)  # (n,), squared norms of rows, estimated
        row, frobenius = torch.stack([squares.amax(), squares.sum()]).sqrt().tolist()
        if not frobenius < float("inf"):
            self._raise(name)
        if row <= self.limit / 2:
            return True
        if not (frobenius <= 0.5 and row <= 4 * self.limit):
            return False  # too much for Bjorck steps to be sure of their way, or surely too much in one row
        return _largest_entry(weight, squares.topk(min(CHECKED_ROWS, len(squares))).indices).item() <= self.limit / 2

    def _restore_unseen(self, name: str, weight: Tensor, probes: Tensor) -> None:
        """A step of order 3, and more of them where the check of the step before has asked for them."""
        before = self.checks[name].unread()
        if before is not None and not before < float("inf"):
            self._raise(name)
        steps = 1 if before is None or before <= self.limit / 2 else 8
        weight.copy_(bjorck(weight, 3, steps))
        self.checks[name].put(_largest_row(drift(weight, probes[-CHECKS:])))

    def _raise(self, name: str) -> NoReturn:
        raise FloatingPointError(f"weight of layer '{name}': not finite at step {self.steps}; lower the learning rate")

    def _restore(self, weight: Tensor) -> None:
        """Bjorck steps of sufficient order and number, in place."""
        g = gram(weight)
        order, steps = self._sufficient(torch.eye(len(g), device=g.device, dtype=g.dtype) - g)
        factor = bjorck_factor(g, order, steps, rescale=steps > 2)
        weight.copy_(factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor)

    def _sufficient(self, residual: Tensor) -> tuple[int, int]:
        """The least order and number of steps that leave at most `limit` in every entry, for E = residual.

        A step of order p leaves at most 3/4 |E|^(p+1) / (1 - |E|), so long as |E| < 1, and an entry of a product of
        symmetric matrices is at most the product of their largest column norms. Any norm bounds |E|.
        """
        column, frobenius = torch.stack([_largest_column(residual), torch.linalg.matrix_norm(residual)]).tolist()
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


def _directions(n: int) -> int:
    """Among how many sign vectors the directions of a drift are sought: few beside the n of a Gram matrix, or none."""
    return min(24, n // 8) if n >= 64 else 0


def _largest_row(drifts: Tensor) -> Tensor:
    """An estimate of the largest norm of a row of I - G, from the drifts of sign vectors: a scalar tensor."""
    return drifts.square().mean(dim=0).amax().sqrt()


def _largest_entry(weight: Tensor, rows: Tensor) -> Tensor:
    """The largest absolute entry in these rows of I - G: a scalar tensor."""
    wide = weight.shape[0] <= weight.shape[1]
    block = weight[rows] @ weight.T if wide else weight[:, rows].T @ weight  # (rows, n)
    block[torch.arange(len(rows), device=rows.device), rows] -= 1
    return block.abs().amax()


def _largest_column(symmetric: Tensor) -> Tensor:
    """The largest Euclidean norm of a column: a scalar tensor."""
    return torch.linalg.vector_norm(symmetric, dim=0).amax()


class _Check:
    """The last check of a weight on CUDA, read a step later."""

    def __init__(self, value: float | None = None) -> None:
        self._value = value
        self._copy: tuple[Tensor, torch.cuda.Event] | None = None

    def put(self, found: Tensor) -> None:
        """Takes a check from the device without waiting for it."""
        copy = torch.empty((), dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        self._copy = (copy, torch.cuda.current_stream(found.device).record_event())

    def unread(self) -> float | None:
        """The last value put in, if any."""
        if self._copy is not None:
            copy, event = self._copy
            event.synchronize()  # queued a whole training step ago
            self._value, self._copy = float(copy.item()), None
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Check":
        return _Check(self.unread())
