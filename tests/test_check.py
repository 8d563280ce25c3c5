"""`prograde check`: what it makes of the records of tests, and a wrong implementation from end to end."""

import json
import re
import sys
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prograde import reference
from prograde.accelerated.command_line.verdicts import checked, read
from prograde.equivalence_tests import common_checks, test_foton
from prograde.equivalence_tests.results import Results, explained
from prograde.equivalence_tests.sides import TwinSide
from prograde.equivalence_tests.tolerance import Comparison

START = {
    "modules": ["activations", "losses", "foton"],
    "present": ["activations", "foton"],
    "functions": {"foton.updates": True, "foton.differences": True, "foton.idle": True, "foton.missing": False},
}


def compared(name: str, *functions: str, error: float = 1e-8, wrong: str = "", example: str | None = None) -> Any:
    limit = 0.0 if error == 0 else 1e-7
    found = {"name": name, "functions": functions, "path": f"{name}[0]", "error": error, "limit": limit}
    return {**found, "wrong": wrong, "example": example, "count": 3}


def noted(
    test: str, *comparisons: Any, used: tuple[str, ...] = (), outcome: str = "passed", said: str = "", **more: Any
) -> Any:
    used = used or tuple(dict.fromkeys(name for comparison in comparisons for name in comparison["functions"]))
    return {
        "test": test,
        "when": "call",
        "outcome": outcome,
        "said": said,
        "used": used,
        "compared": comparisons,
        **more,
    }


RECORDS = [
    START,
    {"tests": 10},
    noted("test_relu", compared("relu.jvp", "activations.relu", error=2.0, wrong="jvp: off", example="long code"),
           compared("relu.vjp", "activations.relu", error=1.0, wrong="vjp: off", example="code"), outcome="failed"),
    noted("test_updates", compared("updates", "activations.relu", "foton.updates", error=5e-8)),
    noted("test_closer", compared("foton.updates", "foton.updates", error=1e-8)),
    noted("test_part", compared("differences", "foton.differences", error=9.0, wrong="off"), outcome="failed"),
    noted("test_joint", used=("foton.updates", "foton.differences"), outcome="failed", said="no ascent"),
    noted("test_theorem[reference]"),
    noted("test_sizes", used=("foton.idle",), outcome="skipped", said="accepts what is refused: x: shape"),
    noted("test_gelu", used=("activations.gelu",), outcome="skipped", said="not there: activations.gelu"),
    noted("test_chain", used=("activations.silu", "foton.updates")),
    noted("test_rules", outcome="failed", said="broken"),
]  # fmt: skip


def test_records_become_a_table() -> None:
    """Every wrong function is named; what several took part in counts against the one that is wrong by itself."""
    found = read("mine in float32 on cpu", RECORDS)
    assert {verdict.name: verdict.outcome for verdict in found.functions} == {
        "activations.relu": "refused",
        "activations.gelu": "not there",
        "activations.silu": "not tested",
        "foton.updates": "agreed",
        "foton.differences": "refused",
        "foton.idle": "not tested",
        "foton.missing": "not there",
    }
    relu, updates, differences = (verdict for verdict in found.functions if verdict.where)
    assert relu.cells == ("activations.relu", "refused", "1", "2.0e+00", "1.0e-07", "relu.jvp[0], test_relu")
    assert relu.wrong == ["jvp: off, test_relu", "vjp: off, test_relu"]
    assert relu.example == "code", "the shortest"
    silu = next(verdict for verdict in found.functions if verdict.name == "activations.silu")
    assert silu.cells == ("activations.silu", "not tested", "", "", "", "within foton.updates")
    assert updates.cells[2:] == ("4", "5.0e-08", "1.0e-07", "updates[0], test_updates"), "the nearest to its bound"
    assert differences.wrong == ["off, test_part", "no ascent, test_joint"]
    assert (found.tests, found.others, found.exit_code, found.absent) == (6, 1, 1, ["losses"])
    assert found.summary == ("mine in float32 on cpu: 1 agreed, 2 refused, 2 not there, 2 not tested, in 6 tests of it")
    assert found.table().columns[0]._cells == [
        "activations.relu", "activations.silu", "foton.updates", "foton.differences", "foton.idle",
    ]  # fmt: skip
    assert "not there in activations: gelu\nnot there in foton: missing\n" in found.text(), "each module in a line"
    remarks = "\n".join(found.remarks)
    assert "not there: losses" in remarks
    assert "foton.idle accepts what is refused: x: shape" in remarks
    assert "failed, though nothing of the implementation is in it: broken, test_rules" in remarks


