"""The twins rhyme: same files, same public names, same parameters in the same order."""

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from prograde import accelerated, reference
from prograde.equivalence_tests.sides import MODULES, TwinSide

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]
ONLY_ACCELERATED = {"device", "dtype", "out"}


def public_files(package: ModuleType) -> set[str]:
    return {path.stem for path in Path(str(package.__file__)).parent.glob("*.py") if not path.stem.startswith("_")}


def test_same_files() -> None:
    assert public_files(reference) == public_files(accelerated) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_same_names_in_the_same_order(module: str, twin: TwinSide) -> None:
    assert getattr(reference, module).__all__ == twin.found(module).__all__


@pytest.mark.parametrize("module", MODULES)
def test_definitions_in_the_same_order(module: str, twin: TwinSide) -> None:
    def defined(of: ModuleType) -> list[str]:
        found = [getattr(of, name) for name in of.__all__]
        found = [item for item in found if inspect.isfunction(item) or inspect.isclass(item)]
        return [item.__name__ for item in sorted(found, key=lambda item: inspect.getsourcelines(item)[1])]

    assert defined(getattr(reference, module)) == defined(twin.found(module))


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Name, kind and default; a generator counts as one, whatever its library and whether it has a default."""
    out: list[tuple[str, object, object]] = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.name in ("rng", "generator"):
            out.append(("generator", parameter.kind, None))
        elif not (parameter.kind is parameter.KEYWORD_ONLY and parameter.name in ONLY_ACCELERATED):
            out.append((parameter.name, parameter.kind, comparable(parameter.default, function)))
    return out


def comparable(default: object, function: object) -> object:
    """A number, text or none as it is, anything else by the name that the function's module has for it."""
    if default is inspect.Parameter.empty or type(default) in (bool, int, float, str, tuple, type(None)):
        return default
    return next(name for name, found in vars(inspect.getmodule(function)).items() if found is default)


def fields(kind: type) -> tuple[str, ...]:
    """Of a NamedTuple or a dataclass, but for private ones."""
    found: tuple[str, ...] = tuple(getattr(kind, "_fields", getattr(kind, "__dataclass_fields__", ())))
    return tuple(name for name in found if not name.startswith("_"))


def field_defaults(kind: type) -> dict[str, object]:
    """Of a NamedTuple."""
    given: dict[str, object] = kind._field_defaults  # type: ignore[attr-defined]
    return {name: comparable(default, kind) for name, default in given.items()}


@pytest.mark.parametrize("module", MODULES)
def test_same_parameters(module: str, twin: TwinSide) -> None:
    ours, theirs = getattr(reference, module), twin.found(module)
    for name in ours.__all__:
        original, copy = getattr(ours, name), getattr(theirs, name)
        assert type(original).__name__ == type(copy).__name__, name
        if inspect.isfunction(original):
            assert parameters(original) == parameters(copy), f"{module}.{name}"
        elif inspect.isclass(original):
            assert fields(original) == fields(copy), f"{module}.{name}"
            if hasattr(original, "_field_defaults") and hasattr(copy, "_field_defaults"):
                assert field_defaults(original) == field_defaults(copy), f"{module}.{name}"
        elif isinstance(original, dict):
            assert original.keys() == copy.keys(), f"{module}.{name}"
