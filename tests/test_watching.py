"""Callbacks that show a training: their numbers are those of the training, and they change nothing of it."""

import csv
import importlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prograde.accelerated.rules import Foton, Rule
from prograde.accelerated.training import (
    Callback,
    CsvTable,
    Dataset,
    Progress,
    Recipe,
    Run,
    TensorBoard,
    TrainingError,
    UserError,
    fit,
    load,
    unit_diagnostics,
)
from prograde.accelerated.training.watching import progress_bar

RECIPE = Recipe(epochs=2, batch=300, learning_rate=0.1, momentum=0.9)
STEPS = 4  # in an epoch of 1,149 samples


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def rule() -> Rule:
    torch.manual_seed(0)
    return Foton(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard would draw."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


class Kept(Callback):
    """The losses of all steps, and the diagnostics before each is measured."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.units: list[dict[str, Any]] = []

    def on_step(self, run: Run) -> None:
        self.losses.append(float(run.loss))
        self.units.append(unit_diagnostics(run.rule, *run.batch))


def test_a_table_has_a_row_for_each_epoch(digits: Dataset, tmp_path: Path) -> None:
    history = fit(rule(), digits, recipe=RECIPE, callbacks=[CsvTable(tmp_path / "table.csv")])
    rows = table(tmp_path / "table.csv")
    assert [(row["step"], row["epoch"]) for row in rows] == [("4", "1"), ("8", "2")]
    for row, epoch in zip(rows, history.epochs, strict=True):
        assert float(row["loss/training"]) == epoch.loss
        assert float(row["loss/validation"]) == epoch.validation_loss
        assert float(row["accuracy/validation"]) == epoch.validation_accuracy
        assert float(row["samples_per_second"]) == pytest.approx(1149 / epoch.seconds)
    assert float(rows[-1]["learning_rate"]) < 0.1, "as the schedule has it"


def test_numbers_of_steps_and_units(digits: Dataset, tmp_path: Path) -> None:
    kept = Kept()
    seen = TensorBoard(tmp_path / "board", every=1, units_every=2), CsvTable(tmp_path / "a.csv", every=2, units_every=4)
    history = fit(rule(), digits, recipe=RECIPE, callbacks=[kept, *seen])
    found = numbers(tmp_path / "board")
    losses = [value for _, value in found["loss/training"]]
    epochs = [epoch.loss for epoch in history.epochs]
    assert losses == pytest.approx([*kept.losses[:4], epochs[0], *kept.losses[4:], epochs[1]])
    assert [step for step, _ in found["alignment/0"]] == [2, 4, 6, 8]
    for (step, value), name in zip([found["update_norm/2"][1], found["defect/0"][2]], ["2", "0"], strict=True):
        kind = "update_norm" if name == "2" else "defect"
        assert value == pytest.approx(kept.units[step - 1][name][kind], rel=1e-5)
    rows = table(tmp_path / "a.csv")
    assert [row["step"] for row in rows] == ["2", "4", "4", "6", "8", "8"]
    assert [bool(row["alignment/2"]) for row in rows] == [False, True, False, False, True, False]
    assert float(rows[1]["dead/0"]) == kept.units[3]["0"]["dead"]
    assert rows[1]["defect/2"] == "", "the last layer is free"


def test_watching_changes_nothing(digits: Dataset, tmp_path: Path) -> None:
    plain, watched = rule(), rule()
    fit(plain, digits, recipe=RECIPE)
    watchers = [
        TensorBoard(tmp_path / "board", every=1, units_every=1),
        CsvTable(tmp_path / "table.csv", every=1, units_every=1),
        Progress(bar=progress_bar(Console(file=io.StringIO(), force_terminal=True))),
    ]
    fit(watched, digits, recipe=RECIPE, callbacks=watchers)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loader_of_numbers_without_validation(tmp_path: Path) -> None:
    """Nothing is known but the loss: other columns are empty, and the line has it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 6, generator=generator)
    loader = DataLoader(TensorDataset(x, x[:, :2] * 2), batch_size=8)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    screen = io.StringIO()
    bar = progress_bar(Console(file=screen, force_terminal=True, width=150, color_system=None))
    progress = Progress(bar=bar)
    with bar:
        history = fit(
            Foton(network, loss="squared_error"),
            loader,
            epochs=2,
            accumulate=2,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            callbacks=[CsvTable(tmp_path / "a.csv", units_every=3), Look(progress), progress, Look(progress)],
        )
    rows = table(tmp_path / "a.csv")
    assert [row["step"] for row in rows] == ["3", "3", "6", "6"], "of two batches each"
    assert float(rows[1]["loss/training"]) == history.epochs[0].loss
    assert {row["accuracy/validation"] + row["loss/validation"] for row in rows} == {""}
    assert [bool(row["update_norm/0"]) for row in rows] == [True, False, True, False]
    assert f"loss {history.epochs[0].loss:.4g}" in screen.getvalue()


