"""Keeping weights orthogonal during training, with as few products as the drift needs."""

from collections.abc import Mapping
from math import log
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from .._arrays import wide
from ..orthogonality import (
    basis,
    bjorck,
    bjorck_factor,
    drift,
    drift_after,
    gram,
    polar_factor,
    polar_within,
    retract,
)
from .chain import Held
from .rule import Rule

CHECKS = 8
"""Random sign vectors by which a weight is checked."""

NEW, HELD = 8, 16
"""Directions in which its largest drift is sought: random ones, and those found last."""

SHARE = 0.6
"""Up to which share of the limit an entry is let pass: those that are not looked at may be larger."""

PROBABLE = 0.8
"""The share of the limit that the diagonal may reach, and that the largest entry outside of those rows may be expected
to have from their norms."""

ROWS = 32
"""Rows of the Gram matrix that are looked at entry by entry where the sign vectors leave it open."""

WHOLE = 64
"""Every so many steps a weight is checked by its whole Gram matrix, and always if it is narrower than this."""

ROUNDS, ROUND_WIDTH = 3, 320
"""How often at most the directions of the largest drift are set right before the Gram matrix is, and for how many units
of width that is once: the Gram matrix of a narrow weight costs little more."""

MUCH = 1e6
"""A squared norm of I - G beyond which directions are not sought: rounding would be all that is left of the others."""

