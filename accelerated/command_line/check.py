"""`prograde check`."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from typing import Annotated

import typer

from ..training import UserError
from . import options

SUITE = "prograde.equivalence_tests"
PRECISIONS = ("float64", "float32", "tf32", "bfloat16")


def check(
    context: typer.Context,
    twin: Annotated[str, typer.Option(help="The implementation under test, a module.", metavar="MODULE")] = (
        "prograde.accelerated"
    ),
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="The precision under test.", metavar="DTYPE")] = "float32",
    tier: Annotated[str, typer.Option(help="smoke (under a minute) or full.", metavar="TIER")] = "full",
) -> None:
    """Hold an implementation, ours or your own, to the reference, on this machine.

    Runs the equivalence tests with pytest and ends with its exit code, on all cores where pytest-xdist is installed.
    Further arguments go to pytest, as in `prograde check -x -k foton`.
    """
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"check: {package} is not installed; pip install 'prograde[test]'")
    if dtype not in PRECISIONS:
        raise UserError(f"--dtype: '{dtype}', expected one of {', '.join(PRECISIONS)}")
    options.device_and_dtype(device, "float32")
    if tier not in ("smoke", "full"):
        raise UserError(f"--tier: '{tier}', expected smoke or full")
    if twin.endswith(".py") or os.sep in twin:
        raise UserError(f"--twin: '{twin}', expected a module's name, such as my_package, not a file")
    if PathFinder.find_spec(twin.partition(".")[0], [os.getcwd(), *sys.path]) is None:
        raise UserError(f"--twin: no module '{twin}' on the path of {sys.executable}")
    command = [sys.executable, "-P", "-m", "pytest", "--pyargs", SUITE, "-p", f"{SUITE}.plugin"]
    command += ["-o", "consider_namespace_packages=true", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark"]  # it warns beside pytest-xdist, and a checkout makes errors of warnings
    command += ["--twin", twin, "--device", device, "--dtype", dtype]
    command += ["-m", "smoke", "--profile", "smoke"] if tier == "smoke" else []
    if importlib.util.find_spec("xdist") is not None:
        workers = "auto" if device == "cpu" else "4"  # each takes memory of a GPU
        command += ["-n", workers, "--dist", "worksteal"]
    raise typer.Exit(subprocess.run([*command, *context.args], env=_environment(twin), check=False).returncode)


def _environment(twin: str) -> dict[str, str]:
    """This process's, with the current folder on the path where only there the twin is found."""
    package = twin.partition(".")[0]
    elsewhere = [path for path in sys.path if path not in ("", os.getcwd())]
    if package == "prograde" or PathFinder.find_spec(package, elsewhere) is not None:
        return dict(os.environ)
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
