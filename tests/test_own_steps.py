"""Steps of the user's own code in `prograde benchmark`: what they are given, what is seen of them, what is refused."""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from prograde.accelerated.command_line import contenders
from prograde.accelerated.command_line.app import app
from prograde.accelerated.rules import DirectFeedbackAlignment
from prograde.accelerated.training.diagnostics.memory import alive, live_bytes

EXAMPLES = Path(__file__).parent.parent / "examples"

MINE = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional


def plain(model, make_optimizer):
    optimizer = make_optimizer(model.parameters())

    def step(x, y):
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def products(widths, batch, dtype, rank=3):
    """Makes batch x rank numbers; a gradient stays between steps, and a buffer that is no gradient."""
    weight, buffer = torch.zeros(widths[0], rank, dtype=dtype), torch.zeros(widths[0], rank, dtype=dtype)
    weight.requires_grad_()

    @torch.no_grad()
    def step(x, y):
        made = x @ weight
        weight.grad = torch.ones_like(weight)
        buffer.add_(weight.grad)
        assert made.shape == (batch, rank)

    return step


def of_numpy(sample_shape, num_classes):
    weight = np.zeros((*sample_shape, num_classes))

    def step(x, y):
        scores = np.asarray(x) @ weight
        return float(abs(scores).sum())

    return step


def facts(model, widths, sample_shape, num_classes, batch, device, dtype, learning_rate, make_optimizer, *rest, **more):
    assert widths == (8, 6, 4) and sample_shape == (8,) and num_classes == 4 and batch == 5
    assert device == torch.device("cpu") and dtype == torch.float64 and learning_rate == 0.25
    assert model[0].weight.dtype == dtype and not rest and not more
    (group,) = make_optimizer(model.parameters()).param_groups
    assert (group["lr"], group["momentum"]) == (0.25, 0.9)
    return lambda x, y: None


def of_any(sample_shape, num_classes):
    assert (sample_shape, num_classes) == ((1, 16, 16), 4)
    return lambda x, y: None


def makes_nothing(model):
    pass


def wants(model, depth):
    pass


def raises(model):
    raise ValueError("no such depth")


def fails(model):
    def step(x, y):
        raise KeyError("momentum")

    return step


def gives_scores(model):
    return lambda x, y: model(x)


def writes_x(model):
    return lambda x, y: x.mul_(1)


def stops_gradients(model):
    return lambda x, y: torch._C._set_grad_enabled(False)


def doubles(model):
    torch.set_default_dtype(torch.float64)
    return lambda x, y: None


number = 3
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and a module of somebody's that Python finds."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine_of_a_test.py").write_text(MINE)
    (tmp_path / "code" / "broken_of_a_test.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(contenders, "STREAM", 1 << 12)  # a rate of memory that no test looks at


def run(beside: str, *arguments: str, network: str = "8-6-4", rules: str = "dfa") -> Result:
    size = ("--network", network, "--batch", "5", "--steps", "2", "--rounds", "1", "--rules", rules)
    beside = beside.replace("mine", "mine_of_a_test")
    return CliRunner().invoke(app, ["benchmark", *size, "--beside", beside, *arguments], prog_name="prograde")


def records(beside: str, *arguments: str, **others: str) -> dict[str, dict[str, Any]]:
    result = run(beside, *arguments, "--output", "out", **others)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in Path("out/benchmark.jsonl").read_text().splitlines()]
    return {record["name"].replace("_of_a_test", ""): record for record in found if record["kind"] == "step"}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_backpropagation_of_ones_own_is_plain_backpropagation(optimizer: str) -> None:
    """The same losses to the last bit, and the same bytes: weights and the optimizer's state are not counted in either.

    It stands behind the rules, with the learning rate that it was given.
    """
    found = records("stepping,mine:plain", "--optimizer", optimizer)
    assert list(found) == ["PyTorch backprop", "stepping", "dfa", "mine:plain"]
    plain, own = found["PyTorch backprop"], found["mine:plain"]
    assert own["losses"] == plain["losses"]
    assert own["held"] == plain["held"] > 0
    assert own["learning_rate"] == plain["learning_rate"]
    assert own["floor"] is None, "nobody has counted its products"
    assert own["ratio"] > 0


def test_bytes_are_those_of_a_step() -> None:
    """5 x 3 numbers that it makes and 8 x 3 of a gradient, each 4 bytes; a weight and a buffer are there between."""
    found = records("mine:products,mine:products:rank=7")
    assert found["mine:products"]["held"] == 4 * (5 * 3 + 8 * 3)
    assert found["mine:products:rank=7"]["held"] == 4 * (5 * 7 + 8 * 7)
    assert found["mine:products"]["losses"] == [None, None]
    assert found["mine:products"]["learning_rate"] is None, "it did not ask for one"


def test_alive_has_each_storage_but_those_of_gradients() -> None:
    weight = nn.Linear(3, 2, bias=False).weight
    weight.grad = torch.ones(2, 3)
    view = torch.arange(4.0)[1:]
    pointers = {tensor.untyped_storage().data_ptr() for tensor in alive()}
    assert {weight.untyped_storage().data_ptr(), view.untyped_storage().data_ptr()} <= pointers
    assert weight.grad.untyped_storage().data_ptr() not in pointers
    with live_bytes(alive()) as live:
        weight.detach().add_(1)
        weight.grad.add_(1)
    assert live.peak == 4 * 6


