"""What the plugin of the tests selects, draws and reports."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prograde.equivalence_tests import plugin

TESTS = """
import pytest
from hypothesis import given, strategies as st
from prograde.equivalence_tests.strategies import BATCHES, NETWORK_ACTIVATIONS, WIDTHS, KinkDistance

drawn = []

@given(st.integers(0, 10**9))
def test_draws(number):
    drawn.append(number)

def test_prints_them():
    print("drawn", drawn)

def test_of_a_precision(twin):
    print("shapes", len(WIDTHS) * len(BATCHES))

@pytest.fixture
def found(twin):
    found = []
    yield found
    print("found", twin.dtype, len(found), KinkDistance.size, "relu" in NETWORK_ACTIVATIONS)

@pytest.mark.smoke
@given(number=st.integers(0, 10**9))
def test_quick(twin, found, number):
    found.append(number)

@pytest.mark.smoke
def test_theorem(side):
    pass

@pytest.mark.smoke
@pytest.mark.slow
def test_slow(twin):
    pass

@pytest.mark.nightly
def test_long(twin):
    pass

def test_undetermined(twin):
    raise RuntimeError("median does not have a deterministic implementation, but you set it")

def test_wrong(twin):
    raise RuntimeError("shapes")
"""


THEOREM = {"theorem[reference]", "theorem[twin]"}

EACH_IN_A_FORK = """
import os, sys, pytest
from prograde.equivalence_tests import plugin

for number, options in enumerate(sys.stdin):
    if not os.fork():
        printed = os.open(str(number), os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1)
        pytest.main([*sys.argv[1:], *options.split()], plugins=[plugin])
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs these tests with the plugin, once for every line of options; returns what pytest printed."""
    (tmp_path / "test_given.py").write_text(TESTS)

    def run(*options: str) -> list[str]:
        command = [sys.executable, "-P", "-c", EACH_IN_A_FORK, "test_given.py", "-qs", "-rpf", "-p", "no:cacheprovider"]
        command += ["-c", "/dev/null", "--rootdir", str(tmp_path)]
        subprocess.run(command, cwd=tmp_path, input="\n".join(options), text=True, check=True)
        return [(tmp_path / str(number)).read_text() for number in range(len(options))]

    return run


def named(printed: str, outcome: str) -> set[str]:
    """Names of the tests of an outcome."""
    return set(re.findall(rf"^{outcome} test_given\.py::test_([\w[\]-]+)", printed, flags=re.MULTILINE))


def test_missing_determinism_is_skipped_on_a_device_alone_and_listed(run: Callable[..., list[str]]) -> None:
    (printed,) = run("--device meta --profile nightly")
    assert named(printed, "PASSED") == {"draws", "prints_them", "of_a_precision", "long", "quick", "slow", *THEOREM}
    assert named(printed, "FAILED") == {"wrong"}
    assert "SKIPPED [1]" in printed
    assert "median has no deterministic form on meta" in printed


def test_lower_precisions_run_what_depends_on_them_alone_or_also(run: Callable[..., list[str]]) -> None:
    """And of another package, what depends on it."""
    lower, also, another, quickest, slow = run(
        "--dtype bfloat16", "--also float32 --also bfloat16", "--twin prograde.reference --few-shapes",
        "-m smoke --profile smoke", "-m slow --profile smoke",
    )  # fmt: skip
    assert re.findall("shapes (.*)", lower + another) == ["54", "2"]
    assert named(another, "PASSED") == {"of_a_precision", "quick", "slow", "theorem[twin]"}
    assert named(lower, "PASSED") == {"of_a_precision", "quick", "slow", *THEOREM}
    assert (named(quickest, "PASSED"), named(slow, "PASSED")) == ({"quick", *THEOREM}, {"slow"})
    assert named(lower, "FAILED") == {"undetermined", "wrong"}
    assert "3 deselected" in lower
    assert re.findall("found (.*)", lower) == ["torch.bfloat16 12 0.0625 False"]
    of_each = {f"quick[{dtype}]" for dtype in ("float64", "float32", "bfloat16")}
    of_each |= {f"theorem[{ids}]" for ids in ("reference-float64", "twin-float64", "twin-float32", "twin-bfloat16")}
    assert named(also, "PASSED") == {"draws", "prints_them", "of_a_precision", "slow", *of_each}
    assert named(also, "FAILED") == {"undetermined", "wrong"}
    assert sorted(re.findall("found torch.(.*)", also)) == [
        "bfloat16 3 0.0625 False", "float32 3 0.001 True", "float64 12 0.001 True",
    ]  # fmt: skip


def test_a_seed_draws_new_examples_and_the_same_again(run: Callable[..., list[str]]) -> None:
    seeds = [f"--hypothesis-seed {seed}" for seed in (1, 1, 2)]
    once, again, other = (re.findall("drawn (.*)", printed)[0] for printed in run(*seeds))
    assert once == again != other


OWN_SUITE = """
from prograde.equivalence_tests import parametrize_with_twins
from prograde.equivalence_tests.common_checks import tests_of

