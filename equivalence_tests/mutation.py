"""Mutates the code mechanically, one place at a time, and sees that the tests notice.

    python -m prograde.equivalence_tests.mutation [--side reference|accelerated] [--count N] [--seed S ...]
        [--report FILE] [--seconds-in-all T] [NAME ...]

Places and mutations are drawn from the seed: operators, comparisons, constants and named functions exchanged, factors,
clamps, roots and transpositions dropped, arguments swapped, conditions negated. The sides are the functions of the
reference, and those of the twins and the rules. The tests run once, to learn which lines each of them runs and how long
it takes. Each mutant then meets, in a fork, the tests that run its lines, in lower precisions too, until SECONDS of
them have run: those of each test function in turns, first those that run the fewest lines, since they are about little
else. A mutant that all of them pass is printed, and the command fails, unless `equivalent_mutants` argues that
nothing can tell it from the original. Of several seeds, each draws mutants and is counted for itself.
"""

import argparse
import ast
import gc
import itertools
import json
import math
import os
import random
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .equivalent_mutants import EQUIVALENT
from .planting import (
    ROOT,
    Loaded,
    changed_functions,
    failures_anew,
    failures_of,
    in_forks,
    key,
    lines_of,
    recorded,
    run_tests,
    source_of,
)

ROOT_FOLDER = Path(__file__).parent.parent
SIDES = {"reference": ("reference",), "accelerated": ("accelerated", "accelerated/rules", "accelerated/rules/local")}
"""Folders, whose files may be mutated."""

SECONDS = 40.0
"""How long the tests of a mutant may take in all, as they did without one."""

TURN = 0.25
"""For so many of these seconds tests of one function go on before those of the others have their turn."""

PATIENCE = 10.0
"""A test that takes so many times as long as without a mutant, and so many seconds more, has noticed it."""

MEMORY = 8 * 2**30
"""What a mutant's process may allocate, in bytes."""

OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}

PAIRS = (
    ("mean", "sum"),
    ("max", "min"),
    ("amax", "amin"),
    ("argmax", "argmin"),
    ("maximum", "minimum"),
    ("any", "all"),
    ("ones", "zeros"),
    ("ones_like", "zeros_like"),
    ("sin", "cos"),
    ("floor", "ceil"),
    ("exp", "expm1"),
    ("log", "log1p"),
    ("sqrt", "square"),
    ("tril", "triu"),
)
NAMES = {name: other for pair in PAIRS for name, other in (pair, pair[::-1])}
"""Functions, and what stands in their place."""

DROPPED = {
    *("clip", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "sqrt", "abs", "sign", "square", "relu"),
    *("transpose", "swapaxes", "permute", "moveaxis", "flip", "mean", "detach", "astype", "to", "log", "exp", "tanh"),
}
"""Functions whose argument may stand in their place."""

UNSWAPPED = {
    *("isinstance", "zip", "getattr", "hasattr", "range", "map"),
    *("addcmul", "addcmul_", "logaddexp", "max", "maximum", "min", "minimum", "clip", "swapaxes", "transpose"),
}
"""Functions whose arguments are not swapped: the first call would end in an error, or nothing would change."""

LIBRARIES = {"np", "torch", "F", "functional", "special", "math"}


def mutations(node: ast.AST) -> Iterator[ast.expr]:
    """What may stand in the place of an expression."""
    match node:
        case ast.BinOp(left, operator, right):
            for other in OPERATORS.get(type(operator), ()):
                yield ast.BinOp(left, other(), right)
            if isinstance(operator, ast.MatMult):
                yield ast.BinOp(right, operator, left)
            if isinstance(operator, ast.Add | ast.Sub | ast.Mult | ast.Div):
                yield left
            if isinstance(operator, ast.Add | ast.Mult):
                yield right
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(OPERATORS[type(operator)][0](), values)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Compare(left, [operator], comparators):
            for other in OPERATORS[type(operator)]:
                yield ast.Compare(left, [other()], comparators)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
            if value in (1, 2):
                yield ast.Constant(value - 1)
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Attribute(value, "T" | "mT"):
            yield value
        case ast.Call(function, arguments, keywords):
            yield from _calls(function, arguments, keywords)


