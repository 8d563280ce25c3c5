"""The two implementations that a test compares, behind one face.

A test writes each computation once, `lambda side, network, x, y: side.foton.updates(side.chain(network), x, y)`, and
the harness runs it on the reference and on the twin.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

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


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree (of tuples, NamedTuples, lists, dicts) with function applied to every array in it."""
    if isinstance(tree, np.ndarray | np.generic | torch.Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(function, item) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_arrays(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: map_arrays(function, item) for key, item in tree.items()}
    return tree


class Side:
    """An implementation: its modules as attributes (`side.foton`), its precision, and conversion of operands."""

    name: str
    eps: float

    def module(self, name: str) -> ModuleType:
        raise NotImplementedError

    def __getattr__(self, name: str) -> ModuleType:
        if name in MODULES:
            return self.module(name)
        raise AttributeError(name)

    def chain(self, network: Dense | Images, masks: Any = None) -> Any:
        """The layers of a network of this side, for its functions; `masks` has a dropout mask or None for each.

        The first unshuffling of an `Images` is left to `unshuffled`.
        """
        module, table = self.layers, self.activations.ACTIVATIONS
        convolutions, dense = ((), network) if isinstance(network, Dense) else network
        masks = [None] * (len(convolutions) + len(dense.weights)) if masks is None else masks
        found = []
        for index, (layer, mask) in enumerate(zip(convolutions, masks, strict=False)):
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
        activations = tuple(table[name] for name in dense.activations)
        return (*found, *module.dense_chain(dense.weights, dense.biases, activations, masks[len(found) :]))

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


class TwinSide(Side):
    """The package under test. Its modules take and return torch tensors, or what its own `from_numpy(array)` makes."""

    name = "twin"

    def __init__(self, package: str, device: str, dtype: str) -> None:
        self.package = package
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.eps = EPS[dtype]
        self._from_numpy = getattr(import_module(package), "from_numpy", None)
        self.present = [name for name in MODULES if self._found(name) is not None]
        if not self.present:
            raise ImportError(f"'{package}' has none of the modules {', '.join(MODULES)}; nothing to test")

    @property
    def is_ours(self) -> bool:
        return self.package == OURS

    def module(self, name: str) -> ModuleType:
        module = self._found(name)
        if module is None and name in LENT and self._from_numpy is None:
            module = import_module(f"{OURS}.{name}")
        if module is not None:
            return module
        if self.is_ours:
            raise AssertionError(f"{self.package}.{name} is missing")
        pytest.skip(f"{self.package} has no {name}")

    def _found(self, name: str) -> ModuleType | None:
        package = import_module(self.package)
        if hasattr(package, name):
            module: ModuleType = getattr(package, name)
            return module
        is_package = hasattr(package, "__path__")
        return import_module(f"{self.package}.{name}") if is_package and find_spec(f"{self.package}.{name}") else None

    def operands(self, tree: Any) -> Any:
        if self._from_numpy is not None:
            return map_arrays(self._from_numpy, tree)

        def convert(array: Any) -> torch.Tensor:
            tensor = torch.tensor(np.asarray(array))
            return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

        return map_arrays(convert, tree)

    def results(self, tree: Any) -> Any:
        """As of any side; of half precision some results, such as sums over a layer, are given in float32."""

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
