"""Keeping weights orthogonal during training, with as few products as the drift needs."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from math import inf, isfinite, log
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from .._arrays import check_positive, few_rows, is_captured, wide, widened
from ..orthogonality import (
    basis,
    bjorck_factor,
    defect,
    drift,
    drift_after,
    polar_factor,
    polar_iteration,
    polar_within,
    retract,
    scaled_bjorck,
)
from .rule import Rule, check_count
from .units import Held

CHECKS = 8
"""Random sign vectors by which a weight is checked."""

NEW, HELD = 8, 16
"""Directions in which its largest drift is sought: random ones, and those found last."""

SHARE = 0.6
"""Up to which share of the tolerance an entry is let pass: those that are not looked at may be larger."""

PROBABLE = 0.8
"""The share of the tolerance that the largest entry outside of those rows may be expected to have from their norms."""

ROWS = 8
"""Rows of the Gram matrix that are looked at entry by entry where the sign vectors leave it open."""

WHOLE = 64
"""Every so many steps a weight is checked by its whole Gram matrix."""

NARROW = 256
"""A weight narrower than this always is, sooner than directions are found."""

ROUNDS, ROUND_WIDTH = 3, 320
"""How often at most the directions of the largest drift are set right before the Gram matrix is, and for how many units
of width that is once: the Gram matrix of a narrow weight costs little more."""

MUCH = 1e6
"""A squared norm of I - G beyond which directions are not sought: rounding would be all that is left of the others."""

NEAR = 0.5
"""A squared norm of I - G up to which rounding leaves what is computed of the next I - G without reading W."""

FEW = 3
"""Steps that a weight is followed through in the time in which it is read."""

LATE = 16
"""Steps after which a defect that was copied to the host is waited for."""

LOOKED_AT = 2048
"""The width from which an accelerator's weight is looked at, which waits: a look saves about 11 of 13 products, of
0.35 ms each at this width in float32 on an H200."""

FINE = 1e-3
"""The least tolerance that three steps of the polar iteration keep: those for a large drift leave up to 6.8e-4."""


def hidden_weights(rule: Rule) -> dict[str, Held]:
    """The weights of all layers but the last, which is left free, by their names in the model."""
    return {name: held for unit in rule.units[:-1] for name, held in unit.held.items()}


class Change(NamedTuple):
    """What W <- W - s delta^T z does to I - G: to an entry s of_linear + s^2 of_square at most.

    To the drift of the rows that are followed s times the first is added and s^2 times the second taken off, (p, n).
    """

    of_linear: float
    of_square: float
    of_rows: tuple[Tensor, Tensor] | None = None


def wide_bounds(delta: Tensor, z: Tensor, preactivation: Tensor) -> Change:
    """How far W <- W - s delta^T z can bring an entry of I - G of a wide weight, by two passes over the batch.

    With A = z W^T, `preactivation`, I - G changes by s (A^T delta + delta^T A) - s^2 delta^T z z^T delta. An entry of
    X^T Y is at most the product of the largest column norms.
    """
    of_a, of_delta = preactivation.square().sum(dim=0).amax(), delta.square().sum(dim=0).amax()
    return Change(2 * (of_a * of_delta).sqrt().item(), (of_delta * z.square().sum()).item())


def tall_bounds(weight: Tensor, delta: Tensor, z: Tensor, signs: Tensor) -> Change:
    """The same of a tall weight, by one product with p rows: `signs` are (p, batch).

    With D = delta W, I - G changes by s (z^T D + D^T z) - s^2 z^T delta delta^T z. The largest column norm of D is
    estimated by its products with sign vectors, since D itself takes a product of the batch's size.
    """
    of_d = few_rows(signs @ delta, weight).square().mean(dim=0).amax()
    of_z = z.square().sum(dim=0).amax()
    return Change(2 * (of_d * of_z).sqrt().item(), (of_z * delta.square().sum()).item())


def drift_change(rows: Tensor, delta: Tensor, z: Tensor, preactivation: Tensor) -> Change:
    """By W <- W - s delta^T z of a wide weight s L - s^2 Q is added to I - G of the rows, (p, n) each.

    No product reads W: 6 with p rows, of the batch's size each. The largest entry of the linear term is told by its
    diagonal, by the norms of its rows, of which the last rows are signs that tell, and by the rows with the largest:
    half of what `wide_bounds` says, or less.
    """
    of_a, of_delta = rows @ preactivation.T, rows @ delta.T  # (p, batch)
    linear = torch.addmm(of_a @ delta, of_delta, preactivation)
    norms, indices = linear[-CHECKS:].square().mean(dim=0).topk(ROWS + 1)
    at = indices[:-1]
    entries = torch.addmm(preactivation[:, at].T @ delta, delta[:, at].T, preactivation)  # (ROWS, n)
    diagonal = 2 * (preactivation * delta).sum(dim=0)
    others = SHARE / PROBABLE * _evenly(norms[-1].item(), linear.shape[1])
    largest = max(entries.abs().amax().item(), diagonal.abs().amax().item(), others)
    square = delta.square().sum(dim=0).amax() * z.square().sum()
    return Change(largest, square.item(), (linear, of_delta @ z @ z.T @ delta))


def _evenly(square: float, n: int) -> float:
    """The largest of n^2 normal entries in rows of that squared norm, mostly."""
    return (square * 4 * log(n) / n) ** 0.5


def matrices(name: str, weight: Tensor, blocks: int = 1) -> list[tuple[str, Tensor]]:
    """The parameter as matrices that share its memory, each with its name: `blocks` groups of rows.

    Columns are in the order of memory, which a kernel in channels-last format has of its own.
    """
    if weight.dim() == 2 and blocks == 1:
        return [(name, weight)]
    others = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
    rows = weight.detach().permute(0, *others).view(len(weight), -1)
    return [(f"{name}[{i}]" if blocks > 1 else name, block) for i, block in enumerate(rows.chunk(blocks))]


class PlainStep(NamedTuple):
    """A weight's last change, W <- W - rate/B delta^T z, by its factors, and its pre-activation W z before it."""

    delta: Tensor
    z: Tensor
    preactivation: Tensor
    rate: float


