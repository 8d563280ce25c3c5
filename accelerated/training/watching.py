"""Callbacks that show a training: a line of progress, TensorBoard, a table."""

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .callbacks import Callback
from .diagnostics.unit_diagnostics import UNIT_DIAGNOSTICS, unit_diagnostics
from .errors import UserError
from .history import Epoch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from .run import Run

REFRESH = 0.1  # seconds


class Numbers(Callback):
    """What TensorBoard and tables share: which numbers there are, and when they are taken.

    `loss/training`, `learning_rate` and `samples_per_second` every so many steps (`every`, 0 for never) and after each
    epoch, as its means; then also `loss/validation` and `accuracy/validation` where they were measured. With
    `units_every`, every so many steps, `unit_diagnostics` of the batch in hand as `alignment/UNIT` and so on. Reading
    any of these waits for the device.
    """

    def __init__(self, *, every: int = 0, units_every: int = 0) -> None:
        for name, value in (("every", every), ("units_every", units_every)):
            if type(value) is not int or value < 0:
                raise UserError(f"{name}: {value!r}, expected a number of steps, 0 or more")
        self.every, self.units_every = every, units_every
        self._clock = _Clock()

    def write(self, run: "Run", numbers: Mapping[str, float]) -> None:
        """Keeps the numbers, which are of `run.step`."""
        raise NotImplementedError

    def on_start(self, run: "Run") -> None:
        self._clock.start(run)

    def on_step(self, run: "Run") -> None:
        numbers: dict[str, float] = {}
        if self.every and run.step % self.every == 0:
            numbers = {"loss/training": float(run.loss), **_rate(run), "samples_per_second": self._clock.rate(run)}
        if self.units_every and run.step % self.units_every == 0:
            for unit, values in unit_diagnostics(run.rule, *run.batch).items():
                numbers |= {f"{name}/{unit}": value for name, value in values.items()}
        if numbers:
            self.write(run, numbers)

    def on_epoch(self, run: "Run", epoch: Epoch) -> None:
        numbers = {
            "loss/training": epoch.loss,
            **_rate(run),
            "samples_per_second": epoch.samples / max(epoch.seconds, 1e-9),
        }
        measured = {"loss/validation": epoch.validation_loss, "accuracy/validation": epoch.validation_accuracy}
        self.write(run, numbers | {name: value for name, value in measured.items() if value is not None})
        self._clock.start(run)


def _rate(run: "Run") -> dict[str, float]:
    return {"learning_rate": float(run.optimizer.param_groups[0]["lr"])}


class _Clock:
    """Samples trained on a second since it was started."""

    def start(self, run: "Run") -> None:
        self._since, self._samples = time.perf_counter(), run.samples

    def rate(self, run: "Run") -> float:
        return (run.samples - self._samples) / max(time.perf_counter() - self._since, 1e-9)


