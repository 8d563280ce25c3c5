"""One policy for every comparison and every precision; no tolerance is set by hand.

Truth is the reference in float64. The yardstick is how far that truth moves when its floating operands are rounded at
random to the precision of the side under test, which every correct implementation in that precision must be allowed.
The truth has a rounding error of its own, which matters where the side under test is in float64 too; it is estimated
by running the reference in float32. The error of a result, as a root mean square over each array, may be at most

    FACTOR * (depth * yardstick + noise of the truth) + one unit in the last place of the truth.

`depth` counts the layers that rounding errors pass through.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .sides import EPS, ReferenceSide, Side, map_arrays

FACTOR = 4.0
ROUNDINGS = 4
SINGLE = EPS["float32"]
DOUBLE = EPS["float64"]

Call = Callable[..., Any]


class Comparison:
    """Compares results. With `sabotage` the result is spoilt, and a comparison that still holds is what fails."""

    def __init__(self, sabotage: str | None = None) -> None:
        self.sabotage = sabotage
        self.count = 0

    def __call__(
        self, side: Side, name: str, call: Call, *operands: Any, expected: Call | None = None, depth: int = 1
    ) -> None:
        """Holds call(side, *operands) to expected(reference, *operands), by default to the same call on the reference.

        Operands are float64 and integer arrays, in tuples if need be. Raises AssertionError, naming each array
        compared.
        """
        expected = expected or call
        truth = named(name, ReferenceSide(), expected, operands)
        rng = np.random.default_rng(len(name))
        moved = [named(name, ReferenceSide(), expected, rounded(operands, side.eps, rng)) for _ in range(ROUNDINGS)]
        noise = [rounding_errors(name, expected, rounded(operands, SINGLE, rng)) for _ in range(ROUNDINGS)]
        result = named(name, side, call, operands)
        assert result.keys() == truth.keys(), f"{name}: returned {sorted(result)}, expected {sorted(truth)}"
        for path, value in truth.items():
            yardstick = max(rms(other[path] - value) for other in moved)
            limit = FACTOR * (depth * yardstick + max(error[path] for error in noise)) + side.eps * rms(value)
            self._check(path, result[path], value, limit)

    def exactly(self, side: Side, name: str, call: Call, *operands: Any) -> None:
        """The same, bit for bit: for results that nothing is computed in."""
        truth = named(name, ReferenceSide(), call, operands)
        result = named(name, side, call, operands)
        assert result.keys() == truth.keys(), f"{name}: returned {sorted(result)}, expected {sorted(truth)}"
        for path, value in truth.items():
            self._check(path, result[path], value, 0.0)

    def _check(self, path: str, result: Any, truth: Any, limit: float) -> None:
        assert rms(truth) > 0, f"{path}: vacuous, the truth is all zero"
        self.count += 1
        if self.sabotage is None:
            check(path, result, truth, limit)
            return
        try:
            check(path, spoil(self.sabotage, truth), truth, limit)
        except AssertionError:
            return
        raise AssertionError(f"{path}: the comparison holds for a twin that returns {self.sabotage}")


def check(path: str, result: Any, truth: Any, limit: float) -> None:
    """Raises AssertionError unless result has truth's shape, is finite and within limit of it (root mean square)."""
    assert result.shape == truth.shape, f"{path}: shape {result.shape}, expected {truth.shape}"
    assert np.all(np.isfinite(result)), f"{path}: not finite"
    error = rms(result - truth)
    assert error <= limit, f"{path}: off by {error:.2e} (rms), limit {limit:.2e}, truth {rms(truth):.2e}"


def spoil(sabotage: str, truth: Any) -> Any:
    """What a broken twin would return in place of the truth: `zeros`, or the truth `transposed`."""
    if sabotage == "zeros":
        return np.zeros_like(truth)
    return truth.T if truth.ndim > 1 else truth[..., None]


def named(name: str, side: Side, call: Call, operands: Any) -> dict[str, Any]:
    """The arrays of call(side, *operands) under their names, as float64 or integers."""
    return dict(leaves(name, side.results(call(side, *side.operands(operands)))))


def rounding_errors(name: str, call: Call, operands: Any) -> dict[str, float]:
    """How much the reference errs by its own rounding in float64: its error in float32, scaled."""
    single = ReferenceSide(np.float32)
    operands = single.results(single.operands(operands))
    exact, rough = named(name, ReferenceSide(), call, operands), named(name, single, call, operands)
    return {path: rms(rough[path] - value) * DOUBLE / SINGLE for path, value in exact.items()}


def leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Every array of a result under its own name: `foton.updates.weights[1]`. None is no array."""
    if tree is None:
        return
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for field, item in zip(tree._fields, tree, strict=True):
            yield from leaves(f"{name}.{field}", item)
    elif isinstance(tree, tuple | list):
        for index, item in enumerate(tree):
            yield from leaves(f"{name}[{index}]", item)
    else:
        yield name, np.asarray(tree)


def rounded(operands: Any, eps: float, rng: np.random.Generator) -> Any:
    """Operands with every floating number moved by up to half a unit in its last place, at random."""

    def move(array: Any) -> Any:
        array = np.asarray(array)
        if array.dtype.kind != "f":
            return array
        return array * (1 + eps * rng.uniform(-0.5, 0.5, array.shape))

    return map_arrays(move, operands)


def rms(array: Any) -> float:
    """Root mean square of all entries, 0 for none."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if np.size(array) else 0.0