def _calls(function: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[ast.expr]:
    """The same for a call."""
    owner = function.value if isinstance(function, ast.Attribute) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in NAMES:
        other = NAMES[name], ast.Load()
        yield ast.Call(ast.Name(*other) if owner is None else ast.Attribute(owner, *other), arguments, keywords)
    if name in DROPPED:
        if owner is not None and getattr(owner, "id", "") not in LIBRARIES:
            yield owner
        elif arguments:
            yield arguments[0]
    if (
        len(arguments) > 1
        and name not in UNSWAPPED
        and not any(isinstance(argument, ast.Starred) for argument in arguments[:2])
    ):
        yield ast.Call(function, [arguments[1], arguments[0], *arguments[2:]], keywords)


class Place(NamedTuple):
    """An expression, found at `field` of `parent`, there `at` a place of a list, within a statement of a function."""

    parent: ast.AST
    field: str
    at: int | None
    function: str
    statement: ast.stmt

    @property
    def node(self) -> ast.AST:
        found = getattr(self.parent, self.field)
        return found if self.at is None else found[self.at]

    def put(self, node: ast.AST) -> None:
        if self.at is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.at] = node


UNTOUCHED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.match_case)
ANNOTATIONS = {"annotation", "returns", "decorator_list"}


def places(tree: ast.AST, function: str = "", statement: ast.stmt | None = None) -> Iterator[Place]:
    """Every expression below, but for those in messages of errors, warnings, assertions, annotations and decorators."""
    for field, found in ast.iter_fields(tree):
        if field in ANNOTATIONS:
            continue
        for index, node in enumerate(found if isinstance(found, list) else [found]):
            if not isinstance(node, ast.AST) or isinstance(node, UNTOUCHED):
                continue
            if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                continue
            if isinstance(node, ast.UnaryOp) and getattr(getattr(tree, "func", None), "attr", "") == "reshape":
                continue  # NumPy takes any negative size for the one that is not told
            inside, around = function, node if isinstance(node, ast.stmt) else statement
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inside = f"{function}.{node.name}".strip(".")
            if isinstance(node, ast.expr) and around is not None:
                yield Place(tree, field, index if isinstance(found, list) else None, function, around)
            yield from places(node, inside, around)


def text_of(statement: ast.stmt) -> str:
    """The statement in one line, of a compound one its head."""
    return ast.unparse(statement).splitlines()[0].strip()


class Mutant(NamedTuple):
    """One changed expression, the mutation of that number of a module: what its statement was and became."""

    module: str
    number: int
    function: str
    line: int
    last_line: int
    before: str
    after: str

    @property
    def lines(self) -> range:
        """Of the expression."""
        return range(self.line, self.last_line + 1)

    @property
    def key(self) -> tuple[str, str]:
        """Names it wherever it stands: the function, and the statement as it became."""
        return f"{self.module}.{self.function}".removesuffix("."), self.after

    def __str__(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.line} {self.function or 'at import'}\n" + "".join(
            f"    {sign} {text}\n" for sign, text in (("-", self.before), ("+", self.after))
        )


@cache
def parsed(module: str) -> tuple[ast.Module, list[tuple[Place, ast.expr]]]:
    """A module's code, and its mutations."""
    tree = ast.parse((ROOT_FOLDER / f"{module.replace('.', '/')}.py").read_text())
    return tree, [(place, other) for place in places(tree) for other in mutations(place.node)]


def modules(side: str) -> list[str]:
    """The modules of a side that may be mutated."""
    found = [path for folder in SIDES[side] for path in sorted((ROOT_FOLDER / folder).glob("*.py"))]
    names = [".".join(path.relative_to(ROOT_FOLDER).with_suffix("").parts) for path in found]
    return [name for name in names if not name.endswith("__init__")]


def mutant(module: str, number: int) -> Mutant:
    """One of a module's mutants."""
    place, other = parsed(module)[1][number]
    node, before = place.node, text_of(place.statement)
    place.put(other)
    after = text_of(place.statement)
    place.put(node)
    assert isinstance(node, ast.expr)
    return Mutant(module, number, place.function, node.lineno, node.end_lineno or node.lineno, before, after)


def mutated(made: Mutant) -> ast.Module:
    """The module's code with the mutation in it, for good: a fork's copy."""
    tree, found = parsed(made.module)
    place, other = found[made.number]
    place.put(other)
    return ast.fix_missing_locations(tree)