tests_of("devices")  # as the check "waits for no device" does

@parametrize_with_twins(["mine"], ["aggregation"])
def test_package(twin, check):
    check(twin)
"""
MINE = """
from prograde.reference.aggregation import last, loss_weights, range_hits, range_total, total, weighted

def best_range(scores, labels):
    return 1, 1
"""


def test_a_suite_of_ones_own_needs_no_plugin(tmp_path: Path) -> None:
    """No mark of ours is unknown there, and what fails is explained as in a test of one's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from numpy import asarray as from_numpy\n")
    (tmp_path / "mine" / "aggregation.py").write_text(MINE)
    (tmp_path / "test_own.py").write_text(OWN_SUITE)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb", "line"]
    command += ["-c", "/dev/null", "--rootdir", str(tmp_path), "--strict-markers", "-W", "error", "-k", "ties or case"]
    command += ["-o", f"pythonpath={tmp_path}", "test_own.py"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "1 failed, 1 passed" in printed, printed
    assert "assert (1, 1) == (0, 2)" in printed, printed


SUITE = Path(str(plugin.__file__)).parent


def left(twin: str, names: str = "", marks: str = "") -> set[str]:
    """The files of the suite that are loaded."""
    config: Any = SimpleNamespace(getoption={"--twin": twin, "-k": names, "-m": marks}.__getitem__)
    return {path.stem for path in SUITE.glob("test_*.py") if not plugin.pytest_ignore_collect(path, config)}


def test_a_package_that_raises_is_named_with_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_broken_package.py").write_text("limit = 3\nlimit.value\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"--twin: AttributeError: 'int' object has no attribute 'value' \(.*a_broken_package\.py, line 2\)$"
    with pytest.raises(pytest.UsageError, match=said):
        plugin.check_package("a_broken_package", "float32")


@pytest.mark.parametrize(("made", "keeps"), [("a.astype(np.float32)", False), ("a", True), ("a.tolist()", True)])
def test_a_package_without_float64_is_not_held_to_it(
    made: str, keeps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As JAX's arrays are by default."""
    (tmp_path / "a_narrow_package.py").write_text(
        f"import numpy as np\nclass losses: pass\ndef from_numpy(a):\n    return {made}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_narrow_package", raising=False)
    plugin.check_package("a_narrow_package", "float32")
    side = plugin.TwinSide("a_narrow_package", "cpu", "float64")
    if keeps:
        plugin.check_package("a_narrow_package", "float64")
        assert plugin.wide(side) is side
        return
    with pytest.raises(pytest.UsageError, match=r"^--dtype: 'float64', of which from_numpy of 'a_narrow_package'"):
        plugin.check_package("a_narrow_package", "float64")
    with pytest.raises(pytest.skip.Exception, match=r"its arrays have no float64"):
        plugin.wide(side)


def test_files_without_a_test_that_is_asked_for_are_not_loaded() -> None:
    everything = {path.stem for path in SUITE.glob("test_*.py")}
    assert left("prograde.accelerated", "foton") == everything, "of ours"
    quick = left("prograde.accelerated", marks="smoke")
    assert {"test_foton", "test_refusals", "test_hooks"} <= quick
    assert all("smoke" not in (SUITE / f"{name}.py").read_text() for name in everything - quick)
    assert {"test_devices", "test_samplers", "test_score_compilation"} <= everything - quick, "none of the mark"
    others = left("mine")
    assert {"test_foton", "test_arguments", "test_layers"} <= others
    assert not {"test_faults", "test_refusals", "test_autocast", "test_devices"} & others, "nothing of another's"
    assert {"test_foton", "test_hardware"} <= left("mine", "foton") < others
    assert left("mine", "not foton") == others
    assert "test_normalisations" in left("mine", "layer_norm_vjp or nothing")
    assert left("mine", marks="smoke") < others
    assert left("mine", marks="not nightly") == others
    for name in everything - others:
        text = (SUITE / f"{name}.py").read_text()
        tests = [
            node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"
        ]
        arguments = {argument.arg for test in tests for argument in (*test.args.args, *test.args.kwonlyargs)}
        assert '"ours_only"' in text or not arguments & plugin.OF_A_PRECISION, name


@pytest.mark.nightly
def test_what_is_chosen_by_name_is_in_a_file_that_is_loaded() -> None:
    command = [sys.executable, "-P", "-m", "pytest", "--pyargs", "prograde.equivalence_tests", "--collect-only", "-q"]
    command += ["-n", "0", "-p", "no:cacheprovider", "--twin", "prograde.reference"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tests = [line.rpartition("::") for line in printed.splitlines() if "::" in line]
    assert len(tests) > 2000
    files: dict[str, set[str]] = {}
    for path, _, test in tests:
        for word in re.findall(r"[A-Za-z_]\w\w+", test):
            files.setdefault(word, set()).add(Path(path).stem)
    for word, needed in files.items():
        assert needed <= left("mine", word), word
