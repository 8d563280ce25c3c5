"""The reference with every operation rounded at random: what any correct implementation in a precision may do.

A second copy of the reference is loaded, each arithmetic operation of whose source goes through this module. While a
`Rounding` is in force, an operation f(x, y) gives f(x (1 + d), y (1 + d')), with a new d for every number and use,

    u / 2 <= |d| <= u,    u = eps / 2, the unit roundoff,    the sign at random,

which is what a backward stable implementation of f may do (Monte Carlo arithmetic, Parker 1997). A number that two
operations use is moved twice, each time otherwise: so a difference of nearly equal numbers errs by a unit in the last
place of these, not of itself. A sum of n terms errs as well by what adding them one after another may do, in any order,

    |d| sqrt(n - 1) sum |terms|,    u being that of the sums: float32's in half precisions,

the probabilistic bound of Higham and Mary (2019). A matrix (m, n) is factorised exactly after every
entry was moved by d max(m, n) times their root mean square, the unit in which LAPACK's own tests measure; u is that of
sums. Selections, comparisons and moves of data are exact. A function that libraries approximate more coarsely than
they round errs by its entry in APPROXIMATED times d besides.
"""

import ast
import builtins
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import math
import operator
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from scipy import special

from prograde import reference

NAME = f"{__package__}._rounded_reference"
"""What the copy is called among the imported modules."""

OPERATORS = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.Pow: "pow",
    ast.MatMult: "matmul",
}

SUMS = {"sum", "mean", "matmul", "einsum", "tensordot", "cumsum", "norm"}
"""Functions that add up products or terms."""

ROUNDED = {
    *("exp", "expm1", "log", "log1p", "logaddexp", "sqrt", "square", "tanh", "expit", "log_expit", "softmax", "var"),
    *("erf", "std", "trace", "matrix_power", "diff"),
}  # fmt: skip
"""Other functions of NumPy and SciPy that compute; what is in no list moves, selects or makes data."""

APPROXIMATED = {"erf": 4.0}
"""PyTorch's GELU in float32 is off by 1.2e-6 at 3.5 (2.13, on CPUs): its erf by six units of eps."""

FACTORISATIONS = {"svd", "qr", "eigh"}

COMPUTES = SUMS | ROUNDED | FACTORISATIONS

NUMBERS, FLOATS = (np.ndarray, np.generic), (np.ndarray, np.floating)


