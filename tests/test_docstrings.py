"""Docstrings of the reference: shapes and refusals are stated, examples run, and what is cited stands in the head.

An example runs on the twin, too, with tensors in the place of arrays. What PyTorch's side alone has, has examples too.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from doctest import DocTest, DocTestParser, DocTestRunner, OutputChecker
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prograde import accelerated, equivalence_tests, reference
from prograde.accelerated import _arrays, command_line, modules, parallel, rules, training
from prograde.equivalence_tests.test_arguments import ROWS

CITED = re.compile(r"[Ee]quations? ((?:\(\w+\)(?:, | and | to | or )?)+)")


def missing_equations(module: ModuleType) -> set[str]:
    """Numbers that docstrings cite and the head of the module does not have."""
    head = set(re.findall(r"\((\d+|[a-z])\)", module.__doc__ or ""))
    named = [getattr(module, name) for name in module.__all__]
    documented = [item for item in named if inspect.isfunction(item) or inspect.isclass(item)]
    documented += [part for item in documented for part in vars(item).values() if inspect.isfunction(part)]
    texts = [item.__doc__ or "" for item in documented]
    return {number for text in texts for group in CITED.findall(text) for number in re.findall(r"\w+", group)} - {
        *head, "and", "or", "to",
    }  # fmt: skip


@pytest.mark.parametrize("name", reference.__all__)
def test_equations_that_are_cited_are_in_the_head_of_their_module(name: str) -> None:
    assert not missing_equations(getattr(reference, name))


def test_a_missing_equation_is_seen() -> None:
    def updates() -> None:
        """G_l of equations (2) and (c)."""

    module = ModuleType("made", "(1) and (2)")
    vars(module).update(updates=updates, __all__=["updates"])
    assert missing_equations(module) == {"c"}


@pytest.mark.parametrize("name", sorted({row.name for row in ROWS}))
def test_what_is_refused_is_said(name: str) -> None:
    module, function = name.split(".")
    said = getattr(getattr(reference, module), function).__doc__
    assert re.search(r"[Rr]aises?\b|errors as for", said), said


class TensorsForArrays:
    """NumPy's functions on tensors, so that the reference's examples run on the twins; generators are PyTorch's."""

    random = SimpleNamespace(default_rng=lambda seed: torch.Generator().manual_seed(seed))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found = getattr(np, name)(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in args))
            return torch.from_numpy(found) if isinstance(found, np.ndarray) else found

        return call


SIDES = {"reference": (reference, np), "accelerated": (accelerated, TensorsForArrays())}


def scope(side: str, module: str) -> dict[str, Any]:
    """What an example may name: `np`, the modules, the public names of layers and activations, and the module's own."""
    package, arrays = SIDES[side]
    modules = {name: getattr(package, name) for name in reference.__all__}
    lent = {name: getattr(of, name) for of in (package.layers, package.activations) for name in of.__all__}
    return {**lent, **modules, **vars(modules[module]), "np": arrays}


def examples(of: ModuleType) -> dict[str, DocTest]:
    """Every docstring's with its name, that of the module's head first; those without an example are left out."""
    module = of.__name__.rpartition(".")[2]
    texts = {module: of.__doc__}
    for name in of.__all__:
        item = getattr(of, name)
        if inspect.isfunction(item) or inspect.isclass(item):
            texts[f"{module}.{name}"] = item.__doc__
        if inspect.isclass(item):
            methods = {part: value for part, value in vars(item).items() if inspect.isfunction(value)}
            texts |= {f"{module}.{name}.{part}": value.__doc__ for part, value in methods.items()}
    parser = DocTestParser()
    found = {name: parser.get_doctest(text or "", {}, name, None, None) for name, text in texts.items()}
    return {name: example for name, example in found.items() if example.examples}