class TensorBoard(Numbers):
    """Writes event files of TensorBoard into a folder, which other trainings may be in too.

    What is written is in `Numbers`. A training that is resumed goes on in the curves of its folder. Raises UserError
    where the package tensorboard is missing.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=1, callbacks=[TensorBoard("runs/toy")])
    >>> len(list(Path("runs/toy").glob("events*")))
    1
    """

    def __init__(self, folder: str | Path, *, every: int = 100, units_every: int = 0) -> None:
        super().__init__(every=every, units_every=units_every)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard: its package is missing; pip install tensorboard") from error
        self.folder = Path(folder)
        self._writer_of = SummaryWriter
        self._writer: Any = None

    def on_start(self, run: "Run") -> None:
        super().on_start(run)
        self._writer = self._writer_of(str(self.folder), purge_step=run.step + 1 if run.step else None)

    def write(self, run: "Run", numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, run.step)

    def on_end(self, run: "Run") -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class CsvTable(Numbers):
    """Writes a table, by default a row for each epoch; what was not taken at a step is left empty.

    Its columns are `step`, `epoch`, and what is in `Numbers`. A table that is there already is refused, unless
    `overwrite` is True or the training is resumed: it then goes on in it, and rows behind the checkpoint are dropped.
    Raises UserError before the first step, and OSError where the file can't be written.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=2, callbacks=[CsvTable("toy.csv")])
    >>> [row.split(",")[:2] for row in Path("toy.csv").read_text().splitlines()]
    [['step', 'epoch'], ['1', '1'], ['2', '2']]
    """

    def __init__(self, path: str | Path, *, every: int = 0, units_every: int = 0, overwrite: bool = False) -> None:
        super().__init__(every=every, units_every=units_every)
        self.path, self.overwrite = Path(path), overwrite
        self._columns: list[str] = []

    def on_start(self, run: "Run") -> None:
        super().on_start(run)
        names = [unit.name for unit in run.rule.units] if self.units_every else []
        self._columns = ["step", "epoch", "loss/training", "loss/validation", "accuracy/validation", "learning_rate"]
        self._columns += ["samples_per_second", *(f"{kind}/{name}" for kind in UNIT_DIAGNOSTICS for name in names)]
        files.prepare(self.path)
        kept: list[list[str]] = []
        if self.path.exists() and run.step:
            kept = self._rows_until(run.step)
        elif self.path.exists() and not self.overwrite:
            raise UserError(f"CsvTable: '{self.path}' is there already; expected another name, or overwrite=True")
        files.write(self.path, "".join(map(_row, [self._columns, *kept])).encode())

    def _rows_until(self, step: int) -> list[list[str]]:
        """The rows of the file up to that step. Raises UserError where it is no table of the same columns."""
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            columns, *rows = [*csv.reader(file)] or [[]]
        if columns != self._columns:
            raise UserError(f"CsvTable: '{self.path}' has other columns than this training, expected another name")
        whole = [row for row in rows if len(row) == len(columns) and row[0].isdecimal()]  # the last may be cut off
        return [row for row in whole if int(row[0]) <= step]

    def write(self, run: "Run", numbers: Mapping[str, float]) -> None:
        found = {"step": run.step, "epoch": run.epoch_number, **numbers}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write(_row([str(found.get(name, "")) for name in self._columns]))


def _row(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


class Progress(Callback):
    """A line on stderr, where that is a terminal: steps done, throughput, time left and validation accuracy.

    `label` stands before it. `bar` is a bar of `progress_bar` that several trainings share, one after another or at
    once. Otherwise the line is the training's own and stays where it ended. Raises UserError where rich is missing.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> history = fit(rule, (torch.eye(2), torch.tensor([0, 1])), epochs=2, callbacks=[Progress("toy")])
    >>> len(history.epochs)  # the line is not printed here: this is no terminal
    2
    """

    def __init__(self, label: str = "", *, bar: "Bar | None" = None) -> None:
        self.label = label
        self.bar = progress_bar() if bar is None else bar
        self._is_own = bar is None
        self._task: Any = None
        self._clock = _Clock()
        self._shown = 0.0

    def on_start(self, run: "Run") -> None:
        if self._is_own:
            self.bar.start()
        self._clock.start(run)
        self._task = self.bar.add_task(self.label, total=run.steps, completed=run.step, rate="", said="")

    def on_step(self, run: "Run") -> None:
        now = time.perf_counter()
        if now - self._shown >= REFRESH:
            self._shown = now
            self.bar.update(self._task, completed=run.step, rate=f"{self._clock.rate(run):,.0f} samples/s")

    def on_epoch(self, run: "Run", epoch: Epoch) -> None:
        self.bar.update(
            self._task,
            completed=run.step,
            said=_said(epoch),
            rate=f"{epoch.samples / max(epoch.seconds, 1e-9):,.0f} samples/s",
        )
        self._clock.start(run)

    def on_end(self, run: "Run") -> None:
        if self._task is None:
            return
        if self._is_own:
            self.bar.stop()
        else:
            self.bar.remove_task(self._task)
        self._task = None


def _said(epoch: Epoch) -> str:
    if epoch.validation_accuracy is not None:
        return f"validation {100 * epoch.validation_accuracy:.1f} %"
    if epoch.validation_loss is not None:
        return f"validation loss {epoch.validation_loss:.4g}"
    return f"loss {epoch.loss:.4g}"


def progress_bar(console: "Console | None" = None, *, transient: bool = False) -> "Bar":
    """A bar for the lines of `Progress`, on stderr unless a console is given; nothing where that is no terminal.

    `transient` lines vanish in the end. Raises UserError where rich is missing.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError as error:
        raise UserError("Progress: the package rich is missing; pip install rich") from error
    console = Console(file=sys.stderr) if console is None else console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),  # all columns fit into 80 letters
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[said]}"),
    )
    return Bar(*columns, console=console, transient=transient, disable=not console.is_terminal)