class KnownStep(NamedTuple):
    """A weight's last change, and s = rate/B."""

    change: Change
    s: float


class Known(NamedTuple):
    """Of a weight what the largest entry of I - G may be, and what the last step may have changed one by.

    Of a wide one, while it is followed, rows and (I - G) of each, (p, n) both, none if it is not: signs that seek,
    directions found last, and signs that check. Of those that seek it may be what steps have added since they were
    drawn.
    """

    rows: Tensor
    drifts: Tensor
    entry: float
    last: float = inf

    def after(self, step: KnownStep) -> "Known":
        change, s = step
        last = s * change.of_linear + s**2 * change.of_square
        if change.of_rows is None:
            return Known(self.rows[:0], self.drifts[:0], self.entry + last, last)
        linear, square = change.of_rows
        return Known(self.rows, self.drifts + s * linear - s**2 * square, self.entry + last, last)


class Bjorck(NamedTuple):
    """Bjorck steps of an order."""

    order: int
    steps: int


class Orthogonality(nn.Module):
    """Holds weights at orthonormal rows (wide) or columns (tall), within `tolerance` in each entry of the Gram matrix.

    After every change (or every so many, `every`) a weight is checked by random sign vectors v: the mean square of an
    entry of (G - I) v estimates the square of the norm of that row of G - I, and no entry is larger than its two rows'
    norms. Where this leaves it open, the diagonal, where the largest entry mostly lies, and the rows with the largest
    norms are looked at entry by entry. So a single large entry may pass among many small ones in other rows; every 64th
    step, and always in narrow weights, those with Gram matrices of one size together, all entries are looked at. Where
    one exceeds six tenths of the tolerance, the cheapest that helps comes next:

    1. A plain gradient step on a small batch, its factors known, is taken back by products with 2B rows.
    2. The directions of the largest drift are found by products with few vectors, those found last and some random
       ones, and set right; the check then tells whether that will do. Training drifts in few directions, much the same
       from step to step, whatever the optimizer is, so that it mostly will.
    3. Bjorck steps from the Gram matrix, of the order and number that bring every entry below the tolerance; the polar
       factor itself where the weight is too far off, or short of rank, for that to be known beforehand.

    After a plain gradient step on a large batch, a weight on a CPU is not looked at while, by bounds from their
    factors, all steps since the last look have made no entry too large. Where steps are too large for that, a wide one
    is still not read for its check, nor for the first directions of 2.: `drift_change` carries on what was known of the
    vectors. Those that check are then drawn anew only where the weight is read for them, at the latest after the next
    look at all entries.

    On an accelerator, where looking would wait for the device, the work is the same at every step: `polar_iteration`
    restores all weights of a shape at once. It keeps the tolerance where a step leaves singular values of at least
    1/20, some of them 1 or more and none above their 20-fold; Adam at 1e-3 leaves a factor of 4 in 2,048 units. All
    defects are copied to the host together, without waiting, and looked at when they are there, at most 16 steps later,
    or by `settle`. `asynchronous=True` goes this way on the CPU too. Weights of 2,048 rows and columns or more are
    looked at there too, unless `asynchronous`: 13 products of these take longer than to wait. They go from 1. to 3.,
    and to `polar_iteration` where 3. would decompose.

    While a CUDA graph is captured nothing is looked at. The largest defects of the steps that it repeats are gathered,
    for `settle`.

    A kernel is held as the matrix of its first axis against all others. `blocks` holds as many groups of rows each by
    itself, such as the projections in one weight of an attention or the gates of an LSTM.

    Raises FloatingPointError, naming the layer and the step, where a weight is no longer finite or cannot be restored,
    on an accelerator up to 16 steps late; ValueError where the tolerance is below what the weights' precision resolves.

    >>> layer = nn.Linear(4, 3)
    >>> held = Orthogonality({"layer": (layer, "weight")})
    >>> held.initialise()
    >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(3), atol=1e-5)
    True
    """

    def __init__(
        self,
        weights: Mapping[str, Held],
        *,
        tolerance: float = 5e-3,
        every: int = 1,
        asynchronous: bool = False,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        check_positive("tolerance", tolerance)
        check_count("every", every)
        check_count("blocks", blocks)
        self._held = dict(weights)  # by where they are, since others may be put there: load_state_dict(assign=True)
        self.tolerance = tolerance
        self.every = every
        self.asynchronous = asynchronous
        self.blocks = blocks
        self.steps = 0
        self.directions: dict[str, Tensor] = {}
        self.known: dict[str, Known] = {}
        self._copies: deque[_Copy] = deque()
        self._worst: dict[str, Tensor] = {}  # largest defects of the steps that a graph repeats
        self._check_precision(self.weights())

    def weights(self, *, frozen: bool = False) -> dict[str, Tensor]:
        """The matrices that are held, by their names in the model; with frozen ones, which stay as they are."""
        held = {name: getattr(module, attribute) for name, (module, attribute) in self._held.items()}
        free = {name: weight for name, weight in held.items() if frozen or weight.requires_grad}
        return {part: rows for name, weight in free.items() for part, rows in matrices(name, weight, self.blocks)}

    def knows_steps_of(self, batch: int, weight: Tensor) -> bool:
        """Whether the factors of a plain step are of use: few beside the directions that would be sought without."""
        return self.every == 1 and self._looks_at(weight) and 4 * batch <= min(128, *weight.shape)

    def change_of(self, name: str, weight: Tensor, delta: Tensor, z: Tensor, preactivation: Tensor) -> Change | None:
        """What `step` can use of W <- W - s delta^T z; None where nothing is known of the weight."""
        known = self.known.get(name)
        if known is None or (known.rows.dtype, known.rows.device) != (weight.dtype, weight.device):
            return None
        if len(known.rows) and known.entry + FEW * known.last > SHARE * self.tolerance:
            return drift_change(known.rows, delta, z, preactivation)
        if weight.shape[0] <= weight.shape[1]:
            return wide_bounds(delta, z, preactivation)
        return tall_bounds(weight, delta, z, self._signs(weight.device, weight.dtype, CHECKS, len(z)))

    def _know(self, name: str, weight: Tensor, known: Known) -> None:
        """For `change_of`, where it is of use."""
        if self.every == 1 and _is_fine(weight) and _is_of_host(weight):  # else a step is rounded too much
            is_wide = weight.shape[0] <= weight.shape[1]
            self.known[name] = known if is_wide else known._replace(rows=known.rows[:0], drifts=known.drifts[:0])

    def _looks_at(self, weight: Tensor) -> bool:
        """Whether what is done depends on the weight's values, which the host has at hand."""
        is_wide = min(weight.shape) >= LOOKED_AT and not is_captured(weight.device)
        return not self.asynchronous and (_is_of_host(weight) or is_wide)

    def _check_precision(self, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a tolerance that a weight cannot keep: it may have been converted since."""
        for name, weight in weights.items():
            least = resolution(weight)
            if self.tolerance < least:
                where = f"{weight.dtype} with TF32 products" if _is_multiplied_in_tf32(weight) else f"{weight.dtype}"
                raise ValueError(
                    f"tolerance: {self.tolerance}, expected at least {least:.2g}, what {where} resolves in "
                    f"layer '{name}'; raise the tolerance or keep the weights in a finer precision"
                )

    @torch.no_grad()
    def initialise(self) -> None:
        """Replaces every weight by its polar factor, in place. Raises ValueError for a frozen one that is far off."""
        free = self.weights()
        for name, weight in self.weights(frozen=True).items():
            if name in free:
                continue
            found = float(defect(weight))
            if not found <= self.tolerance:
                raise ValueError(
                    f"weight of layer '{name}': frozen and not orthogonal, its Gram matrix is {found:.2g} off the "
                    f"identity, expected at most {self.tolerance}; freeze it once it is held"
                )
        for weight in free.values():
            weight.copy_(polar_factor(weight))

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep | KnownStep] | None = None) -> None:
        """To be called after every change of the weights, with what is known of those that took a plain step.

        Of a `KnownStep` it has to be the only change since the last call.
        """
        self.steps += 1
        weights = self.weights()
        self._check_precision(weights)
        if any(is_captured(weight.device) for weight in weights.values()):
            if self.every > 1:
                raise ValueError(f"every: {self.every}, expected 1 while a CUDA graph is captured: it counts no steps")
            if weights.keys() - self._worst:
                raise RuntimeError("constrain: none yet, expected one before a CUDA graph is captured")
        else:
            self._read_copies()
            for name, weight in weights.items():
                if name not in self._worst or self._worst[name].device != weight.device:
                    self._worst[name] = torch.zeros((), device=weight.device, dtype=wide(weight.dtype))
        if self.steps % self.every:
            return
        self._restore_unseen({name: weight for name, weight in weights.items() if not self._looks_at(weight)})
        drawn: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        left = {}
        for index, (name, weight) in enumerate(weights.items()):
            if not self._looks_at(weight):
                continue
            plain = (plain_steps or {}).get(name)
            if isinstance(plain, PlainStep) and self.knows_steps_of(len(plain.z), weight):
                retract(weight, *plain, out=weight)
            n, kind = min(weight.shape), (weight.device, weight.dtype)
            known = self.known.pop(name, None)
            known = known.after(plain) if known is not None and isinstance(plain, KnownStep) else None
            if n < NARROW:
                kept = False
            elif (self.steps + index) % WHOLE == 0:
                kept = self._is_within(weight)
            else:
                if kind not in drawn:
                    widest = max(min(other.shape) for other in weights.values())
                    drawn[kind] = self._signs(*kind, CHECKS + NEW, widest)
                kept = self._kept(name, weight, drawn[kind][:, :n], known)
            if not kept:
                left[name] = weight
        for alike in _alike(left, lambda name, weight: min(weight.shape) if min(weight.shape) < NARROW else name):
            self._restore(alike)

    def _signs(self, device: torch.device, dtype: torch.dtype, count: int, n: int) -> Tensor:
        """Sign vectors of this step: (count, n)."""
        generator = torch.Generator(device).manual_seed(self.steps)
        signs = torch.empty(count, n, device=device, dtype=dtype)
        return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def _kept(self, name: str, weight: Tensor, signs: Tensor, known: Known | None) -> bool:
        """Whether all entries are within their share, if need be after steps that cost thin products only."""
        n = min(weight.shape)
        rounds = min(ROUNDS, max(1, n // ROUND_WIDTH)) if _is_of_host(weight) else 0
        check, directions = signs[:CHECKS], torch.cat([signs[CHECKS:], self._held_directions(name, weight)])
        if known is not None and known.entry <= SHARE * self.tolerance:
            self.known[name] = known
            return True
        if known is not None and len(known.rows):
            rows, drifts = known.rows, known.drifts
        else:
            rows = torch.cat([directions, check])
            drifts = drift(weight, rows)
        for left in reversed(range(rounds + 1)):
            squares = drifts[-CHECKS:].square().mean(dim=0)  # (n,), squared norms of rows of I - G, estimated
            total = squares.sum().item()
            # Singular values are near 1 up to there, and Bjorck steps will be sure of their way.
            entry = self._entry(weight, squares) if total <= 0.25 else inf
            if entry <= SHARE * self.tolerance:
                self._know(name, weight, Known(rows, drifts, entry, inf if known is None else known.last))
                return True
            if not left or not total < MUCH:
                return False
            is_first = left == rounds
            q = basis(drifts[:-CHECKS] if is_first else drift(weight, directions))
            step = polar_within(weight, q, out=weight)
            directions = step.drift
            if is_first:
                self.directions[name] = directions[:HELD]  # the new ones first: they have the most of the drift
            others, before = torch.cat([q[:HELD], rows[-CHECKS:]]), torch.cat([directions[:HELD], drifts[-CHECKS:]])
            after = drift_after(others, before, q, step) if total <= NEAR else drift(weight, others)
            rows, drifts = torch.cat([signs[CHECKS:], others]), nn.functional.pad(after, (0, 0, NEW, 0))
        return False

    def _is_within(self, weight: Tensor) -> bool:
        """Whether all entries are within their share, by the lower half of the Gram matrix."""
        rows = weight if weight.shape[0] <= weight.shape[1] else weight.T
        found = []
        for start in range(0, len(rows), NARROW):
            block = rows[start : start + NARROW] @ rows[: start + NARROW].T
            block.diagonal(start).sub_(1)
            found.append(torch.stack([block.abs().amax(), 2 * block.square().sum()]))
        entry, square = torch.stack(found).unbind(dim=1)
        return entry.amax().item() <= SHARE * self.tolerance and square.sum().item() <= 0.25

    def _entry(self, weight: Tensor, squares: Tensor) -> float:
        """What the largest entry may be by the squared norms of rows and, where these are too large, by entries."""
        share, (norms, indices) = SHARE * self.tolerance, squares.topk(ROWS + 1)
        if (largest := norms[0].item() ** 0.5) <= share:
            return largest
        found = SHARE / PROBABLE * _evenly(norms[-1].item(), len(squares))
        if found <= share:
            found = max(found, _largest_of_diagonal(weight).item(), _largest_entry(weight, indices[:-1]).item())
        return found

    def _held_directions(self, name: str, weight: Tensor) -> Tensor:
        """Those that the drift was last found in: (HELD, n), or fewer in the first steps."""
        held = self.directions.get(name)
        if held is not None and (held.dtype, held.device) == (weight.dtype, weight.device):
            return held
        return weight.new_empty(0, min(weight.shape))

    def _restore_unseen(self, weights: Mapping[str, Tensor]) -> None:
        """The polar iteration on each weight, all of a shape at once; their defects are sent to the host."""
        found = defaultdict(list)
        for alike in _alike(weights, lambda name, weight: tuple(sorted(weight.shape))):
            rows = [weight if weight.shape[0] <= weight.shape[1] else weight.T for weight in alike.values()]
            restored = polar_iteration(torch.stack(rows), 3 if self.tolerance >= FINE else 4)
            torch._foreach_copy_(rows, restored.unbind())  # pyright: ignore[reportPrivateImportUsage]  # no public one
            found[restored.device].append((alike, defect(widened(restored))))
        for defects in found.values():
            names = [name for group, _ in defects for name in group]
            self._note(names, torch.cat([part for _, part in defects]))

    def _note(self, names: list[str], defects: Tensor) -> None:
        """Sends the weights' defects to the host; those of a graph are gathered where they are."""
        if not is_captured(defects.device):
            self._copies.append(_Copy(self.steps, names, defects))
            return
        for name, found in zip(names, defects.unbind(), strict=True):
            torch.maximum(self._worst[name], found, out=self._worst[name])  # a NaN stays

    def settle(self) -> None:
        """Waits for all defects on their way. Raises FloatingPointError for a weight that was not restored."""
        self._read_copies(wait=True)
        for name, worst in self._worst.items():
            found = worst.item()
            worst.zero_()
            self._check(name, found, "a step of a CUDA graph")

    def _read_copies(self, wait: bool = False) -> None:
        """Raises FloatingPointError for a weight that was not restored, as soon as its defect is on the host."""
        while self._copies and (wait or self._copies[0].has_arrived() or self._copies[0].step <= self.steps - LATE):
            copy = self._copies.popleft()
            for name, found in zip(copy.names, copy.defects(), strict=True):
                self._check(name, found, f"step {copy.step}")

    def _check(self, name: str, found: float, when: str) -> None:
        if not found <= self.tolerance:
            what = f"|G - I| up to {found:.2g}, tolerance {self.tolerance}," if isfinite(found) else "not finite"
            self._raise(name, what, when)

    def _raise(self, name: str, what: str = "not finite", when: str = "") -> NoReturn:
        at = when or f"step {self.steps}"
        raise FloatingPointError(f"weight of layer '{name}': {what} at {at}; lower the learning rate")

    def _restore(self, weights: Mapping[str, Tensor]) -> None:
        """Brings every entry below the tolerance, in place, unless all are within a share of it.

        The weights' Gram matrices are of one size.
        """
        first = next(iter(weights.values()))
        identity = torch.eye(min(first.shape), device=first.device, dtype=first.dtype)
        pairs = [(w, w.T) if w.shape[0] <= w.shape[1] else (w.T, w) for w in weights.values()]
        residuals = torch.stack([torch.addmm(identity, *pair, alpha=-1) for pair in pairs])  # I - G
        ways = self._sufficient(residuals)
        for way in dict.fromkeys(ways):
            alike = {name: weight for found, (name, weight) in zip(ways, weights.items(), strict=True) if found == way}
            if way is None and not _is_of_host(first):
                self._restore_unseen(alike)
            elif way is None:
                for name, weight in alike.items():
                    self._decompose(name, weight)
            elif way.steps:
                found = [residual for other, residual in zip(ways, residuals.unbind(), strict=True) if other == way]
                # I + E/2, or another polynomial; only the change is multiplied: TF32 would cut the weight's digits
                share = 0.5 if way.order == 1 else 1
                if share == 1:
                    found = list(bjorck_factor(identity - torch.stack(found), *way, rescale=False).sub_(identity))
                for weight, change in zip(alike.values(), found, strict=True):
                    product = change @ weight if weight.shape[0] <= weight.shape[1] else weight @ change
                    weight.add_(product, alpha=share)

    def _decompose(self, name: str, weight: Tensor) -> None:
        """The polar factor itself, in place."""
        if not torch.isfinite(weight).all():
            self._raise(name)
        try:
            weight.copy_(polar_factor(weight))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # seen where training had diverged
            self._raise(name, "with no singular value decomposition that converges")

    def _sufficient(self, residuals: Tensor) -> list[Bjorck | None]:
        """For each E = residual, (k, n, n), the least steps that leave at most `tolerance` in every entry.

        No steps where a share of the tolerance is kept, None where no number is known. A step of order p leaves at most
        3/4 |E|^(p+1) / (1 - |E|), so long as |E| < 1, and an entry of a product of symmetric matrices is at most the
        product of their largest column norms. Any norm bounds |E|.
        """
        norms = torch.stack([residuals.abs().amax(dim=(1, 2)), *_of_columns(residuals)], dim=1).tolist()
        found = [self._of_norms(*of_residual) for of_residual in norms]
        left = [index for index, way in enumerate(found) if way is None]
        if left:
            squares = residuals[left] @ residuals[left]
            fourths = squares @ squares
            more = torch.stack([_of_columns(squares)[0], *_of_columns(fourths)], dim=1).tolist()
            for index, of_powers in zip(left, more, strict=True):
                found[index] = self._of_powers(*norms[index][1:], *of_powers)
        return found

    def _of_norms(self, entry: float, column: float, frobenius: float) -> Bjorck | None:
        if frobenius <= 0.5 and entry <= SHARE * self.tolerance:
            return Bjorck(1, 0)
        return Bjorck(1, 1) if frobenius < 1 and column**2 <= self.tolerance else None

    def _of_powers(
        self, column: float, frobenius: float, column_2: float, column_4: float, frobenius_4: float
    ) -> Bjorck | None:
        radius = min(frobenius, frobenius_4**0.25)
        if not radius < 1:
            return None
        for order, product in ((2, column_2 * column), (3, column_2**2), (4, column_4 * column)):
            if 0.75 * product <= self.tolerance * (1 - radius):
                return Bjorck(order, 1)
        left = 0.75 * radius**5 / (1 - radius)
        return Bjorck(4, 2) if 0.75 * left**5 <= self.tolerance * (1 - left) else None

    def get_extra_state(self) -> dict[str, Any]:
        unread = [(copy.step, copy.names, copy.defects()) for copy in self._copies]
        directions, known = dict(self.directions), {name: tuple(of_weight) for name, of_weight in self.known.items()}
        return {"steps": self.steps, "unread": unread, "directions": directions, "known": known}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._copies = deque(
            _Copy(step, names, torch.tensor(defects, dtype=torch.float64)) for step, names, defects in state["unread"]
        )
        self.directions = dict(state["directions"])
        known = state.get("known", {})  # of an earlier release there are none
        self.known = {name: Known(*of_weight) for name, of_weight in known.items()}


def resolution(weight: Tensor) -> float:
    """The least tolerance that rounding lets a weight keep."""
    if _is_multiplied_in_tf32(weight):
        return 2.0**-10  # an entry of W W^T is a sum over w w', each factor rounded by up to 2^-11
    eps = torch.finfo(weight.dtype).eps
    return (
        2 * eps * (max(weight.shape) ** 0.5 if _is_fine(weight) else 1)
    )  # half precisions are multiplied in a finer one


def _is_fine(weight: Tensor) -> bool:
    """Whether it is of no half precision."""
    return weight.dtype == wide(weight.dtype)


def _is_of_host(weight: Tensor) -> bool:
    """Whether the host has its numbers at hand."""
    return weight.device.type == "cpu"


def _is_multiplied_in_tf32(weight: Tensor) -> bool:
    """Whether `torch.set_float32_matmul_precision` or its kin lets a GPU round factors to 11 digits."""
    return weight.is_cuda and weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _largest_entry(weight: Tensor, rows: Tensor) -> Tensor:
    """The largest absolute entry in these rows of I - G: a scalar tensor."""
    wide = weight.shape[0] <= weight.shape[1]
    block = few_rows(weight[rows], weight.T) if wide else few_rows(weight[:, rows].T, weight)  # (rows, n)
    block[torch.arange(len(rows), device=rows.device), rows] -= 1
    return block.abs().amax()


def _largest_of_diagonal(weight: Tensor) -> Tensor:
    """The largest absolute entry of the diagonal of I - G: a scalar tensor."""
    if weight.shape[0] <= weight.shape[1]:
        squares = torch.linalg.vector_norm(weight, dim=1, dtype=wide(weight.dtype)).square()
    else:
        squares = widened(weight).square().sum(dim=0)  # faster down the columns
    return (squares - 1).abs().amax()


def _of_columns(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Of each matrix, (k, n, n), the largest Euclidean norm of a column, and the norm of all: (k,) both."""
    rows = torch.linalg.vector_norm(symmetric, dim=2)  # a hundred times as fast as columns, which are the same
    return rows.amax(dim=1), torch.linalg.vector_norm(rows, dim=1)


def _alike(weights: Mapping[str, Tensor], kind: Callable[[str, Tensor], Any]) -> Iterable[dict[str, Tensor]]:
    """The weights of one kind, device and dtype together."""
    groups: dict[Any, dict[str, Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        groups[weight.device, weight.dtype, kind(name, weight)][name] = weight
    return groups.values()


class ScaledBjorck(Orthogonality):
    """As FOTON's authors do: `scaled_bjorck` of every weight at every step, 40 products, whatever its drift is.

    Nothing is promised of the tolerance. Raises FloatingPointError where a weight on a CPU is no longer finite.
    """

    def knows_steps_of(self, batch: int, weight: Tensor) -> bool:
        return False

    @torch.no_grad()
    def step(self, plain_steps: Mapping[str, PlainStep | KnownStep] | None = None) -> None:
        self.steps += 1
        due = self.steps % self.every == 0
        for name, weight in self.weights().items() if due else ():
            w = widened(weight)
            seeded = torch.Generator(w.device).manual_seed(self.steps)
            weight.copy_(scaled_bjorck(w, w.new_empty(w.shape[1]).normal_(generator=seeded)))
            if self._looks_at(weight) and not torch.isfinite(weight).all():
                self._raise(name)


class _Copy:
    """The weights' defects after a step, on their way to the host."""

    def __init__(self, step: int, names: list[str], defects: Tensor) -> None:
        self.step, self.names = step, names
        self._event: torch.Event | None = None
        self._defects = defects.to("cpu", non_blocking=True)
        if defects.device.type != "cpu":
            self._event = torch.Event(defects.device)
            self._event.record(torch.accelerator.current_stream(defects.device))

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()

    def defects(self) -> list[float]:
        """In the order of the names; waits for them if need be."""
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._defects.tolist()
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # an event can't be copied
        return _Copy, (self.step, self.names, torch.tensor(self.defects(), dtype=torch.float64))
