"""Pickles of unknown origin, read as data: an instruction that could do more than build plain values is refused.

Python's own unpickler calls what a file names. This reader has no way to call anything. It knows the instructions that
build numbers, strings, bytes, lists, tuples and dicts. It knows by name how NumPy writes arrays, and how Python 3
writes bytes for Python 2. A list may hold one list many times, and this one another: no message has a value that may
be such, which written out could fill any memory.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .reading import reading

MAX_INSTRUCTIONS = 4_000_000  # ten times CIFAR-100's, a few hundred bytes each at most

DTYPE = re.compile("[|<>=]?(?:b1|[iu][1248]|f[248])")


class _Name(NamedTuple):
    """What a pickle would import."""

    text: str


class _Dtype:
    """An array's, once its byte order has come."""

    def __init__(self, code: str) -> None:
        self.code = code

    def set_state(self, machine: "_Machine", state: Any) -> None:
        order = state[1]
        if order not in ("|", "<", ">", "="):
            raise ValueError("an unknown byte order")
        self.code = order + self.code.lstrip("|<>=")

    def made(self) -> np.dtype[Any]:
        if not DTYPE.fullmatch(self.code):
            raise ValueError(f"an array of '{self.code[:40]}', expected one of numbers")
        return np.dtype(self.code)


class _Array:
    """An array, once its state has come."""

    values: NDArray[Any] | None = None

    def set_state(self, machine: "_Machine", state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _array(machine, content, dtype, shape, "F" if fortran else "C")


def _array(machine: "_Machine", content: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    if isinstance(content, str):
        content = _encode(machine, content)  # bytes of Python 2
    made = dtype.made()
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) * made.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes of an array of another shape")
    return np.frombuffer(content, made).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(machine: "_Machine", kind: _Name, shape: Any, code: Any) -> _Array:
    return _Array()


def _dtype(machine: "_Machine", code: str, *_: Any) -> _Dtype:
    return _Dtype(code)


def _encode(machine: "_Machine", text: str, encoding: str = "latin1") -> bytes:
    machine.to_encode -= len(text)
    if encoding != "latin1" or machine.to_encode < 0:  # a text may be named again and again
        raise ValueError(
            f"{len(text)} bytes as another encoding, or again; expected each of its bytes once, as 'latin1'"
        )
    return text.encode(encoding)


KNOWN: dict[str, Callable[..., Any]] = {
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
    "__builtin__ bytes": lambda machine: b"",
}
for _package in ("numpy.core", "numpy._core"):
    KNOWN |= {f"{_package}.multiarray _reconstruct": _reconstruct, f"{_package}.numeric _frombuffer": _array}
NAMES = {*KNOWN, "numpy ndarray"}

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
PLAIN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Instructions whose argument is the value."""
EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


def unpickled(name: str | Path, content: bytes) -> Any:
    """The plain value that a pickle holds, of any protocol; strings of Python 2 as Latin-1.

    Raises DataError, with the name, for a damaged one and for one that asks for anything else.
    """
    with reading(name, "not a whole pickle of plain values"):
        return _Machine(name).run(content)


class _Machine:
    """A pickle's stack and memory."""

    def __init__(self, name: str | Path) -> None:
        self.name = name
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.to_encode = 0

    def run(self, content: bytes) -> Any:
        self.to_encode = len(content)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            self.step(opcode.name, argument)
        raise ValueError("no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in PLAIN:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in SIZES:
            stack.append(tuple([stack.pop() for _ in range(SIZES[name])][::-1]))
        elif name in ("LIST", "TUPLE", "DICT"):
            values = self.to_mark()
            stack.append(_dict(values) if name == "DICT" else list(values) if name == "LIST" else tuple(values))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else self.to_mark()
            _of_kind(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.to_mark()
            _of_kind(stack[-1], dict).update(_dict(values))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memory[len(self.memory) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(_whole(self.memory[argument]))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if text not in NAMES:
                raise self.refusal(f"'{text.replace(' ', '.')}'")
            stack.append(_Name(text))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or function.text not in KNOWN:
                raise self.refusal("a call")
            stack.append(KNOWN[function.text](self, *arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Dtype | _Array):
                raise self.refusal("an object's state")
            stack[-1].set_state(self, state)
            stack[-1] = _whole(stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise self.refusal(f"the instruction {name}")

    def to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def refusal(self, found: str) -> DataError:
        return DataError(
            f"{self.name}: asks for {found}, expected arrays, bytes, strings, numbers, lists and dicts alone; "
            "nothing of it was run"
        )


def _whole(value: Any) -> Any:
    """An array in place of what it has become."""
    return value.values if isinstance(value, _Array) and value.values is not None else value


def _of_kind(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in place of a {kind.__name__}")
    return value


def _dict(values: list[Any]) -> dict[Any, Any]:
    """Of keys and values in turn. Keys are strings, bytes and numbers."""
    keys = values[::2]
    if not all(type(key) in (str, bytes, int) for key in keys):
        raise ValueError("a key that is no name")
    return dict(zip(keys, values[1::2], strict=True))
