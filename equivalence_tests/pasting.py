"""A failed comparison, or a failed test of a property, as code that runs when it is pasted, arrays included."""

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .sides import DTYPES, EPS, ReferenceSide, TwinSide
from .tolerance import Comparison

WIDTH = 100
"""Columns of a program, where no single word is longer."""


class UnwritableError(Exception):
    """What no code can be written for, such as a generator that has been drawn from."""


def as_code(side: Any, call: Callable[..., Any], expected: Callable[..., Any] | None, operands: Any) -> str:
    """A program that prints what the reference gives and what the side gives. Raises UnwritableError."""
    program = _Program()
    program.value(ReferenceSide)
    given, tested = program.value(operands), program.value(call)
    truth = "computed" if expected is None else program.value(expected)
    return program.text(
        f"operands = {given}",
        f"computed = {tested}",
        f"expected = {truth}",
        f"reference, twin = ReferenceSide(), {program.twin(side)}",
        "print(reference.results(expected(reference, *reference.operands(operands))))",
        "print(twin.results(computed(twin, *twin.operands(operands))))",
    )


def as_change(side: Any, call: Callable[..., Any], operands: Any) -> str:
    """A program that prints the operands as they are given and as the call leaves them. Raises UnwritableError."""
    program = _Program()
    given, tested = program.value(operands), program.value(call)
    return program.text(
        f"operands = {given}",
        f"computed = {tested}",
        f"twin = {program.twin(side)}",
        "given = twin.operands(operands)",
        "computed(twin, *given)",
        "print(twin.results(twin.operands(operands)))",
        "print(twin.results(given))",
    )


def as_call(test: FunctionType, arguments: Mapping[str, Any]) -> str:
    """A program that calls a test with the arguments that it fails for. Raises UnwritableError."""
    program = _Program()
    program.imports[test.__module__] = {test.__name__}
    given = ", ".join(f"{name}={program.argument(item)}" for name, item in arguments.items())
    inner = ".hypothesis.inner_test" if hasattr(test, "hypothesis") else ""
    return program.text(f"{test.__name__}{inner}({given})")


class Recorded:
    """Hypothesis's `data` of a test: notes what is drawn of it."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.values: list[Any] = []

    def draw(self, strategy: Any, label: Any = None) -> Any:
        self.values.append(self.data.draw(strategy, label))
        return self.values[-1]


class Replayed:
    """What was drawn, in place of `data`."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def draw(self, strategy: Any, label: Any = None) -> Any:
        return self.values.pop(0)


def wrapped(line: str) -> str:
    """The statement in lines of WIDTH columns, broken in its brackets; a row of an array in one, as far as it goes."""
    statement: Any = ast.parse(line).body[0]
    value, text = statement.value, line.encode()  # whose places the tree has
    first, *others = _laid_out(value, text, WIDTH, value.col_offset)
    return "\n".join([text[: value.col_offset].decode() + first, *others])


def _laid_out(node: Any, text: bytes, room: int, taken: int) -> list[str]:
    """An expression of the text in lines of that room, of whose first something is taken."""
    parts, whole = _parts(node), text[node.col_offset : node.end_col_offset].decode()
    if not parts or taken + len(whole) < room:
        return [whole]
    start, first = parts[0]
    opening = text[node.col_offset : start].decode()
    if isinstance(node, ast.Call) and isinstance(first, ast.List) and len(parts) <= 2:  # an array, with its dtype
        rows = _laid_out(first, text, room, room)
        return [opening + rows[0], *rows[1:-1], rows[-1] + text[first.end_col_offset : node.end_col_offset].decode()]
    lines: list[str] = []
    is_filled = False
    for start, part in parts:
        before = text[start : part.col_offset].decode()
        inner = _laid_out(part, text, room - 4, len(before))
        inner = [before + inner[0], *inner[1:]]
        inner[-1] += ","
        if is_filled and not _parts(part) and len(lines[-1]) + 1 + len(inner[0]) <= room - 4:
            lines[-1] += f" {inner[0]}"
        else:
            lines += inner
        is_filled = not _parts(part)
    return [opening, *(f"    {line}" for line in lines), whole[-1]]


def _parts(node: Any) -> list[tuple[int, Any]]:
    """Where each of what stands between its commas begins, and its expression, which may follow a name or a key."""
    if isinstance(node, ast.Tuple | ast.List):
        return [(part.col_offset, part) for part in node.elts]
    if isinstance(node, ast.Dict):
        return [(key.col_offset, part) for key, part in zip(node.keys, node.values, strict=True) if key is not None]
    if isinstance(node, ast.Call):
        named = [(part.col_offset, part.value) for part in node.keywords]
        return [*((part.col_offset, part) for part in node.args), *named]
    return []


