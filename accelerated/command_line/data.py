"""`prograde data`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ..training import UserError, load
from ..training.data.fetching import SOURCES
from ..training.data.fetching import fetch as fetch_files
from . import options, report

data = typer.Typer(help="Download data sets, and show what is in one.")


@data.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(SOURCES)}.", metavar="NAME", show_default=False)
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the names, and how much each is to download.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="The folder for its files.", metavar="FOLDER", show_default="data/NAME")
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            help="The address of a folder with its files.", metavar="ADDRESS", show_default="the known mirrors"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of these names that are not the published ones.")
    ] = False,
) -> None:
    """Download a data set from its mirrors.

    Each file is checked against its published SHA-256 before it gets its name. What was cut off goes on where it
    stopped, at once or when the same command is given again.
    """
    if listed:
        for known, source in SOURCES.items():
            typer.echo(f"{known:14} {sum(file.size for file in source.files) / 1e6:6.1f} MB  {source.title}")
        return
    if name is None:
        raise UserError(f"data fetch: no name, expected --list or one of {', '.join(SOURCES)}")
    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks = {}

        def on_progress(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done)

        try:
            folder = fetch_files(
                name, to or Path("data") / name, mirror=mirror, overwrite=overwrite, on_progress=on_progress
            )
        except KeyboardInterrupt as stop:
            stop.add_note("the same command goes on where it stopped")
            raise
    typer.echo(f"{folder}: {SOURCES[name].title}; use it as --data {folder}")


@data.command()
def show(source: Annotated[str, typer.Argument(help=options.DATA_HELP, metavar="DATA")]) -> None:
    """Show what a data set holds: its parts, its samples, and its classes by their names."""
    dataset = load(source)
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    kind = "rows of features" if dataset.is_table else "samples"
    shape = " x ".join(map(str, dataset.image_shape))
    low, high = (float(getattr(dataset.train.images, name)()) for name in ("min", "max"))
    typer.echo(
        f"{dataset.name}: {kind} of {shape}, from {low:g} to {high:g}, mean {dataset.mean:.4g}, deviation "
        f"{dataset.std:.4g}"
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class")
    for name in parts:
        table.add_column(name, justify="right")
    counts = [part.labels.bincount(minlength=dataset.num_classes).tolist() for part in parts.values()]
    for label, row in zip(dataset.classes, zip(*counts, strict=True), strict=True):
        table.add_row(Text(label), *map(str, row))
    table.add_section()
    table.add_row("all", *(str(sum(column)) for column in counts))
    report.console().print(table)
