"""Every planted fault can be planted: its text stands in its module once, its test is there, its code is exchanged."""

from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from prograde.equivalence_tests import planting
from prograde.equivalence_tests.faults import FAULTS, Fault
from prograde.equivalence_tests.planting import ROOT, Loaded, planted, recorded, verdict


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_to_replace_is_there_once(fault: Fault) -> None:
    spec = find_spec(f"{ROOT}.{fault.module}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).read_text().count(fault.before) == 1, f"{fault.module}: {fault.before!r}"
    file, test = fault.test.split("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(), fault.test


def test_names_tell_faults_apart() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))


MODULE = """
from functools import lru_cache, partial, wraps
from typing import NamedTuple

OFFSET = 0

def add(x, y=1):
    return x + y + OFFSET

def twice(function):
    @wraps(function)
    def wrapper(x):
        return 2 * function(x)
    return wrapper

@twice
def triple(x):
    return 3 * x

@lru_cache
def square(x):
    return x * x

def adder(n):
    return lambda x: add(x, n)

class Pair(NamedTuple):
    first: object
    second: object

class Layer:
    bias = 4

    def __init__(self):
        self.scale = 5

    @property
    def size(self):
        return self.scale + self.bias

    @classmethod
    def built(cls):
        return cls().size

def generate():
    yield from (add(x) for x in range(3))

table = {"partial": partial(add, 1), "pair": Pair(lambda x: x + 1, lambda x: x + 2)}
"""


CHANGES = {  # before: after, a call, what it gives before and after
    "x + y + OFFSET": ("x - y", "[add(1), table['partial'](), adder(2)(1), *generate()]", [2, 2, 3, 1, 2, 3],
                       [0, 0, -1, -1, 0, 1]),
    "x + 2)": ("x * 7)", "[f(3) for f in table['pair']]", [4, 5], [4, 21]),
    "3 * x": ("x", "[triple(1)]", [6], [2]),
    "x * x": ("x * x * x", "[square(2)]", [4], [8]),
    "add(x, n)": ("add(n, n)", "[adder(1)(5)]", [6], [2]),
    "add(x) for": ("add(x, 9) for", "[*generate()]", [1, 2, 3], [9, 10, 11]),
    "self.scale = 5": ("self.scale = 6", "[Layer().size]", [9], [10]),
    "self.scale + self.bias": ("self.bias", "[Layer.built(), Layer().size]", [9, 9], [4, 4]),
    "cls().size": ("0", "[Layer.built()]", [9], [0]),
}  # fmt: skip
REFUSED = {
    "OFFSET = 0": "OFFSET = 1",
    "y=1": "y=2",
    "2 * function": "5 * function",
    "bias = 4": "bias = 3",
    "@lru_cache\n": "",
    "partial(add, 1)": "partial(add, 2)",
    "first: object\n": "other: object\n",
    "return cls().size": "return super().__new__(cls).size",
    "x + y + OFFSET": "x + y + OFFSET  # the same",
    "generate():": "generate(again=3):",
}


def executed(file: str) -> dict[str, Any]:
    """The names of a module of that text, which is in no file."""
    names = {"__name__": "module"}
    exec(compile(MODULE, file, "exec"), names)
    return names


def test_everybody_gets_the_code_of_a_changed_function() -> None:
    with recorded() as ran:
        modules = {before: executed(before) for before in CHANGES}
    loaded = Loaded(ran.values())
    for before, (after, call, old, new) in CHANGES.items():
        assert eval(call, executed("another")) == old
        assert loaded.exchange(before, MODULE, MODULE.replace(before, after)), f"{before}: exchanged"
        assert eval(call, modules[before]) == new, f"{before}: the new code"


def test_what_was_evaluated_at_import_is_not_exchanged() -> None:
    with recorded() as ran:
        names = executed("module")
        names["adder"](1)
    loaded = Loaded(ran.values())
    functions = [value for value in names.values() if isinstance(value, FunctionType)]
    codes = [function.__code__ for function in functions]
    for before, after in (REFUSED | {"add(x, n)": "add(n, n)"}).items():
        assert MODULE.count(before) == 1
        assert not loaded.exchange("module", MODULE, MODULE.replace(before, after)), f"{before}: left to a new import"
    assert [function.__code__ for function in functions] == codes
    assert loaded.exchange("module", MODULE, MODULE.replace("3 * x", "x")), "what never ran"


def test_the_named_assertion_is_told_from_others() -> None:
    fault = Fault("sign", "module", "x + y", "x - y", "test_add.py::test_add", "the sum")
    assert verdict(fault, ["E   AssertionError: the sum: 0, expected 2"]) == ""
    assert verdict(fault, []) == "survived"
    assert verdict(fault, ["E   AssertionError: the product"]).startswith("caught by another assertion")
    assert verdict(fault, ["E   ValueError: the sum"]).startswith("no assertion failed")
    with pytest.raises(LookupError, match="2 times"):
        planted("x + y; x + y", fault)


@pytest.mark.parametrize(("arguments", "passed"), [([], []), (["--seed", "5"], ["--hypothesis-seed", "5"])])
def test_a_seed_is_that_of_the_examples(
    arguments: list[str], passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(planting, "run_tests", lambda tests, *plugins, options: ran.append((tests, options)) or "")
    assert planting.main([*arguments, FAULTS[0].name]) == 1
    assert ran == [([FAULTS[0].test], passed)]
