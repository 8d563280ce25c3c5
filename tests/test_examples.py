"""Every example runs as it stands, offline, and prints what its first lines promise."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from prograde.accelerated.training import Epoch, load

EXAMPLES = Path(__file__).parent.parent / "examples"


INDUCTORS_OWN = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
"""Of PyTorch's compiler, when it is imported."""


def run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-W", INDUCTORS_OWN, str(EXAMPLES / name), *arguments]
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


def test_data_loader(tmp_path: Path) -> None:
    printed = run("data_loader.py", tmp_path)
    assert percents(printed) == pytest.approx([90.6, 90.6], abs=1.5)
    assert re.findall("True|False", printed) == ["True"] * 2
    assert "\n2 epochs, then the rest" in printed


def test_images(tmp_path: Path) -> None:
    accuracies = dict(re.findall(r"^(\w+) +([\d.]+)%", run("images.py", tmp_path), re.MULTILINE))
    assert {name: float(a) for name, a in accuracies.items()} == pytest.approx({"backprop": 95.8, "FOTON": 93.3}, abs=3)


def percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_own_resnet(tmp_path: Path) -> None:
    assert percents(run("own_resnet.py", tmp_path)) == pytest.approx([98.3, 99.0, 95.3], abs=2.5)


def test_export(tmp_path: Path) -> None:
    printed = run("export.py", tmp_path)
    rows = [percents(line) for line in printed.splitlines()]
    assert len(rows) >= 2
    assert [share for share, _ in rows] == pytest.approx([94.4] * len(rows), abs=2)
    assert {same for _, same in rows} == {100.0}
    assert all(float(line.split()[-2]) < 1e-4 for line in printed.splitlines())


def test_own_step(tmp_path: Path) -> None:
    """The two ways of direct feedback alignment, of other matrices, end far below the loss of guessing."""
    printed = run("own_step.py", tmp_path)
    losses = dict(re.findall(r"^ +(dfa|own_step:dfa) .* to ([\d.e-]+) +–", printed, re.MULTILINE))
    assert set(losses) == {"dfa", "own_step:dfa"}
    assert all(float(loss) < 0.1 * np.log(10) for loss in losses.values())


def test_fine_tuning(tmp_path: Path) -> None:
    printed = run("fine_tuning.py", tmp_path)
    assert percents(printed)[:5] == pytest.approx([81, 88, 83, 80, 79], abs=6)
    assert percents(printed)[5] < 60
    assert printed.endswith("The trunk is the same to the last bit\n")


