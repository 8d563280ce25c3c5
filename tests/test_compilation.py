"""`torch.compile(rule.assign_credit)`: how many graphs a step is, and that it is the same step."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from prograde.accelerated.rules import CreditAssignment, Foton, MonoForward
from prograde.accelerated.rules.orthogonality import Orthogonality
from prograde.equivalence_tests.rule_examples import EXAMPLES, dense


def sampled(some: Sequence[str], *more: str) -> list[Any]:
    """The first ones at each run, the others nightly."""
    return [*some, *(pytest.param(name, marks=pytest.mark.nightly) for name in more)]


CLOSED = sampled(
    ("foton", "ftp", "pepita", "forward-forward", "mono-forward"),
    "fa", "dfa", "drtp", "dtp", "symba", "foton, recompute", "foton, images", "foton, rotations", "ftp, second layer",
    "ftp, images", "pepita, images", "fa, images", "dfa, images", "drtp, images", "forward-forward, read-out",
    "forward-forward, hybrid", "forward-forward, pairs", "forward-forward, images", "layer-collaboration", "cumulative",
)  # fmt: skip
"""Examples whose units all have closed forms."""

OF_AUTOGRAD = sampled(
    ("backprop", "mono-forward, tanh"),
    "hyperspherical", "backprop, orthogonal", "backprop, images", "mono-forward, images", "dynamic-temperature",
    "patch-energy", "deeper-forward", "channel-competition", "channel-class-assignment", "deep supervision",
    "end to end", "ensemble",
)  # fmt: skip
"""Those where a unit has a graph of autograd."""


@pytest.fixture(autouse=True)
def _afresh() -> None:
    torch._dynamo.reset()


def example(name: str) -> tuple[CreditAssignment, torch.Tensor, torch.Tensor]:
    """With draws from PyTorch's own generator: the compiler knows no other."""
    rule: Any = EXAMPLES[name].build("cpu")
    rule.generator = None
    return rule, *EXAMPLES[name].batch("cpu")


def credited(step: Any, rule: CreditAssignment, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(7)
    loss = step(x, y)
    return [loss, *(p.grad.clone() for p in rule.parameters() if p.grad is not None)]


def check_one_graph(name: str) -> None:
    rule, x, y = example(name)
    graphs = CompileCounter()
    step = torch.compile(rule.assign_credit, backend=graphs, fullgraph=True)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.01)
    for _ in range(3):
        found, expected = credited(step, rule, x, y), credited(rule.assign_credit, rule, x, y)
        assert all(map(torch.equal, found, expected)), "the step that is not compiled"
        optimizer.step()
        rule.constrain(optimizer)
    assert graphs.frame_count == 1, "one graph for all steps"


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_one_graph(name: str) -> None:
    check_one_graph(name)


@pytest.mark.parametrize("name", OF_AUTOGRAD)
def test_graphs_of_autograd_are_traced_on_demand(name: str) -> None:
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace them")
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        check_one_graph(name)


def test_a_rule_is_compiled_in_place() -> None:
    """`assign_credit` and `step` take the graph; a copy has steps of its own."""
    torch.manual_seed(0)
    rule, (x, y) = MonoForward(dense(nn.ReLU)), (torch.randn(6, 16), torch.arange(6) % 4)
    eager, graphs = copy.deepcopy(rule), CompileCounter()
    rule.compile(backend=graphs, fullgraph=True)
    for trained in (rule, eager):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            trained.step(x, y, optimizer)
    torch.testing.assert_close(rule.state_dict(), eager.state_dict())
    assert graphs.frame_count == 1, "one graph for all steps"
    before = copy.deepcopy(rule.state_dict())
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        other.step(x, y, torch.optim.SGD(other.parameters(), lr=0.1))
    torch.testing.assert_close(rule.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="assign_credit"):
        rule.assign_credit(x, y).backward()


def test_each_rule_is_compiled_by_itself() -> None:
    """However many a process has: no rule is left to Python for those that were compiled before it."""
    graphs, (x, y) = CompileCounter(), (torch.rand(6, 5), torch.arange(6) % 2)
    with torch._dynamo.config.patch(recompile_limit=1):
        for number in range(1, 4):
            rule = MonoForward(nn.Sequential(nn.Linear(5, 3 + number), nn.ReLU(), nn.Linear(3 + number, 2)))
            rule.compile(backend=graphs)
            for _ in range(2):
                rule.assign_credit(x, y)
            assert graphs.frame_count == number