@pytest.mark.parametrize(("failing", "named"), [
    (compared("parts", "foton.updates", "foton.differences", error=1.0, wrong="off"), {"updates", "differences"}),
    (compared("foton.updates", "foton.updates", "foton.differences", error=1.0, wrong="off"), {"updates"}),
    (compared("differences", "foton.updates", "foton.differences", error=0.0, wrong="off"), {"differences"}),
])  # fmt: skip
def test_who_is_named(failing: Any, named: set[str]) -> None:
    found = read("mine", [START, noted("test", failing, outcome="failed")])
    assert {v.name.partition(".")[2] for v in found.functions if v.outcome == "refused"} == named


def test_a_property_has_its_example_where_no_comparison_has() -> None:
    joint = noted("test_sum", used=("foton.updates", "foton.idle"), outcome="failed", said="no sum", example="sum")
    own = compared("updates", "foton.updates", error=9.0, wrong="off", example="longer code")
    assert [v.example for v in read("mine", [START, joint]).of("refused")] == ["sum", "sum"]
    assert [v.example for v in read("mine", [START, joint, noted("test", own)]).of("refused")] == ["longer code"]


def test_what_is_there_under_one_of_two_names_is_tested() -> None:
    """As an entry of a table, and not as an attribute of the module."""
    lacking = noted("test_a", used=("activations.relu",), outcome="skipped", said="not there: activations.relu")
    (relu,) = read("mine", [{**START, "functions": {}}, lacking, noted("test_b", used=("activations.relu",))]).functions
    lacks = "properties alone; not there: activations.relu"
    assert relu.cells == ("activations.relu", "agreed", "1", "", "", lacks), "and no comparison"


def test_what_is_not_there_is_folded() -> None:
    """Modules of which nothing is there stand in one line, named by those that are there where these are fewer."""
    functions = {"foton.updates": True, "foton.missing": False, "losses.one_hot": False, "losses.huber": False}
    start = {"modules": ["losses", "foton", "ftp", "pepita"], "present": ["losses", "foton"], "functions": functions}
    found = read("mine", [start, noted("test", compared("updates", "foton.updates"))])
    lines = ["not there in foton: missing", "modules that are not there: all but foton"]
    assert found.remarks == lines
    assert found.page().count("not there") == 3, "the summary's too"
    assert {f["name"] for f in found.json()["functions"]} == functions.keys(), "as data all are told"
    assert (found.json()["absent"], found.json()["present"]) == (["ftp", "pepita"], ["losses", "foton"])
    several = {**start, "present": ["losses", "foton", "ftp"], "functions": {"foton.updates": True}}
    assert read("mine", [several]).remarks == ["modules that are not there: pepita"]


def test_exit_codes() -> None:
    right, own = noted("test", compared("updates", "foton.updates", error=0.0)), read
    assert own("mine", [START, right]).exit_code == 0
    assert own("mine", [START, right]).functions[0].cells[3:5] == ("exact", "exact")
    assert own("mine", [START, noted("test[reference]")]).exit_code == 2, "nothing tested"
    assert own("mine", [START, right, noted("rules", outcome="failed")]).exit_code == 1


def wrong(kind: int) -> None:
    found, expected = np.array([1.0, 2.0]), np.array([1.0, 2.5])
    if kind == 0:
        assert (kind + 1, 1) == (0, kind)
    elif kind == 1:
        assert np.array_equal(found, expected), "hits of parts"
    elif kind == 2:
        assert np.allclose(found.sum(), 1, atol=4e-7)
    elif kind == 3:
        assert found.max() <= 1.5, "defect"
    elif kind == 4:
        assert not np.allclose(found, found), "moved"
    elif kind == 5:
        assert kind == 3, "kind: 5, expected 3"
    elif kind == 6:
        assert np.array_equal(np.zeros((90, 9)), expected), "long"
    else:
        raise ValueError("shapes\nand more")


@pytest.mark.parametrize(("kind", "said"), [
    (0, "(1, 1), expected (0, 0)"),
    (1, "hits of parts: array([1.0, 2.0]), expected array([1.0, 2.5])"),
    (2, "3.0, expected 1"),
    (3, "defect: 2.0, expected <= 1.5"),
    (4, "moved: allclose(array([1., 2.]), array([1., 2.]))"),
    (5, "kind: 5, expected 3"),
    (7, "shapes"),
])  # fmt: skip
def test_a_failed_assertion_says_what_came_and_what_was_expected(kind: int, said: str) -> None:
    with pytest.raises((AssertionError, ValueError)) as error:
        wrong(kind)
    assert explained(str(error.value)) == said


def test_long_arrays_are_cut() -> None:
    with pytest.raises(AssertionError) as error:
        wrong(6)
    said = explained(str(error.value))
    assert said.startswith("long: not array_equal(array([[0., 0., 0.,")
    assert len(said) < 210
    assert "\n" not in said


