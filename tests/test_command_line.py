"""What the commands write and print, and that every mistake of a user ends in one line and leaves nothing behind."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from typer.testing import CliRunner, Result

from prograde import accelerated
from prograde.accelerated.command_line import check, main, options, pictures, report, runs, search
from prograde.accelerated.command_line.app import app
from prograde.accelerated.command_line.options import Job
from prograde.accelerated.rules import Rule
from prograde.accelerated.training import PRESETS, Epoch, History, Recipe, TrainingError, checkpoint, files, fit, load


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="prograde")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_refused(result: Result, *words: str, left: Sequence[str] = (), code: int = 2) -> None:
    """Exit code 2, one line on stderr with these words, nothing on stdout, and nothing new in the working folder."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("prograde: error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""
    assert os.listdir() == list(left)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "fotom"], ["'fotom'", "did you mean foton?"]),
        (["train"], ["rule"]),
        (["compare", "foton", "foton"], ["'foton' is given twice"]),
        (["compare", "pepita:"], ["rule 'pepita:'", "positive integers"]),
        (["compare", "foton", "--hidden", "64-0"], ["--hidden: '64-0'", "positive integers"]),
        (["compare", "foton", "--hidden", "64,32"], ["--hidden: '64,32'"]),
        (["compare", "foton", "--hidden", "33", "--activation", "maxmin"], ["width 33", "even"]),
        (["compare", "foton", "--hidden", "99999999999999"], ["hidden", "99999999999999", "up to 1000000"]),
        (["compare", "foton", "--activation", "hinge"], ["activation: 'hinge'"]),
        (["compare", "foton", "--data", "nowhere"], ["data: 'nowhere' does not exist"]),
        (["compare", "foton", "--data", "."], ["has no train-images-idx3-ubyte"]),
        (["compare", "foton", "--validation", "1437"], ["validation: 1437", "1..1427"]),
        (["compare", "foton", "--device", "cuda:77"], ["--device: 'cuda:77'"]),
        (["compare", "foton", "--device", "toaster"], ["--device: 'toaster'", "such as cpu"]),
        (["compare", "foton", "--device", "meta"], ["--device: 'meta'"]),
        (["compare", "foton", "--dtype", "int8"], ["--dtype: 'int8'", "float32"]),
        (["compare", "foton", "--epochs", "0"], ["epochs: 0"]),
        (["compare", "foton", "--epochs", "many"], ["--epochs", "many"]),
        (["compare", "foton", "--seeds", "0"], ["--seeds: 0"]),
        (["compare", "foton", "--optimizer", "lion"], ["optimizer: 'lion'"]),
        (["compare", "forward-forward", "--momentum", "0.5"], ["--momentum: 0.5", "sgd"]),
        (["compare", "forward-forward", "--dropout", "0.5"], ["forward-forward", "Dropout"]),
        (["compare", "foton", "--shift", "8"], ["shift: 8", "8 pixels of a side"]),
        (["train", "foton", "--shift", "-1", "--output", "out"], ["shift: -1", "0 or more"]),
        (["compare", "foton", "--cutout", "9"], ["cutout: 9", "8 pixels of a side"]),
        (["train", "foton", "--jitter", "1", "--output", "out"], ["jitter: 1", "0 or more and below 1"]),
        (["compare", "foton", "--output", "/proc/nowhere"], ["/proc/nowhere"]),
        (["train", "foton", "--save", "nowhere/checkpoint"], ["checkpoint: 'nowhere/checkpoint'", "is not there"]),
        (["train", "foton", "--save", "/tmp"], ["checkpoint: '/tmp' is a folder"]),
        (["train", "foton", "--save", "/dev/null", "--overwrite"], ["checkpoint: '/dev/null'", "expected a file"]),
        (["train", "foton", "--save", "/etc/hostname", "--overwrite"], ["'/etc/hostname'", "not replaced"]),
        (["train", "foton", "--resume", "/dev/zero"], ["checkpoint: '/dev/zero'", "expected a file"]),
        (["compare", "foton", "--resume"], ["--resume", "--output"]),
        (["compare", "foton", "--search", "1"], ["'--search'", "2", "'1'"]),
        (["compare", "foton", "--search", "3", "--learning-rate", "0.1"], ["--search: 3", "a learning rate is given"]),
        (["compare", "foton", "--search", "3", "--set", "learning_rate=0.1"], ["--search: 3"]),
        (["compare", "foton", "--search", "3", "--resume", "--output", "nowhere"], ["'nowhere' has no log"]),
        (["compare", "foton", "--resume", "--output", "nowhere"], ["'nowhere' has no log"]),
        (["train", "foton", "--output", "/etc/hostname"], ["--output: '/etc/hostname' is a file"]),
        (["evaluate", "nowhere"], ["'nowhere'", "No such file"]),
        (["train", "foton", "--resume", "nowhere"], ["'nowhere'", "No such file"]),
        (["train", "foton", "--gpu"], ["--gpu"]),
        (["train", "cumulative", "--option", "gamma"], ["--option: 'gamma'", "NAME=VALUE"]),
        (
            ["train", "cumulative", "--option", "remedi=none"],
            ["'remedi' is unknown", "'none'", "did you mean remedy?", "remedy, gamma", "readout"],
        ),
        (["train", "cumulative", "--option", "gamma=much"], ["gamma is 'much'", "a number or None", "remedy, gamma"]),
        (["train", "cumulative", "--option", "gamma=1e999"], ["gamma is inf", "a number"]),
        (["train", "cumulative", "--option", "learn_gate=1"], ["learn_gate is 1", "True or False"]),
        (["train", "cumulative", "--option", "remedy=none"], ["remedy: 'none'", "hardness-gated"]),
        (["train", "symba", "--option", "loss=None"], ["'loss' is unknown", "alpha, goodness"]),
        (["train", "symba", "--option", "alpha=1", "--option", "alpha=2"], ["'alpha' is given twice", "alpha=2"]),
        (["train", "symba", "--option", "negatives=soft"], ["negatives is 'soft'", "'wrong' or 'hard'"]),
        (["compare", "symba", "foton", "--option", "gamma=1"], ["'gamma' is unknown", "none of these rules"]),
        (["benchmark", "--network", "784"], ["--network: '784'"]),
        (["benchmark", "--rules", "foton,fotom"], ["'fotom'"]),
        (["benchmark", "--rules", " , "], ["--rules: ' , '", "foton,ftp"]),
        (["benchmark", "--data", "digits"], ["--network: 784 pixels", "64"]),
        (["benchmark", "--beside", "foreach,fast"], ["--beside: 'fast'", "stepping"]),
        (["benchmark", "--optimizer", "lion"], ["--optimizer: 'lion'", "adamw"]),
        (["benchmark", "--sweep", "rules"], ["--sweep: 'rules'", "depth"]),
        (["benchmark", "--sweep", "depth", "--values", "1,2"], ["--values: '1,2'", "4,8,16"]),
        (["benchmark", "--sweep", "width", "--network", "lenet"], ["--sweep: 'width'", "'lenet'"]),
        (["benchmark", "--values", "4"], ["--values: '4'", "--sweep"]),
        (["benchmark", "--network", "lenet", "--sample", "1x28xa"], ["--sample: '1x28xa'", "3x32x32"]),
        (["benchmark", "--network", "lenet", "--sample", "7"], ["model", "lenet"]),
        (["check", "--twin", "no_such_module.at_all"], ["--twin", "no_such_module.at_all"]),
        (["costs", "--network", "784"], ["--network: '784'"]),
        (["costs", "--rules", "foton-linear"], ["'foton-linear' is not counted"]),
        (["check", "--tier", "some"], ["--tier: 'some'"]),
        (["vectors", "write", "found", "--only", "loses"], ["--only: 'loses'", "losses"]),
        (["check", "--twin", "mine.py"], ["--twin: 'mine.py'", "not a file"]),
        (["check", "--rule", "no_such_module:Rule"], ["--rule: 'no_such_module:Rule'", "No module named"]),
        (["check", "--rule", "json:Rule"], ["--rule: 'json:Rule'", "expected package.module:Class"]),
        (["check", "--rule", ":Rule"], ["--rule: ':Rule'", "expected package.module:Class"]),
        (["check", "--rule", "json:__name__"], ["--rule: 'json:__name__'", "expected package.module:Class"]),
        (["check", "--rule", "json:dumps", "--dtype", "float64", "-k", "fills"], ["--rule: ", "--dtype -k fills is"]),
        (["check", "--report", "found.txt"], ["--report: 'found.txt'", ".html or .json"]),
        (["check", "--report", "nowhere/found.json"], ["nowhere' is not there"]),
        (["tarin"], ["tarin"]),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], words: list[str]) -> None:
    assert_refused(run(*arguments), *words)


