"""Options, fixtures and Hypothesis profiles of the tests; loaded with `-p prograde.equivalence_tests.plugin`."""

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from .sides import DTYPES, EPS, MODULES, OURS, ReferenceSide, Side, TwinSide
from .strategies import Margin
from .tolerance import Comparison

settings.register_profile(
    "default",
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("smoke", settings.get_profile("default"), max_examples=3)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=300, derandomize=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("prograde", "the implementation held to the reference")
    group.addoption("--twin", default="prograde.accelerated", help="package under test (default: %(default)s)")
    group.addoption("--device", default="cpu", help="torch device of the twin (default: %(default)s)")
    group.addoption(
        "--dtype", default="float64", choices=list(DTYPES), help="precision of the twin (default: %(default)s)"
    )
    group.addoption(
        "--profile",
        default="default",
        choices=["smoke", "default", "nightly"],
        help="examples per property: 3, 12, or 300 drawn at random (default: %(default)s)",
    )
    group.addoption(
        "--sabotage",
        choices=["zeros", "transposed"],
        help="test the tests: replace every compared result; fails where a comparison still holds",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: the tier that runs within a minute")
    settings.load_profile(config.getoption("--profile"))
    # Fills torch.empty and its kin with NaN, so that memory that was never written is seen.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    Margin.widen_for(EPS[config.getoption("--dtype")])
    if config.getoption("--twin") != OURS:
        try:
            TwinSide(config.getoption("--twin"), "cpu", "float64")
        except ImportError as error:
            raise pytest.UsageError(f"--twin: {error}") from error
    if config.getoption("--dtype") == "tf32":
        torch.set_float32_matmul_precision("high")


@pytest.fixture(scope="session")
def twin(request: pytest.FixtureRequest) -> TwinSide:
    """The package under test."""
    option = request.config.getoption
    return TwinSide(option("--twin"), option("--device"), option("--dtype"))


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter", config: pytest.Config) -> None:
    """What another package was tested in, since passes alone do not tell: theorems are tested on the reference too."""
    name = config.getoption("--twin")
    if name == OURS:
        return
    try:
        present = TwinSide(name, "cpu", "float64").present
    except ImportError:
        return
    absent = [module for module in MODULES if module not in present]
    terminalreporter.write_line(f"modules of {name} under test: {', '.join(present)}")
    if absent:
        terminalreporter.write_line(f"not there, hence not tested: {', '.join(absent)}")


@pytest.fixture(scope="session")
def twin64(request: pytest.FixtureRequest) -> TwinSide:
    """The package under test in float64, for what is only promised there."""
    option = request.config.getoption
    return TwinSide(option("--twin"), option("--device"), "float64")


@pytest.fixture(scope="session", params=["reference", "twin"])
def side(request: pytest.FixtureRequest) -> Side:
    """Both implementations in turn: for theorems, which a misunderstanding shared by both would break on both."""
    return ReferenceSide() if request.param == "reference" else request.getfixturevalue("twin")


@pytest.fixture(scope="session")
def compare(request: pytest.FixtureRequest) -> Comparison:
    """Compares results by the one tolerance policy."""
    return Comparison(request.config.getoption("--sabotage"))