class Stop(Callback):
    """Ends the training in the second epoch, two steps after its checkpoint."""

    def on_step(self, run: Run) -> None:
        if run.step == STEPS + 2:
            raise InterruptedError


def test_a_resumed_training_goes_on_in_its_files(digits: Dataset, tmp_path: Path) -> None:
    def watchers(name: str) -> list[Callback]:
        return [TensorBoard(tmp_path / name, every=1), CsvTable(tmp_path / f"{name}.csv", every=1, units_every=2)]

    fit(rule(), digits, recipe=RECIPE, callbacks=watchers("whole"))
    saved = tmp_path / "saved"
    with pytest.raises(InterruptedError):
        fit(rule(), digits, recipe=RECIPE, callbacks=[*watchers("cut"), Stop()], checkpoint=saved)
    with open(tmp_path / "cut.csv", "a") as file:
        file.write("7,2,0.")  # as a kill leaves it
    assert [row["step"] for row in table(tmp_path / "cut.csv")][-2:] == ["6", "7"]
    fit(rule(), digits, recipe=RECIPE, callbacks=watchers("cut"), resume=saved)
    columns = [name for name in table(tmp_path / "whole.csv")[0] if name != "samples_per_second"]
    whole, cut = (
        [[row[name] for name in columns] for row in table(tmp_path / f"{name}.csv")] for name in ("whole", "cut")
    )
    assert cut == whole
    assert numbers(tmp_path / "cut")["loss/training"] == numbers(tmp_path / "whole")["loss/training"]


def test_a_table_is_replaced_only_if_asked_to(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("mine\n")
    trained = rule()
    before = [parameter.clone() for parameter in trained.parameters()]
    with pytest.raises(UserError, match=r"table.csv' is there already; expected another name, or overwrite=True"):
        fit(trained, digits, recipe=RECIPE, callbacks=[CsvTable(path), Progress()])
    assert path.read_text() == "mine\n"
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True)), "before the first step"
    fit(trained, digits, recipe=RECIPE, callbacks=[CsvTable(path, overwrite=True)], checkpoint=tmp_path / "saved")
    assert len(table(path)) == 2
    with pytest.raises(UserError, match="has other columns than this training"):
        fit(rule(), digits, recipe=RECIPE, callbacks=[CsvTable(path, units_every=1)], resume=tmp_path / "saved")


def test_progress_says_how_far_how_fast_and_how_well(digits: Dataset) -> None:
    screen = io.StringIO()
    bar = progress_bar(Console(file=screen, force_terminal=True, width=150, color_system=None))
    progress = Progress("foton", bar=bar)
    with bar:
        history = fit(rule(), digits, recipe=RECIPE, callbacks=[Look(progress), progress])
        assert bar.tasks == [], "the line is gone"
    seen = screen.getvalue()
    assert "foton" in seen
    assert "2/8" in seen or "4/8" in seen
    assert "samples/s" in seen
    assert f"validation {100 * history.epochs[0].validation_accuracy:.1f} %" in seen  # type: ignore[operator]


class Look(Callback):
    """Draws the line at every step: so few are trained faster than it draws itself."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step(self, run: Run) -> None:
        self.progress.bar.refresh()


def test_progress_where_nobody_looks(digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    fit(rule(), digits, recipe=RECIPE, callbacks=[Progress("foton")])
    assert capsys.readouterr() == ("", "")


def test_the_line_ends_where_training_breaks_down(digits: Dataset) -> None:
    bar = progress_bar(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(TrainingError):
        fit(rule(), digits, recipe=Recipe(epochs=5, learning_rate=1e30), callbacks=[Progress(bar=bar)])
    assert bar.tasks == []


def test_bad_settings_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("every", -1), ("units_every", 0.5)):
        with pytest.raises(UserError, match=f"{name}: {value}, expected a number of steps"):
            CsvTable(tmp_path / "table.csv", **{name: value})
    for package, make in (("torch.utils.tensorboard", lambda: TensorBoard(tmp_path)), ("rich.console", Progress)):
        importlib.import_module(package)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"package .*is missing; pip install"):
            make()
