"""`prograde check`."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import typer

from ..training import UserError, files
from . import options
from .report import console as console_of_results
from .verdicts import Verdicts, checked, read

SUITE = "prograde.equivalence_tests"
PRECISIONS = ("float64", "float32", "tf32", "bfloat16")


def check(
    context: typer.Context,
    twin: Annotated[str, typer.Option(help="The implementation under test, a module.", metavar="MODULE")] = (
        "prograde.accelerated"
    ),
    rule: Annotated[
        str | None,
        typer.Option(
            help="In place of a package a rule of PyTorch's, on which what is promised of every rule is checked.",
            metavar="PACKAGE:CLASS",
            show_default="none",
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="The precision under test.", metavar="DTYPE")] = "float32",
    tier: Annotated[str, typer.Option(help="smoke (under a minute) or full.", metavar="TIER")] = "full",
    few_shapes: Annotated[
        bool, typer.Option("--few-shapes", help="Two widths and one batch, for code compiled for each shape.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="The results as a page (.html) or as data (.json), too.", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Hold an implementation, ours or your own, to the reference, on this machine.

    Runs the equivalence tests, on all cores where pytest-xdist is installed, and prints what became of each function:
    agreed, refused, not there or not tested, its worst error beside the bound, and an example of what is wrong as code
    to paste. Further arguments choose tests as pytest's do, as in `prograde check -k foton`.

    Exit codes: 0 where all that is there agrees, 1 where something is refused, 2 for what can't be tested.
    """
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"check: {package} is not installed; pip install 'prograde[test]'")
    if dtype not in PRECISIONS:
        raise UserError(f"--dtype: '{dtype}', expected one of {', '.join(PRECISIONS)}")
    options.device_and_dtype(device, "float32")
    if tier not in ("smoke", "full"):
        raise UserError(f"--tier: '{tier}', expected smoke or full")
    if report is not None:
        if report.suffix not in (".html", ".json"):
            raise UserError(f"--report: '{report}', expected a name in .html or .json")
        if report.exists() and not overwrite:
            raise UserError(f"--report: '{report}' is there already; expected another name, or --overwrite")
        files.prepare(report)
    if rule is not None:
        named = ("twin", "dtype", "tier", "few_shapes")
        sources = {name: context.get_parameter_source(name) for name in named}
        given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
        others = [*(f"--{name.replace('_', '-')}" for name in given), *context.args]
        if others:
            raise UserError(f"--rule: all checks run in float64 and float32, but {' '.join(others)} is given, too")
        _finish(_of_rule(rule, device), report)
    if twin.endswith(".py") or os.sep in twin:
        raise UserError(f"--twin: '{twin}', expected a module's name, such as my_package, not a file")
    if PathFinder.find_spec(twin.partition(".")[0], [os.getcwd(), *sys.path]) is None:
        raise UserError(f"--twin: no module '{twin}' on the path of {sys.executable}")
    command = [sys.executable, "-P", "-m", "pytest", "--pyargs", SUITE, "-p", f"{SUITE}.plugin"]
    command += ["-o", "consider_namespace_packages=true", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark"]  # it warns beside pytest-xdist, and a checkout makes errors of warnings
    command += ["-p", "no:logging"]  # it hangs its handlers on each logger of PyTorch three times a test
    command += ["--twin", twin, "--device", device, "--dtype", dtype]
    command += ["-m", "smoke", "--profile", "smoke"] if tier == "smoke" else []
    command += ["--few-shapes"] if few_shapes else []
    if importlib.util.find_spec("xdist") is not None and "-k" not in context.args:  # few tests start sooner in one
        workers = "auto" if device == "cpu" else "4"  # each takes memory of a GPU
        command += ["-n", workers, "--dist", "worksteal"]
    found = read(f"{twin} in {dtype} on {device}", _records([*command, *context.args], _environment(twin)))
    _finish(found, report)


def _finish(found: Verdicts, report: Path | None) -> NoReturn:
    """Prints and writes what was found, and ends with its exit code."""
    console = console_of_results()
    if found.functions:
        console.print(found.table())
    console.print(found.text(), markup=False, soft_wrap=True)
    if report is not None:
        content = found.page() if report.suffix == ".html" else json.dumps(found.json(), indent=2)
        files.write(report, content.encode())
    raise typer.Exit(found.exit_code)


def _of_rule(name: str, device: str) -> Verdicts:
    """The common checks on a rule. Raises UserError where there is none of that name."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        rule = getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError as error:
        raise UserError(f"--rule: '{name}': {error}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise UserError(f"--rule: '{name}': {said}") from error
    if not callable(rule):
        raise UserError(f"--rule: '{name}', expected package.module:Class, of which the module has it")
    return checked(f"{name} on {device}", importlib.import_module(f"{SUITE}.common_checks"), rule, device)


def _records(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the tests have noted. Raises UserError, with what pytest said, where it could not run them."""
    with TemporaryDirectory() as folder:
        results, printed = Path(folder) / "results", Path(folder) / "printed"
        with printed.open("w") as output:
            process = subprocess.Popen(
                [*command, "--results", str(results)], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    _progress(results)
            finally:
                process.terminate()
                process.wait()
        records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if process.returncode not in (0, 1, 5) or not records:
            said = [line for line in printed.read_text().splitlines() if line.strip()]
            raise UserError("check: " + "\n".join(line.removeprefix("ERROR: ") for line in said[-20:]))
    return records


def _progress(results: Path) -> None:
    if sys.stderr.isatty() and results.exists():
        lines = results.read_text().splitlines()
        tests = [json.loads(line)["tests"] for line in lines[:3] if line.startswith('{"tests"')]
        if tests:
            print(f"\r{len(lines) - 2} of {tests[0]} tests ", end="", file=sys.stderr, flush=True)


def _environment(twin: str) -> dict[str, str]:
    """This process's, with one thread, and the current folder on the path where only there the twin is found."""
    ours = {"OMP_NUM_THREADS": "1", **os.environ}  # processes share the cores: threads would wait for one another
    package = twin.partition(".")[0]
    elsewhere = [path for path in sys.path if path not in ("", os.getcwd())]
    if package == "prograde" or PathFinder.find_spec(package, elsewhere) is not None:
        return ours
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return {**ours, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
