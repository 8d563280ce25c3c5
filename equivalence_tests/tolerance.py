"""One policy for every comparison and every precision; no tolerance is set by hand.

Truth is the reference in float64. The yardstick is how far the same computation of the reference moves, as a root mean
square over several runs, when its operands and every operation inside are rounded at random (`rounding` has the model).
So it counts what rounding inside a correct implementation may do, at the magnitude of its intermediate numbers, in any
order of summation and on any processor; and a twin written as the reference writes it passes in every precision. The
error of a result, as a root mean square over each array, may be at most

    FACTOR (movement by the twin's roundings + movement by float64's, the truth's own) + one unit of eps of the truth.

FACTOR: rounding errors fall evenly between 0 and the unit roundoff, where the model draws them near to it, so that a
typical error is a fourth of the movement. The movement is estimated from ROUNDINGS runs, and the error of a single
number over it follows Student's t law: beyond 4 * FACTOR with ROUNDINGS degrees of freedom its probability is 2e-7.
Every run widens the limit, so that no more are made once a wider one would change no decision.

Where `expected` is another computation than the one that is tested, as in theorems, the twin's roundings are those of
the tested one, and the truth's own are those of the expected one. A test that compares nothing is refused: see
`Comparison.close`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from hypothesis.errors import UnsatisfiedAssumption

from .rounding import Rounding, rounded
from .sides import EPS, ReferenceSide, RoundedSide, Side, is_of_numbers, map_arrays

CHANGED = " changed in place, expected arguments to stay as they are"
FACTOR = 4.0
ROUNDINGS = 8
DOUBLE = EPS["float64"]

FINE = 2.0**-30
"""The finest rounding that the reference is looked at with: 2^22 times its own, which is then out of sight."""

Call: TypeAlias = Callable[..., Any]


class Compared(NamedTuple):
    """How a result came out: its array that was the farthest off for its bound, or what went wrong in its place."""

    name: str
    functions: tuple[str, ...]
    """What of the package under test was called."""
    path: str
    error: float
    limit: float
    wrong: str = ""
    example: tuple[Call, Call | None, Any] | None = None
    """The tested call, that of the truth where it is another, and their operands."""
    changes: bool = False
    """What went wrong is that the call changes an operand in place."""

    @property
    def share(self) -> float:
        """Of the bound, what the error takes."""
        return self.error / self.limit if self.limit else np.inf if self.error else 0.0

    @property
    def size(self) -> int:
        """How many numbers the operands have."""
        return sum(np.size(array) for _, array in leaves("", self.example and self.example[2]))


class Comparison:
    """Compares results, and keeps in mind what every comparison would have refused: see `close`.

    Where it is not to be closed, no comparison has a wider limit than its result needs.
    """

    def __init__(self, closes: bool = True) -> None:
        self.closes = closes
        self.blind: dict[str, set[str]] = {}
        self.seen: list[Compared] | None = None
        """Of a package of somebody's own, what was compared, in which case errors wait for `settle`."""
        self.errors: list[AssertionError] = []
        self.passed_over: set[str] = set()
        """Names of those whose errors are noted in `seen` alone."""

    def __call__(self, side: Side, name: str, call: Call, *operands: Any, expected: Call | None = None) -> None:
        """Holds call(side, *operands) to expected(reference, *operands), by default to the same call on the reference.

        Operands are float64 and integer arrays, in tuples if need be, and must stay as they are. Raises AssertionError,
        naming each array compared.
        """
        truth = named(name, ReferenceSide(), expected or call, operands)
        with self._seeing(side, name, (call, expected, operands)) as see:
            given = side.operands(operands)
            result = dict(leaves(name, side.results(call(side, *given))))
            assert result.keys() == truth.keys(), f"{name}: returned {sorted(result)}, expected {sorted(truth)}"
            limits = self._limits(side, name, call, operands, expected, truth, result)
            for path, value in truth.items():
                see(path, result[path], value, limits[path])
            check_operands(name, side, operands, given)

    def _limits(
        self, side: Side, name: str, call: Call, operands: Any, expected: Call | None, truth: Any, result: Any
    ) -> dict[str, float]:
        bounds = movements(name, call, operands, side.eps)
        noises = None if expected is None else movements(name, expected, operands, DOUBLE)
        limits: dict[str, float] = {}
        for moves in bounds:
            noise = moves if noises is None else next(noises)
            limits = {
                path: FACTOR * (side.eps * moves[path] + DOUBLE * noise[path]) + side.eps * rms(value)
                for path, value in truth.items()
            }
            if all(self._is_decided(path, result[path], truth[path], limit) for path, limit in limits.items()):
                break
        return limits

    def exactly(self, side: Side, name: str, call: Call, *operands: Any) -> None:
        """The same, bit for bit: for results that nothing is computed in."""
        truth = named(name, ReferenceSide(), call, operands)
        with self._seeing(side, name, (call, None, operands)) as see:
            given = side.operands(operands)
            result = dict(leaves(name, side.results(call(side, *given))))
            assert result.keys() == truth.keys(), f"{name}: returned {sorted(result)}, expected {sorted(truth)}"
            for path, value in truth.items():
                see(path, result[path], value, 0.0)
            check_operands(name, side, operands, given)

    @contextmanager
    def _seeing(self, side: Side, name: str, example: Any) -> Iterator[Callable[..., None]]:
        """Gives `check`, whose outcomes are noted; errors wait where all are wanted."""
        outcomes: list[Compared] = []

        def see(path: str, result: Any, truth: Any, limit: float) -> None:
            error = rms(result - truth) if result.shape == truth.shape else np.inf
            outcomes.append(Compared(name, (), path, error, limit))
            check(path, result, truth, limit)
            self._note(path, truth, limit)

        with side.noting() as used:
            try:
                yield see
            except UnsatisfiedAssumption:
                raise
            except Exception as error:
                if self.seen is None:
                    raise
                said = str(error) if isinstance(error, AssertionError) else f"{name}: {error!r}"
                last = outcomes[-1] if outcomes else Compared(name, (), name, np.inf, 0.0)
                found = {"functions": tuple(used), "wrong": said.split("\n")[0], "example": example}
                self.seen.append(last._replace(**found, changes=CHANGED in said))
                if name not in self.passed_over:
                    self.errors.append(AssertionError(said).with_traceback(error.__traceback__))
                return
        if self.seen is not None and outcomes:
            worst = max(outcomes, key=lambda outcome: outcome.share)
            self.seen.append(worst._replace(functions=tuple(used)))

    def settle(self) -> None:
        """Raises the errors that waited."""
        errors, self.errors = self.errors, []
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Raises AssertionError for a result that no comparison held to anything: a broken twin's would have passed.

        One broken twin returns zeros, another the transpose of what is right.
        """
        for path, twins in self.blind.items():
            assert not twins, f"{path}: every comparison would hold for a twin that returns {' or '.join(twins)}"

    def _note(self, path: str, truth: Any, limit: float) -> None:
        """Which broken twins have passed all comparisons so far."""
        path = _unnumbered(path)
        passing = passing_twins(truth, limit)
        self.blind[path] = self.blind.get(path, passing) & passing

    def _is_decided(self, path: str, result: Any, truth: Any, limit: float) -> bool:
        """A wider limit would change nothing: the result is within this one, and no broken twin passed so far."""
        seen = not self.closes or self.blind.get(_unnumbered(path)) == set()
        return seen and result.shape == truth.shape and rms(result - truth) <= limit


def _unnumbered(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def check(path: str, result: Any, truth: Any, limit: float) -> None:
    """Raises AssertionError unless result has truth's shape, is finite and within limit of it (root mean square)."""
    assert np.isfinite(limit), f"{path}: limit {limit}, the reference is not finite where its operations are rounded"
    assert result.shape == truth.shape, f"{path}: shape {result.shape}, expected {truth.shape}"
    assert np.all(np.isfinite(result)), f"{path}: not finite"
    error = rms(result - truth)
    assert error <= limit, f"{path}: off by {error:.2e} (rms), limit {limit:.2e}, truth {rms(truth):.2e}"


