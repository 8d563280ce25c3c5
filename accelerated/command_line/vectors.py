"""`prograde vectors`."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ..training import UserError

vectors = typer.Typer(help="Golden vectors: operands, results and bounds of the reference, for any language.")


@vectors.callback()
def _of_an_action() -> None:
    """Has `write` stand as a command of its own."""


@vectors.command()
def write(
    folder: Annotated[Path, typer.Argument(help="Made if it is not there.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(help="A module, such as losses; may be repeated.", metavar="MODULE")
    ] = None,
) -> None:
    """Write the vectors of every module of the reference, as safetensors and as JSON.

    The names and what they mean: docs/check.md.
    """
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"vectors: {package} is not installed; pip install 'prograde[test]'")
    from prograde.equivalence_tests import vectors as golden

    for module in only or ():
        if module not in golden.modules():
            raise UserError(f"--only: '{module}', expected one of {', '.join(golden.modules())}")
    try:
        total = golden.write(folder, only or ())
    except FileExistsError as error:
        raise UserError(f"{error}; nothing is written over") from None
    typer.echo(f"{total} cases in {folder}")