def _draw(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Any:
    """Signed errors in units of eps: 1/4 to 1/2 each way."""
    drawn = rng.random(shape) - 0.5
    return 0.5 * drawn + np.copysign(0.25, drawn)


ERRORS = _draw(np.random.default_rng(0), 2**16)
"""Drawn once, since drawing takes longer than most operations: a `Rounding` reads on from a place of its own."""
ERRORS.flags.writeable = False


class Rounding:
    """Relative errors up to half of `eps`, in sums up to half of `eps_of_sums`, drawn from `rng`."""

    def __init__(self, eps: float, eps_of_sums: float, rng: np.random.Generator) -> None:
        self.eps, self.eps_of_sums, self.rng = eps, eps_of_sums, rng
        self.at = int(rng.integers(ERRORS.size))

    def errors(self, shape: tuple[int, ...]) -> Any:
        """Signed errors in units of eps."""
        count = math.prod(shape)
        if count > ERRORS.size:
            return _draw(self.rng, shape)
        if self.at + count > ERRORS.size:
            self.at = int(self.rng.integers(ERRORS.size - count + 1))
        self.at += count
        return ERRORS[self.at - count : self.at].reshape(shape)

    def move(self, value: Any) -> Any:
        """A floating array, or a tuple or list of some, with every number rounded at random; anything else as it is."""
        if isinstance(value, FLOATS) and value.dtype.kind == "f":
            return value * (1 + self.eps * self.errors(value.shape))
        return value

    def move_as_a_whole(self, matrix: Any) -> Any:
        size = max(matrix.shape) * np.sqrt(np.mean(matrix**2))
        return self.move(matrix) + self.eps_of_sums * size * self.errors(matrix.shape)

    def call(self, function: Callable[..., Any], name: str, *arguments: Any, **options: Any) -> Any:
        if name in FACTORISATIONS:
            return function(self.move_as_a_whole(*arguments), **options)
        result = function(*map(self.move, arguments), **options)
        if name in APPROXIMATED:
            return result * (1 + APPROXIMATED[name] * self.eps * self.errors(np.shape(result)))
        if name not in SUMS or np.result_type(result).kind != "f":
            return result
        terms = _terms(name, result, arguments)
        if terms < 2:
            return result
        sizes = function(*(np.abs(a) if isinstance(a, np.ndarray) else a for a in arguments), **options)
        return result + self.eps_of_sums * (terms - 1) ** 0.5 * self.errors(np.shape(result)) * sizes


def _terms(name: str, result: Any, arguments: tuple[Any, ...]) -> float:
    """How many terms each number of the result is a sum of."""
    if name in ("matmul", "tensordot"):  # of one axis
        return float(np.shape(arguments[0])[-1])
    if name == "einsum":
        letters = dict(zip("".join(arguments[0].split("->")[0].split(",")), _shapes(arguments[1:]), strict=True))
        return float(np.prod([letters[letter] for letter in set(letters) - set(arguments[0].split("->")[1])]))
    if name == "cumsum":
        return float(max(np.shape(result)))
    return np.size(arguments[0]) / max(np.size(result), 1)


def _shapes(arrays: tuple[Any, ...]) -> list[int]:
    return [n for array in arrays for n in np.shape(array)]


_rounding: Rounding | None = None


@contextmanager
def rounded(rounding: Rounding | None) -> Iterator[None]:
    """Operations of the copy are rounded so; not at all by None."""
    global _rounding
    before, _rounding = _rounding, rounding
    try:
        yield
    finally:
        _rounding = before


def operate(name: str, left: Any, right: Any) -> Any:
    """`left OPERATOR right` in the copy."""
    function = getattr(operator, name)
    if _rounding is None or not (isinstance(left, NUMBERS) or isinstance(right, NUMBERS)):
        return function(left, right)
    return _rounding.call(function, name, left, right)


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`function(...)` in the copy."""
    if _rounding is None:
        return function(*arguments, **options)
    if function is builtins.sum:
        return functools.reduce(functools.partial(operate, "add"), *arguments)
    function = COMPOSED.get(function, function)
    name = getattr(function, "__name__", "")
    if name not in COMPUTES:
        return function(*arguments, **options)
    of = getattr(function, "__self__", None)
    if isinstance(of, NUMBERS):  # a method
        return _rounding.call(getattr(type(of), name), name, of, *arguments, **options)
    if isinstance(function, np.ufunc) or getattr(function, "__module__", "").split(".")[0] in ("numpy", "scipy"):
        return _rounding.call(function, name, *arguments, **options)
    return function(*arguments, **options)


def _logsumexp(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    largest = np.max(x, axis=axis, keepdims=True)
    total = call(np.sum, call(np.exp, operate("sub", x, largest)), axis=axis, keepdims=True)
    found = operate("add", largest, call(np.log, total))
    return found if keepdims else np.squeeze(found, axis)


def _log_softmax(x: Any, axis: int | None = None) -> Any:
    return operate("sub", x, _logsumexp(x, axis, keepdims=True))


COMPOSED = {special.logsumexp: _logsumexp, special.log_softmax: _log_softmax}
"""Functions whose own intermediate numbers are larger than what they give and take, by their operations."""


class _Rewriter(ast.NodeTransformer):
    """Leads every operator and call of a module through `operate` and `call`."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = OPERATORS.get(type(node.op))
        return node if name is None else _through("operate", ast.Constant(name), node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        return self.visit(ast.Assign([node.target], ast.BinOp(read, node.op, node.value)))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return node
        return _through("call", node.func, *node.args, keywords=node.keywords)


def _through(name: str, *arguments: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    function = ast.Attribute(ast.Name("__rounding__", ast.Load()), name, ast.Load())
    return ast.Call(function, list(arguments), keywords or [])


def rounding_too(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test's own computation, whose operations are rounded as those of the copy are."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    made: dict[str, Any] = {}
    function.__globals__["__rounding__"] = sys.modules[__name__]
    exec(compile(ast.fix_missing_locations(_Rewriter().visit(tree)), __file__, "exec"), function.__globals__, made)
    rewritten: Callable[..., Any] = functools.wraps(function)(made[function.__name__])
    return rewritten


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module of the reference rewritten; the compiled form is not cached."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:  # type: ignore[override]
        return compile(ast.fix_missing_locations(_Rewriter().visit(ast.parse(data))), path, "exec", dont_inherit=True)

    def path_stats(self, path: str) -> Any:
        raise OSError("no cache for rewritten source")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__rounding__"] = sys.modules[__name__]
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the copy where those of the reference lie."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME and not fullname.startswith(f"{NAME}."):
            return None
        original = importlib.util.find_spec(reference.__name__ + fullname.removeprefix(NAME))
        if original is None or original.origin is None:
            return None
        places: list[str] | None = [] if fullname == NAME else None
        loader = _Loader(fullname, original.origin)
        return importlib.util.spec_from_file_location(
            fullname, original.origin, loader=loader, submodule_search_locations=places
        )


@functools.cache
def rounded_reference() -> ModuleType:
    """The copy of the reference package, loaded at the first call."""
    sys.meta_path.insert(0, _Finder())
    return importlib.import_module(NAME)