class _Program:
    """What the written values need: imports, and what is made before them, in order."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.imports: dict[str, set[str]] = {}
        self.made: dict[str, str] = {}

    def text(self, *lines: str) -> str:
        """The lines, behind what they need."""
        before = [
            *(f"import {name}" for name in sorted(self.modules)),
            *(f"from {name} import {', '.join(sorted(names))}" for name, names in sorted(self.imports.items())),
            "",
            *(wrapped(f"{name} = {value}") if value else name for name, value in self.made.items()),
        ]
        return "\n".join([*before, *map(wrapped, lines)]) + "\n"

    def twin(self, side: TwinSide) -> str:
        dtype = next(name for name in DTYPES if (DTYPES[name], EPS[name]) == (side.dtype, side.eps))
        return f'{self._from(TwinSide.__module__, "TwinSide")}("{side.package}", "{side.device}", "{dtype}")'

    def argument(self, item: Any) -> str:
        """An expression for an argument of a test, which may be a side, or a generator that it alone draws from."""
        if isinstance(item, TwinSide):
            return self.twin(item)
        if isinstance(item, Comparison):
            return f"{self.value(Comparison)}()"
        if isinstance(item, Recorded):
            return f"{self.value(Replayed)}([{', '.join(map(self.argument, item.values))}])"
        if isinstance(item, np.random.Generator):
            seed = getattr(item.bit_generator.seed_seq, "entropy", None)
            return f"{self._from('numpy.random', 'default_rng')}({self.value(seed)})"
        return self.value(item)

    def value(self, item: Any) -> str:
        """An expression for it."""
        if item is None or item is ... or isinstance(item, bool | int | str):
            return repr(item)
        if isinstance(item, float):
            return repr(item) if np.isfinite(item) else f"float('{item}')"
        if isinstance(item, np.generic):
            return self.value(item.item())
        if isinstance(item, np.ndarray):
            return self._array(item)
        if isinstance(item, functools.partial):
            arguments = [*map(self.value, item.args), *self._named(item.keywords)]
            return f"{self._from('functools', 'partial')}({', '.join([self.value(item.func), *arguments])})"
        if isinstance(item, tuple) and hasattr(item, "_asdict"):
            return f"{self.value(type(item))}({', '.join(self._named(item._asdict()))})"
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
            return f"{self.value(type(item))}({', '.join(self._named(fields))})"
        if type(item) is tuple:
            return f"({''.join(f'{self.value(part)}, ' for part in item).removesuffix(' ')})"
        if type(item) is list:
            return f"[{', '.join(map(self.value, item))}]"
        if type(item) is dict:
            return f"{{{', '.join(f'{self.value(key)}: {self.value(part)}' for key, part in item.items())}}}"
        module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", "")
        if module and getattr(sys.modules.get(module), name, None) is item:
            return self._from(module, name)
        if isinstance(item, FunctionType):
            return self._function(item)
        raise UnwritableError(repr(item))

    def _from(self, module: str, name: str) -> str:
        if any(name in names for other, names in self.imports.items() if other != module):
            raise UnwritableError(f"two things of the name {name}")
        self.imports.setdefault(module, set()).add(name)
        return name

    def _named(self, items: dict[str, Any]) -> list[str]:
        return [f"{name}={self.value(item)}" for name, item in items.items()]

    def _array(self, array: Any) -> str:
        dtype = "" if array.dtype in (np.float64, np.int64, np.bool_) and array.size else f', "{array.dtype}"'
        if not array.size:
            return f"{self._from('numpy', 'zeros')}({array.shape}{dtype})"
        if not np.isfinite(array).all():
            self.imports.setdefault("numpy", set()).update(("inf", "nan"))
        return f"{self._from('numpy', 'array')}({array.tolist()!r}{dtype})"

    def _function(self, function: FunctionType) -> str:
        """A function of a test's own: its source, before which stands what it takes from around it."""
        node, named = _node(function), function.__kwdefaults__ or {}
        node.args.defaults = [self._parsed(item) for item in function.__defaults__ or ()]
        node.args.kw_defaults = [self._parsed(named[a.arg]) if a.arg in named else None for a in node.args.kwonlyargs]
        names = inspect.getclosurevars(function)
        for name, item in names.nonlocals.items():
            self._make(name, item)
        for name, item in function.__globals__.items():
            if name not in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
                continue
            if isinstance(item, ModuleType):
                self.modules.add(f"{item.__name__} as {name}")
            else:
                self._from(function.__module__, name)
        if isinstance(node, ast.Lambda):
            return ast.unparse(node)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg):
            if argument is not None:
                argument.annotation = None
        node.returns, node.decorator_list = None, []
        self.made[ast.unparse(node)] = ""
        return node.name

    def _parsed(self, item: Any) -> ast.expr:
        """The expression of a default, which the source has by a name of the moment when it was taken."""
        return ast.parse(self.value(item), mode="eval").body

    def _make(self, name: str, item: Any) -> None:
        value = self.value(item)
        if value != name and self.made.setdefault(name, value) != value:
            raise UnwritableError(f"two values of {name}")


def _node(function: FunctionType) -> Any:
    """The function in the tree of its file: the smallest one that has all its instructions."""
    lines, _ = inspect.findsource(function)
    places = [
        (line, column)
        for line, _, column, end in function.__code__.co_positions()
        if line and column is not None and end
    ]
    first, last = min(places), max(places)
    found = [
        node
        for node in ast.walk(ast.parse("".join(lines)))
        if isinstance(node, ast.Lambda | ast.FunctionDef)
        and (node.lineno, node.col_offset) <= first
        and last <= (node.end_lineno or 0, node.end_col_offset or 0)
        and getattr(node, "name", "<lambda>") == function.__name__
    ]
    if not found:
        raise UnwritableError(function.__qualname__)
    return min(found, key=lambda node: ((node.end_lineno or 0) - node.lineno, (node.end_col_offset or 0)))
