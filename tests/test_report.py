"""The page of `prograde report`: whole by itself, well formed, and with the numbers that the log has."""

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from prograde.accelerated.command_line import charts, html_report
from prograde.accelerated.command_line.app import app
from prograde.accelerated.modules import OrthogonalConv2d
from prograde.accelerated.rules import Backprop
from prograde.accelerated.training import UserError, confusion, first_filters, load

EMPTY = {"meta", "img", "line", "polyline", "polygon", "circle", "rect", "br", "path"}
"""Elements that have no content."""


class Page(HTMLParser):
    """Elements, their attributes and texts; fails where an element is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closed"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for found, attributes in self.elements if found == tag]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="prograde")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of results, of two rules from two seeds and of one rule in a smaller network."""
    folder = tmp_path_factory.mktemp("results")
    common = "--epochs", "3", "--hidden", "12-8"
    for name, command in {
        "both": ("compare", "backprop", "foton", "--seeds", "2", *common),
        "smaller": ("train", "foton", "--epochs", "2", "--hidden", "8"),
    }.items():
        result = run(*command, "--output", folder / name)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def written(*arguments: object) -> Page:
    result = run("report", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "report.html\n"
    return Page(Path("report.html").read_text(encoding="utf-8"))


def addresses(text: str) -> Iterator[str]:
    """Whatever a browser would fetch, or go to."""
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
            if attributes.get(name):
                yield str(attributes[name])
    yield from re.findall(r"url\(\s*['\"]?([^)'\"]*)", text)
    yield from re.findall(r"@import[^;]*", text)
    yield from re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"base64,[\w+/=]*", "", text))


def test_the_page_needs_no_other(results: Path) -> None:
    page = written(results / "both", results / "smaller")
    found = list(addresses(Path("report.html").read_text()))
    assert found, "there are pictures"
    assert all(address.startswith("data:image/png;base64,") for address in found)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    assert "viewport" in page.attributes("meta", "name")
    assert all(page.attributes("svg", "role")[1:]) or page.attributes("svg", "aria-hidden")
    assert all(page.attributes("img", "alt"))


def test_its_numbers_are_those_of_the_log(results: Path) -> None:
    page = written(results / "both")
    log = records(results / "both")
    for rule in ("backprop", "foton"):
        ends = [record for record in log if record["kind"] == "run" and record["rule"] == rule]
        test = [100 * end["test_accuracy"] for end in ends]
        assert f"{np.mean(test):.2f} ± {np.std(test, ddof=1):.2f}" in page.texts
        for end in ends:
            counts = np.array(end["confusion"])
            assert counts.trace() / counts.sum() == pytest.approx(end["test_accuracy"]), (
                "the matrix of the same weights"
            )
        wrong = sum(np.array(end["confusion"]).sum() - np.trace(end["confusion"]) for end in ends)
        assert f"{wrong:,} of 720 wrong" in page.texts
    assert page.texts.count("24 of 12, seed 0") == 0
    assert page.texts.count("12 of 12, seed 0") == 2
    for title in (
        "Test accuracy",
        "Validation error",
        "Loss",
        "Layers",
        "Confusion",
        "First-layer filters",
        "Settings",
    ):
        assert title in page.texts
    assert page.texts.count("defect") == 1 + 1, "in the note, and of FOTON alone"


def test_curves_end_where_the_log_does(results: Path) -> None:
    job = html_report.read(results / "both").jobs[1]
    epochs = [record for record in records(results / "both") if record["kind"] == "epoch" and record["rule"] == "foton"]
    line = job.line(lambda epoch: epoch["loss"])
    last = [record["loss"] for record in epochs if record["epoch"] == 3]
    assert [*line.x] == [1, 2, 3]
    assert (line.y[-1], line.low[-1], line.high[-1]) == pytest.approx((sum(last) / 2, min(last), max(last)))


def test_runs_are_told_apart(results: Path) -> None:
    page = written(results / "both", results / "smaller")
    for label in ("backprop", "foton · 12-8", "foton · 8"):
        assert page.texts.count(label) > 4, label
    assert not any("foton · 12-8 · both" in text for text in page.texts)
    same = written(*[results / "smaller"] * 3, "--overwrite")
    assert {"foton · smaller", "foton · smaller (2)", "foton · smaller (3)"} <= set(same.texts)


