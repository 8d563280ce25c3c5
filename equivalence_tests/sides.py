"""The two implementations that a test compares, behind one face.

A test writes each computation once, `lambda side, network, x, y: side.foton.updates(side.chain(network), x, y)`, and
the harness runs it on the reference and on the twin.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import reject
from hypothesis.errors import Unsatisfiable, UnsatisfiedAssumption
from torch.utils.dlpack import from_dlpack

from prograde import reference

from .rounding import rounded_reference

MODULES = (
    "activations",
    "losses",
    "goodness",
    "pair_losses",
    "cumulative_goodness",
    "negatives",
    "adaptive_pooling",
    "scores",
    "learned_scores",
    "score_losses",
    "normalisations",
    "aggregation",
    "convolution",
    "pooling",
    "layers",
    "normalisation_layers",
    "blocks",
    "attention",
    "embedding",
    "backprop",
    "orthogonality",
    "pepita",
    "foton",
    "ftp",
    "feedback_alignment",
    "direct_feedback_alignment",
    "direct_random_target_projection",
    "difference_target_propagation",
    "forward_forward",
    "local_classifiers",
    "hybrid_dynamic_temperature",
    "recurrent",
    "hardware",
)
OURS = "prograde.accelerated"
LENT = ("activations", "losses", "convolution", "pooling", "layers")
"""What algorithms are made of, ours where a package of torch functions lacks it."""
REFUSALS = ValueError, ArithmeticError, LookupError, RuntimeError, TypeError
"""By which a package may refuse an argument."""
MOST_LEFT_OUT = 60
"""Examples of a property left out for want of an option before it is skipped, where no other was met."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-7}


class Dense(NamedTuple):
    """A dense network as plain operands: arrays, and activations by name."""

    weights: tuple[Any, ...]
    biases: tuple[Any, ...]
    activations: tuple[str, ...]


class Convolution(NamedTuple):
    """A circular convolution as plain operands: unshuffled by `factor` before, pooled after."""

    kernel: Any
    bias: Any
    activation: str
    factor: int
    pool: int


class Padded(NamedTuple):
    """A convolution padded with zeros as plain operands; see `layers.Convolution`."""

    kernel: Any
    bias: Any
    activation: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    pool: int
    groups: int = 1


class Images(NamedTuple):
    """A convolutional network as plain operands."""

    layers: tuple[Convolution | Padded, ...]
    dense: Dense


def is_array(item: Any) -> bool:
    """Whether it is of NumPy, PyTorch, JAX or any other kind that can be read as one of NumPy."""
    return isinstance(item, np.ndarray | np.generic | torch.Tensor) or hasattr(item, "__dlpack__")


def is_of_numbers(item: Any) -> bool:
    """Whether it is a list of numbers, or of such lists: an array where there is no other kind."""
    numbers = isinstance(item, list) and all(isinstance(part, int | float) or is_of_numbers(part) for part in item)
    return numbers and len(item) > 0


def map_arrays(function: Callable[[Any], Any], tree: Any, is_one: Callable[[Any], bool] = is_array) -> Any:
    """The tree (of tuples, NamedTuples, lists, dicts) with function applied to every array in it."""
    if is_one(tree):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(function, item, is_one) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_arrays(function, item, is_one) for item in tree)
    if isinstance(tree, dict):
        return {key: map_arrays(function, item, is_one) for key, item in tree.items()}
    return tree


def _records() -> dict[str, list[type]]:
    """The reference's NamedTuples of public names."""
    found: dict[str, list[type]] = {}
    for module in MODULES:
        for name, item in vars(getattr(reference, module)).items():
            if isinstance(item, type) and issubclass(item, tuple) and not name.startswith("_"):
                found.setdefault(name, []).append(item)
    return found


RECORDS = _records()


