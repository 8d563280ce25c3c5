"""What the plugin of the tests selects, draws and reports."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = """
import pytest
from hypothesis import given, strategies as st

drawn = []

@given(st.integers(0, 10**9))
def test_draws(number):
    drawn.append(number)

def test_prints_them():
    print("drawn", drawn)

def test_of_a_precision(twin):
    pass

@pytest.mark.nightly
def test_long(twin):
    pass

def test_undetermined(twin):
    raise RuntimeError("median does not have a deterministic implementation, but you set it")

def test_wrong(twin):
    raise RuntimeError("shapes")
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs these tests with the plugin and options; returns what pytest printed."""
    (tmp_path / "test_given.py").write_text(TESTS)

    def run(*options: str) -> str:
        command = [sys.executable, "-P", "-m", "pytest", "-qs", "-rpf", "-p", "no:cacheprovider", "-c", "/dev/null"]
        command += ["--rootdir", str(tmp_path), "-p", "prograde.equivalence_tests.plugin", *options, "test_given.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    return run


def named(printed: str, outcome: str) -> set[str]:
    """Names of the tests of an outcome."""
    return set(re.findall(rf"^{outcome} test_given\.py::test_(\w+)", printed, flags=re.MULTILINE))


def test_missing_determinism_is_skipped_on_a_device_alone_and_listed(run: Callable[..., str]) -> None:
    printed = run("--device", "meta", "--profile", "nightly")
    assert named(printed, "PASSED") == {"draws", "prints_them", "of_a_precision", "long"}
    assert named(printed, "FAILED") == {"wrong"}
    assert "SKIPPED [1]" in printed
    assert "median has no deterministic form on meta" in printed


def test_lower_precisions_run_what_depends_on_them(run: Callable[..., str]) -> None:
    printed = run("--dtype", "bfloat16")
    assert named(printed, "PASSED") == {"of_a_precision"}
    assert named(printed, "FAILED") == {"undetermined", "wrong"}
    assert "3 deselected" in printed


def test_a_seed_draws_new_examples_and_the_same_again(run: Callable[..., str]) -> None:
    def drawn(*options: str) -> str:
        return re.findall("drawn (.*)", run("-k", "draws or prints", *options))[0]

    once = drawn("--hypothesis-seed", "1")
    assert drawn("--hypothesis-seed", "1") == once != drawn("--hypothesis-seed", "2")