class SignlessZero(OutputChecker):
    """Takes -0.0 for 0.0: which of both a sum of products is depends on its order."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(want, re.sub(r"-0\.0(?!\d)", "0.0", got), optionflags)


def failures(example: DocTest, names: dict[str, Any]) -> str:
    """What doctest has to say of an example, and nothing where it passes."""
    said: list[str] = []
    example.globs = dict(names)
    DocTestRunner(SignlessZero(), verbose=False).run(example, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("module", reference.__all__)
def test_examples(module: str, side: str) -> None:
    names = scope(side, module)
    said = "".join(failures(example, names) for example in examples(getattr(reference, module)).values())
    assert not said, said


def test_a_wrong_example_is_seen() -> None:
    text = ">>> maxmin.value(np.array([[1.0, 2.0]])).tolist()\n[[1.0, 2.0]]\n"
    wrong = DocTestParser().get_doctest(text, {}, "wrong", None, None)
    assert all("[[2.0, 1.0]]" in failures(wrong, scope(side, "activations")) for side in SIDES)


def prose(item: object) -> str:
    """The docstring before its example."""
    return (item.__doc__ or "").split(">>>")[0]


def public_functions(module: ModuleType) -> dict[str, tuple[Callable[..., Any], str]]:
    """Functions and methods with what is said of them, of a method by its class as well."""
    items = {name: getattr(module, name) for name in module.__all__}
    found = {name: (item, prose(item)) for name, item in items.items() if inspect.isfunction(item)}
    for name, item in items.items():
        for part, method in vars(item).items() if inspect.isclass(item) else ():
            if inspect.isfunction(method) and not part.startswith("_"):
                found[f"{name}.{part}"] = method, prose(method) + prose(item)
    return found


PROTOCOLS = {"layers.Layer", "layers.Step", "normalisation_layers.NormalisationStep"}
"""What has no value of its own."""


@pytest.mark.parametrize("name", reference.__all__)
def test_everything_that_runs_has_an_example(name: str) -> None:
    """A class has one for all of its methods."""
    module = getattr(reference, name)
    of = {f"{name}.{function.split('.')[0]}" for function in public_functions(module)}
    assert of - PROTOCOLS - examples(module).keys() == set()


PACKAGES = {
    package.__name__.rpartition(".")[2]: package
    for package in (modules, rules, training, parallel, command_line, equivalence_tests)
}
"""What has no twin of its name in the reference."""

WITHOUT_EXAMPLE = {
    "command_line.main": "it reads the arguments of its process and ends it",
}
"""Names that no example of milliseconds can show, with the reason."""


@pytest.mark.parametrize("name", PACKAGES)
def test_examples_of_packages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their scope are `torch`, `nn`, `dist`, `Path`, the packages, and the public names of their own.

    Each writes into an empty folder of its own.
    """
    package = PACKAGES[name]
    public = {public: getattr(package, public) for public in package.__all__}
    lent = {"torch": torch, "nn": torch.nn, "dist": torch.distributed, "Path": Path}
    found = examples(package)
    for example in found.values():
        folder = tmp_path / example.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        said = failures(example, {**PACKAGES, **public, **lent})
        assert not said, said
    documented = {f"{name}.{key}" for key, item in public.items() if inspect.isclass(item) or inspect.isfunction(item)}
    assert documented - found.keys() == documented & WITHOUT_EXAMPLE.keys()


def test_every_package_is_looked_at() -> None:
    """What a folder makes public stands in one of `PACKAGES`; the twins have the reference's examples."""
    looked_at = {id(getattr(package, name)) for package in PACKAGES.values() for name in package.__all__}
    found = [
        importlib.import_module(module.name)
        for root in (accelerated, equivalence_tests)
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
        if module.ispkg
    ]
    assert set(PACKAGES.values()) - {equivalence_tests} <= set(found)
    public = [(package, name) for package in found for name in getattr(package, "__all__", ())]
    assert [(package.__name__, name) for package, name in public if id(getattr(package, name)) not in looked_at] == []


def silent(items: dict[str, Any]) -> list[str]:
    """Functions, and classes by what makes them, that raise or check an argument and do not say so."""
    found = []
    for name, item in items.items():
        makers = ("__post_init__", "__init__")
        maker = next(filter(None, map(vars(item).get, makers)), None) if inspect.isclass(item) else item
        if inspect.isfunction(maker) and not maker.__code__.co_filename.startswith("<"):  # a dataclass's own
            nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(maker)))))
            called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
            refuses = any(isinstance(node, ast.Raise) for node in nodes) or any("check_" in name for name in called)
            if refuses and not re.search(r"[Rr]aise|refuse|errors as for", f"{item.__doc__}{maker.__doc__}"):
                found.append(name)
    return found


@pytest.mark.parametrize("name", ["modules", "parallel", "rules", "training"])
def test_what_a_package_refuses_is_said(name: str) -> None:
    package = PACKAGES[name]
    assert silent({public: getattr(package, public) for public in package.__all__}) == []


def test_a_silent_refusal_is_seen() -> None:
    def halved(n: int) -> int:
        """Half of n."""
        _arrays.check_count("n", n)
        return n // 2

    assert silent({"halved": halved}) == ["halved"]


SHAPE = re.compile(
    r"\(\w[^()=.;:]*,[^()=;:]*\)|\b[Ss]hape[ds]?\b|\bscalar\b|[:,] as (the )?\w+|\bintegers?\b|\b[Nn]umbers\b"
)
"""How docstrings say what shape something has: (batch, K), shaped as h, a scalar array, two integers."""


def without_shapes(module: ModuleType) -> list[str]:
    """Functions that state no shape, and arrays that neither their docstring nor a table of the head names.

    A head that names another module lends its table.
    """
    head = module.__doc__ or ""
    lent = [getattr(reference, name).__doc__ for name in re.findall(r"`(\w+)`", head) if name in reference.__all__]
    rows = " ".join(line for text in (head, *lent) for line in text.splitlines() if line.startswith("|"))
    found = []
    for name, (function, text) in public_functions(module).items():
        kinds = {p: str(kind) for p, kind in function.__annotations__.items() if p != "return"}
        arrays = [p for p, kind in kinds.items() if "ndarray" in kind and "Callable" not in kind]
        found += [] if SHAPE.search(text) else [name]
        found += [f"{name}({p})" for p in arrays if not re.search(rf"\b{p}\b", rows + text)]
    return found


@pytest.mark.parametrize("name", reference.__all__)
def test_shapes_are_stated(name: str) -> None:
    assert without_shapes(getattr(reference, name)) == []


def test_a_missing_shape_is_seen() -> None:
    def doubled(h: NDArray[Any]) -> NDArray[Any]:
        """Twice the activities, equation (1). Raises ValueError for none."""
        return 2 * h

    module = ModuleType("made")
    vars(module).update(doubled=doubled, __all__=["doubled"])
    assert without_shapes(module) == ["doubled", "doubled(h)"]