def as_records(tree: Any) -> Any:
    """The tree with the reference's NamedTuple in place of an object of a class of that name and with its fields."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(as_records, tree))
    if isinstance(tree, tuple | list):
        return tree if is_of_numbers(tree) else type(tree)(map(as_records, tree))
    for made in () if isinstance(tree, dict) else RECORDS.get(type(tree).__name__, ()):
        if all(hasattr(tree, name) for name in made._fields):  # type: ignore[attr-defined]
            return made(*(as_records(getattr(tree, name)) for name in made._fields))  # type: ignore[attr-defined]
    return tree


class Side:
    """An implementation: its modules as attributes (`side.foton`), its precision, and conversion of operands."""

    name: str
    eps: float

    @contextmanager
    def noting(self) -> Iterator[dict[str, None]]:
        """What of a package under test is used inside, `foton.updates`, in order, when it is over."""
        yield {}

    def looks_for(self, refusal: str) -> bool:
        """Whether what is refused in these words can be seen without the numbers of a tensor on a device."""
        return True

    @contextmanager
    def refuses(self, words: str) -> Iterator[None]:
        """What is done inside raises ValueError, with words that match the pattern."""
        with pytest.raises(ValueError, match=words):
            yield

    def module(self, name: str) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name in MODULES:
            return self.module(name)
        raise AttributeError(name)

    def chain(self, network: Dense | Images, masks: Any = None, activations: Any = None) -> Any:
        """The layers of a network of this side, for its functions; `masks` has a dropout mask or None for each.

        `activations` has those of this side by name, where they are not `ACTIVATIONS`. The first unshuffling of an
        `Images` is left to `unshuffled`. What `dense_chain` returns is passed on as it is: see `one_by_one`, `opened`.
        """
        module, table = self.layers, activations or self.activations.ACTIVATIONS
        convolutions, dense = ((), network) if isinstance(network, Dense) else network
        found = []
        of_convolutions = [None] * len(convolutions) if masks is None else masks
        for index, (layer, mask) in enumerate(zip(convolutions, of_convolutions, strict=False)):
            steps = (table[layer.activation],) if mask is None else (table[layer.activation], module.Mask(mask))
            pool = module.ScaledAveragePool if isinstance(layer, Convolution) else module.MaxPool
            outlet = (pool(layer.pool),) if layer.pool > 1 else ()
            following = convolutions[index + 1 : index + 2]
            if not following:
                outlet = (*outlet, module.Flatten())
            elif isinstance(following[0], Convolution) and following[0].factor > 1:
                outlet = (*outlet, module.Unshuffle(following[0].factor))
            if isinstance(layer, Convolution):
                found.append(module.CircularConvolution(layer.kernel, layer.bias, steps, outlet))
            else:
                place = (layer.stride, layer.padding, layer.groups)
                found.append(module.Convolution(layer.kernel, layer.bias, steps, outlet, *place))
        named = tuple(table[name] for name in dense.activations)
        masks = None if masks is None else masks[len(found) :]
        last = module.dense_chain(dense.weights, dense.biases, named, masks)
        return (*found, *self.one_by_one(last)) if convolutions else last

    def one_by_one(self, chain: Any) -> Any:
        """What `dense_chain` returned as a sequence of layers, for a test that puts others beside them."""
        return chain

    def opened(self, layers: Any) -> Any:
        """The layers with the reference's fields, for a test that reads or changes one."""
        return layers

    def unshuffled(self, network: Dense | Images, x: Any) -> Any:
        """x as the first layer takes it: unshuffled for a circular convolution."""
        if isinstance(network, Images) and isinstance(network.layers[0], Convolution):
            return self.pooling.unshuffle(x, network.layers[0].factor)
        return x

    def operands(self, tree: Any) -> Any:
        """float64 and integer NumPy arrays as arrays of this side, floats rounded to its precision."""
        raise NotImplementedError

    def results(self, tree: Any) -> Any:
        """Arrays of this side as NumPy arrays, floats as float64; raises AssertionError for a wrong dtype or device."""
        raise NotImplementedError


class ReferenceSide(Side):
    """The reference, in float64, or in float32 to learn how much rounding it does itself."""

    name = "reference"

    def __init__(self, dtype: type[np.floating[Any]] = np.float64) -> None:
        self.dtype = np.dtype(dtype)
        self.eps = float(np.finfo(dtype).eps)

    def module(self, name: str) -> ModuleType:
        module: ModuleType = getattr(reference, name)
        return module

    def operands(self, tree: Any) -> Any:
        return map_arrays(lambda array: array.astype(self.dtype) if array.dtype.kind == "f" else array, tree)

    def results(self, tree: Any) -> Any:
        def check(array: Any) -> Any:
            array = np.asarray(array)
            if array.dtype.kind != "f":
                return array
            assert array.dtype == self.dtype, f"the reference returned {array.dtype} for {self.dtype}"
            return array.astype(np.float64)

        return map_arrays(check, tree)


class RoundedSide(ReferenceSide):
    """The reference in float64, each of whose operations is rounded while a `Rounding` is in force."""

    def module(self, name: str) -> ModuleType:
        module: ModuleType = getattr(rounded_reference(), name)
        return module