def test_a_rule_whose_module_fails_is_named_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_rules.py").write_text("\nnames = {}['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = "--rule: 'failing_rules:Rule': KeyError: 'x' (", "failing_rules.py, line 2)"
    assert_refused(run("check", "--rule", "failing_rules:Rule"), *words)


def test_bad_data_ends_in_one_line(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("-", False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(run("compare", "--data", folder), "train-images-idx3-ubyte", "1439", "1440")
    images = np.zeros((6, 4))
    images[4, 2] = np.nan
    labels = np.arange(6) % 2
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    assert_refused(run("compare", "--data", tmp_path / "data.npz"), "x_train", "nan at index (4, 2)")


def test_a_foreign_checkpoint_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"text")
    assert_refused(run("train", "foton", "--resume", tmp_path / "checkpoint"), "truncated or no checkpoint")


def test_a_full_disk_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write", full)
    result = run("train", "foton", "--epochs", "1", "--save", tmp_path / "checkpoint")
    assert_refused(result, "checkpoint", "the disk is full")


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(runs, "try_all", broken)
    result = run("compare", "foton")
    assert isinstance(result.exception, RuntimeError)


def test_compare_writes_a_log_a_picture_and_a_table() -> None:
    rules = ["backprop", "backprop-orthogonal", "foton", "pepita", "forward-forward", "pepita:20"]
    result = run("compare", *rules, "--hidden", "24-16", "--epochs", "2", "--seeds", "2", "--output", "out/deep")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert sorted(os.listdir("out/deep")) == ["alignment.png", "curves.png", "log.jsonl", "results.json"]

    log = lines(Path("out/deep/log.jsonl"))
    kinds = [record["kind"] for record in log]
    assert kinds == ["settings"] + ["epoch", "epoch", "run"] * 12 + ["result"] * 6
    assert log[0]["versions"]["torch"] == torch.__version__
    assert log[0]["seeds"] == [0, 1]
    units = log[1]["measured"]["units"].values()
    assert [unit["alignment"] for unit in units] == pytest.approx([1, 1, 1], abs=1e-5)
    results = json.loads(Path("out/deep/results.json").read_text())["results"]
    assert [row["rule"] for row in results] == [rule.split(":")[0] for rule in rules]
    assert results[0]["ratio"] == 1
    assert results[3]["ratio"] > 0
    assert results[5]["ratio"] is None
    warm = [record["seconds"] for record in log if record.get("rule") == "foton" and record.get("epoch") == 2]
    assert results[2]["seconds"] == pytest.approx(sum(warm) / 2), "the first epoch counts"
    assert all(len(row["test"]) == 2 and 0 <= min(row["test"]) <= max(row["test"]) <= 1 for row in results)

    for name in ("curves", "alignment"):
        picture = Path(f"out/deep/{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000
    table = result.stdout.splitlines()
    for row in results:
        mean = 100 * sum(row["test"]) / 2
        line = next(line for line in table if line.split()[:2] == [row["rule"], row["network"]])
        assert f"{mean:.2f} ± " in line
    assert next(line for line in table if "64-20-10" in line).split()[-1] == "–"
    written = ("log.jsonl", "results.json", "curves.png", "alignment.png")
    assert table[-4:] == [f"out/deep/{name}" for name in written]
    assert "\x1b" not in result.stdout


def drawn(monkeypatch: pytest.MonkeyPatch, methods: Sequence[str], name: str = "digits") -> Any:
    """The figure of curves of made-up runs, which all end at nearly the same error."""
    epochs = {method: 3 if method.startswith("f") else 4 for method in methods}
    found = [
        runs.Run(Job(method, Recipe()), seed, History([Epoch(i + 1, 0.5, 0.9 - 0.1 / (i + 1) + seed / 1e3, 1.0, {})
                                                        for i in range(epochs[method])], 0.9))
        for method in methods for seed in (0, 1)
    ]  # fmt: skip
    monkeypatch.setattr(pictures, "_png", lambda figure: figure)
    return pictures.curves(found, load("digits")._replace(name=name))


def test_a_name_in_a_picture_is_no_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, ["dfa"], r"$\nothing{$")
    figure.draw_without_rendering()
    assert r"of \$\nothing{\$" in figure.get_suptitle()


@pytest.mark.parametrize("methods", [list(PRESETS), ["backprop", "foton", "symba"], ["dfa"]], ids=len)
def test_every_line_of_a_picture_has_its_own_label(methods: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end, in its colour, which no other line of the panel has; no two labels overlap; heights are shared."""
    figure = drawn(monkeypatch, methods)
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.texts]
    labels = [text.get_text().partition(" (")[0] for axes in panels for text in axes.texts]
    assert set(labels) == set(methods)
    assert all(labels.count(method) == 1 for method in methods if method != "backprop")
    assert labels.count("backprop") == (len(panels) if "backprop" in methods else 0)
    assert len({axes.get_ylim() for axes in panels}) == 1
    figure.draw_without_rendering()
    for axes in panels:
        lines = {line.get_label(): line.get_color() for line in axes.get_lines()}
        assert lines == {text.get_text().partition(" (")[0]: text.get_color() for text in axes.texts}
        assert len(set(lines.values())) == len(lines) <= 6
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_labels_are_moved_no_further_than_they_must() -> None:
    spread = pictures.spread_apart
    assert spread(np.array([0.1, 0.5, 0.9]), 0.1).tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert spread(np.array([0.5, 0.5, 0.5]), 0.1).tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert spread(np.array([0.0, 0.5, 0.52]), 0.1).tolist() == pytest.approx([0.0, 0.46, 0.56])


SHORT = ["compare", "backprop", "foton", "pepita", "--hidden", "16", "--epochs", "2", "--seeds", "2"]
TIMES = {"seconds", "ratio"}


def results_in(folder: str) -> list[dict[str, Any]]:
    """The rows without their times."""
    rows = json.loads(Path(folder, "results.json").read_text())["results"]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def failing(error: BaseException, rule: str, seed: int) -> Callable[..., History]:
    """`fit` that breaks off with this error after one epoch of that rule and seed."""

    def fit_but_once(trained: Rule, *arguments: Any, **options: Any) -> History:
        on_epoch = options.pop("on_epoch")

        def stop(epoch: Epoch) -> None:
            on_epoch(epoch)
            if (type(trained).__name__, options["seed"]) == (rule, seed):
                raise error

        return fit(trained, *arguments, on_epoch=stop, **options)

    return fit_but_once


def test_a_rule_that_diverges_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SHORT, "--output", "whole").exit_code == 0
    monkeypatch.setattr(runs, "fit", failing(TrainingError("Foton, epoch 2: the loss is nan"), "Foton", 1))
    result = run(*SHORT, "--output", "out")
    assert result.exit_code == 3
    assert "foton:16, seed 1: diverged (Foton, epoch 2: the loss is nan)" in result.stdout.splitlines()
    whole, found = results_in("whole"), results_in("out")
    assert [row["diverged"] for row in found] == [[], [1], []]
    assert found[1]["test"] == whole[1]["test"][:1]
    assert [found[0], found[2]] == [whole[0], whole[2]]
    assert sorted(os.listdir("out")) == ["alignment.png", "curves.png", "log.jsonl", "results.json"]


def test_every_rule_may_diverge() -> None:
    result = run("compare", "foton", "backprop", "--learning-rate", "1e30", "--seeds", "1", "--output", "out")
    assert result.exit_code == 3
    assert "lower the learning rate" in result.stdout
    assert [row["test"] for row in results_in("out")] == [[], []]
    assert "diverged" in next(line for line in result.stdout.splitlines() if line.split()[:1] == ["backprop"])
    alone = run("train", "foton", "--learning-rate", "1e30", "--epochs", "1")
    assert_refused(alone, "epoch 1", "lower the learning rate", left=["out"], code=3)


def test_a_run_at_chance_says_so() -> None:
    result = run("train", "backprop", "--learning-rate", "1e-9", "--epochs", "1", "--hidden", "8")
    assert result.exit_code == 0
    assert "backprop:8, seed 0: at chance; test accuracy" in result.stdout
    assert "chance" not in run("train", "backprop", "--epochs", "2").stdout


def test_an_interrupted_compare_keeps_what_it_has_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SHORT, "--output", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", failing(KeyboardInterrupt(), "Foton", 1))
        result = run(*SHORT, "--output", "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("prograde: interrupted; the same command with --output out --resume goes on")
    assert [len(row["test"]) for row in results_in("out")] == [2, 1, 1]
    with open("out/log.jsonl.partial", "a") as log:
        log.write('{"kind": "epo')  # as a killed process leaves it
    other = run(*SHORT, "--batch", "64", "--output", "out", "--resume")
    assert_refused(other, "backprop's batch 128, expected 64", left=os.listdir())
    fewer = run("compare", "foton", "--hidden", "16", "--epochs", "2", "--output", "out", "--resume")
    assert_refused(fewer, "has a run of backprop:16, seed 0", left=os.listdir())
    again: list[tuple[str, int]] = []
    trained = runs.fit
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", lambda rule, *a, seed, **o: (
            again.append((type(rule).__name__, seed)), trained(rule, *a, seed=seed, **o))[1])  # fmt: skip
        assert run(*SHORT, "--output", "out", "--resume").exit_code == 0
    assert again == [("Foton", 1), ("Pepita", 1)]
    assert results_in("out") == results_in("whole")
    assert sorted(os.listdir("out")) == ["alignment.png", "curves.png", "log.jsonl", "results.json"]
    kinds = [record["kind"] for record in lines(Path("out/log.jsonl"))]
    assert kinds == ["settings"] + ["epoch", "epoch", "run"] * 6 + ["result"] * 3


def counted(patch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """The rule, seed and learning rate of every training from here on."""
    trained, seen = runs.fit, []

    def fit(rule: Rule, *arguments: Any, **options: Any) -> History:
        seen.append((type(rule).__name__, options["seed"], options["recipe"].learning_rate))
        return trained(rule, *arguments, **options)

    patch.setattr(runs, "fit", fit)
    return seen


def test_a_search_tries_as_many_rates_for_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEPITA's own rate is not among them."""
    command = ["compare", "pepita", "mono-forward", "--hidden", "16", "--epochs", "1", "--batch", "200", "--seeds", "2"]
    command += ["--seed", "1", "--output", "out"]
    monkeypatch.setattr(report, "write_pictures", lambda *arguments: [])  # which take the longest
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", failing(KeyboardInterrupt(), "MonoForward", 1))
        interrupted = run(*command, "--search", 3)
    assert interrupted.exit_code == 130
    assert interrupted.stderr.startswith("prograde: interrupted; the same command with --output out --resume goes on")
    other = run(*command, "--search", 3, "--resume", "--momentum", "0.5")
    assert_refused(other, "pepita's momentum 0.9, expected 0.5", left=["out"])
    trained = counted(monkeypatch)
    result = run(*command, "--search", 3, "--resume")
    assert result.exit_code == 0, result.stderr
    rates = {"Pepita": [0.1, 0.03, 0.01], "MonoForward": [3e-3, 1e-3, 3e-4]}
    assert trained[:3] == [("MonoForward", 1, rate) for rate in rates["MonoForward"]]
    trained[:0] = [("Pepita", 1, rate) for rate in rates["Pepita"]]
    assert trained[:6] == [(rule, 1, rate) for rule, own in rates.items() for rate in own]
    settings = lines(Path("out/log.jsonl"))[0]
    trials = settings["search"]
    assert [trial["learning_rate"] for trial in trials] == [*rates["Pepita"], *rates["MonoForward"]]
    merits = [(trial["validation_accuracy"], -(trial["validation_loss"] or 0.0)) for trial in trials]
    best = [trials[max(places, key=lambda place: merits[place])] for places in (range(3), range(3, 6))]
    assert [job["learning_rate"] for job in settings["jobs"]] == [trial["learning_rate"] for trial in best]
    assert [rate for _, _, rate in trained[6:]] == 2 * [trial["learning_rate"] for trial in best]
    found = json.loads(Path("out/results.json").read_text())
    assert found["search"] == trials
    assert [row["validation"][0] for row in found["results"]] == [trial["validation_accuracy"] for trial in best]
    first, said = result.stdout.splitlines()[:2]
    assert first == "search: for each rule 3 learning rates, a run of seed 1 at each, the best on validation data"
    assert said.startswith(f"pepita:16: {best[0]['learning_rate']:g}")
    assert "of 0.1, 0.03, 0.01: validation" in said

    trained.clear()
    assert run(*command, "--search", 3, "--resume").exit_code == 0
    assert trained == []
    fewer = run(*command, "--search", 2, "--resume")
    assert_refused(fewer, "'out' has a search with 6 runs, expected one of the same", left=["out"])
    assert_refused(run(*command, "--resume"), "expected a log without, or --search", left=["out"])


def test_a_search_takes_the_best_of_what_did_not_diverge() -> None:
    """Of equal accuracies the least loss; a loss alone where there are no labels; the end of the grid is said."""
    assert search.rates("sgd", 5) == [0.3, 0.1, 0.03, 0.01, 0.003]
    assert search.rates("adam", 4) == [1e-2, 3e-3, 1e-3, 3e-4]
    assert search.rates("adamw", 2) == [3e-3, 1e-3]
    (job,) = options.jobs(["foton"], "digits", "16")
    measured = [(None, None), (0.9, 0.5), (0.9, 0.4), (0.8, 0.1), (None, None)]
    trials = [search.Trial("foton", "16", rate, *m) for rate, m in zip(search.rates("sgd", 5), measured, strict=True)]
    assert search.best(job, trials).learning_rate == 0.03
    assert search.lines([job], trials, 0)[1] == "foton:16: 0.03 of 0.3, 0.1, 0.03, 0.01, 0.003: validation 90.00 %"
    regression = [search.Trial("foton", "16", rate, None, loss) for rate, loss in ((0.1, 2.0), (0.03, 1.0))]
    assert search.lines([job], regression, 0)[1] == "foton:16: 0.03, the least of 0.1, 0.03: validation loss 1"
    assert search.lines([job], trials[:1], 0)[1].endswith(": diverged")


def test_results_are_replaced_only_if_asked_to() -> None:
    first = [*SHORT, "--output", "out"]
    assert run(*first).exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    for command in (first, ["train", "foton", "--output", "out"]):
        assert_refused(run(*command), "'out' has results already", "--overwrite", left=["out"])
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    Path("out/notes").write_text("mine")
    Path("out/layers.png").write_bytes(b"of an earlier run, which had more to draw")
    result = run("train", "foton", "--epochs", "1", "--hidden", "8", "--output", "out", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert len(results_in("out")) == 1
    assert Path("out/notes").read_text() == "mine"
    assert not Path("out/layers.png").exists()


def test_a_checkpoint_is_replaced_only_if_asked_to() -> None:
    short = ["train", "foton", "--hidden", "8", "--save", "checkpoint"]
    assert run(*short, "--epochs", "1").exit_code == 0
    before = Path("checkpoint").read_bytes()
    assert_refused(run(*short), "--save: 'checkpoint' is", "--resume checkpoint", "--overwrite", left=["checkpoint"])
    assert Path("checkpoint").read_bytes() == before
    assert run(*short, "--epochs", "1", "--seed", "1", "--overwrite").exit_code == 0
    assert Path("checkpoint").read_bytes() != before


BRIEF = ("train", "foton", "--epochs", 1, "--hidden", 8)


@pytest.mark.parametrize("refused", [("--epochs", 1), ("--hidden", 16), ("--data", "other.npz")])
def test_a_refused_command_overwrites_nothing(refused: tuple[object, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez("other.npz", x_train=x, y_train=np.arange(60) % 10, x_test=x, y_test=np.arange(60) % 10)
    assert run(*BRIEF, "--epochs", 2, "--save", "f.pt", "--output", "f").exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("f").iterdir()}
    assert len(before) == 4
    result = run("train", "foton", "--resume", "f.pt", *refused, "--output", "f", "--overwrite")
    assert result.exit_code == 2, result.output
    assert {path.name: path.read_bytes() for path in Path("f").iterdir()} == before


def test_a_resumed_training_goes_on_in_its_file_and_asks_for_its_data() -> None:
    assert run(*BRIEF, "--save", "f.pt").exit_code == 0
    assert run("train", "foton", "--resume", "f.pt", "--epochs", 2).exit_code == 0
    assert len(checkpoint.load("f.pt")["history"]) == 2
    x = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez("mine.npz", x_train=x, y_train=np.arange(60) % 10, x_test=x, y_test=np.arange(60) % 10)
    assert run(*BRIEF, "--data", "mine.npz", "--save", "mine.pt").exit_code == 0
    result = run("train", "foton", "--resume", "mine.pt", "--epochs", 2)
    assert_refused(result, "--data: 'mine.pt' was trained on 'mine'; give these data again", left=os.listdir())


def test_a_resumed_training_is_extended_into_its_own_results() -> None:
    short = ["train", "foton", "--hidden", "8", "--save", "checkpoint", "--output", "out"]
    assert run(*short, "--epochs", "1").exit_code == 0
    resumed = run(
        "train", "foton", "--resume", "checkpoint", "--epochs", "3", "--save", "checkpoint", "--output", "out"
    )
    assert resumed.exit_code == 0, resumed.stderr
    assert [record["epoch"] for record in lines(Path("out/log.jsonl")) if record["kind"] == "epoch"] == [1, 2, 3]
    assert run("train", "pepita", "--epochs", "1", "--output", "other").exit_code == 0
    before = Path("other/results.json").read_bytes()
    foreign = run("train", "foton", "--resume", "checkpoint", "--output", "other")
    assert_refused(foreign, "'other/log.jsonl' has rules ['pepita'], expected ['foton']", left=os.listdir())
    assert Path("other/results.json").read_bytes() == before
    fewer = run("train", "foton", "--resume", "checkpoint", "--epochs", "2")
    assert_refused(fewer, "'checkpoint' has 3 epochs done", left=os.listdir())


def test_results_of_other_data_are_named(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    short = ["compare", "foton", "--hidden", "8", "--epochs", "1", "--seeds", "1", "--output", "out"]
    assert run(*short, "--data", folder).exit_code == 0
    refused = run(*short, "--resume")
    words = f"'out' has results of data '{folder.name}' (SHA-256 ", "this command uses 'digits' ("
    assert_refused(refused, *words, left=os.listdir())


def test_layers_are_drawn_where_each_guesses() -> None:
    rules = "backprop", "hyperspherical"
    result = run("compare", *rules, "--hidden", "16-12", "--epochs", "2", "--seeds", "1", "--output", "out/layers")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "out/layers/layers.png"
    assert Path("out/layers/layers.png").read_bytes().startswith(b"\x89PNG")
    epochs = [record for record in lines(Path("out/layers/log.jsonl")) if record["kind"] == "epoch"]
    assert [len(record["measured"].get("layers", {}).get("accuracies", [])) for record in epochs] == [0, 0, 2, 2]


def test_margins_are_drawn_where_goodness_is_a_mean_square() -> None:
    rules = ["backprop", "cumulative", "symba"]
    result = run("compare", *rules, "--hidden", "16-12", "--epochs", "2", "--seeds", "1", "--output", "out/margins")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "out/margins/margins.png"
    assert Path("out/margins/margins.png").read_bytes().startswith(b"\x89PNG")
    epochs = [record for record in lines(Path("out/margins/log.jsonl")) if record["kind"] == "epoch"]
    measured = {record["rule"]: list(record["measured"].get("margins", [])) for record in epochs}
    assert measured == {"backprop": [], "cumulative": ["0", "2"], "symba": ["0", "2"]}
    assert epochs[-1]["measured"]["margins"]["0"]["free_riding"] == 0


def test_the_same_seed_gives_the_same_results_and_the_default_folder_is_below_runs() -> None:
    def results(*more: str) -> list[Any]:
        arguments = ["compare", "foton", "pepita", "--epochs", "2", "--seeds", "1", *more]
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        log = lines(Path(result.stdout.splitlines()[-4]))
        return [(r["rule"], r["loss"], r["validation_accuracy"], r["measured"]) for r in log if r["kind"] == "epoch"]

    first = results()
    assert first == results("--output", "again")
    assert first != results("--output", "other", "--seed", "1")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("digits-")
    assert len(list(folder.iterdir())) == 4


def test_train_resumes_exactly(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    options = ["--data", folder, "--hidden", "8", "--epochs", "3", "--batch", "16", "--shift", "1", "--flip"]
    options += ["--cutout", "1", "--seed", "4", "--dtype", "float64", "--validation", "12"]
    whole = run("train", "foton", *options, "--output", "whole", "--save", "checkpoint")
    assert whole.exit_code == 0, whole.stderr
    resumed = run("train", "foton", *options, "--output", "resumed", "--resume", "checkpoint")
    assert resumed.exit_code == 0, resumed.stderr
    first, second = (json.loads(Path(name, "results.json").read_text())["results"] for name in ("whole", "resumed"))
    assert first[0]["test"] == second[0]["test"]
    assert first[0]["best_epochs"] == second[0]["best_epochs"]
    epochs = [[line["epoch"] for line in lines(Path(name, "log.jsonl"))[1:] if line["kind"] == "epoch"]
              for name in ("whole", "resumed")]  # fmt: skip
    assert epochs == [[1, 2, 3], [1, 2, 3]]
    bare = run("train", "foton", "--data", folder, "--resume", "checkpoint")
    assert bare.exit_code == 0, bare.stderr
    unmirrored = run("train", "foton", "--data", folder, "--resume", "checkpoint", "--no-flip")
    assert unmirrored.exit_code == 2
    assert "has flip True, expected False" in unmirrored.stderr
    still = run("train", "foton", "--data", folder, "--resume", "checkpoint", "--shift", "0")
    assert "has shift 1, expected 0" in still.stderr
    folder.rename("elsewhere")
    moved = run("train", "foton", "--data", "elsewhere", "--resume", "checkpoint")
    assert moved.exit_code == 0, moved.stderr
    Path("elsewhere").rename(folder)
    other = run("train", "foton", "--data", "digits", "--resume", "checkpoint")
    assert "expected data 'digits' of 1425 + 12 + 360 samples" in other.stderr
    measured = run("evaluate", "checkpoint", "--data", folder)
    assert measured.exit_code == 0, measured.stderr
    assert f"{100 * first[0]['test'][0]:.2f} %" in measured.stdout
    assert "say what to measure on" in run("evaluate", "checkpoint").stderr
    foreign = run("evaluate", "checkpoint", "--data", "digits")
    assert foreign.exit_code == 2
    assert "digits has samples of shape (8, 8)" in foreign.stderr
    other = run("train", "foton", *options, "--resume", "checkpoint", "--seed", "5")
    assert other.exit_code == 2
    assert "has seed 4, expected 5" in other.stderr


def test_numbers_below_the_normal_are_zero_for_the_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """With errors that near 0 a step takes three times as long; tests by `check` see them all."""
    seen: list[bool] = []
    monkeypatch.setattr("torch.set_flush_denormal", seen.append)
    assert run("benchmark", "--network", "4-3-2", "--rules", "dfa", "--steps", "1", "--batch", "2").exit_code == 0
    assert seen == [True, False]
    assert run("rules").exit_code == 0
    assert seen == [True, False]


def test_options_of_a_rule_are_kept_and_gone_on_with() -> None:
    options = ["--option", "remedy=hardness-gated", "--option", "gamma=0.5", "--option", "learn_gate=True"]
    short = ["train", "cumulative", "--hidden", "12-8", "--seed", "3"]
    whole = run(*short, *options, "--epochs", "3", "--output", "whole", "--save", "checkpoint")
    assert whole.exit_code == 0, whole.stderr
    settings = lines(Path("whole/log.jsonl"))[0]["jobs"][0]["options"]
    told = {"remedy": "hardness-gated", "gamma": 0.5, "learn_gate": True}
    assert settings == {"amplitude": 4.0, **told}
    state = checkpoint.load("checkpoint")
    assert state["settings"]["network"]["options"] == settings
    assert {"raw_tau.0", "kappa.0"} <= set(state["rule"])
    resumed = run("train", "cumulative", "--seed", "3", "--resume", "checkpoint", "--output", "resumed")
    assert resumed.exit_code == 0, resumed.stderr
    results = [json.loads(Path(name, "results.json").read_text())["results"][0] for name in ("whole", "resumed")]
    assert results[0]["test"] == results[1]["test"]
    other = run(*short, "--resume", "checkpoint", "--option", "gamma=0.6")
    assert other.exit_code == 2
    assert "gamma" in other.stderr
    assert run("evaluate", "checkpoint").exit_code == 0


def test_options_go_to_the_rules_that_have_them() -> None:
    rules = ["symba", "foton"]
    result = run(
        "compare", *rules, "--option", "goodness=mean", "--option", "activation_gain=0.9", "--epochs", "1",
        "--seeds", "1", "--hidden", "8", "--output", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    jobs = lines(Path("out/log.jsonl"))[0]["jobs"]
    assert [job["options"] for job in jobs] == [{"amplitude": 4.0, "goodness": "mean"}, {"activation_gain": 0.9}]


def test_train_without_output_writes_nothing() -> None:
    result = run("train", "pepita", "--hidden", "16", "--epochs", "1", "--dtype", "float64")
    assert result.exit_code == 0, result.stderr
    assert "64-16-10" in result.stdout
    assert result.stderr == ""
    assert os.listdir() == []


def test_benchmark_prints_ratios_and_a_defect() -> None:
    result = run(
        "benchmark",
        "--network",
        "32-16-16-4",
        "--batch",
        "8",
        "--steps",
        "20",
        "--rounds",
        "2",
        "--learning-rate",
        "0.05",
    )
    assert result.exit_code == 0, result.stderr
    rows = {line.split("  ")[1].strip(): line.split() for line in result.stdout.splitlines() if line.startswith("  ")}
    assert {"PyTorch backprop", "stepping", "backprop", "foton", "pepita", "forward-forward"} <= set(rows)
    assert 0 < float(rows["foton"][-1]) < 5e-2
    plain = rows["PyTorch backprop"]
    assert rows["stepping"][-4:-1] == plain[-4:-1]  # the same losses
    assert float(plain[-2]) < float(plain[-4])  # it learns


def test_a_sweep_is_written_and_drawn() -> None:
    """Bytes are exact: in micro-batches of two, eight samples hold what four do, and a local rule less than all."""
    network = "vgg8:channels=(4,4,4,4,4,4,4),dropout=0.0"
    command = (
        "benchmark", "--network", network, "--sample", "1x16x16", "--classes", "4", "--steps", "1", "--rules",
        "mono-forward", "--beside", "fused,checkpointed", "--micro-batch", "2", "--optimizer", "momentum",
        "--sweep", "batch", "--values", "4,8", "--output", "out",
    )  # fmt: skip
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "batch^" in result.stdout
    settings, *records = lines(Path("out/benchmark.jsonl"))
    assert (settings["optimizer"], settings["micro_batch"], settings["threads"]) == ("momentum", 2, 1)
    names = ["PyTorch backprop", "fused", "checkpointed", "accumulated", "mono-forward", "mono-forward, accumulated"]
    steps = {(record["name"], record["value"]): record for record in records if record["kind"] == "step"}
    assert list(steps) == [(name, value) for value in (4, 8) for name in names]
    assert [record["name"] for record in records if record["kind"] == "fit"] == names
    held = {key: record["held"] for key, record in steps.items()}
    assert held["accumulated", 4] == held["accumulated", 8] < held["PyTorch backprop", 4] < held["PyTorch backprop", 8]
    assert held["mono-forward", 8] < held["PyTorch backprop", 8]
    losses = [steps[name, 8]["losses"][0] for name in names[:4]]
    assert max(losses) - min(losses) < 1e-5, "the same network, whatever the way"
    assert all(record["floor"] > 0 for record in steps.values())
    assert Path("out/benchmark.png").read_bytes()[:4] == b"\x89PNG"
    again = run(*command)
    assert again.exit_code == 2
    assert "--output: 'out' has benchmark.jsonl already" in again.stderr


def test_costs_are_counted_and_measured() -> None:
    result = run("costs", "--network", "784-1024-128-10", "--rules", "backprop,ftp", "--steps", "0")
    assert result.exit_code == 0, result.stderr
    assert "2,023,178" in result.stdout
    assert "1.010" in result.stdout
    measured = run("costs", "--network", "20-16-8-3", "--batch", "4", "--steps", "2")
    assert measured.exit_code == 0, measured.stderr
    assert measured.stdout.count("\n") > 10


def test_help_names_every_default() -> None:
    result = run("compare", "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    for words in ("[default: digits]", "[default: 3]", "[default: cpu]", "--option gamma=0.7"):
        assert words in text
    assert len(run("train", "--help").stdout.splitlines()) < 130, "common options first, no rule's own"
    of_one = " ".join(run("rules", "cumulative").stdout.split())
    for words in ("Settings unless given: hidden 1000-1000-1000", "remedy: ", "learn_gate: True or False; "):
        assert words in of_one
    assert ">>>" not in of_one
    for command in ("evaluate", "predict"):
        assert "package.module:factory, " in " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert run().exit_code == 0
    assert "compare" in run().stdout
    assert run("--version").stdout.startswith("prograde ")


def environment() -> dict[str, str]:
    import prograde.accelerated

    (namespace, *_) = prograde.__path__
    return {**os.environ, "PYTHONPATH": str(Path(namespace).parent)}


COMMAND = [sys.executable, "-m", "prograde.accelerated.command_line"]


def test_the_entry_ends_with_the_exit_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["prograde", "train", "fotom"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("prograde: error: rule: 'fotom'")
    assert err.count("\n") == 1


def test_processes_of_check_have_one_thread_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in ((None, "1"), ("3", "3")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        for twin in ("prograde.accelerated", "a_package_of_this_folder"):
            assert check._environment(twin)["OMP_NUM_THREADS"] == expected


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs `prograde check` beside a plugin of pytest that breaks it; returns its exit code and what it printed."""
    (tmp_path / "loud.py").write_text("raise RuntimeError('pytest-benchmark is loaded')")
    metadata = tmp_path / "loud-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pytest11]\nbenchmark = loud\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([environment()["PYTHONPATH"], str(tmp_path)]))

    def checked(*arguments: str) -> tuple[int, str, str]:
        result = run("check", "--tier", "smoke", *arguments)
        return result.exit_code, result.stdout, result.stderr

    return checked


def test_check_names_what_is_wrong(
    checked: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wrong function, not the first alone, of a package that has little, where pytest-benchmark is left out.

    Its warning beside pytest-xdist would be an error in a checkout.
    """
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("")
    Path("mine/activations.py").write_text(
        "from prograde.accelerated.activations import relu, silu, tanh\n"
        "relu = relu._replace(jvp=lambda a, u: 2 * relu.vjp(a, u), difference=lambda a, u: 1 / 0)\n"
        "silu = silu._replace(jvp=lambda a, u: silu.vjp(a, u) * (1 + (a == 0)))\n"
        "ACTIVATIONS = {'relu': relu, 'silu': silu, 'tanh': tanh}\n"
    )
    one_file = itertools.chain(*(("--ignore-glob", f"/*/test_{other}*") for other in ("[!a]", "a[!c]")))
    chosen = "(value_and_derivatives or test_difference or at_zero) and (relu or silu or tanh or gelu)"
    code, out, err = checked("--twin", "mine", "-n", "0", "-k", chosen, *one_file, "--report", "found.html")
    assert code == 1, err
    assert re.search(r"activations.relu +refused +4 ", out), out
    assert re.search(r"activations.tanh +agreed +4 +\d\.\de-\d+ +\d\.\de-\d+ +tanh\.", out), out
    assert re.search(r"^not there in activations: .*gelu", out, re.MULTILINE), out
    assert "relu.jvp: off by" in out
    assert "relu.difference: ZeroDivisionError('division by zero'), test_difference" in out
    assert re.search(r"operands = \(\s*array\(\[\s*\[", out), out
    at_zero = re.search(r"activations.silu: refused.*?\n\n(from .*?\)\n)\n", out, flags=re.DOTALL)
    assert at_zero is not None, out
    monkeypatch.syspath_prepend(Path.cwd())
    with pytest.raises(AssertionError):
        exec(at_zero[1], {})
    assert "modules that are not there: all but activations" in out
    assert "<title>mine in float32 on cpu" in Path("found.html").read_text()
    code, _, err = checked("--twin", "mine", "--report", "found.html")
    assert code == 2
    assert "--report: 'found.html' is there already" in err


def test_check_refuses_a_package_without_any_module(checked: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = checked("--twin", "json")
    assert code == 2
    assert "'json' has none of the modules activations, losses" in err


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(log: Path, epochs: int) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > epochs) and time.monotonic() < deadline:
        time.sleep(0.1)


def assert_goes_on(word: str, stderr: str) -> None:
    """What a signal leaves: one line, the log, and a checkpoint to go on with; no temporary file."""
    assert stderr == f"prograde: {word}; the same command with --resume half goes on\n"
    assert lines(Path("out/log.jsonl.partial"))[1]["kind"] == "epoch"
    assert sorted(os.listdir()) == ["half", "out"]
    assert checkpoint.load("half")["history"]


SAVED = ["train", "foton", "--hidden", 8, "--output", "out", "--save", "half", "--epochs"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "word"), [
    (signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM"), (signal.SIGHUP, "ended by SIGHUP"),
])  # fmt: skip
def test_a_signal_ends_in_a_line(number: signal.Signals, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(*arguments: Any, on_epoch: Callable[[Epoch], None], **options: Any) -> History:
        return fit(*arguments, on_epoch=lambda epoch: (on_epoch(epoch), os.kill(os.getpid(), number)), **options)

    monkeypatch.setattr(runs, "fit", signalled)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # of whoever started the tests
    try:
        result = run(*SAVED, 4)
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)
    assert (result.exit_code, result.stdout) == (128 + number, "")
    assert_goes_on(word, result.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_is_ended_by_a_signal() -> None:
    process = started(*SAVED, 100000)
    wait_for(Path("out/log.jsonl.partial"), epochs=2)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=600)
    assert (process.returncode, stdout) == (128 + signal.SIGTERM, "")
    assert_goes_on("ended by SIGTERM", stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_pytorch_loads_ends_in_a_line() -> None:
    """PyTorch stands in for itself: a module that, where it is first imported, sends the signal."""
    Path("torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    paths = os.pathsep.join([os.getcwd(), environment()["PYTHONPATH"]])
    command = [*COMMAND, "--version"]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=600
    )
    signal.signal(signal.SIGINT, default)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "prograde: interrupted\n")


NEW_RULE = '"""A rule of one\'s own."""\n\nfrom .backprop import Backprop\n\n\nclass Mine(Backprop):\n    """It."""\n'


def changed_copy(changes: dict[str, tuple[str, str]]) -> Path:
    """A copy of the package: of each file a text, which is there, replaced by another."""
    copy = Path("namespace/prograde/accelerated")
    shutil.copytree(Path(accelerated.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in changes.items():
        text = (copy / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (copy / name).write_text(text.replace(old, new))
    return copy


def run_copy(*commands: str) -> str:
    """What the commands of `changed_copy` print, each with its exit code on a line after it."""
    script = (
        "import sys; from typer.testing import CliRunner; from prograde.accelerated.command_line.app import app\n"
        "for line in sys.stdin:\n"
        "    result = CliRunner().invoke(app, line.split())\n"
        "    print(result.output, f'exit {result.exit_code}', sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.abspath("namespace")}
    result = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(commands), env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def exit_codes(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("exit")]


def test_a_rule_is_one_file_and_one_entry_and_a_preset_one_entry() -> None:
    """By CONTRIBUTING's steps, in a copy; every command then knows them.

    A preset under a name of its own is trained; one of a rule that is in no other list is still there.
    """
    entry, preset, listed = '    "foton": Foton,\n', '    "foton": FOTON,\n', '    "pepita": Pepita,\n'
    own = '    "own": replace(FOTON, recipe=Recipe(hidden=(7,), epochs=1), digits={}),\n'
    copy = changed_copy({
        "rules/__init__.py": (entry, f'    "mine": Mine,\n{entry}'),
        "training/recipes.py": (preset, own + preset),
    })  # fmt: skip
    (copy / "rules/mine.py").write_text(NEW_RULE)
    names = (copy / "rules/__init__.py").read_text()
    assert listed in names
    (copy / "rules/__init__.py").write_text(f"from .mine import Mine\n{names.replace(listed, '')}")
    output = run_copy(
        "--help", "train --help", "train mine --epochs 1", "compare mine backprop --epochs 1 --seeds 1 --output out",
        "benchmark --rules mine --network 8-4-2 --steps 1 --batch 4", "costs --rules mine,backprop --steps 0",
        "train own --epochs 1", "train pepita --epochs 1", "rules own", "train min",
    )  # fmt: skip
    assert output.count("  mine ") == 4, output
    assert "Settings unless given: hidden 7, 1 epochs" in output
    assert "did you mean mine?" in output
    assert exit_codes(output) == ["exit 0"] * 9 + ["exit 2"]