def test_torchrun(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(EXAMPLES / "torchrun.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert percents(done.stdout) == pytest.approx([96.6, 97.0], abs=1.5)
    assert done.stdout.count("the same in all processes") == 2


def test_processes_experiment_has_a_row_for_every_training(tmp_path: Path) -> None:
    options = ["--widths", "16", "32", "32", "32", "4", "--batch", "8", "--steps", "2", "--rounds", "1"]
    found = run("experiments/processes.py", tmp_path, "results", *options)
    assert len(re.findall(r"^\| .+ \| \d+ \| [\d.]+ \| [\d.]+ \|$", found, re.MULTILINE)) == 6, found
    (log,) = (tmp_path / "results" / "processes.jsonl").read_text().splitlines()
    assert {len(rounds) for rounds in json.loads(log)["rates"].values()} == {1}


def test_regression(tmp_path: Path) -> None:
    assert percents(run("regression.py", tmp_path)) == pytest.approx([69, 91, 91, 91, 77], abs=3)


def test_scikit_learn(tmp_path: Path) -> None:
    found = percents(run("scikit_learn.py", tmp_path))
    assert found[:6] == pytest.approx([97.0, 97.0, 94.4, 96.6, 97.2, 95.4], abs=2)
    assert found[6:9] == pytest.approx([97.8, 97.1, 99.2], abs=2)
    assert found[9] > 75
    assert found[10:] == pytest.approx([90.0, 86.6], abs=3)


@pytest.mark.parametrize(("example", "library"), [("lightning_module", "lightning"), ("accelerate_loop", "accelerate")])
def test_loops_of_other_libraries(example: str, library: str, tmp_path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
    except (ImportError, RuntimeError):  # the latter where it finds a torchvision for another PyTorch
        pytest.skip(f"no {library} that this PyTorch runs with")
    assert percents(run(f"{example}.py", tmp_path)) == pytest.approx([96.3], abs=1.5)


def test_characters(tmp_path: Path) -> None:
    bits = re.findall(r"^\w+ +(\d\.\d\d)", run("characters.py", tmp_path), re.MULTILINE)
    assert list(map(float, bits)) == pytest.approx([4.8, 3.6, 3.0], abs=0.2)


def test_characters_of_a_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("to be or not to be, that is the question. " * 500)
    printed = run("characters.py", tmp_path, "mine.txt", "--steps", "100", "--rule", "Backprop")
    assert float(re.findall(r"Backprop +(\d\.\d\d)", printed)[0]) < 0.5
    assert "question" in printed


def test_depth_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ["digits", "results", "--epochs", "1", "--seeds", "0", "--depths", "3"]
    first = run("experiments/depth.py", tmp_path, *options)
    assert first.count("accuracy") == 7
    log = tmp_path / "results" / "depth.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/depth.py", tmp_path, *options)
    assert again.count("accuracy") == 1
    assert log.read_text().count("\n") == 7
    assert again.split("\n| activation")[1] == first.split("\n| activation")[1]
    assert (tmp_path / "results" / "depth.png").stat().st_size > 10_000


def test_tables_of_any_model_say_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer rates or seeds, of a rate at which training broke down, and of a refusal."""
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    any_model: Any = importlib.import_module("any_model")

    def run(rule: str, rate: float, seed: int, accuracy: float | None, **more: object) -> dict[str, Any]:
        about = {"network": "mlp", "rule": rule, "rate": rate, "seed": seed}
        return {"run": about, "accuracy": accuracy, "validation": accuracy, **more}

    cosines = {"in": 0.5, "out": 1.0}, {"in": 0.7, "out": 1.0, "more": 1.0}
    runs = [
        *(run("backprop", rate, 0, 90 + rate) for rate in (1e-3, 1e-2, 3e-2, 1e-1)),
        *(run("backprop", 3e-3, seed, 91.0 + seed) for seed in (0, 1, 2)),
        run("mono-forward", 1e-2, 0, 93.5, cosines=cosines[0]),
        run("mono-forward", 1e-2, 1, 94.5, cosines=cosines[1]),
        run("mono-forward", 3e-3, 0, None),
        run("ftp", 1e-3, 0, None, refused="why"),
        run("pepita", 1e-3, 0, None),
    ]
    table = any_model.summary(runs)
    assert "| backprop | 92.0 ± 1.0 (0.003) |" in table
    assert "| mono-forward | 94.0 ± 0.7 (0.01; 2 seeds; 2 of 5 rates) |" in table
    assert "| ftp | no |" in table
    assert "| pepita | broke down; 1 of 5 rates |" in table
    assert any_model.differences(runs, "backprop").splitlines()[2:] == ["| mono-forward | +2.5 [2.5, 2.5] |"]
    assert any_model.cosines(runs).splitlines()[2:] == ["| mono-forward | 0.60, 1.00 |"]


@pytest.mark.parametrize(
    ("network", "scale"), [("mlp", "SMALL"), ("mlp", "FULL"), ("vit", "FULL"), ("characters", "SMALL")]
)
def test_any_model_trains_and_looks_at_its_units(network: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep supervision is backpropagation of what Mono-Forward sums up; the last layer alone moves nothing else."""
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    any_model: Any = importlib.import_module("any_model")
    draw, of_scale = torch.Generator().manual_seed(0), getattr(any_model, scale)
    x, y = torch.randn(8, 1, of_scale.size, of_scale.size, generator=draw), torch.randint(10, (8,), generator=draw)
    if network == "characters":
        x, y = torch.randint(60, (2, 8, any_model.CONTEXT), generator=draw)
    parts = any_model.Parts(*[any_model.Samples(x, y)] * 3)
    about = {"network": network, "rate": 1e-3, "seed": 0, "epochs": 1}
    deep, local, last = (
        any_model.train({**about, "rule": rule}, parts, of_scale)
        for rule in ("deep supervision", "mono-forward", "last layer alone")
    )
    assert all(0.999 < cosine < 1.001 for cosine in deep["cosines"].values())
    *early, final = local["cosines"].values()
    assert max(early) < 0.999 < final
    assert "cosines" not in last
    assert all(0 <= found["accuracy"] <= 100 for found in (deep, local, last))


def test_rotations_experiment_has_a_row_for_every_rule(tmp_path: Path) -> None:
    options = ["digits", "results", "--steps", "20", "--seeds", "0", "1"]
    found = run("experiments/rotations.py", tmp_path, *options)
    assert found.count("accuracy") == 20
    made = json.loads((tmp_path / "results" / "rotations.jsonl").read_text().splitlines()[0])["made"]
    assert made["torch"] == torch.__version__
    assert made["seconds"] > 0
    cell = r"[\d.]+ ± [\d.]+ \(2 seeds\)"
    assert len(re.findall(rf"^\| [a-z-]+ \| {cell} \| {cell} \|$", found, re.MULTILINE)) == 5, found


def test_rotations_experiment_takes_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    rotations: Any = importlib.import_module("rotations")
    dataset = load("digits")
    for rule in ("last-layer", "foton-linear"):
        run = {"seed": 0, "depth": 10, "rule": rule, "rate": 0.1, "steps": 2, "convolutions": True}
        assert rotations.train(run, dataset)["accuracy"] > 5
    assert rotations.few_pixels(dataset, True)[0].shape[1:] == (4, 4, 4)


def test_attention_experiment_prints_accuracies_and_cosines(tmp_path: Path) -> None:
    options = ["digits", "results", "--steps", "3", "--seeds", "0", "1"]
    found = run("experiments/attention.py", tmp_path, *options)
    assert len(re.findall(r"^\| [a-z-]+ \| [\d.]+ ± [\d.]+ \(2 seeds\) \|", found, re.MULTILINE)) == 4, found
    assert len(re.findall(r"^\| foton.*, .* \| .* ± .* \| .* ± .* \|$", found, re.MULTILINE)) == 6, found


def test_convolutions_experiment_has_a_row_for_every_rule(tmp_path: Path) -> None:
    table = run("experiments/convolutions.py", tmp_path, "digits", "results", "--epochs", "1", "--seeds", "0", "1")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 11
    assert all(float(row.split("|")[3].split("±")[0]) > 15 for row in rows), table


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


def test_mnist_experiment_trains_as_compare_does(tmp_path: Path) -> None:
    options = ["--rules", "foton", "--hidden", "16", "12", "--epochs", "2", "--seeds", "0"]
    run("experiments/mnist.py", tmp_path, "digits", "results", *options)
    log = (tmp_path / "results" / "mnist.jsonl").read_text()
    command = ["-m", "prograde.accelerated.command_line", "compare", "foton", "--hidden", "16-12", "--epochs", "2"]
    subprocess.run([sys.executable, *command, "--seeds", "1", "--output", "compared"], cwd=tmp_path, check=True)
    (row,) = json.loads((tmp_path / "compared" / "results.json").read_text())["results"]
    assert json.loads(log)["accuracy"] == 100 * row["test"][0]
    assert json.loads(log)["curve"][row["best_epochs"][0] - 1] == pytest.approx(100 * row["validation"][0], abs=1e-4)


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
    assert rows["per-block"][3].strip() == "0.00, 0.00, 0.00", "free riding with the loss of the layer alone"
    assert float(rows["cumulative, gamma 1"][3].split(",")[1]) > 0.3
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
    assert all(float(row.split("|")[5]) < 70 for row in rows), again


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    return importlib.import_module("published")


def test_every_published_system_takes_a_step_and_has_a_row(published: Any, tmp_path: Path) -> None:
    labels = torch.arange(20) % 10
    data = {kind: torch.rand(20, *shape) for kind, shape in (("MNIST", (16, 16)), ("CIFAR-10", (3, 16, 16)))}
    datasets = {kind: load((x, labels), (x, labels), validation=10) for kind, x in data.items()}
    runs = [
        {"data": "", "system": name, "epochs": 1, "steps": 1, "width": 0.1, "seed": 0} for name in published.SYSTEMS
    ]

    def train(run: dict[str, Any]) -> Any:
        return published.train(run, datasets[published.SYSTEMS[run["system"]].data], "cpu")

    results = published.run_all(runs, train, tmp_path / "published.jsonl")
    for result in results:
        assert 0 <= result["accuracy"] <= 100, result
        assert result["epochs"] == 1
    found = {result["run"]["system"]: result for result in results}
    assert found["dtg-ff, T = 1"]["temperatures"] == [1.0] * 7
    assert found["dtg-ff"]["temperatures"] != [1.25] * 7
    assert len(found["caw"]["layers"]) == 17
    assert found["pepita"]["settings"]["dropout"] == 0.1
    assert found["foton, 50 layers, slower"]["settings"]["widths"] == [26] * 49 + [10]
    table = published.summary([*results, {**results[0], "run": {**runs[0], "seed": 1}, "accuracy": None}])
    assert len(table.splitlines()) == 2 + len(published.SYSTEMS)
    assert "| 2 | " in table.splitlines()[2]
    assert "1 of 2 broke down" in table.splitlines()[2]


def test_published_training_ends_in_time(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rates fall over the seconds where these are shorter than its steps."""
    now = 100.0
    monkeypatch.setattr(published.time, "perf_counter", lambda: now)
    pace = published.Pace(40, 8.0)
    assert pace.done(10) == 0.25
    pace.on_start(None)
    now += 4
    assert (pace.done(10), pace.done(30)) == (0.5, 0.75)
    x, y = torch.rand(20, 64), torch.arange(20) % 10
    run = {"system": "backprop, as foton", "epochs": 5, "seed": 0}
    whole = published.train(run, load((x, y), (x, y), validation=10), "cpu")
    assert whole["epochs"] == 5
    monkeypatch.setattr(published.time, "perf_counter", iter(range(1000)).__next__)
    cut = published.train({**run, "seconds": 3.0}, load((x, y), (x, y), validation=10), "cpu")
    assert cut["epochs"] < 5


def test_published_systems_are_compared_at_equal_lengths(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(system: str, seed: int, epochs: int, accuracy: float, **more: Any) -> dict[str, Any]:
        run = {"system": system, "seed": seed, **more}
        settings = {"widths": [2000 if system == "forward-forward" else 1000]}
        return {
            "run": run, "accuracy": accuracy, "epochs": epochs, "all": accuracy + seed, "settings": settings
        }  # fmt: skip

    runs = [result("caw", 0, 8, 70.0), result("caw", 1, 6, 60.0), result("caw", 0, 8, 10.0, width=0.1)]
    runs += [result("caw, static", 0, 8, 68.0), result("caw, static", 1, 8, 50.0)]
    monkeypatch.setattr(published, "stored", lambda name, system: [r for r in runs if r["run"]["system"] == system])
    assert published.less("caw", "caw, static") == {"published network, 8 epochs": [2.0]}
    again = [result(system, 0, 9, 71.0, precision="tf32") for system in ("caw", "caw, static")]
    again.append(result("caw", 1, 8, 60.0, precision="tf32"))
    monkeypatch.setattr(
        published, "stored", lambda name, system: [r for r in runs + again if r["run"]["system"] == system]
    )
    assert [*published.less("caw", "caw, static").values()] == [[2.0]], "a seed counts once, and in one precision"
    again += [result(system, seed, 5, 9.0, width=0.1) for system in ("caw", "caw, static") for seed in (0, 1)]
    assert published.less("caw", "caw, static", "all", "ours") == {"ours, width × 0.1, 5 epochs": [0.0, 0.0]}
    again = [result("symba", 0, 9, 71.0), result("forward-forward", 0, 9, 70.0)]
    assert published.less("symba", "forward-forward") == {}, "another network"
    monkeypatch.setattr(published, "stored", lambda name, system: [r for r in runs if r["run"]["system"] == system])
    assert [found["accuracy"] for found in published.of("caw", "all")] == [70.0, 61.0]
    assert published.length(published.of("caw")) == "6 to 8 epochs"
    assert published.length(published.of("caw, static")) == "8 epochs"


def test_published_gradients_are_limited_by_layer(published: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU())
    rule = published.LocalClassifiers(model, num_classes=3)
    optimizer = torch.optim.SGD(rule.parameters(), lr=1.0)
    published.clip_layers(rule, optimizer, 1.0)
    layers = [[*unit.trained, *head.parameters()] for unit, head in zip(rule.units, rule.heads, strict=True)]
    for number, layer in enumerate(layers):
        for p in layer:
            p.grad = torch.full_like(p, 10.0**-number / sum(part.numel() for part in layer) ** 0.5 * 5)
    optimizer.step()
    norms = [torch.cat([p.grad.flatten() for p in layer]).norm().item() for layer in layers]
    assert norms == pytest.approx([1.0, 0.5], rel=1e-4)


def test_synthetic_teacher_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """The learnable parameters at ten classes are those published."""
    options = ["results", "--classes", "10", "30", "--seeds", "42", "123", "--steps", "30"]
    first = run("experiments/synthetic_teacher.py", tmp_path, *options)
    assert first.count("teacher he") == 16
    log = tmp_path / "results" / "synthetic_teacher.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/synthetic_teacher.py", tmp_path, *options)
    assert again.count("teacher he") == 1
    assert again.partition("| K")[2].partition("ms a step")[0] == first.partition("| K")[2].partition("ms a step")[0]
    sizes = next(line for line in again.splitlines() if line.startswith("| 10 |") and "," in line)
    assert re.findall(r"\d+,\d+", sizes) == ["56,068", "61,224", "57,354", "229,416"]
    interval = r"\[-?\d+\.\d\d, -?\d+\.\d\d\]"
    assert re.search(r"low K \(10\), [-+]\d+\.\d\d at high K \(30\): [-+]\d+\.\d\d \[", again)
    assert re.search(rf"{interval} resampling runs, as published \(.*\); {interval} resampling seeds", again)
    assert (tmp_path / "results" / "synthetic_teacher.png").stat().st_size > 10_000


@pytest.fixture
def synthetic_teacher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    return importlib.import_module("synthetic_teacher")


def test_synthetic_teachers_differ_in_their_classes_alone(synthetic_teacher: ModuleType) -> None:
    few, many = (synthetic_teacher.teacher_data(k, 42, "he") for k in (5, 50))
    assert torch.equal(few.x, many.x)
    assert (few.x.shape, few.x_test.shape, few.y_test.shape) == ((20_000, 50), (5_000, 50), (5_000,))
    assert abs(few.x.mean()) < 4e-3 > abs(few.x.var() - 1) / 2
    assert not torch.equal(few.x, synthetic_teacher.teacher_data(5, 123, "he").x)
    centred = torch.bincount(synthetic_teacher.teacher_data(5, 42, "centred").y, minlength=5)
    assert centred.max() < 2 * centred.min() < torch.bincount(few.y, minlength=5).max()
    assert synthetic_teacher.teacher_data(50, 42, "pytorch").y.max() < 50


def test_synthetic_differences_are_paired(synthetic_teacher: ModuleType) -> None:
    def result(method: str, classes: int, seed: int, accuracy: float) -> dict[str, Any]:
        return {"run": {"method": method, "classes": classes, "seed": seed}, "accuracy": accuracy}

    results = [result("dtg", 5, 1, 70.0), result("deep supervision", 5, 1, 69.0), result("dtg", 5, 2, 80.0)]
    results += [result("deep supervision", 10, 2, 50.0), result("backprop", 5, 1, 72.0), result("dtg", 10, 2, 52.5)]
    assert synthetic_teacher.differences(results) == {5: {1: 1.0}, 10: {2: 2.5}}
    assert synthetic_teacher.differences(results, "backprop") == {5: {1: -2.0}}


def test_synthetic_methods_are_compared_with_the_same_normalisation(synthetic_teacher: ModuleType) -> None:
    """ "dtg" normalises dtg alone: its runs stand beside those of "all" and of "none"."""
    accuracies = {
        ("dtg", "dtg"): 70.0,
        ("dtg", "deep supervision"): 69.0,
        ("all", "deep supervision"): 68.0,
        ("none", "dtg"): 66.0,
    }

    def result(kind: str, method: str, classes: int, seed: int, accuracy: float) -> dict[str, Any]:
        run = {"normalise": kind, "method": method, "classes": classes, "seed": seed, "steps": 20}
        return {"run": run, "curve": [[10, 0.0, accuracy], [20, 0.0, 50.0]][: 1 if seed == 1 else 2]}

    results = [result(*key, 5, seed, accuracy + seed) for key, accuracy in accuracies.items() for seed in (1, 2)]
    results[0]["run"]["steps"] = 10
    heads, _, row = synthetic_teacher.by_normalisation(results).splitlines()
    assert heads == "| K, 10 steps | both normalised | neither | dtg normalised alone |"
    exact = "{0:+.2f} [{0:.2f}, {0:.2f}]".format
    assert row == f"| 5 | {exact(2)} | {exact(-3)} | {exact(1)} |"
    for seed in (1, 2):
        results += [result("dtg", "deep supervision", 50, seed, 40.0), result("dtg", "dtg", 50, seed, 40.5)]
        results += [result("none", "dtg", 50, seed, 39.0)]
    last = synthetic_teacher.by_normalisation(results).splitlines()[-1]
    assert last == f"| 50 less 5 |  | {exact(2)} | {exact(-0.5)} |"


def test_synthetic_classes_are_split_as_published(synthetic_teacher: ModuleType) -> None:
    assert (synthetic_teacher.LOW, synthetic_teacher.HIGH) == ([5, 10, 15, 20], [30, 50])
    assert synthetic_teacher.LOW + synthetic_teacher.HIGH == synthetic_teacher.CLASSES


def test_synthetic_intervals(synthetic_teacher: ModuleType) -> None:
    """Two seeds with 1 and 3: resampled whole, 1, 2, 2 or 3; by runs, low K may be of another seed than high K."""
    high = np.array([False, True])
    found = synthetic_teacher.intervals(np.array([[0.0, 1.0], [0.0, 3.0]]), high)
    assert found["seeds"] == pytest.approx((1.075, 2.925))
    assert found["runs"] == (1, 3)
    found = synthetic_teacher.intervals(np.array([[-1.0, 1.0], [1.0, 3.0]]), high)
    assert found["seeds"] == (2, 2)
    assert found["runs"] == (0, 4)
    assert np.isnan(synthetic_teacher.intervals(np.array([[0.0, 1.0]]), high)["seeds"]).all(), "one seed"


def test_synthetic_runs_are_resampled_over_all_classes_of_a_group(synthetic_teacher: ModuleType) -> None:
    """Four runs with 1, 3, 1, 3: none of the 3 in one of 16 draws. Seeds alike have nothing to resample."""
    found = synthetic_teacher.intervals(np.array([[0.0, 1.0, 3.0]] * 2), np.array([False, True, True]))
    assert found["runs"] == (1, 3)
    assert found["seeds"] == (2, 2)


def test_synthetic_intervals_of_many_runs(synthetic_teacher: ModuleType) -> None:
    """As wide as normal theory has it: 20 and 10 runs, and 200 seeds, of which not all resamples can be taken."""
    generator = np.random.default_rng(0)
    high = np.array([False] * 4 + [True] * 2)
    table = generator.standard_normal((5, 6))
    low, top = synthetic_teacher.intervals(table, high)["runs"]
    error = (table[:, ~high].var() / 20 + table[:, high].var() / 10) ** 0.5
    middle = table[:, high].mean() - table[:, ~high].mean()
    assert (low, top) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.1 * error)
    table = generator.standard_normal((200, 6)) + 5 * generator.standard_normal((200, 1))
    each = table[:, high].mean(axis=1) - table[:, ~high].mean(axis=1)
    error = each.std() / 200**0.5
    low, top = synthetic_teacher.intervals(table, high)["seeds"]
    assert (low, top) == pytest.approx((each.mean() - 1.96 * error, each.mean() + 1.96 * error), abs=0.1 * error)


def test_local_classifiers_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    rules = ["hyperspherical", "channel competition", "backprop"]
    options = ["digits", "results", "--epochs", "2", "--seeds", "0", "--rules", *rules]
    first = run("experiments/local_classifiers.py", tmp_path, *options)
    assert first.count("data digits") == 6
    log = tmp_path / "results" / "local_classifiers.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]) + '{"run": {"rule')
    again = run("experiments/local_classifiers.py", tmp_path, *options)
    assert again.count("data digits") == 1
    kinds = re.findall(r"\| (convolutional|dense) \|(.*?)(?:\n\n|\Z)", again, re.DOTALL)
    assert [kind for kind, _ in kinds] == ["convolutional", "dense"]
    for kind, table in kinds:
        rows = {row.split("|")[1].strip(): row.split("|")[2:] for row in table.splitlines()[2:]}
        assert sorted(rows) == sorted(rules)
        assert float(rows["hyperspherical"][1].split("±")[0]) > 80, kind
        assert rows["hyperspherical"][1] == rows["hyperspherical"][4], "it adds up all layers"
        layers = rows["hyperspherical"][8].split(",")
        assert len(layers) == {"convolutional": 4, "dense": 3}[kind]
        assert float(rows["hyperspherical"][10]) >= max(map(float, layers))
        assert not any(rows["backprop"][place].strip() for place in (4, 5, 6, 8)), "backpropagation has one guess"
    assert (tmp_path / "results" / "local_classifiers.png").stat().st_size > 10_000


def test_local_classifiers_tables_are_of_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    of_settings = importlib.import_module("local_classifiers").of_settings
    plain = {"data": "mnist", "epochs": 7}
    kinds = [plain, {**plain, "rate": 0.1}, {**plain, "rate": 0.1, "shift": 1}, {**plain, "epochs": 8}]
    runs = [{"run": {**kind, "seed": seed, "network": "dense", "rule": "a"}} for kind in kinds for seed in (0, 1)]
    for number, kind in enumerate(kinds):
        assert of_settings(runs, kind) == runs[2 * number : 2 * number + 2]


def test_local_classifiers_tables_compare_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that chooses layers beside all layers alike, and what was published of that data set alone."""
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    summary = importlib.import_module("local_classifiers").summary
    common = {"rule": "deeper-forward", "network": "convolutional"}
    results = [
        {"run": {**common, "seed": 0}, "accuracy": 90.0, "all": 90.0, "range": 80.0, "first": 1, "last": 2},
        {"run": {**common, "seed": 1}, "accuracy": 70.0, "all": 60.0, "range": 70.0, "first": 2, "last": 2},
    ]
    results = [{**result, "validation": 95.0, "seconds": 1} for result in results]
    tables = {data: summary(results, data).splitlines()[2] for data in ("FashionMNIST", "mnist", "cifar100", "emnist")}
    cells = [cell.strip() for cell in tables["FashionMNIST"].split("|")]
    assert cells[3:6] == ["80.00 ± 14.14", "95.00 ± 0.00", "91.83 (TinyCNN), 93.13 (ResNet17)"]
    assert cells[6:9] == ["75.00 ± 21.21", "75.00 ± 7.07", "1-2, 2-2"]
    assert "99.50" in tables["mnist"]
    assert tables["cifar100"] == tables["emnist"]
    assert "(ResNet17)" not in tables["emnist"]


def test_epochs_are_shown_apart_from_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    importlib.import_module("resumable").show(Epoch(3, 0.5, 0.9125, 2.04, {}))
    assert capsys.readouterr() == ("", "epoch 3: validation 91.25 %, 2.0 s\n")


def test_examples_fit_on_a_page() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 70, path.name


def test_local_costs(tmp_path: Path) -> None:
    """What is timed is not looked at, but that it is the same computation."""
    options = ["--networks", "small", "in groups", "--classes", "4", "--rounds", "2", "--threads", "1"]
    _, steps, scores = run("experiments/local_costs.py", tmp_path, "results", *options).split("\n\n")
    assert re.findall(r"small \| ([\w -]+) \|", steps) == [
        "backprop", "mono-forward", "hyperspherical", "dynamic temperature", "patch energy",
    ]  # fmt: skip
    assert re.findall(r"in groups \| ([\w -]+) \|", steps) == ["backprop", "deeper-forward"]
    assert re.search(r"backprop \| [\d.]+ \| 1\.00 \| 1\.00 to 1\.00", steps)
    assert re.search(r"^\| 4( \| [\d.]+){3}( \| [\d.]+ \([\d.]+ to [\d.]+\)){2} \|$", scores, re.MULTILINE)


@pytest.mark.nightly
def test_controls(tmp_path: Path) -> None:
    """Those that are trained anew, one epoch each: what the weights are, and that the tables have a row for each."""
    found = run("experiments/controls.py", tmp_path, "results", "--epochs", "1", "--seeds", "0")
    weights, kernels, pretrained = found.split("\n\n")
    assert weights.count("(1 seed)") == 3
    assert "| last layer alone | " in kernels
    moved = [float(cell) for cell in re.findall(r"^\| [\d-]+, \w+ \| ([\d.]+) ", pretrained, re.MULTILINE)]
    assert len(moved) == 4
    assert all(20 < share < 100 for share in moved)


@pytest.mark.nightly
def test_step_times_of_every_rule(tmp_path: Path) -> None:
    options = ["--parts", "small", "--steps", "2", "--repeats", "2"]
    found = run("experiments/step_times.py", tmp_path, "results", *options)
    cells = {line.split("|")[1].strip(): line.split("|")[2] for line in found.splitlines() if line.startswith("| ")}
    assert {"backpropagation, ms", "`stepping`", "`mono-forward`", "`foton, compiled`"} <= cells.keys()
    assert all(float(cell.split()[0]) > 0 for name, cell in cells.items() if name not in ("step", "---"))


@pytest.mark.nightly
def test_scaling_sweeps_and_audits(tmp_path: Path) -> None:
    """What is timed is not looked at; bytes are exact."""
    options = ["results", "--parts", "depth", "vgg8", "--steps", "1", "--values", "4,6", "--shrink", "32"]
    first = run("experiments/scaling.py", tmp_path, *options)
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in first.splitlines() if line.startswith("| ")}
    assert float(cells["`mono-forward`"][1]) == 0 < float(cells["backpropagation, accumulated"][2]) < 1
    assert float(cells["Dynamic Temperature, micro-batched"][2]) < float(cells["backpropagation, accumulated"][2])
    assert float(cells["vgg8"][2]) > 100
    again = run("experiments/scaling.py", tmp_path, *options)
    assert again.strip() == first[first.index("| step") :].strip()


def test_which_rule_tries_rules_on_networks(tmp_path: Path) -> None:
    options = [
        "results",
        "--quick",
        "--rules",
        "Foton",
        "Ftp",
        "--networks",
        "MLP, Tanh",
        "CNN, orthogonal",
        "transformer",
    ]
    first = run("experiments/which_rule.py", tmp_path, *options)
    cells = {line.split("|")[1].strip(): line.split("|")[3:-1] for line in first.splitlines() if line.startswith("| `")}
    assert [cell.strip() == "no" for cell in cells["`Foton`"]] == [False, False, True]
    assert not any(cell.strip() == "no" for cell in cells["`Ftp`"])
    assert float(cells["`Foton`"][0].split("(")[0]) > 80
    again = run("experiments/which_rule.py", tmp_path, *options)
    assert again.strip() == first[first.index("| rule") :].strip()
