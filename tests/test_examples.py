"""Every example runs as it stands, offline, and prints what its first lines promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_your_own_model(tmp_path: Path) -> None:
    accuracies = dict(re.findall(r"^(\w+) +([\d.]+)%", run("your_own_model.py", tmp_path), re.MULTILINE))
    promised = {"Backprop": 96.3, "Foton": 96.0, "Pepita": 92.9}
    assert {name: float(a) for name, a in accuracies.items()} == pytest.approx(promised, abs=1.5)


def test_foton_is_backprop(tmp_path: Path) -> None:
    lines = run("foton_is_backprop.py", tmp_path).splitlines()
    errors = {line[:33].strip(): [float(e) for e in line.split("error")[1].split()] for line in lines}
    assert max(errors["never wider"]) < 1e-13
    assert min(errors["twice as wide at the first layer"][:3]) >= 0.6
    assert max(errors["twice as wide at the first layer"][:3]) <= 0.8
    assert errors["bottleneck, then wider"][0] < 1e-13 < 0.6 <= errors["bottleneck, then wider"][1]
    assert {row[-1] for row in errors.values()} == {0.0}
    assert (tmp_path / "foton_is_backprop.png").stat().st_size > 10_000


def test_images(tmp_path: Path) -> None:
    accuracies = dict(re.findall(r"^(\w+) +([\d.]+)%", run("images.py", tmp_path), re.MULTILINE))
    assert {name: float(a) for name, a in accuracies.items()} == pytest.approx({"backprop": 95.8, "FOTON": 93.3}, abs=3)


def test_depth_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["digits", "results", "--epochs", "1", "--seeds", "0", "--depths", "3"]
    first = run("experiments/depth.py", tmp_path, *options)
    assert first.count("accuracy") == 5
    log = tmp_path / "results" / "depth.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/depth.py", tmp_path, *options)
    assert again.count("accuracy") == 1
    assert log.read_text().count("\n") == 5
    assert again.split("\n| activation")[1] == first.split("\n| activation")[1]
    assert (tmp_path / "results" / "depth.png").stat().st_size > 10_000


def test_convolutions_experiment_has_a_row_for_every_rule(tmp_path: Path) -> None:
    table = run("experiments/convolutions.py", tmp_path, "digits", "results", "--epochs", "1", "--seeds", "0", "1")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8
    assert all(float(row.split("|")[2].split("±")[0]) > 15 for row in rows), table


def test_recurrent_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["results", "--lengths", "10", "--adding-lengths", "4", "--cells", "elman", "--seeds", "0"]
    first = run("experiments/recurrent.py", tmp_path, *options, "--steps", "500", "--data", "digits")
    assert first.count("accuracy") == 15
    assert re.search(r"elman, bptt \| \d+\.\d \(1 of 1 solved, (250|500) batches\)", first)
    again = run("experiments/recurrent.py", tmp_path, *options, "--steps", "500", "--data", "digits")
    assert again.count("accuracy") == 0
    assert again.strip() == first[first.index("| order") :].strip()


def test_hardware_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["digits", "results", "--epochs", "1", "--seeds", "0", "--hidden", "16", "12"]
    first = run("experiments/hardware.py", tmp_path, *options)
    assert first.count("data digits") == 5 * 14
    log = tmp_path / "results" / "hardware.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/hardware.py", tmp_path, *options)
    assert again.count("data digits") == 1
    assert again.partition("| bits")[2] == first.partition("| bits")[2]
    assert (tmp_path / "results" / "hardware.png").stat().st_size > 10_000


def test_free_riding_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["digits", "results", "--epochs", "3", "--seeds", "0", "--depths", "3", "--width", "24"]
    first = run("experiments/free_riding.py", tmp_path, *options)
    assert first.count("data digits") == 7
    log = tmp_path / "results" / "free_riding.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/free_riding.py", tmp_path, *options)
    assert again.count("data digits") == 1
    assert again.partition("| 3 layers")[2] == first.partition("| 3 layers")[2]
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in again.splitlines() if line.startswith("| ")}
    assert rows["per-block"][2].strip() == "0.00, 0.00, 0.00", "a loss of the layer alone rides free of nothing"
    assert float(rows["cumulative, gamma 1"][2].split(",")[1]) > 0.3
    assert (tmp_path / "results" / "free_riding.png").stat().st_size > 10_000


def test_two_streams_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["digits", "results", "--epochs", "10", "--seeds", "0", "--hidden", "32", "24"]
    first = run("experiments/two_streams.py", tmp_path, *options)
    assert first.count("data digits") == 3
    log = tmp_path / "results" / "two_streams.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/two_streams.py", tmp_path, *options)
    assert again.count("data digits") == 1
    rows = [line for line in again.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 3
    assert all(float(row.split("|")[2]) > 30 for row in rows), again


def test_examples_fit_on_a_page() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 70, path.name