@settings(report_multiple_bugs=False)
@given(depth=st.integers(1, 5))
def sums(twin: TwinSide, compare: Comparison, depth: int) -> None:
    scores = np.arange(1.0, 2 * depth + 1).reshape(depth, 1, 2)
    compare(twin, "total", lambda side, s: side.aggregation.total(s), scores)
    compare(twin, "range_total", lambda side, s: side.aggregation.range_total(s, 0, depth - 1), scores)
    compare(twin, "last", lambda side, s: side.aggregation.last(s), scores)


def test_one_that_fails_hides_no_other_of_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over layers is wrong for every example, so that the smallest has one layer; a range's then is right."""

    def range_total(scores: Any, first: int, last: int) -> Any:
        return reference.aggregation.range_total(scores, first, max(last - 1, first))

    made: Any = ModuleType("made")
    functions = {"total": lambda scores: 2 * scores.sum(axis=0), "range_total": range_total}
    made.aggregation = SimpleNamespace(**{**vars(reference.aggregation), **functions})
    made.from_numpy = np.asarray
    monkeypatch.setitem(sys.modules, "made", made)
    item: Any = SimpleNamespace(
        obj=sums,
        funcargs={"twin": TwinSide("made", "cpu", "float32"), "compare": Comparison()},
        user_properties=[],
        _fixtureinfo=SimpleNamespace(argnames=("twin", "compare")),
    )
    call = Results.pytest_pyfunc_call(Results.__new__(Results), item)
    next(call)
    with pytest.raises(AssertionError, match="total: off by") as error:
        item.obj(**item.funcargs)
    with pytest.raises(AssertionError):
        call.throw(error.value)
    compared = json.loads(item.user_properties[0][1])["compared"]
    assert {outcome["name"]: bool(outcome["wrong"]) for outcome in compared} == {
        "total": True,
        "range_total": True,
        "last": False,
    }


class Skipped(BaseException):
    pass


def agrees(rule: str) -> None:
    assert rule == "made of the rule"


def skips(rule: str) -> None:
    raise Skipped("it has no step")


def fails(rule: str) -> None:
    raise AssertionError("another gradient\nand more")


def breaks(rule: str) -> None:
    raise ValueError("nothing")


def test_the_common_checks_of_a_rule() -> None:
    places: list[str] = []
    suite = SimpleNamespace(
        on=lambda device: places.append(device) or nullcontext(),
        CHECKS={"a": agrees, "b": skips, "c": fails, "d": breaks},
        as_example=lambda rule: f"made of the {rule}",
        Skipped=Skipped,
    )
    found = checked("mine:Rule on cpu", suite, "rule", "cpu")
    assert [verdict.outcome for verdict in found.functions] == ["agreed", "not tested", "refused", "refused"]
    assert [verdict.wrong for verdict in found.of("refused")] == [["another gradient"], ["ValueError('nothing')"]]
    assert (found.functions[1].skipped, found.exit_code, places) == ("it has no step", 1, ["cpu"])
    assert found.remarks == []


def test_the_rule_of_the_page_is_accepted() -> None:
    page = (Path(__file__).parent.parent / "docs" / "check.md").read_text()
    (program,) = re.findall(r"^```python\n(from torch import nn\n.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "rules"}
    exec(program, names)
    found = checked("rules:MyRule on cpu", common_checks, names["MyRule"], "cpu")
    assert not found.of("refused"), found.text()
    assert len(found.of("agreed")) == 9, found.text()


def test_reports_are_whole() -> None:
    found = read(
        "mine <in> float32", [*RECORDS, noted("t", compared("x", "foton.idle", error=float("inf"), wrong="<"))]
    )
    data = json.loads(json.dumps(found.json(), allow_nan=False))
    assert [function["outcome"] for function in data["functions"]].count("refused") == 3
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(found.page())
    assert tags.count("tr") == 1 + len(found.functions) - len(found.of("not there")), "these stand below the table"
    assert "mine &lt;in&gt; float32" in found.page()
    assert "<pre>code</pre>" in found.page()
    assert "td:last-child{white-space:normal" in found.page(), "a long name of a test goes on in the next line"
    assert not {"script", "link", "img"} & set(tags), "needs no other file"


def test_a_twin_in_jax_agrees_and_a_mistake_in_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    twin = TwinSide("jax_twin", "cpu", "float32")
    linear = test_foton.linear_case([7, 6, 5, 4])
    case = linear._replace(dense=linear.dense._replace(activations=("tanh", "tanh", "identity")))
    Comparison()(twin, "foton.updates", test_foton.foton_updates, *case)
    right = twin.found("foton").updates
    monkeypatch.setattr(twin.found("foton"), "updates", lambda layers, x, labels: right(layers, -x, labels))
    with pytest.raises(AssertionError, match=r"foton\.updates\[0\]\[0\]: off by"):
        Comparison()(twin, "foton.updates", test_foton.foton_updates, *case)
