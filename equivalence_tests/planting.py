"""Plants the faults of `faults` in the code, one at a time, and sees that the tests catch them.

    python -m prograde.equivalence_tests.faults [--list] [--seed N] [--jobs N] [NAME ...]

The tests are collected once. Each fault is put into a fork of that process, where the functions that it changes get
the code of the changed source. A fault in anything that was evaluated at import (a default, a constant, a class, what
a function returned then) is put in by importing the package anew. Nothing on disk is changed. The command fails if a
fault survives, if another assertion than the named one catches it, or if the text to replace is no longer there.
"""

import argparse
import ast
import contextlib
import gc
import importlib.abc
import importlib.machinery
import inspect
import io
import itertools
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec, spec_from_file_location
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, TypeAlias

from .faults import FAULTS, Fault

ROOT = "prograde"
DIED = "the process died"
TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]


def planted(source: str, fault: Fault) -> str:
    """The source of the fault's module with the fault in it."""
    found = source.count(fault.before)
    if found != 1:
        raise LookupError(f"the text to replace stands {found} times in {fault.module}, expected once")
    return source.replace(fault.before, fault.after)


def verdict(fault: Fault, messages: Sequence[str]) -> str:
    """ "" where the named assertion is among the messages of the failed tests, else what happened instead."""
    if not messages:
        return "survived"
    lines = "\n".join(messages).strip().splitlines()
    if not any("AssertionError" in line for line in lines):
        return f"no assertion failed: {lines[-1:]}"
    asserted = [line for line in lines if line.lstrip(" |").startswith("E ") or "Error" in line]
    if not any(fault.assertion in line for line in asserted):
        return f"caught by another assertion than '{fault.assertion}': {asserted[:1]}"
    return ""


class Failures:
    """Plugin of pytest: the messages of whatever failed."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.messages.append(str(report.longrepr))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.messages.append(f"collection failed: {report.longrepr}")


def failures_of(items: Sequence[Any]) -> list[str]:
    """The messages of the first of the tests that fails, which are run one after another."""
    failures = Failures()
    items[0].config.pluginmanager.register(failures)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if failures.messages:
            break
    return failures.messages


def in_forks(call: Callable[[Any], Any], items: Iterable[Any], jobs: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Each item with call(item), in a process of its own; `jobs` at once, by default as many as there are processors.

    What a call raised is its answer as text, and so is that its process died.
    """
    context = multiprocessing.get_context("fork")
    waiting = iter(items)
    running: dict[Connection, tuple[Any, Any]] = {}
    while True:
        for item in itertools.islice(waiting, (jobs or os.cpu_count() or 1) - len(running)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(call, item, theirs))
            process.start()
            theirs.close()
            running[ours] = item, process
        if not running:
            return
        ready = wait(list(running))
        for pipe in [pipe for pipe in running if pipe in ready]:
            item, process = running.pop(pipe)
            try:
                answer = pipe.recv()
            except EOFError:
                answer = DIED
            process.join()
            yield item, answer


def _child(call: Callable[[Any], Any], item: Any, pipe: Connection) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        pipe.send(call(item))
    except BaseException as error:  # whatever it was is the answer
        pipe.send(f"{type(error).__name__}: {error}")


# Faults in functions: their code is exchanged


def key(code: CodeType) -> tuple[Any, ...]:
    """Tells code apart within one file: where its every instruction stands."""
    return code.co_qualname, code.co_firstlineno, code.co_linetable