def drawn(names: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants of these modules, each of which changes the text of its statement."""
    everything = [(module, number) for module in names for number in range(len(parsed(module)[1]))]
    random.Random(seed).shuffle(everything)
    found = (mutant(*place) for place in everything)
    return list(itertools.islice((made for made in found if made.before != made.after), count))


Key = tuple[str, Any]
"""A function's file, and what tells it apart there."""


class Observed(NamedTuple):
    """A test without a mutant: its processor time in seconds, whether it passed, and what it called and ran of it."""

    seconds: float
    passed: bool
    called: set[Key]
    lines: set[tuple[str, int]]
    """Each a file and a line."""


class Mutator:
    """Plugin of pytest that runs, in place of all tests, those of each mutant in a fork with the mutant in it."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        until: float,
        ran: dict[int, Any],
        jobs: int,
        report: Callable[[Mutant, str], None],
    ) -> None:
        self.mutants = mutants
        self.until = until
        self.ran = ran
        self.jobs = jobs
        self.report = report
        self.items: list[Any] = []
        self.observed: dict[int, Observed] = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        for made in self.mutants:
            import_module(f"{ROOT}.{made.module}")
        sys.setprofile(None)
        self.items = session.items
        self.loaded = Loaded(self.ran.values())
        gc.freeze()  # forks share what is not touched
        parts = 8 * self.jobs
        shares = [range(first, len(self.items), parts) for first in range(min(parts, len(self.items)))]
        for _, found in in_forks(self.observe, shares, self.jobs):
            self.observed |= found
        in_time = itertools.takewhile(lambda _: time.perf_counter() < self.until, self.mutants)
        for made, noticed in in_forks(self.noticed, in_time, self.jobs):
            self.report(made, noticed)
        return True

    def observe(self, share: Sequence[int]) -> dict[int, Observed]:
        """What each test of a share does without a mutant."""
        ours = {source_of(made.module)[0] for made in self.mutants}
        found = {}
        for index in share:
            started = sum(os.times()[:4])
            with recorded() as ran, lines_of(ours) as lines:
                passed = not failures_of([self.items[index]])
            called = {(code.co_filename, key(code)) for code in ran.values() if code.co_filename in ours}
            found[index] = Observed(sum(os.times()[:4]) - started, passed, called, lines)
        return found

    def tests_of(self, module: str, functions: set[Key], lines: range = range(0)) -> list[int]:
        """Tests that pass without the mutant and run its lines; of none, its module's.

        In the order in which they run: those of each test function for TURN seconds, one at least, so that rows of a
        table are all among them, then those of another, first those that run the fewest lines; of the module's before
        all others those that call the function, are of its own files, or have its name. Tests that don't fit into what
        is left of SECONDS, which the others have too, are passed over.
        """
        file, name = source_of(module)[0], module.rpartition(".")[2]
        places = {(file, line) for line in lines}
        tests = [(index, self.items[index], test) for index, test in self.observed.items() if test.passed]
        found = [(0, test, index) for index, _, test in tests if test.lines & places]
        for index, item, test in () if found else tests:  # it ran at import, such as a default
            of_name = name in item.name.strip("]").replace("[", "-").split("-")  # such as [float64-foton]
            own = item.path.name.startswith(f"test_{name}") or of_name or test.called & functions
            if own or name in item.name or any(of == file for of, _ in test.called):
                found.append((int(not own), test, index))
        found.sort(key=lambda of: (of[0], len(of[1].lines), of[1].seconds))
        before: defaultdict[tuple[Path, str], float] = defaultdict(float)
        ranked = []
        for own, test, index in found:
            function = self.items[index].path, self.items[index].name.partition("[")[0]
            ranked.append((own, int(before[function] / TURN), test, index))
            before[function] += test.seconds
        chosen, left = [], [SECONDS, SECONDS]
        for other, _, test, index in sorted(ranked, key=lambda of: of[:2]):
            if test.seconds <= left[other]:
                left[other] -= test.seconds
                chosen.append(index)
        return chosen

    def noticed(self, made: Mutant) -> str:
        """What noticed the mutant, "" if nothing did."""
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        file, source = source_of(made.module)
        tree = mutated(made)
        changes = changed_functions(compile(source, file, "exec"), compile(tree, file, "exec"))
        chosen = self.tests_of(made.module, {(file, key(old)) for old, _ in changes or []}, made.lines)
        names = [self.items[index].nodeid.rpartition("equivalence_tests/")[2] for index in chosen]
        if not self.loaded.exchange(file, source, tree):
            signal.setitimer(signal.ITIMER_PROF, PATIENCE * (1 + SECONDS))  # its signal kills
            messages = failures_anew(made.module, ast.unparse(tree), names, OPTIONS) if names else []
            return "\n".join(messages).strip().rpartition("\n")[2]
        for index, name in zip(chosen, names, strict=True):
            signal.setitimer(signal.ITIMER_PROF, PATIENCE * (1 + self.observed[index].seconds))
            if failures_of([self.items[index]]):
                return name
        return ""


OPTIONS = (
    "--profile",
    "mutation",
    "-k",
    "not compil",
    "-W",
    "error::RuntimeWarning",
    "--also=float32",
    "--also=bfloat16",
)
"""Of pytest. Tests of compilation take seconds each, and see what others see."""


CHECKOUT = (
    "test_docstrings.py::test_examples",
    "test_costs.py",
    "test_estimators.py",
    "test_local_classifiers.py",
    "test_loop.py",
    "test_rules.py",
    "test_training.py",
    "test_unit_diagnostics.py",
    "test_using.py",
)
"""Tests outside of this package that run rules and no other process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 0 where every mutant is noticed or argued to be equivalent, else 1."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="only modules whose name ends so, such as foton")
    parser.add_argument("--side", choices=list(SIDES), help="default: both")
    parser.add_argument("--count", type=int, default=500, help="mutants of each side (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[random.randrange(2**32)], help="default: a new one, printed"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (default: %(default)s)"
    )
    parser.add_argument("--tests", nargs="*", metavar="FILE", help="test files, such as test_foton.py (default: all)")
    parser.add_argument("--report", metavar="FILE", help="a line of JSON for each mutant, as it is judged")
    parser.add_argument("--seconds-in-all", type=float, default=math.inf, help="no mutant is begun after these")
    options = parser.parse_args(arguments)
    sides = [options.side] if options.side else list(SIDES)
    chosen = [[name for name in modules(side) if name.endswith(tuple(options.names) or "")] for side in sides]
    seeds: dict[Mutant, set[int]] = defaultdict(set)
    for seed, names in itertools.product(options.seed, chosen):
        for made in drawn(names, options.count, seed):
            seeds[made].add(seed)
    if not seeds:
        parser.error(f"no module named {' or '.join(options.names)}")
    mutants = random.Random(options.seed[0]).sample(list(seeds), len(seeds))
    drawn_from = "seed " + ", ".join(map(str, options.seed))
    print(f"{drawn_from}, {len(mutants)} mutants", flush=True)

    start, screen = time.perf_counter(), sys.stdout
    counts: Counter[tuple[int, str, str]] = Counter()

    def report(made: Mutant, noticed: str) -> None:
        argument = EQUIVALENT.get(made.key, "")
        verdict = "noticed" if noticed else "equivalent" if argument else "survived"
        counts.update((seed, made.module.partition(".")[0], verdict) for seed in seeds[made])
        line = {"verdict": verdict, "by": noticed or argument, "seeds": sorted(seeds[made])} | made._asdict()
        file.write(json.dumps(line) + "\n")
        file.flush()
        if verdict == "survived":
            print(f"SURVIVED {made}", file=screen, flush=True)

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # no threads, which a fork would lose
    for library in ("hypothesis.strategies", "pytest", "scipy.special", "scipy.stats", "torch", "torch._dynamo"):
        import_module(library)  # before the profile, which slows imports down, and for all forks
    tests = options.tests or [path.name for path in sorted(Path(__file__).parent.glob("test_*.py"))]
    of_checkout = Path(__file__).resolve().parent.parent / "tests"
    if of_checkout.exists() and not options.tests:
        tests += [str(of_checkout / name) for name in CHECKOUT]
    with Path(options.report or os.devnull).open("w") as file, recorded() as ran:
        mutator = Mutator(mutants, start + options.seconds_in_all, ran, options.jobs, report)
        output = run_tests(tests, mutator, options=OPTIONS)
    if not mutator.observed:
        print(output)
    for index, test in sorted(mutator.observed.items()):
        if not test.passed:
            print(f"fails without a mutant, left out: {mutator.items[index].nodeid}")
    for seed, side in itertools.product(options.seed, sides):
        found = {verdict: counts[seed, side, verdict] for verdict in ("noticed", "equivalent", "survived")}
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in found.items())
        print(f"seed {seed}, {side}: {sum(found.values())} mutants, {verdicts}")
    print(f"in {time.perf_counter() - start:.0f} s; {drawn_from}")
    return 0 if counts and not any(verdict == "survived" for *_, verdict in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
