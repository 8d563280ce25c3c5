"""The packages as files: what is shipped, what imports what, and what importing does."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("reference", "accelerated", "equivalence_tests")
EQUIVALENCE_TESTS = "prograde.equivalence_tests"
UNSHIPPED = (".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
"""Left out of the copy that is built: what a fresh clone does not have, and hidden folders."""

MATH = {
    "_arrays",
    "_autocast",
    "activations",
    "adaptive_pooling",
    "aggregation",
    "convolution",
    "cumulative_goodness",
    "goodness",
    "learned_scores",
    "losses",
    "negatives",
    "normalisations",
    "orthogonality",
    "pair_losses",
    "pooling",
    "score_losses",
    "scores",
}
"""The modules that algorithms are made of; every other file at the root of a package is an algorithm."""

LAYERS = ["math", "layers", "algorithms", "modules", "rules", "parallel", "training", "command_line"]
"""The parts of a package, each of which imports only itself and what stands before it."""


class Module(NamedTuple):
    """A module of ours: its published name and its file."""

    name: str
    file: Path

    @property
    def package(self) -> str:
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return parsed(self.file)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def modules_of(package: str) -> list[Module]:
    found = []
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found.append(Module(".".join(["prograde", *parts]).removesuffix(".__init__"), file))
    return found


MODULES = [module for package in PACKAGES for module in modules_of(package)]
IMPORTABLE = [module for module in MODULES if not module.name.endswith(".__main__")]


def imports(module: Module) -> Iterator[tuple[str, bool]]:
    """Absolute name of everything that the module imports anywhere in it, and whether it says so relatively."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.package.split(".")
                base = ".".join(above[: len(above) - node.level + 1] + ([node.module] if node.module else []))
            yield from ((f"{base}.{alias.name}", bool(node.level)) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(name: str) -> str:
    """The layer of a module, or of something in it."""
    _, package, part = name.split(".")[:3]
    if part in LAYERS:
        return part
    assert (ROOT / package / f"{part}.py").exists(), f"{name}: give its folder a place in LAYERS"
    return "math" if part in MATH else "algorithms"


def named(modules: list[Module]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("module", modules, ids=[module.name for module in modules])


@named([module for module in MODULES if not module.name.startswith(f"{EQUIVALENCE_TESTS}.test_")])
def test_own_modules_are_imported_relatively(module: Module) -> None:
    own = ".".join(module.name.split(".")[:2])
    absolute = [name for name, relative in imports(module) if within(name, own) and not relative]
    assert not absolute, f"{module.name} imports {absolute}: write it relatively"
    escaped = [name for name, relative in imports(module) if relative and not within(name, own)]
    assert not escaped, f"{module.name} imports {escaped} relatively: outside of its package"


@named([module for module in MODULES if not within(module.name, EQUIVALENCE_TESTS)])
def test_twins_do_not_import_one_another(module: Module) -> None:
    if within(module.name, "prograde.accelerated.command_line"):
        forbidden = []  # its `check` and `compare` may show both
    else:
        forbidden = [f"prograde.{package}" for package in PACKAGES if not within(module.name, f"prograde.{package}")]
    found = [name for name, _ in imports(module) if any(within(name, package) for package in forbidden)]
    assert not found, f"{module.name} imports {found}"


@named([module for module in MODULES if within(module.name, "prograde.reference")])
def test_reference_needs_numpy_and_scipy_alone(module: Module) -> None:
    roots = {name.partition(".")[0] for name, _ in imports(module)}
    assert roots <= {"numpy", "scipy", "prograde", *sys.stdlib_module_names}


@named([module for module in MODULES if module.name.count(".") > 1 and not within(module.name, EQUIVALENCE_TESTS)])
def test_imports_go_one_way(module: Module) -> None:
    package = ".".join(module.name.split(".")[:2])
    rank = LAYERS.index(layer_of(module.name))
    for name, _ in imports(module):
        if name.startswith(f"{package}."):
            assert LAYERS.index(layer_of(name)) <= rank, f"{module.name} imports {name}"


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in an empty folder that is its home as well."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL", "COV_"))}
    environment |= {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_reference_does_not_import_torch(tmp_path: Path) -> None:
    names = [module.name for module in IMPORTABLE if within(module.name, "prograde.reference")]
    done = run(f"import sys, {', '.join(names)}\nassert 'torch' not in sys.modules", tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_prints_nothing_and_makes_no_file(tmp_path: Path) -> None:
    done = run("import " + ", ".join(module.name for module in IMPORTABLE), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_training_needs_the_extra_accelerated_alone(tmp_path: Path) -> None:
    """All below the command line imports without the libraries of `train` and `test`, but scikit-learn's estimators.

    And without PyTorch's compiler, whose import takes longer than all else.
    """
    absent = ["typer", "rich", "matplotlib", "sklearn", "hypothesis", "pytest"]
    names = [m.name for m in IMPORTABLE if within(m.name, "prograde.accelerated") and "command_line" not in m.name]
    names.remove("prograde.accelerated.training.estimators")
    block = f"import sys\nsys.modules |= dict.fromkeys({absent})\n"  # None in sys.modules: ImportError
    lazy = "\nassert 'torch._dynamo' not in sys.modules, 'the compiler is loaded at the start'"
    done = run(block + "import " + ", ".join(names) + lazy, tmp_path)
    assert done.returncode == 0, done.stderr


@named(IMPORTABLE)
def test_all_names_exist(module: Module) -> None:
    loaded = import_module(module.name)
    missing = [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)]
    assert not missing


@named([module for module in MODULES if not within(module.name, EQUIVALENCE_TESTS)])
def test_public_names_have_docstrings(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module.name} has no docstring"
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module.name}.{node.name} has no docstring"


def test_version_is_the_installed_one() -> None:
    assert metadata.version("prograde") == PROJECT["project"]["version"]


def test_every_folder_of_modules_is_a_listed_package() -> None:
    folders = {module.package for module in MODULES}
    assert sorted(folders) == sorted(PROJECT["tool"]["setuptools"]["packages"])
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()


def test_changelog_opens_with_this_version() -> None:
    versions = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]


