"""Every figure on the pages has its stored run, and is what that says."""

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples" / "experiments")
    return importlib.import_module("pages")


def test_pages_have_what_the_stored_runs_say(pages: ModuleType) -> None:
    assert pages.defects() == []
    markers = {figure.marker.removeprefix("runs: ") for figure in pages.shown()}
    assert pages.TABLES.keys() | pages.PICTURES.keys() <= markers, "made for no page"


def test_every_picture_is_drawn_from_stored_runs(pages: ModuleType, tmp_path: Path) -> None:
    """By the command that draws them all; the report's table takes little room, and has a row for each function."""
    folders = ROOT / "docs", ROOT / "examples" / "experiments"
    there = {picture for folder in folders for kind in ("png", "svg", "jpg") for picture in folder.glob(f"*.{kind}")}
    assert there == {pages.place(name) for name in pages.PICTURES}
    pages.PICTURES["docs/check.png"](tmp_path / "check.png")
    assert 10_000 < (tmp_path / "check.png").stat().st_size < 60_000
    found = pages.check_report.read(pages.check_report.kept())
    assert [v.name for v in found.of("refused")][:2] == ["foton.differences", "foton.error_projection"], "the mistakes"


def test_a_figure_without_its_run_is_found(pages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(pages, "PAGES", [page])
    table = pages.TABLES["rotations"]()
    picture = "![Curves](curves.png)\n"
    good = f"# Page\n\n<!-- runs: rotations -->\n{table}\n\n| option | default |\n| --- | --- |\n| `gamma` | 0.7 |\n"
    faults = {
        "": f"{good}\n<!-- no figures -->\n{picture}",
        "without a comment": good.replace("<!-- runs: rotations -->\n", ""),
        "that names their runs: runs: none": good.replace("runs: rotations", "runs: none"),
        "comment that names their runs: no stored run": good.replace("runs: rotations", "no stored run: an hour"),
        "that names their runs: | seed": f"{good}\n| seed | right |\n| --- | --- |\n| 0 | 97 |\n",
        "not the table rotations": good.replace(" 71.6 ± 0.5", " 71.6 ± 0.4"),
        "2: figures": f"# Page\n{picture}",
        "names their runs: runs: local_classifiers.png": f"<!-- runs: local_classifiers.png -->\n{picture}",
    }
    for expected, text in faults.items():
        page.write_text(text)
        found = pages.defects()
        assert len(found) == bool(expected), expected
        assert expected in "".join(found)


def test_what_is_not_run_has_what_it_would_take(pages: ModuleType) -> None:
    """Two runs of two epochs are left; those that are there took 30 and 90 seconds, and one on a GPU does not count."""
    not_run = pages.not_run
    runs = [{"seed": seed, "epochs": 2} for seed in range(5)]
    took = [({"seconds": 60.0}, 0), ({"seconds": 180.0}, 1), ({"seconds": 2.0, "device": "NVIDIA H200"}, 2)]
    there = [{"run": runs[seed], "accuracy": 1.0, "made": made} for made, seed in took]
    wanted = not_run.Wanted("", "", runs, there)
    assert not_run.takes(wanted) == "2 runs, 4 minutes"
    assert not_run.takes(wanted._replace(share=lambda run: 30.0)) == "2 runs, 2.0 hours"
    assert not_run.takes(wanted._replace(results=there[2:])) == "4 runs, no time known"
    assert not_run.takes(wanted._replace(runs=runs[:3])) == ""
    rows = [line.split("|")[1:-1] for line in not_run.table().splitlines()]
    assert all(cell.strip() for row in rows for cell in row)


def test_claims_have_runs_or_what_it_would_take(pages: ModuleType) -> None:
    claims = pages.claims
    assert len(claims.CLAIMS) > 25
    for claim in claims.CLAIMS:
        said, _, runs = claims.judged(claim)
        verdict = said.removesuffix(claim.but)
        assert verdict in claims.VERDICTS, claim
        assert claim.source, claim
        assert bool(runs) == (verdict not in ("not run", "out of reach")), claim
        assert (ROOT / runs).exists(), claim


def test_verdicts_follow_their_intervals(pages: ModuleType) -> None:
    """Of 0, 1 and 2 the mean is 1, and half of its interval 4.303 / sqrt 3 = 2.484."""
    claims = pages.claims
    gaps = [0.0, 1.0, 2.0]
    least = {-2.0: "confirmed", -1.0: "not decided", 3.0: "not decided", 4.0: "refuted"}
    assert {limit: claims.above(gaps, limit) for limit in least} == least
    assert [claims.above(few, -9.0) for few in ([], [1.0], [1.0, 1.0])] == ["not run", "not decided", "not decided"]
    near = {4.0: "confirmed", 3.0: "not decided"}
    assert {limit: claims.within(gaps, limit) for limit in near} == near
    assert [claims.within([sign * (9 + gap) for gap in gaps], 5.0) for sign in (-1, 1)] == ["refuted", "refuted"]
    cases = {
        "confirmed": ["confirmed", "confirmed", "not run"],
        "mixed": ["refuted", "confirmed", "not decided"],
        "refuted": ["refuted", "not decided"],
        "not decided": ["not decided", "not run"],
        "not run": ["not run"],
    }
    assert {verdict: claims.every(seen) for verdict, seen in cases.items()} == {verdict: verdict for verdict in cases}
    published = [{"accuracy": 98.0 + gap} for gap in (0.1, 0.2, 0.3)]
    assert [claims.reached(published, most, "").verdict for most in (97.0, 99.0)] == ["confirmed", "not decided"]
    assert claims.reached(published, 99.0, "", whole=True).verdict == "refuted"
    assert claims.told({"a": [1.0], "b": [1.0, 1.0], "c": gaps, "d": []}) == (
        "a +1.00 (one seed); b +1.00 [1.00, 1.00] (two seeds); c +1.00 [-1.48, 3.48]"
    )


def test_scores_are_timed_in_rounds(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = pages.claims
    runs = [{"run": {"classes": 100}, "seconds": {"local": [0.01, 0.01, 0.02], "batch": [0.5, 0.5, 1.0]}}]
    monkeypatch.setattr(claims.local_costs, "kept", lambda: runs)
    assert claims.speed_of_scores() == ("confirmed", "on a CPU 50 times [50, 50], over 3 rounds", "")
    runs[0]["seconds"]["batch"][2] = 0.2
    assert claims.speed_of_scores().verdict == "not decided"
    runs[0]["run"]["classes"] = 50
    assert claims.speed_of_scores().verdict == "not run"


def test_a_table_without_runs_says_so(pages: ModuleType) -> None:
    assert pages.local_costs.step_table([]).splitlines()[2:] == ["| not run |  |  |  |  |"]


def test_runs_by_the_settings_of_a_rule_are_as_long_as_these(pages: ModuleType) -> None:
    """A run names the settings alone that are not the rule's own: other presets want other runs."""
    for result in pages.stored("mnist/mnist"):
        assert len(result["curve"]) == pages.mnist.recipe_of(result["run"]).epochs, result["run"]


def test_remedies_are_compared_where_both_have_run(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every remedy counts; a layer of one that does not separate has no ratio."""
    claims = pages.claims
    runs: dict[str, dict[int, list[float]]] = {name: {} for name in (*claims.REMEDIES, "cumulative, gamma 1")}
    monkeypatch.setattr(claims, "separations", runs.__getitem__)
    assert claims.remedies_separate().verdict == "not run"
    runs["per-block"] = {seed: [1.0, 8.0, 8.0, 8.0 + seed] for seed in range(4)}
    assert claims.remedies_separate().verdict == "not run"
    runs["cumulative, gamma 1"] = {seed: [1.0, 1.0, 1.0, 0.0] for seed in range(3)}
    found = claims.remedies_separate()
    assert (found.verdict, found.figure.split(": ")[1]) == ("confirmed", "each layer alone 8, 8, –")
    runs["depth-scaled"] = {seed: [1.0, 2.0, 2.0, 2.0] for seed in range(3)}
    assert claims.remedies_separate().verdict == "mixed"
    runs["per-block"][0][1] = -1.0
    assert "each layer alone –, 8, –" in claims.remedies_separate().figure


BEFORE_VERSIONS = {"any-model": 15, "cifar10-jpeg": 4, "fashion-mnist": 4, "mnist": 20, "synthetic": 120}
BEFORE_VERSIONS |= {"two-streams": 3, "which-rule": 1128}
"""Runs that were stored before their day, time and versions were noted."""


def test_stored_runs_say_what_made_them(pages: ModuleType) -> None:
    folder = importlib.import_module("resumable").RESULTS
    without = dict.fromkeys(BEFORE_VERSIONS, 0)
    for log in folder.glob("*/*.jsonl"):
        assert log.stat().st_size < 500_000, log
        for line in log.read_text().splitlines():
            run = json.loads(line)
            assert "seed" in run["run"], log
            if "made" not in run:
                without[log.parent.name] += 1
            else:
                assert {"day", "seconds", "prograde", "torch", "python"} <= run["made"].keys()
    assert without == BEFORE_VERSIONS


def test_no_run_is_stored_twice(pages: ModuleType) -> None:
    for log in importlib.import_module("resumable").RESULTS.glob("*/*.jsonl"):
        runs = [json.dumps(json.loads(line)["run"], sort_keys=True) for line in log.read_text().splitlines()]
        assert len(runs) == len(set(runs)), log


def test_processes_that_share_a_file_lose_no_run(pages: ModuleType, tmp_path: Path) -> None:
    """Another one adds a run while this one trains, and leaves a line that was cut off."""
    resumable: Any = importlib.import_module("resumable")
    log = tmp_path / "runs" / "log.jsonl"
    runs = [{"seed": seed} for seed in range(4)]
    trained = []

    def train(run: dict[str, int]) -> dict[str, float]:
        trained.append(run["seed"])
        if run["seed"] == 0:
            resumable.add({"run": runs[1], "accuracy": 1.0}, log)
        if run["seed"] == 2:
            resumable.add({"run": runs[2], "accuracy": 2.0}, log)
            with log.open("a") as file:
                file.write('{"run": {"se')
        return {"accuracy": 9.0}

    results = resumable.run_all(runs, train, log)
    assert trained == [0, 2, 3]
    assert [(r["run"]["seed"], r["accuracy"]) for r in results] == [(1, 1.0), (0, 9.0), (2, 2.0), (3, 9.0)]
    assert resumable.finished(log) == results
    assert log.read_text().count("\n") == 4


def test_processes_add_at_the_same_time(pages: ModuleType, tmp_path: Path) -> None:
    resumable: Any = importlib.import_module("resumable")
    log = tmp_path / "log.jsonl"
    long = "x" * 20_000  # more than a buffer
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: resumable.add({"run": {"seed": seed}, "long": long}, log), range(32)))
    assert sorted(result["run"]["seed"] for result in resumable.finished(log)) == list(range(32))


def test_intervals_are_of_paired_runs(pages: ModuleType) -> None:
    """Student's t of two differences with mean 2 and standard deviation sqrt 2: 12.706 a half."""
    resumable: Any = importlib.import_module("resumable")

    def runs(accuracies: dict[int, float | None]) -> list[dict[str, Any]]:
        return [{"run": {"seed": seed}, "accuracy": accuracy} for seed, accuracy in accuracies.items()]

    gaps = resumable.paired(runs({0: 91.0, 2: 93.0, 1: 50.0}), runs({2: 90.0, 0: 90.0, 3: None}))
    assert gaps == [1.0, 3.0]
    of_gpu = [result | {"made": {"device": "NVIDIA H200"}} for result in runs({0: 90.0})]
    assert resumable.paired(runs({0: 91.0, 1: 92.0}), of_gpu + runs({1: 90.0})) == [2.0], "not across devices"
    assert resumable.interval(gaps) == "+2.00 [-10.71, 14.71]"
    assert resumable.interval([-0.5], 1) == "-0.5 (one seed)"
    assert resumable.interval([]) == ""