def check_operands(name: str, side: Side, operands: Any, given: Any) -> None:
    """Raises AssertionError where what the side was given is no longer what its `operands` makes of them."""
    made, left = (leaves("operands", side.results(tree)) for tree in (side.operands(operands), given))
    for (path, before), (_, after) in zip(made, left, strict=True):
        if before.dtype.kind in "fiub" and before.tobytes() != after.tobytes():
            raise AssertionError(f"{name}: {path}{CHANGED}")


def passing_twins(truth: Any, limit: float) -> set[str]:
    """The broken twins whose result is within limit of the truth."""
    passing = {"zeros"} if rms(truth) <= limit else set()
    transposed = truth.T
    if truth.ndim > 1 and transposed.shape == truth.shape and rms(transposed - truth) <= limit:
        passing.add("the transpose")
    return passing


def named(name: str, side: Side, call: Call, operands: Any) -> dict[str, Any]:
    """The arrays of call(side, *operands) under their names, as float64 or integers."""
    return dict(leaves(name, side.results(call(side, *side.operands(operands)))))


def movement(name: str, call: Call, operands: Any, eps: float) -> dict[str, float]:
    """How far rounding moves each array of the reference's call(...), as a multiple of eps: a root mean square."""
    *_, moves = movements(name, call, operands, eps)
    return moves


def movements(name: str, call: Call, operands: Any, eps: float) -> Iterator[dict[str, float]]:
    """Lower bounds of `movement`, from 0 before the first of its runs to itself after the last."""
    side, eps = RoundedSide(), max(eps, FINE)
    rng = np.random.default_rng(len(name))
    squares: dict[str, float] = defaultdict(float)
    yield squares
    exact = named(name, side, call, operands)
    for _ in range(ROUNDINGS):
        rounding = Rounding(eps, min(eps, EPS["float32"]), rng)
        with rounded(rounding):
            moved = named(name, side, call, map_arrays(rounding.move, operands))
        for path, value in exact.items():
            squares[path] += np.mean(np.square(moved[path] - value)) / ROUNDINGS if np.size(value) else 0.0
        yield {path: square**0.5 / eps for path, square in squares.items()}


def leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Every array of a result under its own name: `foton.updates.weights[1]`. None is no array."""
    if tree is None:
        return
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for field, item in zip(tree._fields, tree, strict=True):
            yield from leaves(f"{name}.{field}", item)
    elif isinstance(tree, tuple | list) and not is_of_numbers(tree):
        for index, item in enumerate(tree):
            yield from leaves(f"{name}[{index}]", item)
    else:
        yield name, np.asarray(tree)


def rms(array: Any) -> float:
    """Root mean square of all entries, 0 for none."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if np.size(array) else 0.0
