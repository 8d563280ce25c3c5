"""Options, fixtures and Hypothesis profiles of the tests; loaded with `-p prograde.equivalence_tests.plugin`."""

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from .placement import Placement
from .results import Results
from .sides import DTYPES, EPS, OURS, ReferenceSide, Side, TwinSide, known_activations
from .strategies import FIXED, KinkDistance, take_few_shapes
from .tolerance import Comparison

OF_A_PRECISION = {"side", "twin", "compare", "ours"}  # arguments of tests that depend on --dtype
OF_ANOTHER = re.compile(rf"^def test_\w+\([^)]*\b({'|'.join(OF_A_PRECISION)})\b", re.MULTILINE)
OF_OURS = re.compile(r'^pytestmark = .*"ours_only"', re.MULTILINE)
settings.register_profile("default", FIXED)
settings.register_profile("smoke", settings.get_profile("default"), max_examples=3)
settings.register_profile("mutation", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("nightly", settings.get_profile("default"), max_examples=300, derandomize=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("prograde", "the implementation held to the reference")
    group.addoption("--twin", default="prograde.accelerated", help="package under test (default: %(default)s)")
    group.addoption("--device", default="cpu", help="torch device of the twin (default: %(default)s)")
    group.addoption(
        "--dtype", default="float64", choices=list(DTYPES), help="precision of the twin (default: %(default)s)"
    )
    group.addoption(
        "--also",
        action="append",
        default=[],
        choices=list(DTYPES),
        help="a further precision, in which the tests marked smoke run as well, with the examples of that profile",
    )
    group.addoption(
        "--profile",
        default="default",
        choices=["smoke", "default", "mutation", "nightly"],
        help="examples per property: 3, 12, 12 not shrunk, or 300 drawn at random with the tests marked nightly; "
        "--hypothesis-seed draws the others anew, too (default: %(default)s)",
    )
    group.addoption(
        "--few-shapes", action="store_true", help="two widths and one batch, for code compiled for each shape"
    )
    group.addoption("--results", metavar="FILE", help="a line of JSON for each test, as `prograde check` reads them")
    group.addoption("--examples", type=int, help="another number of examples per property, drawn at random")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: the tier that runs within a minute")
    config.addinivalue_line("markers", "slow: no part of that tier, in a file that is; runs with it if -m names it")
    config.addinivalue_line("markers", "nightly: long; runs with --profile nightly alone, or if -m names it")
    config.option.reportchars += "s"  # what was skipped, and why, is listed at the end
    config.addinivalue_line("markers", "places_itself: names the device of what it makes, as compiled code has to")
    Placement.device = torch.device(config.getoption("--device"))
    settings.load_profile(config.getoption("--profile"))
    if config.getoption("--hypothesis-seed", None) is not None:
        settings.register_profile("seeded", settings(derandomize=False))
        settings.load_profile("seeded")
    if config.getoption("--examples") is not None:
        settings.register_profile("numbered", settings(derandomize=False), max_examples=config.getoption("--examples"))
        settings.load_profile("numbered")
    if hasattr(config, "workerinput"):  # of pytest-xdist: processes share the cores, threads would only wait
        torch.set_num_threads(1)
    # Fills torch.empty and its kin with NaN, so that memory that was never written is seen.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")  # unlike use_deterministic_algorithms, imports no compiler
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    if config.getoption("--few-shapes"):
        take_few_shapes()
    if config.getoption("--twin") != OURS:
        check_package(config.getoption("--twin"), config.getoption("--dtype"))
    if config.getoption("--results"):
        config.pluginmanager.register(Results(config))


def check_package(name: str, dtype: str) -> None:
    """Raises pytest.UsageError for a package without modules; where one raises at its import, with the place.

    For one whose arrays are not of the precision, too.
    """
    try:
        keeps = TwinSide(name, "cpu", dtype).keeps_precision
    except ImportError as error:
        raise pytest.UsageError(f"--twin: {error}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise pytest.UsageError(f"--twin: {said}") from error
    if not keeps:
        said = f"'{dtype}', of which from_numpy of '{name}' makes a narrower type; in JAX, jax_enable_x64 keeps it"
        raise pytest.UsageError(f"--dtype: {said}")


def wide(side: TwinSide) -> TwinSide:
    """The side. Skips the test where its arrays are narrower than the precision that it is of."""
    if not side.keeps_precision:
        pytest.skip("its arrays have no float64")
    return side


def is_of_a_precision(test: Callable[..., object]) -> bool:
    """Whether what it tests depends on the precision."""
    return not OF_A_PRECISION.isdisjoint(signature(test).parameters)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out before they are imported the files of ours without a test of the mark that -m asks for.

    Of another package, those without a test of it or a name that -k asks for, too. Such a name stands in the file, if
    only as a parameter, whose number and end may be made.
    """
    if collection_path.parent != Path(__file__).parent or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text().lower()
    if config.getoption("--twin") == OURS:
        is_left = collection_path.name.startswith("test_") and not _may_choose(config.getoption("-m"), text)
        return True if is_left else None
    concerned = OF_ANOTHER.search(text) and not OF_OURS.search(text)
    names = f"{__package__}.{collection_path.name} twin reference\n{text}"  # the last two name the sides
    asked = (_may_choose(config.getoption(option), names) for option in ("-k", "-m"))
    return None if concerned and all(asked) else True


def _may_choose(expression: str, text: str) -> bool:
    words = set(re.findall(r"\w+", expression.lower())) - {"and", "or"}
    return not words or "not" in words or any(re.sub(r"(_(gradient|vjp)|\d+)$", "", word) in text for word in words)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Has the tests of the smoke tier run in the precisions of --also, too."""
    option = metafunc.config.getoption
    smoke = metafunc.definition.get_closest_marker("smoke") and not metafunc.definition.get_closest_marker("slow")
    if option("--also") and smoke and is_of_a_precision(metafunc.function):
        metafunc.parametrize("precision", [option("--dtype"), *option("--also")], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Leaves out long tests, and in another precision than float64 those that don't depend on it.

    On another device than the CPU all are left in, since rules run there too. The reference alone is not looked at
    again in a precision of --also: it is in float64 always. Of another package, what depends on it is tested alone.
    """
    option = config.getoption
    nightly = option("--profile") == "nightly" or "nightly" in option("-m")
    slow = option("--profile") != "smoke" or "slow" in option("-m")
    is_ours = option("--twin") == OURS
    every = is_ours and (option("--dtype") == "float64" or option("--device") != "cpu")
    chosen: list[Any] = []
    left_out: list[Any] = []
    for item in items:
        in_time = nightly or not item.get_closest_marker("nightly")
        in_time &= slow or not item.get_closest_marker("slow")
        concerned = every or is_of_a_precision(item.function)
        drawn = item.callspec.params if hasattr(item, "callspec") else {}
        again = drawn.get("side") == "reference" and (drawn.get("precision") in option("--also") or not is_ours)
        (chosen if in_time and concerned and not again else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skips a test for want of a deterministic operation on the device: that is no failure of the twin's."""
    device = item.config.getoption("--device")
    try:
        return (yield)
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if device == "cpu" or not found:
            raise
        pytest.skip(f"{operation} has no deterministic form on {device}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Of another package, leaves out the examples of a property that give an option which it lacks."""
    twin = next((side for side in pyfuncitem.funcargs.values() if isinstance(side, TwinSide)), None)
    with contextlib.nullcontext() if twin is None else twin.leaving_out(pyfuncitem.obj):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Ends a worker whose device no longer works, so that no later test fails for it; xdist starts another."""
    report: Any = yield
    if report.failed and "device-side assert" in report.longreprtext and hasattr(item.config, "workerinput"):
        os._exit(1)
    return report


@pytest.fixture(scope="session")
def precision(request: pytest.FixtureRequest) -> str:
    """The precision of the twin, by name; what is drawn keeps clear of kinks by as much as it needs."""
    name: str = getattr(request, "param", request.config.getoption("--dtype"))
    KinkDistance.set_for(EPS[name], known_activations(request.config.getoption("--twin")))
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"  # which is on for convolutions, whatever is said of products
    return name


@pytest.fixture(autouse=True)
def examples(request: pytest.FixtureRequest, precision: str) -> Iterator[int]:
    """How many examples a property has: the profile's, in a precision of --also those of smoke."""
    own: settings = settings.default  # type: ignore[assignment]
    profile = settings.get_profile("smoke") if precision in request.config.getoption("--also") else own
    with pytest.MonkeyPatch.context() as patch:
        if profile is not own and hasattr(request.function, "hypothesis"):
            patch.setattr(request.function, "_hypothesis_internal_use_settings", profile)
        yield profile.max_examples


@pytest.fixture(autouse=True)
def _placed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test makes, models and generators included, is on the device under test."""
    itself = Placement.device.type == "cpu" or request.node.get_closest_marker("places_itself")
    with contextlib.nullcontext() if itself else Placement():
        yield


@pytest.fixture(scope="session")
def twin(request: pytest.FixtureRequest, precision: str) -> TwinSide:
    """The package under test."""
    option = request.config.getoption
    return TwinSide(option("--twin"), option("--device"), precision)


@pytest.fixture
def ours_only(twin: TwinSide) -> None:
    """Skips a test of what another package has in its own way."""
    if not twin.is_ours:
        pytest.skip("a promise of prograde's own")


@pytest.fixture(scope="session")
def twin64(request: pytest.FixtureRequest) -> TwinSide:
    """The package under test in float64, for what is only promised there; skips the test of one without float64."""
    option = request.config.getoption
    return wide(TwinSide(option("--twin"), option("--device"), "float64"))


@pytest.fixture(scope="session", params=["reference", "twin"])
def side(request: pytest.FixtureRequest, twin: TwinSide) -> Side:
    """Both implementations in turn: for theorems, which a misunderstanding shared by both would break on both."""
    return ReferenceSide() if request.param == "reference" else twin


@pytest.fixture
def compare(examples: int) -> Iterator[Comparison]:
    """Compares results by the one tolerance policy."""
    comparison = Comparison(closes=examples >= 12)  # of fewer, all may by chance be zero or symmetric
    yield comparison
    if comparison.closes:
        comparison.close()
