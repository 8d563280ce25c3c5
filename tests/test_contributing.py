"""CONTRIBUTING's steps, followed in a copy: an activation is one entry a side, an algorithm one file a side."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("reference", "accelerated", "equivalence_tests")


TRAIN_AND_TEST = """
import json, sys, pytest
from typer.testing import CliRunner
from prograde.accelerated.command_line.app import app

train, test = json.loads(sys.argv[1])
trained = CliRunner().invoke(app, train)
print(trained.output)
sys.exit(trained.exit_code or pytest.main(test))
"""


class Copy:
    """The three packages in a folder of their own, where a test may change them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "prograde"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, self.root / package, ignore=shutil.ignore_patterns("__pycache__"))

    def insert(self, file: str, before: str, text: str) -> None:
        """Puts text before a place that stands once in a file."""
        path = self.root / file
        source = path.read_text()
        assert source.count(before) == 1, f"{file}: {before!r}"
        path.write_text(source.replace(before, text + before))

    def write(self, file: str, text: str) -> None:
        (self.root / file).write_text(text)

    def passes_and_trains(self, tests: Sequence[str], select: str, rule: str, *options: str) -> None:
        """Tests pass, and the command trains a rule."""
        names = [f"prograde.equivalence_tests.{name}" for name in tests]
        pytest_options = ["-q", "-p", "no:cacheprovider", "-p", "prograde.equivalence_tests.plugin"]
        pytest_options += ["--profile", "smoke", "-o", "consider_namespace_packages=true", "--import-mode=importlib"]
        commands = json.dumps([
            ["train", rule, "--data", "digits", "--epochs", "1", *options],
            [*pytest_options, "-k", select, "--pyargs", *names],
        ])  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(self.root.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", TRAIN_AND_TEST, commands],
            env=environment, cwd=self.root.parent, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"
        assert "%" in done.stdout, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_an_activation_is_one_entry_a_side(copy: Copy) -> None:
    """softsign(a) = a / (1 + |a|), a module of PyTorch's; its difference is exact for any size of u."""
    copy.insert(
        "reference/activations.py",
        "def _pairs(",
        "softsign = _elementwise(lambda a: a / (1 + np.abs(a)), lambda a: 1 / (1 + np.abs(a)) ** 2)\n\n\n",
    )
    copy.insert(
        "accelerated/activations.py",
        "def _pairs(",
        "def _softsign_multiply(a: Array, direction: Array) -> Array:\n"
        "    return direction / (1 + a.abs()).square()\n\n\n"
        "def _softsign_difference(a: Array, u: Array) -> Array:\n"
        "    other = a - u  # a |b| - b |a| is 0 where the signs agree, and 2 a |b| elsewhere\n"
        "    crossed = torch.where(a * other < 0, 2 * a * other.abs(), 0)\n"
        "    return (u + crossed) / ((1 + a.abs()) * (1 + other.abs()))\n\n\n"
        "softsign = Activation(functional.softsign, *(_softsign_multiply,) * 2, _softsign_difference)\n\n\n",
    )
    for side in ("reference", "accelerated"):
        copy.insert(f"{side}/activations.py", '"tanh"]', '"softsign", ')
        copy.insert(f"{side}/activations.py", '    "maxmin": maxmin,\n', '    "softsign": softsign,\n')
    copy.insert("accelerated/modules/activations.py", '    "maxmin": MaxMin,\n', '    "softsign": nn.Softsign,\n')
    copy.insert("equivalence_tests/strategies.py", '"tanh")\n', '"softsign", ')
    copy.insert(
        "equivalence_tests/test_backprop.py", '    "tanh": torch.tanh,\n', '    "softsign": torch.nn.Softsign(),\n'
    )
    tests = ["test_activations", "test_parity", "test_backprop"]
    copy.passes_and_trains(tests, "softsign or parity", "ftp", "--activation", "softsign")


REFERENCE = '''"""Training the output layer alone.

    (1)  G_L = 1/B sum_samples of the gradient of <e, A_L(z_L)> by A_L's parameters;    G_l = 0,    l < L

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/dscores |
"""

from collections.abc import Callable, Iterator, Sequence

{numpy}from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, Update, forward
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["update_factors", "updates"]


def update_factors(layers: Sequence[Layer], clean: Pass, error: Array) -> Iterator[tuple[Array, Array]]:
    """0, or e at the output, and z_l of every layer."""
    check_shape("error", error, clean.scores.shape)
    for a, z in zip(clean.preactivations[:-1], clean.inputs[:-1], strict=True):
        yield {zeros}(a), z
    yield error, clean.inputs[-1]


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> tuple[Update, ...]:
    """Equation (1)."""
    clean = forward(layers, x)
    return layer_updates(layers, update_factors(layers, clean, output_gradient(clean.scores, labels)))
'''

RULE = '''"""Training the output layer alone, as a rule."""

from collections.abc import Iterator

from torch import Tensor

from ..last_layer import update_factors
from ..layers import Layer, Pass
from .rule import OutputErrorRule


class LastLayer(OutputErrorRule):
    """The output layer learns, the others stay as they were drawn."""

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Tensor
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        return update_factors(layers, clean, error)
'''

TEST = '''"""The output layer alone: twin against reference."""

from typing import Any

from hypothesis import given

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import Case, cases
from prograde.equivalence_tests.tolerance import Comparison


@given(case=cases())
def test_updates(twin: Side, compare: Comparison, case: Case):
    def last(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        hidden, output = side.last_layer.updates(side.chain(dense, masks), x, labels)[-2:]
        assert not side.results(hidden)[0].any()
        return output

    compare(twin, "last_layer.updates", last, *case)
'''


def test_an_algorithm_is_one_file_a_side(copy: Copy) -> None:
    """With a rule, a test file and the lists that name it."""
    copy.write("reference/last_layer.py", REFERENCE.format(numpy="import numpy as np\n\n", zeros="np.zeros_like"))
    copy.write("accelerated/last_layer.py", REFERENCE.format(numpy="import torch\n\n", zeros="torch.zeros_like"))
    copy.write("accelerated/rules/last_layer.py", RULE)
    copy.write("equivalence_tests/test_last_layer.py", TEST)
    copy.insert("reference/__init__.py", "    layers,\n", "    last_layer,\n")
    copy.insert("accelerated/__init__.py", "        layers,\n", "        last_layer,\n")
    for side in ("reference", "accelerated"):
        copy.insert(f"{side}/__init__.py", '    "layers",\n', '    "last_layer",\n')
    copy.insert("equivalence_tests/sides.py", '    "layers",\n', '    "last_layer",\n')
    copy.insert("accelerated/rules/__init__.py", "from .pepita import", "from .last_layer import LastLayer\n")
    copy.insert("accelerated/rules/__init__.py", '    "pepita": Pepita,\n', '    "last-layer": LastLayer,\n')
    copy.insert("accelerated/rules/__init__.py", '    "LayerCollaboration",\n', '    "LastLayer",\n')
    copy.passes_and_trains(["test_last_layer", "test_parity"], "updates or parity", "last-layer")