def content(code: CodeType, nested: bool = True) -> tuple[Any, ...]:
    """What code does, wherever it stands; without the code `nested` in it, if asked."""
    constants = [(content(c) if nested else None) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    shape = code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, shape, constants


def changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The outermost functions that differ; None where what runs at import differs, of the module or a class."""
    if content(old) == content(new):
        return []
    if old.co_flags & inspect.CO_NEWLOCALS:
        return [(old, new)]
    if content(old, nested=False) != content(new, nested=False):
        return None
    bodies = ([c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new))
    changes = [changed_functions(*pair) for pair in zip(*bodies, strict=True)]
    return None if None in changes else [pair for change in changes for pair in change or []]


@contextlib.contextmanager
def recorded() -> Iterator[dict[int, CodeType]]:
    """Collects the code that runs meanwhile, until the profile function is replaced."""
    ran: dict[int, CodeType] = {}
    sys.setprofile(lambda frame, *_: ran.setdefault(id(frame.f_code), frame.f_code))
    try:
        yield ran
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def lines_of(files: Collection[str]) -> Iterator[set[tuple[str, int]]]:
    """Collects the lines of functions of these files that run meanwhile, each with its file; of other threads' none.

    Those that run at import are not among them: tests that import a copy of a module would run them all.
    """
    lines: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, _: object) -> TraceFunction:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def begun(frame: FrameType, *_: object) -> TraceFunction | None:
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
        return local if is_function and frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(begun)
    try:
        yield lines
    finally:
        sys.settrace(before)


class Loaded:
    """Everything loaded by now: its functions, and the code that ran meanwhile."""

    def __init__(self, ran: Iterable[CodeType]) -> None:
        self.ran = {(code.co_filename, key(code)) for code in ran}
        self.functions = defaultdict(list)
        for function in gc.get_objects():
            if type(function) is FunctionType:
                self.functions[function.__code__.co_filename, key(function.__code__)].append(function)

    def exchange(self, file: str, before: str, after: str | ast.Module) -> bool:
        """Gives the functions of a file the code of its changed source; False where more than that has to change.

        A function that ran may have left results behind, which nobody can find. One that did not is as good as new,
        whoever holds it: all refer to the same function object.
        """
        changes = changed_functions(compile(before, file, "exec"), compile(after, file, "exec"))
        for old, new in changes or []:
            place = file, key(old)
            if place in self.ran or not self.functions[place] or old.co_freevars != new.co_freevars:
                return False
        for old, new in changes or []:
            for function in self.functions[file, key(old)]:
                function.__code__ = new
        return bool(changes)


class Exchanger:
    """Plugin of pytest that runs, in place of all tests, each fault's own test in a fork with the fault in it."""

    def __init__(
        self,
        faults: Sequence[Fault],
        ran: dict[int, CodeType],
        report: Callable[[Fault, str], None],
        jobs: int,
    ) -> None:
        self.faults = faults
        self.ran = ran
        self.report = report
        self.jobs = jobs
        self.left: list[Fault] = []

    def pytest_runtestloop(self, session: Any) -> bool:
        for fault in self.faults:
            import_module(f"{ROOT}.{fault.module}")
        sys.setprofile(None)
        self.loaded = Loaded(self.ran.values())
        self.items = defaultdict(list)
        for item in session.items:
            self.items[f"{item.path.name}::{item.originalname}"].append(item)
        gc.freeze()  # forks share what is not touched
        for fault, answer in in_forks(self.caught_by, self.faults, self.jobs):
            if answer is None:
                self.left.append(fault)
            else:
                self.report(fault, answer)
        return True

    def caught_by(self, fault: Fault) -> str | None:
        """The verdict on the fault, None where it can't be put in by an exchange of code."""
        file, source = source_of(fault.module)
        if not self.loaded.exchange(file, source, planted(source, fault)):
            return None
        return verdict(fault, failures_of(self.items[fault.test]))


# All others: the package is imported anew


class PlantedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from another source than its file's; the compiled form is not cached."""

    source: str

    def get_data(self, path: str) -> bytes:
        return self.source.encode()

    def path_stats(self, path: str) -> Any:
        raise OSError("no cache for planted source")


class Planter(importlib.abc.MetaPathFinder):
    """Finds a module through the other finders, and gives it a loader of this source."""

    def __init__(self, module: str, source: str) -> None:
        self.module = module
        self.source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != f"{ROOT}.{self.module}":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.origin is not None:
                loader = PlantedLoader(fullname, spec.origin)
                loader.source = self.source
                return spec_from_file_location(fullname, spec.origin, loader=loader)
        return None


def run_tests(tests: Iterable[str], *plugins: Any, options: Sequence[str] = ()) -> str:
    """Runs tests in this process; returns what pytest printed.

    They are of this folder, such as test_foton.py::test_updates, or have a path.
    """
    import pytest

    options = [*options, "-q", "-x", "-s", "-p", "no:cacheprovider", "-p", f"{ROOT}.equivalence_tests.plugin"]
    options += ["--import-mode=importlib", "-o", "consider_namespace_packages=true", "-p", "no:logging"]
    options += ["-c", os.devnull, "--rootdir", os.getcwd()]
    nodes = [
        test if "/" in test.partition("::")[0] else f"{ROOT}.equivalence_tests.{test.replace('.py', '', 1)}"
        for test in tests
    ]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        pytest.main([*options, "--pyargs", *nodes], plugins=plugins)
    return output.getvalue()


def failures_anew(module: str, source: str, tests: Iterable[str], options: Sequence[str] = ()) -> list[str]:
    """The messages of tests that fail, with the package imported anew and the module from this source."""
    for name in [name for name in sys.modules if name.partition(".")[0] == ROOT and name != __name__]:
        del sys.modules[name]
    sys.meta_path.insert(0, Planter(module, source))
    failures = Failures()
    run_tests(tests, failures, options=options)
    return failures.messages


def source_of(module: str) -> tuple[str, str]:
    """The file of a module of the package, which is imported, and its text."""
    file = sys.modules[f"{ROOT}.{module}"].__file__
    assert file is not None
    return file, Path(file).read_text()


def caught_by(fault: Fault, options: Sequence[str] = ()) -> str:
    """The verdict on the fault, with the package imported anew."""
    source = planted(source_of(fault.module)[1], fault)
    return verdict(fault, failures_anew(fault.module, source, [fault.test], options))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 where all faults are caught, 1 where one is not, 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog=f"python -m {ROOT}.equivalence_tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="only faults whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the faults and the tests that must catch them")
    parser.add_argument("--seed", type=int, help="draw other examples: what is caught by chance may then survive")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at once (default: %(default)s)")
    options = parser.parse_args(arguments)
    chosen = [f for f in FAULTS if not options.names or any(name in f.name for name in options.names)]
    if not chosen:
        parser.error(f"no fault named {' or '.join(options.names)}; --list shows their names")
    if options.list:
        for fault in chosen:
            print(f"{fault.name}: {fault.module}, caught by {fault.test}")
        return 0
    if find_spec("hypothesis") is None or find_spec("pytest") is None:
        parser.error("pytest and hypothesis are missing; install prograde[test]")
    if not hasattr(os, "fork"):
        parser.error("this system has no fork, which a fault is planted in")

    drawn = [] if options.seed is None else ["--hypothesis-seed", str(options.seed)]
    start, screen = time.perf_counter(), sys.stdout
    caught = []

    def report(fault: Fault, answer: str | None) -> None:
        caught.append(not answer)
        print(f"NOT CAUGHT  {fault.name}: {answer}" if answer else f"caught  {fault.name}", file=screen, flush=True)

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # no threads, which a fork would lose
    for library in ("hypothesis.strategies", "pytest", "scipy.special", "scipy.stats", "torch"):
        import_module(library)  # before the profile, which slows imports down
    with recorded() as ran:
        exchanger = Exchanger(chosen, ran, report, options.jobs)
        output = run_tests(sorted({fault.test for fault in chosen}), exchanger, options=drawn)
    for fault, answer in in_forks(partial(caught_by, options=drawn), exchanger.left, options.jobs):
        report(fault, answer)
    if len(caught) < len(chosen):
        print(output)
    seconds = time.perf_counter() - start
    print(f"{sum(caught)} of {len(chosen)} planted faults caught by their assertions in {seconds:.0f} s")
    return 0 if sum(caught) == len(chosen) else 1