class Used:
    """A module of the package under test: notes what a test uses of it, and skips a test for want of what it lacks."""

    def __init__(self, side: "TwinSide", name: str, module: ModuleType) -> None:
        self._of = side, name, module

    def __getattr__(self, name: str) -> Any:
        side, of, module = self._of
        path, original = f"{of}.{name}", getattr(getattr(reference, of), name, None)
        if original is None or name.startswith("_"):
            if original is not None and not name.startswith("__") and not hasattr(module, name):
                side.lack(path)
            return getattr(module, name)
        if type(original) is dict and hasattr(module, name):
            return Table(side, of, getattr(module, name))
        side.used[path] = None
        if not hasattr(module, name):
            side.lack(path)
        found = getattr(module, name)
        return (
            found if side.is_ours else _with_its_options(found, original, lambda n: side.lack_option(f"{path}({n}=)"))
        )


def _with_its_options(function: Any, original: Any, lack: Callable[[str], NoReturn]) -> Any:
    """The function; where it has fewer options than the original, one that calls `lack` for those it is given.

    An option that is given its default is left out: without it the function does the same.
    """
    try:
        given, expected = signature(function).parameters, signature(original)
    except (TypeError, ValueError):  # no function, or one that does not say what it takes
        return function
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in given.values()):
        return function
    defaults = {name: p.default for name, p in expected.parameters.items() if p.default is not p.empty}
    missing = defaults.keys() - given.keys()

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        bound = expected.bind(*arguments, **options)
        for name in [name for name in bound.arguments if name in missing]:
            if not _is_default(bound.arguments.pop(name), defaults[name]):
                lack(name)
        return function(*bound.args, **bound.kwargs)

    return called if missing and isfunction(original) else function


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float | str) and value == default)