def test_a_compiled_rule_sees_what_changes() -> None:
    """A frozen parameter, a setting, another batch, a replaced layer: guards on these are kept."""
    torch.manual_seed(0)
    rule, (x, y) = MonoForward(dense(nn.ReLU)), (torch.randn(6, 16), torch.arange(6) % 4)
    graphs = CompileCounter()
    rule.compile(backend=graphs)

    def check(number: int, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
        eager = copy.deepcopy(rule)
        found, expected = credited(rule.assign_credit, rule, x, y), credited(eager.assign_credit, eager, x, y)
        assert len(found) == len(expected), "frozen parameters"
        torch.testing.assert_close(found, expected)
        assert graphs.frame_count == number, "graphs"

    check(1)
    check(1)
    rule.units[0].module.bias.requires_grad = False
    check(2)
    rule.loss.label_smoothing = 0.5
    check(3)
    check(4, x[:5], y[:5])
    rule.model[0] = copy.deepcopy(rule.model[0])
    with pytest.raises(ValueError, match="layer '0'"):
        rule.assign_credit(x, y)


def test_a_compiled_rule_calls_hooks_that_came_later() -> None:
    """And refuses those that it would refuse; once they are removed it is compiled again."""
    called: list[nn.Module] = []
    rule, (x, y) = MonoForward(dense(nn.ReLU)), (torch.randn(6, 16), torch.arange(6) % 4)
    graphs = CompileCounter()
    rule.compile(backend=graphs)
    rule.assign_credit(x, y)
    hook = rule.model[1].register_forward_hook(lambda module, *_: called.append(module))
    rule.assign_credit(x, y)
    assert called == [rule.model[1]], "called once a step"
    hook.remove()
    rule.assign_credit(x, y)
    assert len(called) == 1
    assert graphs.frame_count == 1, "graphs"
    for register in (rule.model[0].register_full_backward_hook, rule.model[0].weight.register_hook):
        hook = register(lambda *_: None)
        with pytest.raises(ValueError, match="layer '0'"):
            rule.assign_credit(x, y)
        hook.remove()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by the compiler
def test_a_rule_is_compiled_in_place_where_graphs_break() -> None:
    """At what PyTorch differentiates; what is left there is eager."""
    rule, (x, y) = MonoForward(dense()), (torch.randn(6, 16), torch.arange(6) % 4)
    eager = copy.deepcopy(rule)
    rule.compile(backend="eager")
    for _ in range(2):
        found, expected = credited(rule.assign_credit, rule, x, y), credited(eager.assign_credit, eager, x, y)
        assert all(map(torch.equal, found, expected)), "the step that is not compiled"


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by the compiler
def test_a_unit_is_one_graph_with_work_in_it_otherwise() -> None:
    """Of a local rule: up to the unit's derivative, which PyTorch takes outside; what is left has no product."""
    rule = MonoForward(dense().float())
    x, y = torch.randn(6, 16), torch.arange(6) % 4
    graphs: list[bool] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(any(node.target is functional.linear for node in graph.graph.nodes))
        return graph.forward

    step = torch.compile(rule.assign_credit, backend=count)
    for _ in range(3):
        found, expected = credited(step, rule, x, y), credited(rule.assign_credit, rule, x, y)
        assert all(map(torch.equal, found, expected)), "the step that is not compiled"
    assert sum(graphs) == len(rule.units), "graphs of units"


def test_in_an_autocast_region() -> None:
    rule, (x, y) = MonoForward(dense(nn.ReLU)), (torch.randn(6, 16), torch.arange(6) % 4)
    graphs = CompileCounter()
    step = torch.compile(rule.assign_credit, backend=graphs, fullgraph=True)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = credited(step, rule, x, y), credited(rule.assign_credit, rule, x, y)
        assert all(map(torch.equal, found, expected)), "the region's step"
    assert graphs.frame_count == 1, "one graph"


@pytest.mark.filterwarnings("error")
def test_the_constraint_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """And knows that it is due: weights stay within their tolerance, without a warning."""
    rule, (x, y) = Foton(dense()), (torch.randn(32, 16), torch.arange(32) % 4)
    compiling = []
    step = Orthogonality.step
    monkeypatch.setattr(Orthogonality, "step", lambda *a: (compiling.append(torch.compiler.is_compiling()), step(*a)))
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    credit = torch.compile(rule.assign_credit, backend="eager", fullgraph=True)
    for _ in range(5):
        credit(x, y)
        optimizer.step()
        rule.constrain(optimizer)
    assert compiling == [False] * 5, "constrained past the compiler"
    for unit in rule.units[:-1]:
        weight = unit.weights[0]
        assert (weight @ weight.T - torch.eye(len(weight))).abs().max() <= 5e-3, "within the tolerance"


def test_a_projection_that_is_held_takes_three_graphs() -> None:
    """The first, one that builds it anew, and one that holds it, for all steps."""
    torch.manual_seed(0)
    rule = Foton(dense(), projection_every=3)
    graphs = CompileCounter()
    step = torch.compile(rule.assign_credit, backend=graphs)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    kept: list[torch.Tensor] = []
    for number in range(9):
        x, y = torch.randn(32, 16), torch.arange(32) % 4
        eager = copy.deepcopy(rule)
        found, expected = credited(step, rule, x, y), credited(eager.assign_credit, eager, x, y)
        assert all(map(torch.equal, found, expected)), "the step that is not compiled"
        assert rule.projection is not None
        assert (number % 3 != 0) == (bool(kept) and torch.equal(rule.projection, kept[-1])), f"step {number}"
        kept.append(rule.projection.clone())
        optimizer.step()
        rule.constrain(optimizer)
    assert graphs.frame_count == 3, "graphs"


FIRST_STEP = """
import os
import torch
from torch import nn
from prograde.accelerated.rules import Ftp

layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
rule = Ftp(nn.Sequential(*layers, nn.Linear(128, 10)))
before = sum(os.times()[:4])
torch.compile(rule.assign_credit, fullgraph=True)(torch.randn(64, 784), torch.randint(0, 10, (64,)))
print(sum(os.times()[:4]) - before)
"""


@pytest.mark.nightly
def test_the_first_step_of_four_layers_takes_at_most_20_seconds(tmp_path: Path) -> None:
    """Of processors' time, the least of two processes without a cache."""
    used = []
    for run in ("first", "second"):
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / run)}
        done = subprocess.run(
            [sys.executable, "-P", "-c", FIRST_STEP], env={**os.environ, **cache}, check=True, capture_output=True
        )
        used.append(float(done.stdout))
    assert min(used) <= 20, used
