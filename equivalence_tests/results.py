"""What came of each test of a package, as lines of JSON: `prograde check` makes its table of them."""

import ast
import contextlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis.strategies import DataObject

from prograde import reference

from .pasting import Recorded, UnwritableError, as_call, as_change, as_code
from .sides import MODULES, TwinSide
from .tolerance import Compared, Comparison

KEY = "prograde"
LONGEST = 200
"""Of what came and what was expected, in a line: arrays may be of any size."""


class Results:
    """Plugin of pytest: notes what of the package each test used and compared, and writes it."""

    def __init__(self, config: pytest.Config) -> None:
        is_worker = hasattr(config, "workerinput")  # of pytest-xdist: the process that started it writes
        self.path = None if is_worker else Path(config.getoption("--results"))
        twin = TwinSide(config.getoption("--twin"), "cpu", "float64")
        self._write({"modules": MODULES, "present": twin.present, "functions": _functions(twin)})
        self.is_counted = False

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        """Has every comparison of a test made, not those up to the first that fails."""
        given, example = dict(pyfuncitem.funcargs), None
        sides = [side for side in given.values() if isinstance(side, TwinSide)]
        comparison = next((c for c in given.values() if isinstance(c, Comparison)), Comparison())
        comparison.seen = []
        handle = getattr(pyfuncitem.obj, "hypothesis", None)
        inner: Any = handle and handle.inner_test

        def settled(**arguments: Any) -> None:
            given.update({n: Recorded(a) if isinstance(a, DataObject) else a for n, a in arguments.items()})
            try:
                inner(**{name: given[name] for name in arguments})
            finally:
                comparison.settle()

        if handle:
            handle.inner_test = settled
        for side in sides:
            side.used.clear()
        try:
            result = yield
            comparison.settle()
            return result
        except Exception as error:
            skip_reckoning(error, sides)
            with contextlib.suppress(UnwritableError):
                names = inspect.signature(inner or pyfuncitem.obj).parameters
                example = as_call(pyfuncitem.obj, {name: given[name] for name in names})
            if handle:
                _go_on(pyfuncitem, comparison, sides)
            raise
        finally:
            if handle:
                handle.inner_test = inner
            used = list(dict.fromkeys(path for side in sides for path in side.used))
            seen = [] if not sides else [_written(sides[0], outcome) for outcome in _gathered(comparison.seen)]
            pyfuncitem.user_properties.append((KEY, json.dumps({"used": used, "compared": seen, "example": example})))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._count(len(ids))

    def _count(self, tests: int) -> None:
        if tests and not self.is_counted:
            self._write({"tests": tests})
            self.is_counted = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        noted = json.loads(dict[str, Any](report.user_properties).get(KEY, '{"used": [], "compared": []}'))
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message if crash is not None else str(report.longrepr)
        said = explained(said.removeprefix("AssertionError: ").removeprefix("Skipped: "))
        test = report.nodeid.rpartition("::")[2]
        self._write({"test": test, "when": report.when, "outcome": report.outcome, "said": said, **noted})

    def _write(self, record: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _go_on(item: pytest.Function, comparison: Comparison, sides: list[TwinSide]) -> None:
    """Has the other comparisons of a property see all its examples: where one fails, the rest are of its smallest."""
    while True:
        wrong = {outcome.name for outcome in comparison.seen or () if outcome.wrong}
        if wrong in (comparison.passed_over, {outcome.name for outcome in comparison.seen or ()}):
            return
        comparison.passed_over = wrong
        with contextlib.suppress(Exception, pytest.skip.Exception), contextlib.ExitStack() as stack:
            for side in sides:
                stack.enter_context(side.leaving_out(item.obj))
            item.obj(**{name: item.funcargs[name] for name in item._fixtureinfo.argnames})


def explained(message: str) -> str:
    """A line of what a failed assertion says, with what came and what was expected, as pytest has found them.

    >>> explained("hits\\nassert 3 == 2")
    'hits: 3, expected 2'
    """
    first, *others = message.split("\n")
    claim = next((line for line in (first, *others) if line.startswith("assert ")), "").removeprefix("assert ")
    if not claim or (first != f"assert {claim}" and "expected" in first):
        return first
    label = "" if first == f"assert {claim}" else f"{first}: "
    calls = (re.search(r"= <function (\w+) at \w+>(\(.*\))$", line) for line in others)
    call = next((call for call in calls if call), None)
    compared = re.fullmatch(r"(.+?) (==|!=|<=|>=|<|>|in|not in|is|is not) (.+)", claim)
    if compared is not None:
        found, operator, expected = compared.groups()
        text = f"{found}, expected {expected if operator == '==' else f'{operator} {expected}'}"
    elif call is not None:
        text = ("" if claim.startswith("not ") else "not ") + call[1] + call[2]
        if call[1] in ("array_equal", "allclose", "isclose") and not claim.startswith("not "):
            with contextlib.suppress(SyntaxError):
                (found, expected, *_) = ast.parse(call[1] + call[2], mode="eval").body.args  # type: ignore[attr-defined]
                text = f"{ast.unparse(found)}, expected {ast.unparse(expected)}"
    else:
        text = claim
    text = re.sub(r"np\.\w+?\d+\(([^()]*)\)", r"\1", re.sub(r"(\\n|\s)\s*", " ", text))
    return label + (text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")


def _functions(twin: TwinSide) -> dict[str, bool]:
    """The reference's of the modules that are present, and whether they are there."""
    return {
        f"{module}.{name}": hasattr(twin.found(module), name)
        for module in twin.present
        for name in getattr(reference, module).__all__
        if inspect.isfunction(getattr(getattr(reference, module), name))
    }


def skip_reckoning(error: Exception, sides: Sequence[TwinSide]) -> None:
    """Skips a test whose error it has raised by reckoning with arrays of a package that are lists."""
    reckons = isinstance(error, TypeError | AttributeError) and _of_a_test(error)
    if reckons and not all(side.has_arithmetic for side in sides):
        pytest.skip("the test reckons with arrays, which these can't")


def _of_a_test(error: BaseException) -> bool:
    """Whether it was raised in this package's own code."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__", "")).startswith(str(__package__))


def _gathered(seen: list[Compared]) -> Iterator[tuple[Compared, int]]:
    """Of each computation the smallest that went wrong, else the one that came nearest to its bound; and how many."""
    by_name: dict[tuple[str, tuple[str, ...]], list[Compared]] = {}
    for outcome in seen:
        by_name.setdefault((outcome.name, outcome.functions), []).append(outcome)
    for outcomes in by_name.values():
        wrong = [outcome for outcome in outcomes if outcome.wrong]
        chosen = min(wrong, key=lambda o: o.size) if wrong else max(outcomes, key=lambda o: o.share)
        yield chosen, len(outcomes)


def _written(side: TwinSide, gathered: tuple[Compared, int]) -> dict[str, Any]:
    outcome, count = gathered
    record = {**outcome._asdict(), "count": count, "example": None}
    if outcome.example is not None:
        with contextlib.suppress(UnwritableError):
            call, _, operands = outcome.example
            changed = outcome.changes
            record["example"] = as_change(side, call, operands) if changed else as_code(side, *outcome.example)
    return record