class Table(dict[str, Any]):
    """A dictionary of the package under test, such as its activations: notes which entries a test uses, likewise."""

    def __init__(self, side: "TwinSide", of: str, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self._of = side, of

    def __getitem__(self, name: str) -> Any:
        side, of = self._of
        side.used[f"{of}.{name}"] = None
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        side, of = self._of
        side.lack(f"{of}.{name}")


class TwinSide(Side):
    """The package under test. Its modules take and return torch tensors, or what its own `from_numpy(array)` makes.

    Arrays of floats come to `from_numpy` in the precision under test, in bfloat16 and tf32 as float32.
    """

    name = "twin"

    def __init__(self, package: str, device: str, dtype: str) -> None:
        self.package = package
        self.used: dict[str, None] = {}
        self._left_out: dict[str, int] | None = None
        self._has_an_example = False
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.eps = EPS[dtype]
        self._from_numpy: Any = getattr(import_module(package), "from_numpy", None)
        self.present = [name for name in MODULES if self.found(name) is not None]
        if not self.present:
            raise ImportError(f"'{package}' has none of the modules {', '.join(MODULES)}; nothing to test")

    @contextmanager
    def noting(self) -> Iterator[dict[str, None]]:
        inside: dict[str, None] = {}
        outside, self.used = self.used, inside
        try:
            yield inside
        finally:
            outside.update(inside)
            self.used = outside

    @property
    def is_ours(self) -> bool:
        return self.package == OURS

    def looks_for(self, refusal: str) -> bool:
        return self.device.type == "cpu" or not ("found" in refusal or "NaN" in refusal)

    @contextmanager
    def refuses(self, words: str) -> Iterator[None]:
        """Likewise; of another package the words and the kind of error are its own, and what it accepts is skipped."""
        if self.is_ours:
            with super().refuses(words):
                yield
            return
        try:
            yield
        except REFUSALS:
            return
        pytest.skip("accepts what is refused: " + re.sub(r"\\(.)", r"\1", words))

    @property
    def takes_tensors(self) -> bool:
        return self._from_numpy is None

    @property
    def has_arithmetic(self) -> bool:
        """Whether its arrays can be added and multiplied, as tests do with them."""
        return self.takes_tensors or hasattr(self._made(np.zeros(1)), "__truediv__")

    @property
    def keeps_precision(self) -> bool:
        """Whether its arrays are of the precision under test: those of JAX are float32 unless float64 is enabled."""
        narrower = ("float32", "float16", "bfloat16")
        return self.takes_tensors or self.dtype != torch.float64 or _kind(self._made(np.zeros(1))) not in narrower

    def module(self, name: str) -> Any:
        module = self.found(name)
        if module is not None:
            return Used(self, name, module)
        if name in LENT and self.takes_tensors:
            return import_module(f"{OURS}.{name}")
        self.lack(name)

    def one_by_one(self, chain: Any) -> Any:
        """Likewise; skips the test where it is none, which is the package's own affair."""
        return chain if isinstance(chain, tuple | list) else self.lack("layers.dense_chain as a tuple")

    def opened(self, layers: Any) -> Any:
        """Likewise; skips the test where a layer is another kind of object, which is the package's own affair."""
        for layer in self.one_by_one(layers):
            original = getattr(reference.layers, type(layer).__name__, None)
            if original is None or getattr(layer, "_fields", None) != getattr(original, "_fields", ()):
                self.lack("layers.dense_chain as a tuple of layers.Dense")
        return layers

    def lack(self, name: str) -> NoReturn:
        """Skips the test: what is missing is not wrong. In our own package it is."""
        assert not self.is_ours, f"{self.package}.{name} is missing"
        pytest.skip(f"not there: {name}")

    def lack_option(self, name: str) -> NoReturn:
        """Leaves out this example of a property, or skips the test: other examples may do without the option."""
        if self._left_out is not None:
            self._left_out[name] = self._left_out.get(name, 0) + 1
            if self._has_an_example or sum(self._left_out.values()) < MOST_LEFT_OUT:
                reject()
            name = ", ".join(self._left_out)
        self.lack(name)

    @contextmanager
    def leaving_out(self, test: Any) -> Iterator[None]:
        """Leaves out the examples of a property that give an option which the package lacks, while the test runs."""
        handle = None if self.is_ours else getattr(test, "hypothesis", None)
        if handle is None:
            yield
            return
        inner = handle.inner_test

        def noted(*arguments: Any, **named: Any) -> None:
            try:
                inner(*arguments, **named)
            except UnsatisfiedAssumption:
                raise
            except BaseException:
                self._has_an_example = True
                raise
            self._has_an_example = True

        handle.inner_test, self._left_out, self._has_an_example = noted, {}, False
        try:
            yield
        except Unsatisfiable:
            if not self._left_out:
                raise
            self.lack(", ".join(self._left_out))
        finally:
            handle.inner_test, self._left_out = inner, None

    def found(self, name: str) -> ModuleType | None:
        """The package's own module of that name, if it has one."""
        package = import_module(self.package)
        if hasattr(package, name):
            module: ModuleType = getattr(package, name)
            return module
        is_package = hasattr(package, "__path__")
        return import_module(f"{self.package}.{name}") if is_package and find_spec(f"{self.package}.{name}") else None

    def operands(self, tree: Any) -> Any:
        if self._from_numpy is not None:
            return map_arrays(self._made, tree)

        def convert(array: Any) -> torch.Tensor:
            tensor = torch.tensor(np.asarray(array))
            return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

        return map_arrays(convert, tree)

    def _made(self, array: Any) -> Any:
        array = np.asarray(array)
        floats = np.float64 if self.dtype == torch.float64 else np.float32
        return self._from_numpy(array.astype(floats) if array.dtype.kind == "f" else array.copy())

    def results(self, tree: Any) -> Any:
        """As of any side; of half precision some results, such as sums over a layer, are given in float32."""
        tree = tree if self.is_ours else as_records(tree)
        if self._from_numpy is not None:
            kind = _kind(self._made(np.zeros(1)))
            return map_arrays(
                lambda array: self._read(array, kind), tree, lambda item: is_array(item) or is_of_numbers(item)
            )

        def convert(array: Any) -> Any:
            if not isinstance(array, torch.Tensor):
                return np.asarray(array)
            assert array.device.type == self.device.type, f"result on {array.device}, expected {self.device}"
            if array.is_floating_point():
                expected = {self.dtype, torch.float32} if self.dtype.itemsize < 4 else {self.dtype}
                assert array.dtype in expected, f"result in {array.dtype}, expected {self.dtype}"
                array = array.double()
            return array.detach().cpu().numpy()

        return map_arrays(convert, tree)

    def _read(self, array: Any, kind: str) -> Any:
        found = as_numpy(array)
        if found.dtype.kind in "iub":
            return found
        expected = {kind, "float32"} if self.dtype.itemsize < 4 else {kind}
        assert isinstance(array, list) or _kind(array) in expected, f"result in {_kind(array)}, expected {kind}"
        return found.astype(np.float64)


def known_activations(package: str) -> set[str] | None:
    """The names of those that a package has, None for all."""
    module = None if package == OURS else TwinSide(package, "cpu", "float64").found("activations")
    return None if module is None else set(getattr(module, "ACTIVATIONS", ()))


def _kind(array: Any) -> str:
    """The name of an array's dtype, in any framework."""
    return str(getattr(array, "dtype", type(array).__name__)).rpartition(".")[2]


def as_numpy(array: Any) -> Any:
    """An array of any framework, wherever it lies, or nested lists of numbers."""
    if isinstance(array, list | np.ndarray) or (hasattr(array, "__array__") and not isinstance(array, torch.Tensor)):
        return np.asarray(array)
    return from_dlpack(array).detach().cpu().numpy()