def test_citation_is_of_this_version() -> None:
    cited = dict(re.findall(r'^([\w-]+): "?([^"\n]+)"?$', (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE))
    project = PROJECT["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["title"] == f"{project['name']}: {project['description'].removesuffix('.')}"


def constraints() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_constraints_are_exact() -> None:
    for requirement in constraints().values():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is no exact pin"
        assert requirement.url is None


def test_everything_that_is_installed_is_constrained() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    waiting, seen, pinned = [("prograde", extra) for extra in ("", *extras)], set(), set(constraints())
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name == "prograde" or name in pinned, f"{name} is not in constraints.txt"
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                required = canonicalize_name(requirement.name)
                waiting.extend((required, wanted) for wanted in ("", *requirement.extras))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, PROGRADE_DISTRIBUTIONS if that is set, of a wheel and an sdist built amid stray files."""
    copy = tmp_path_factory.mktemp("checkout") / "prograde"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*UNSHIPPED))
    for stray in ("accelerated/picture.png", "reference/notes.txt", "accelerated/__pycache__/old.pyc", "runs/a.json"):
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).touch()
    output = Path(os.environ.get("PROGRADE_DISTRIBUTIONS") or tmp_path_factory.mktemp("distributions"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def shipped() -> set[str]:
    """The files that belong to the three packages, under their published names."""
    files = {module.file for module in MODULES} | {ROOT / package / "py.typed" for package in PACKAGES}
    return {f"prograde/{file.relative_to(ROOT).as_posix()}" for file in files}


def test_wheel_has_the_three_packages_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    information = f"prograde-{PROJECT['project']['version']}.dist-info"
    described = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == shipped() | {f"{information}/{name}" for name in described}
        written = message_from_bytes(archive.read(f"{information}/METADATA"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert written["License-Expression"] == "MIT"
    assert written["Requires-Python"] == ">=3.11"
    required = [Requirement(line) for line in written.get_all("Requires-Dist", [])]
    assert {requirement.name for requirement in required if requirement.marker is None} == {"numpy", "scipy"}
    assert set(written.get_all("Provides-Extra", [])) == {"accelerated", "train", "test", "dev"}


def test_sdist_has_what_the_wheel_is_built_from(distributions: Path) -> None:
    """The wheel beside it was built from it, not from the checkout: that is how `python -m build` works."""
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("prograde/") for name in shipped()} <= files
    assert {"pyproject.toml", "README.md", "LICENSE"} <= files
    strays = [name for name in files if name.startswith("runs") or Path(name).suffix in {".png", ".pyc"}]
    assert not strays