def test_code_of_numpy_has_no_bytes_of_tensors() -> None:
    found = records("mine:of_numpy", "--dtype", "float64")
    assert found["mine:of_numpy"]["held"] is None
    assert found["mine:of_numpy"]["losses"] == [0.0, 0.0]
    (line,) = [line for line in run("mine:of_numpy", "--dtype", "float64").stdout.splitlines() if "of_numpy" in line]
    assert line.count("–") == 4, "learning rate, floor, held, defect"


def test_a_function_is_given_what_it_names() -> None:
    facts = records("mine:facts", "--dtype", "float64", "--learning-rate", "0.25", "--optimizer", "momentum")
    assert facts["mine:facts"]["learning_rate"] == 0.25
    network = "vgg8:channels=(4,4,4,4,4,4,4)"
    shape = ("--sample", "1x16x16", "--classes", "4", "--overwrite")
    assert "mine:of_any" in records("mine:of_any", *shape, network=network, rules="mono-forward")


def test_a_sweep_has_it_too() -> None:
    result = run("mine:plain", "--sweep", "width", "--values", "6,12", "--output", "out")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in Path("out/benchmark.jsonl").read_text().splitlines()]
    own = [record for record in found if record.get("name") == "mine_of_a_test:plain"]
    assert [(record["kind"], record.get("value")) for record in own] == [("step", 6), ("step", 12), ("fit", None)]
    assert Path("out/benchmark.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ("fast", ["'fast'", "stepping", "package.module:function"]),
        ("steppin", ["did you mean stepping?"]),
        ("mine:3", ["mine_of_a_test:3'", "expected package.module:function"]),
        ("mine.py:plain", ["'mine_of_a_test.py:plain' can't be imported", "PYTHONPATH"]),
        ("no_such_module:step", ["can't be imported", "no_such_module", "PYTHONPATH"]),
        ("broken_of_a_test:step", ["can't be imported", "no_such_package"]),
        ("mine:plane", ["module 'mine_of_a_test' has no 'plane'"]),
        ("mine:number", ["is a int, expected a function"]),
        ("mine:products:rank", ["expected arguments as in"]),
        ("mine:products:ranks=4", ["'ranks'", "did you mean rank?"]),
        ("mine:wants", ["wants 'depth'", "expected some of model, widths", "a default for others"]),
        ("mine:raises", ["ValueError: no such depth", "mine_of_a_test.py:"]),
        ("mine:makes_nothing", ["gives a NoneType", "step(x, y)"]),
        ("mine:fails", ["its step: KeyError: 'momentum'", "mine_of_a_test.py:"]),
        ("mine:gives_scores", ["a Tensor of shape (5, 4)", "expected the loss, one number, or None"]),
        ("mine:writes_x", ["writes into x", "expected"]),
        ("mine:doubles", ["default dtype", "torch.float32", "torch.float64", "expected"]),
        ("mine:stops_gradients", ["gradients", "expected"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(beside: str, words: list[str]) -> None:
    try:
        result = run(beside)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("prograde: error: --beside: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert os.listdir() == []


def test_what_can_not_be_imported_leaves_no_folder() -> None:
    assert run("mine:plane", "--output", "out").exit_code == 2
    assert os.listdir() == []


def test_widths_are_those_of_dense_networks() -> None:
    result = run("mine:products", network="lenet")
    assert "names widths, but --network is 'lenet'" in result.stderr


@pytest.mark.parametrize(
    "function", ["pepita", "foton", "forward_forward", "forward_forward_and_head", "feedback_alignment"]
)
def test_a_repository_that_is_not_there_is_named(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    result = run(f"peers:{function}")
    assert result.exit_code == 2
    assert "ModuleNotFoundError: No module named" in result.stderr
    assert "peers.py:" in result.stderr


def test_a_repository_that_changes_no_layer_trains_by_backpropagation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    (tmp_path / "code" / "biotorch" / "module").mkdir(parents=True)
    text = "def BioModule(module, mode):\n    assert mode == 'usf'\n    return module"
    (tmp_path / "code" / "biotorch" / "module" / "biomodule.py").write_text(text)
    found = records("peers:feedback_alignment:mode='usf'")
    plain, peer = found["PyTorch backprop"], found["peers:feedback_alignment:mode='usf'"]
    assert (peer["losses"], peer["held"]) == (plain["losses"], plain["held"])


def test_the_example_is_direct_feedback_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule's matrices it takes the rule's steps, whose weights are those of the reference."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_step import dfa

    torch.manual_seed(0)
    sizes = [nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)]
    model = nn.Sequential(*sizes).double()
    rule = DirectFeedbackAlignment(deepcopy(model))
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.3)
    step = dfa(model, learning_rate=0.3, feedback=rule.feedback)
    first = deepcopy(model.state_dict())
    for _ in range(3):
        x, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(4, (9,))
        torch.testing.assert_close(step(x, y), rule.step(x, y, optimizer))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, rule.model.state_dict()[name])
        assert not torch.allclose(weight, first[name]), name