def test_networks_by_name(tmp_path: Path) -> None:
    """Images of 16 x 16 pixels: of a LeNet the filters are the kernels."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (generator.random((60, 16, 16), dtype=np.float32) + labels[:, None, None]) / 3
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    where = "--data", tmp_path / "images.npz", "--output", tmp_path / "lenet"
    trained = run("compare", "mono-forward", "backprop", "--model", "lenet", "--epochs", "2", "--seeds", "1", *where)
    assert trained.exit_code == 0, trained.output
    page = written(tmp_path / "lenet")
    assert page.texts.count("lenet") >= 2
    assert sum("of 6, seed 0" in text for text in page.texts) == 2
    assert "1.00" in page.texts, "backprop's own time"


def changed(folder: Path, name: str, change: Any) -> Path:
    """A copy of the log with other records."""
    Path(name).mkdir()
    lines = [json.dumps(record) + "\n" for record in change(records(folder))]
    (Path(name) / "log.jsonl").write_text("".join(lines))
    return Path(name)


def test_other_data_are_a_part_of_their_own(results: Path) -> None:
    def elsewhere(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [found[0] | {"digest": "0" * 64, "data": "letters"}, *found[1:]]

    page = written(results / "both", changed(results / "smaller", "letters", elsewhere))
    assert page.texts.count("Test accuracy") == 2
    assert "backprop, foton on digits and letters" in page.texts


def test_what_is_unfinished_or_broke_down_is_said(results: Path) -> None:
    cut = written(changed(results / "both", "cut", lambda found: found[:3]))
    assert "interrupted: seed 0" in cut.texts
    assert "Validation error" in cut.texts

    def early(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The second seed of foton breaks down in its second epoch, the first seed of backprop in its first."""
        breaking = {"kind": "run", "hidden": "12-8", "error": "the loss is nan"}
        kept = [
            record
            for record in found
            if record["kind"] != "result"
            and (record.get("rule"), record.get("seed")) != ("backprop", 0)
            and not (record.get("rule") == "foton" and record["seed"] == 1 and record.get("epoch") != 1)
        ]
        return [*kept, breaking | {"rule": "backprop", "seed": 0}, breaking | {"rule": "foton", "seed": 1}]

    def never(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ends = {"kind": "run", "hidden": "12-8", "error": "the loss is nan", "rule": "foton", "seed": 0}
        return [*(record for record in found if record.get("rule") != "foton"), ends]

    page = written(changed(results / "both", "early", early), "--overwrite")
    assert {"diverged: seed 0", "diverged: seed 1"} <= set(page.texts)
    job = next(job for job in html_report.read(Path("early")).jobs if job.rule == "foton")
    assert len(job.line(lambda epoch: epoch["loss"]).x) == 3, "the whole of the seed that has it"
    assert "diverged: seed 0" in written(changed(results / "both", "never", never), "--overwrite").texts

    def broken(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ends = {"error": "the loss is nan", "kind": "run", "rule": "foton", "hidden": "8", "seed": 0}
        return [*found[:2], ends]

    page = written(changed(results / "smaller", "broken", broken), "--overwrite")
    assert "diverged: seed 0" in page.texts
    assert "Confusion" not in page.texts


@pytest.mark.parametrize("accuracy", [1.0, 0.0])
def test_a_validation_without_or_with_nothing_but_errors(results: Path, accuracy: float) -> None:
    """On few samples, of which half a one is more than any error."""

    def few(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = found[0] | {"samples": {"train": 9, "validation": 1, "test": 9}}
        return [first, *(record | {"validation_accuracy": accuracy} for record in found[1:])]

    page = written(changed(results / "both", "few", few))
    assert f"{100 * (1 - accuracy):.2f} % at best" in page.texts
    heights = [points.split()[-1].split(",")[1] for points in page.attributes("polyline", "points") if points]
    assert all(0 <= float(height) <= 170 for height in heights)


def test_names_of_others_are_text(results: Path) -> None:
    """Whoever made the data chose these names, and must not write on the page."""
    hostile = '<script src="https://example.org/x.js"></script><img src=x onerror="alert(1)">'

    def named(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        settings = found[0] | {"classes": [hostile] * 10, "data": hostile, "device_name": hostile, "digest": hostile}
        settings |= {"threads": hostile, "versions": {hostile: hostile}, "device": hostile, "dtype": hostile}
        settings["jobs"] = [job | {"options": {hostile: hostile}, "optimizer": hostile} for job in settings["jobs"]]
        others = [record | {"rule": hostile} if "rule" in record else record for record in found[1:]]
        settings["jobs"] = [job | {"rule": hostile} for job in settings["jobs"]]
        renamed = json.loads(json.dumps(others).replace('"0": {"alignment"', json.dumps(hostile) + ': {"alignment"'))
        return [settings, *renamed]

    page = written(changed(results / "smaller", "hostile", named))
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(source and source.startswith("data:") for source in page.attributes("img", "src"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert any(hostile in text for text in page.texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RUN"]),
        (["nowhere"], ["RUN: 'nowhere' has no log.jsonl", "train or compare"]),
        (["damaged"], ["damaged/log.jsonl' is no log of prograde"]),
        (["foreign"], ["RUN: the log in 'foreign' is none of prograde"]),
        (["older"], ["RUN: the log in 'older' is none of prograde", "samples"]),
        (["of_words", "--overwrite"], ["RUN: a log is none of prograde"]),
        (["deep"], ["deep/log.jsonl' is no log of prograde"]),
        (["empty"], ["'empty' has no finished epoch"]),
        (["whole"], ["--output: 'report.html' is there already", "--overwrite"]),
        (["whole", "--output", "nowhere/page.html"], ["nowhere/page.html", "is not there"]),
        (["whole", "--output", ".", "--overwrite"], ["'.' is a folder"]),
    ],
)
def test_mistakes_end_in_one_line(results: Path, arguments: list[str], words: list[str]) -> None:
    for name in ("damaged", "foreign", "empty", "deep"):
        Path(name).mkdir()
    Path("deep/log.jsonl").write_text("[" * 100_000 + "\n")
    worded = [record | {"seconds": "1"} if "seconds" in record else record for record in records(results / "smaller")]
    changed(results / "smaller", "of_words", lambda found: worded)
    Path("damaged/log.jsonl").write_text("{\n")
    Path("foreign/log.jsonl").write_text('{"kind": "settings"}\n{"kind": "epoch"}\n')
    changed(results / "smaller", "settings", lambda found: found[:1])
    os.replace("settings/log.jsonl", "empty/log.jsonl")
    changed(results / "smaller", "whole", lambda found: found)
    without = [{name: of for name, of in r.items() if name != "samples"} for r in records(results / "smaller")[1:]]
    changed(results / "smaller", "older", lambda found: [found[0], *without])
    Path("report.html").write_text("mine")
    result = run("report", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("prograde: error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert Path("report.html").read_text() == "mine"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_ticks_are_few_and_round(logarithmic: bool) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        low, high = sorted(10 ** generator.uniform(-6, 6, 2))
        axis = charts.axis_of([low, high], logarithmic)
        ticks = axis.ticks(5)
        assert 2 <= len(ticks) <= 5, (axis, ticks)
        assert all(axis.low <= tick <= axis.high for tick in ticks)
        assert ticks == sorted(set(ticks))
        for tick in ticks:  # two digits, but for an axis far from 0
            assert logarithmic or float(f"{(tick / (ticks[1] - ticks[0])):.6g}").is_integer()
            assert not logarithmic or len(f"{tick:e}".split("e")[0].rstrip("0").rstrip(".").replace(".", "")) <= 3
        assert axis.place(axis.low) == 0
        assert axis.place(axis.high) == pytest.approx(1)
        assert axis.place(high) > axis.place(low)


def test_numbers_at_an_axis() -> None:
    written = {0: "0", 0.5: "0.5", -20: "−20", 1e13: "10¹³", 2e-6: "2·10⁻⁶", -1e5: "−10⁵", 0.001: "0.001", 1e4: "10000"}
    assert {value: charts.number(value) for value in written} == written


@pytest.mark.parametrize("values", [[], [None, float("nan")], [3.0], [0.0, 0.0], [-2.0, -2.0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_an_axis_for_next_to_nothing(values: list[float | None], logarithmic: bool) -> None:
    axis = charts.axis_of(values, logarithmic)
    assert axis.low < axis.high
    assert all(0 <= axis.place(tick) <= 1 for tick in axis.ticks(5))


def test_a_line_is_broken_where_values_are_missing() -> None:
    line = charts.Line([1, 2, 3, 4, 5, 6], [1, 2, None, 4, float("nan"), 6], label="own")
    page = Page(charts.panel([line], charts.axis_of(line.y), name="broken"))
    tags = [tag for tag, attributes in page.elements if attributes.get("class") == "line"]
    assert tags == ["polyline", "circle", "circle", "text"]
    assert page.texts[-1] == "own"
    Page(charts.panel([charts.Line([1], [None])], charts.axis_of([]), name="nothing"))


def test_pictures_are_what_they_are_of() -> None:
    """A PNG as another program reads it, and the filters of a layer as logged."""
    generator = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 3)):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(np.array(Image.open(io.BytesIO(charts.png(pixels)))), pixels)


def test_the_filters_of_the_log_are_the_weights(results: Path) -> None:
    end = next(record for record in records(results / "smaller") if record["kind"] == "run")
    shape, values = end["filters"]["shape"], end["filters"]["values"]
    assert (shape, len(values), end["filters"]["of"]) == ([1, 8, 8], 8, 8)
    for text in values:
        pixels = np.frombuffer(base64.b64decode(text), dtype=np.uint8).astype(int)
        assert max(pixels.max() - 128, 128 - pixels.min()) == 127, "each on a scale of its own"


def test_first_filters_are_kernels_or_images() -> None:
    def found(*layers: nn.Module, size: tuple[int, int, int] = (3, 4, 4)) -> Any:
        return first_filters(Backprop(nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))), *size)

    dense = nn.Linear(48, 5)
    rule = Backprop(nn.Sequential(dense, nn.ReLU(), nn.Linear(5, 2)))
    filters = first_filters(rule, 3, 4, 4)
    assert filters is not None
    assert torch.equal(filters, dense.weight.view(5, 3, 4, 4))
    assert first_filters(rule, 1, 7, 7) is None
    convolution = nn.Conv2d(1, 6, 3)
    rule = Backprop(nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)))
    assert torch.equal(first_filters(rule, 1, 4, 4), convolution.weight)  # type: ignore[arg-type]
    orthogonal = OrthogonalConv2d(3, 4, 2)
    rule = Backprop(nn.Sequential(orthogonal, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)))
    assert torch.equal(first_filters(rule, 3, 4, 4), orthogonal.kernel())  # type: ignore[arg-type]
    rule = Backprop(nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)))
    assert first_filters(rule, 5, 4, 4) is None


def test_the_confusion_by_hand() -> None:
    """A model that guesses the column of x that is 1."""
    rule = Backprop(nn.Sequential(nn.Linear(3, 3)))
    with torch.no_grad():
        rule.model[0].weight.copy_(torch.eye(3))
        rule.model[0].bias.zero_()
    x = torch.eye(3)[[0, 0, 1, 2, 2]]
    y = torch.tensor([0, 1, 1, 0, 2])
    assert confusion(rule, [(x[:2], y[:2]), (x[2:], y[2:])]).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert rule.training
    with pytest.raises(UserError, match=r"data: labels 1\.\.3, expected 0\.\.2"):
        confusion(rule, [(x, y + 1)])
    choosy = Backprop(rule.model, loss=nn.CrossEntropyLoss(ignore_index=-1))
    assert confusion(choosy, [(x, (y - 1, torch.ones(5)))]).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    data = load("digits")
    trained = Backprop(nn.Sequential(nn.Linear(64, 10)))
    counts = confusion(trained, [tuple(data.test)])
    assert counts.sum(dim=1).equal(data.test.labels.bincount(minlength=10))