NEAR = 0.5
"""A squared norm of I - G up to which rounding leaves what is computed of the next I - G without reading W."""


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

    After every change (or every so many, `every`) a weight is checked by random sign vectors v, new ones each time:
    the mean square of an entry of (G - I) v estimates the square of the norm of that row of G - I, and no entry is
    larger than its two rows' norms. Where this leaves it open, the diagonal, on which the largest entry mostly lies,
    and the rows with the largest norms are looked at entry by entry. So a single large entry may pass among many small
    ones in other rows; every 64th step, and always in narrow weights, all entries are looked at. Where one exceeds
    six tenths of the limit, eight on the diagonal, the cheapest that helps comes next:

    1. A plain gradient step on a small batch, its factors known, is taken back by products with 2B rows.
    2. The directions of the largest drift are found by products with few vectors, those found last and some random
       ones, and set right; the check then tells whether that will do. Training drifts in few directions, much the same
       from step to step, whatever the optimizer is, so that it mostly will.
    3. Bjorck steps from the Gram matrix, of the order and number that bring every entry below the limit; the polar
       factor itself where the weight is too far off, or short of rank, for that to be known beforehand.

    On CUDA, where looking would wait for the device and the Gram matrix is cheap, one step of order 3 follows every
    change, and the check is read when the next one has: more steps then follow where it has asked for them. Raises
    FloatingPointError, naming the layer and the step, where a weight is no longer finite or cannot be restored.
    """

    def __init__(self, weights: Mapping[str, Held], *, limit: float = 5e-3, every: int = 1) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit: {limit}, expected a positive number")
        if every < 1:
            raise ValueError(f"every: {every}, expected a positive integer")
        for module, attribute in weights.values():
            weight = getattr(module, attribute)
            least = resolution(weight)
            if limit < least:
                raise ValueError(f"limit: {limit}, expected at least {least:.2g}, what {weight.dtype} resolves")
        self._held = dict(weights)  # by where they are, since others may be put there: load_state_dict(assign=True)
        self.limit = limit
        self.every = every
        self.steps = 0
        self.checks = {name: _Check() for name in weights}
        self.directions: dict[str, Tensor] = {}

    def weights(self, *, frozen: bool = False) -> dict[str, Tensor]:
        """The parameters that are held, by their names in the model; with frozen ones, which stay as they are."""
        held = {name: getattr(module, attribute) for name, (module, attribute) in self._held.items()}
        return {name: weight for name, weight in held.items() if frozen or weight.requires_grad}

    def knows_steps_of(self, batch: int, weight: Tensor) -> bool:
        """Whether the factors of a plain step are of use: few beside the directions that would be sought without."""
        return self.every == 1 and not weight.is_cuda and 4 * batch <= min(128, *weight.shape)

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place. Raises ValueError for a frozen one that is far off."""
        free = self.weights()
        for name, weight in self.weights(frozen=True).items():
            if name in free:
                continue
            g = gram(weight)
            defect = float((g - torch.eye(len(g), device=g.device, dtype=g.dtype)).abs().amax())
            if not defect <= self.limit:
                raise ValueError(
                    f"weight of layer '{name}': frozen and not orthogonal, its Gram matrix is {defect:.2g} off the "
                    f"identity, expected at most {self.limit}; unfreeze it, or put its polar factor there"
                )
        for weight in free.values():
            weight.copy_(polar_factor(weight))

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep] | None = None) -> None:
        """To be called after every change of the weights, with the factors of those that took a plain step."""
        self.steps += 1
        if self.steps % self.every:
            return
        drawn: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for index, (name, weight) in enumerate(self.weights().items()):
            kind = (weight.device, weight.dtype)
            if kind not in drawn:
                drawn[kind] = self._signs(*kind)
            signs = drawn[kind][:, : min(weight.shape)]
            if weight.is_cuda:
                self._restore_unseen(name, weight, signs[:CHECKS])
                continue
            plain = (plain_steps or {}).get(name)
            if plain is not None and self.knows_steps_of(len(plain.z), weight):
                retract(weight, *plain, out=weight)
            whole = min(weight.shape) < WHOLE or (self.steps + index) % WHOLE == 0
            if whole or not self._is_kept(name, weight, signs):
                self._restore(name, weight)

    def _signs(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Sign vectors of this step, as wide as the widest weight needs: (CHECKS + NEW, n)."""
        widest = max(min(weight.shape) for weight in self.weights().values())
        generator = torch.Generator(device).manual_seed(self.steps)
        signs = torch.empty(CHECKS + NEW, widest, device=device, dtype=dtype)
        return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def _is_kept(self, name: str, weight: Tensor, signs: Tensor) -> bool:
        """Whether the limit is kept, if need be after steps that cost thin products only."""
        n = min(weight.shape)
        rounds = min(ROUNDS, max(1, n // ROUND_WIDTH))
        check = signs[:CHECKS]
        found = drift(weight, torch.cat([signs, self._held_directions(name, weight)]))  # reading W is what it costs
        drifts, directions = found[:CHECKS], found[CHECKS:]
        for left in reversed(range(rounds + 1)):
            squares = drifts.square().mean(dim=0)  # (n,), squared norms of rows of I - G, estimated
            largest, total = torch.stack([squares.amax(), squares.sum()]).tolist()
            if total <= 0.25:  # singular values are near 1, and Bjorck steps will be sure of their way
                if largest <= (SHARE * self.limit) ** 2:
                    return True
                norms, indices = squares.topk(ROWS + 1)
                evenly = (norms[-1].item() * 4 * log(n) / n) ** 0.5  # the largest of n^2 normal entries in such rows
                if (
                    evenly <= PROBABLE * self.limit
                    and _largest_entry(weight, indices[:-1]) <= SHARE * self.limit
                    and _largest_of_diagonal(weight) <= PROBABLE * self.limit
                ):
                    return True
            if not left or not total < MUCH:
                return False
            q = basis(directions if left == rounds else drift(weight, directions))
            step = polar_within(weight, q, out=weight)
            drifts = drift_after(check, drifts, q, step) if total <= NEAR else drift(weight, check)
            directions = step.drift
            if left == rounds:
                self.directions[name] = directions[:HELD]  # the new ones first: they have the most of the drift
        return False

    def _held_directions(self, name: str, weight: Tensor) -> Tensor:
        """Those that the drift was last found in: (HELD, n), or fewer in the first steps."""
        held = self.directions.get(name)
        if held is not None and (held.dtype, held.device) == (weight.dtype, weight.device):
            return held
        return weight.new_empty(0, min(weight.shape))

    def _restore_unseen(self, name: str, weight: Tensor, check: Tensor) -> None:
        """A step of order 3, and more of them where the check of the step before has asked for them."""
        before = self.checks[name].unread()
        if before is not None and not before < float("inf"):
            self._raise(name)
        steps = 1 if before is None or before <= SHARE * self.limit else 8
        weight.copy_(bjorck(weight, 3, steps))
        self.checks[name].put(_largest_row(drift(weight, check)))

    def _raise(self, name: str, what: str = "not finite") -> NoReturn:
        raise FloatingPointError(f"weight of layer '{name}': {what} at step {self.steps}; lower the learning rate")

    def _restore(self, name: str, weight: Tensor) -> None:
        """Brings every entry below the limit, in place, unless all are within a share of it."""
        g = gram(weight)
        sufficient = self._sufficient(torch.eye(len(g), device=g.device, dtype=g.dtype) - g)
        if sufficient is None:
            if not torch.isfinite(weight).all():
                self._raise(name)
            try:
                weight.copy_(polar_factor(weight))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # seen where training had diverged
                self._raise(name, "with no singular value decomposition that converges")
            return
        order, steps = sufficient
        if steps:
            factor = bjorck_factor(g, order, steps, rescale=steps > 2)
            weight.copy_(factor @ weight if weight.shape[0] <= weight.shape[1] else weight @ factor)

    def _sufficient(self, residual: Tensor) -> tuple[int, int] | None:
        """The least order and number of steps that leave at most `limit` in every entry, for E = residual.

        No steps where a share of the limit is kept, None where no number is known. A step of order p leaves at most
        3/4 |E|^(p+1) / (1 - |E|), so long as |E| < 1, and an entry of a product of symmetric matrices is at most the
        product of their largest column norms. Any norm bounds |E|.
        """
        of_residual = [residual.abs().amax(), _largest_column(residual), torch.linalg.matrix_norm(residual)]
        entry, column, frobenius = torch.stack(of_residual).tolist()
        if frobenius <= 0.5 and entry <= SHARE * self.limit:
            return 1, 0
        if frobenius < 1 and column**2 <= self.limit:
            return 1, 1
        square = residual @ residual
        fourth = square @ square
        norms = [_largest_column(square), _largest_column(fourth), torch.linalg.matrix_norm(fourth)]
        column_2, column_4, frobenius_4 = torch.stack(norms).tolist()
        radius = min(frobenius, frobenius_4**0.25)
        if not radius < 0.9:
            return None
        for order, product in ((2, column_2 * column), (3, column_2**2), (4, column_4 * column)):
            if 0.75 * product <= self.limit * (1 - radius):
                return order, 1
        left = 0.75 * radius**5 / (1 - radius)
        return (4, 2) if left < 0.9 and 0.75 * left**5 <= self.limit * (1 - left) else None

    def get_extra_state(self) -> dict[str, Any]:
        unread = {name: check.unread() for name, check in self.checks.items()}
        return {"steps": self.steps, "unread": unread, "directions": dict(self.directions)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in state["unread"].items():
            self.checks[name] = _Check(value)
        self.directions = dict(state["directions"])


def resolution(weight: Tensor) -> float:
    """The least limit that rounding lets a weight keep."""
    eps = torch.finfo(weight.dtype).eps
    return 2 * eps * (max(weight.shape) ** 0.5 if eps < 1e-4 else 1)  # half precisions are multiplied in a finer one


def _largest_row(drifts: Tensor) -> Tensor:
    """An estimate of the largest norm of a row of I - G, from the drifts of sign vectors: a scalar tensor."""
    return drifts.square().mean(dim=0).amax().sqrt()


def _largest_entry(weight: Tensor, rows: Tensor) -> Tensor:
    """The largest absolute entry in these rows of I - G: a scalar tensor."""
    wide = weight.shape[0] <= weight.shape[1]
    block = weight[rows] @ weight.T if wide else weight[:, rows].T @ weight  # (rows, n)
    block[torch.arange(len(rows), device=rows.device), rows] -= 1
    return block.abs().amax()


def _largest_of_diagonal(weight: Tensor) -> Tensor:
    """The largest absolute entry of the diagonal of I - G: a scalar tensor."""
    along = 1 if weight.shape[0] <= weight.shape[1] else 0
    lengths = torch.linalg.vector_norm(weight, dim=along, dtype=wide(weight.dtype))
    return (lengths.square() - 1).abs().amax()


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
