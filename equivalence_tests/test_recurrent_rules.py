"""Through the front door: what rules put into `.grad` of nn.RNN and nn.GRU is the reference's update."""

import copy
import pickle
import re
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from prograde.accelerated.modules import RecurrentNetwork
from prograde.accelerated.rules import BackpropThroughTime, RecurrentFtp, RecurrentRule
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.test_recurrent import (
    GATES,
    KINDS,
    LIBRARY,
    Sequences,
    Weights,
    chain,
    named,
    present,
    sequences,
    without_silent,
)
from prograde.equivalence_tests.test_recurrent import updates as backpropagated
from prograde.equivalence_tests.test_recurrent_ftp import updates as target_propagated
from prograde.equivalence_tests.test_recurrent_stacks import (
    ALGORITHMS,
    IGNORED,
    Stack,
    stack_of_lengths,
    stack_of_tokens,
    stacks,
)
from prograde.equivalence_tests.test_recurrent_stacks import LIBRARY as MODULES
from prograde.equivalence_tests.test_recurrent_stacks import updates as stack_updates
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import ftp

pytestmark = pytest.mark.usefixtures("ours_only")

losses = st.sampled_from(["cross_entropy", "squared_error"])


def with_biases(case: Sequences) -> Sequences:
    """The model has biases, always."""
    rows, outputs = len(case.weights.weight_ih), len(case.weights.weight_out)
    offsets = [np.linspace(-0.3, 0.4, size) for size in (rows, rows, outputs)]
    return case._replace(
        weights=case.weights._replace(bias_ih=offsets[0], bias_hh=offsets[1][::-1].copy(), bias_out=offsets[2])
    )


def model_of(cell: str, weights: Any) -> RecurrentNetwork:
    """The operands (tensors) as a model."""
    n_in, n, outputs = weights.weight_ih.shape[1], weights.weight_hh.shape[1], len(weights.weight_out)
    like = {"device": weights.weight_ih.device, "dtype": weights.weight_ih.dtype}
    model = RecurrentNetwork(n_in, n, outputs, cell if cell in GATES else "elman", **like)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    return model


def gradients(rule: RecurrentRule) -> Weights:
    """What the rule left in .grad."""
    found = [p.grad for p in rule.model.parameters()]
    assert not any(grad.requires_grad for grad in found)
    return Weights(*found)


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    rng=seeds(),
    loss=losses,
    inject=st.sampled_from(["first", "every"]),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_recurrent_ftp(
    twin: TwinSide,
    compare: Comparison,
    kind: str,
    data: st.DataObject,
    rng: np.random.Generator,
    loss: str,
    inject: Any,
    reduction: Any,
) -> None:
    case = with_biases(data.draw(sequences(LIBRARY[kind]), label="case"))
    feedback = ftp.random_feedback(case.weights.weight_hh.shape[1], len(case.weights.weight_out), rng)
    options: dict[str, Any] = {"gain": 0.7, "reduction": reduction}

    def ours(side: Side, weights: Any, x: Any, y: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            every = inject == "every"
            found = target_propagated(side, weights, x, y, feedback, case.cell, "tanh", loss, every=every, **options)
        else:
            rule = RecurrentFtp(model_of(case.cell, weights), loss=loss, inject=inject, **options)
            rule.feedback.copy_(feedback)
            rule.assign_credit(x, y)
            found = gradients(rule)
        return without_silent(found, case.length)

    y = case.targets if loss == "squared_error" else case.labels
    compare(twin, "RecurrentFtp", ours, case.weights, case.x, y, feedback)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), loss=losses, truncation=st.sampled_from([None, 1, 2, 5, 9]))
def test_backprop_through_time(
    twin: TwinSide, compare: Comparison, kind: str, data: st.DataObject, loss: str, truncation: int | None
) -> None:
    """Of small x: PyTorch's derivative of tanh, 1 - h^2, has lost its digits where h is near 1."""
    case = with_biases(data.draw(sequences(LIBRARY[kind]), label="case"))
    case = case._replace(x=case.x / 4)

    def ours(side: Side, weights: Any, x: Any, y: Any) -> Any:
        if isinstance(side, ReferenceSide):
            found = backpropagated(side, weights, x, y, case.cell, loss, truncation)
        else:
            rule = BackpropThroughTime(model_of(case.cell, weights), loss=loss, truncation=truncation)
            with torch.backends.cudnn.flags(enabled=False):  # whose tanh in float32 was off by 6e-6 on an H200
                rule.assign_credit(x, y)
            found = gradients(rule)
        return without_silent(found, case.length)

    y = case.targets if loss == "squared_error" else case.labels
    compare(twin, "BackpropThroughTime", ours, case.weights, case.x, y)


RULES = {"ftp": RecurrentFtp, "bptt": BackpropThroughTime}


def example(cell: Any = "elman", loss: str = "cross_entropy") -> tuple[RecurrentNetwork, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = RecurrentNetwork(4, 6, 3, cell, dtype=torch.float64)
    x = torch.randn(5, 8, 4, dtype=torch.float64)
    return model, x, torch.randn(5, 3).double() if loss == "squared_error" else torch.randint(0, 3, (5,))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("name", RULES)
def test_the_loss_is_the_objective(name: str, cell: Any, loss: str) -> None:
    """A scalar without a graph, the batch mean at the output."""
    model, x, y = example(cell, loss)
    rule = RULES[name](model, loss=loss)
    found, whole = rule.assign_credit(x, y), rule.objective(x, y)
    assert not found.requires_grad
    assert whole.requires_grad
    assert found.item() == pytest.approx(whole.item(), rel=1e-12)
    if loss == "squared_error":
        assert whole.item() == pytest.approx(0.5 * ((rule(x) - y) ** 2).sum(dim=1).mean().item(), rel=1e-12)
    else:
        assert whole.item() == pytest.approx(torch.nn.functional.cross_entropy(rule(x), y).item(), rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_stepping_while_streaming_changes_nothing(name: str) -> None:
    """Each part is overwritten before the next update is asked for."""
    model, x, y = example()
    rule = RULES[name](model, generator=seeded(1))
    other = copy.deepcopy(rule)
    other.model.recurrent.flatten_parameters()  # a copy's lie apart, of which PyTorch warns on a GPU
    whole = [[update.clone() for update in part.gradients] for part in rule.stream(x, y)]
    for expected, part in zip(whole, other.stream(x, y), strict=True):
        for a, b in zip(expected, part.gradients, strict=True):
            assert torch.equal(a, b), part.unit.name
        with torch.no_grad():
            for parameter in part.unit.parameters:
                parameter.fill_(float("nan"))


@pytest.mark.parametrize("name", RULES)
def test_assign_credit_forgets_the_last_step(name: str) -> None:
    model, x, y = example()
    rule = RULES[name](model)
    rule.assign_credit(x, y)
    fresh = [p.grad.clone() for p in rule.parameters()]
    for p in rule.parameters():
        p.grad = torch.ones_like(p)
    rule.assign_credit(x, y)
    for p, expected in zip(rule.parameters(), fresh, strict=True):
        assert torch.equal(p.grad, expected), "stale gradient"


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_updates_are_those_of_their_parameters_in_whatever_order_these_are(cell: Any) -> None:
    """`prune.remove` puts a parameter last, and those of input and state may have one shape."""
    torch.manual_seed(0)
    model = RecurrentNetwork(4, 4, 3, cell).double()
    x, y = torch.randn(5, 6, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    expected: dict[str, torch.Tensor] = {}
    for is_moved in (False, True):
        if is_moved:
            (module,) = (part for part in model.modules() if isinstance(part, torch.nn.RNNBase))
            for key in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
                module._parameters[key] = module._parameters.pop(key)
        rule = RecurrentFtp(model, generator=seeded(1))
        rule.assign_credit(x, y)
        found = {key: p.grad for key, p in model.named_parameters()}
        expected = expected or found
        for key, gradient in expected.items():
            assert torch.equal(found[key], gradient), f"{key} of another"


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_a_state_is_saved_whole(cell: Any) -> None:
    """The feedback is in it; copies and pickles learn alike."""
    model, x, y = example(cell)
    rule = RecurrentFtp(model)
    other = RecurrentFtp(example(cell)[0], generator=seeded(1))
    assert not torch.equal(rule.feedback, other.feedback)
    other.load_state_dict(rule.state_dict())
    for copied in (other, pickle.loads(pickle.dumps(rule))):
        copied.assign_credit(x, y)
        rule.assign_credit(x, y)
        for a, b in zip(rule.parameters(), copied.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


@pytest.mark.places_itself
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("name", RULES)
def test_twins_compile_without_a_graph_break(name: str, cell: str, twin64: TwinSide) -> None:
    model, x, y = (part.to(twin64.device) for part in example(cell))
    weights, kind = Weights(*model.parameters()), cell if cell in GATES else "tanh"
    names = ("activations", "layers", "losses", "ftp", "backprop", "recurrent")
    side: Any = SimpleNamespace(**{module: twin64.module(module) for module in names})

    def updates(x: torch.Tensor, y: torch.Tensor) -> Any:
        layers, h = chain(side, kind, weights, x)
        clean = side.layers.forward(layers, h)
        error = side.losses.cross_entropy_gradient(clean.scores, y)
        if name == "ftp":
            each = (error @ torch.ones_like(weights.weight_out))[:, None].expand(-1, x.shape[1], -1)
            first, *_ = side.recurrent.at_steps(layers[:-1], [each])
            factors = side.ftp.update_factors(layers, clean, error, first)
        else:
            factors = side.backprop.update_factors(layers, clean, error)
        return named(weights, side.recurrent.updates(layers, factors))

    compiled = torch.compile(updates, fullgraph=True, backend="eager")
    with torch.no_grad():
        found, eager = compiled(x, y), updates(x, y)
    for parameter, a, b in zip(Weights._fields, found, eager, strict=True):
        assert torch.equal(a, b), parameter


def test_units_are_the_recurrent_layer_and_the_output() -> None:
    """Their parameters together are the model's, in its order, weights first in each."""
    for cell in ("elman", "gru", "lstm"):
        rule = RecurrentFtp(example(cell)[0])
        assert [unit.name for unit in rule.units] == ["recurrent", "output"]
        assert [id(p) for unit in rule.units for p in unit.parameters] == [id(p) for p in rule.model.parameters()]
        assert [len(unit.weights) for unit in rule.units] == [2, 1]
        assert all(p is w for unit in rule.units for p, w in zip(unit.parameters, unit.weights, strict=False))
        assert [unit.width for unit in rule.units] == [6, 3]
        assert rule.num_classes == 3
        assert not rule.wants_images
        assert rule.wants_sequences
    rule = RecurrentFtp(RecurrentNetwork(4, 6, 3, vocabulary=5))
    assert [unit.name for unit in rule.units] == ["embedding", "recurrent", "output"]
    assert [(unit.width, unit.has_maps) for unit in rule.units] == [(4, False), (6, False), (3, False)]
    assert [len(unit.parameters) for unit in rule.units] == [1, 4, 2]


@pytest.mark.parametrize("name", RULES)
def test_squared_error_takes_labels_for_their_targets(name: str) -> None:
    model, x, y = example()
    rule = RULES[name](model, loss="squared_error")
    found = []
    for told in (y, torch.nn.functional.one_hot(y, 3).double()):
        found.append((rule.assign_credit(x, told), [p.grad.clone() for p in rule.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_elmans_state_matrix_starts_orthogonal() -> None:
    weight = RecurrentNetwork(3, 40, 2).recurrent.weight_hh_l0.double()
    assert torch.allclose(weight @ weight.T, torch.eye(40).double(), atol=1e-5)


def test_the_model_is_what_it_says() -> None:
    """Its output is the linear map of the last state."""
    model, x, _ = example("gru")
    states, last = model.recurrent(x)
    assert torch.equal(model(x), model.output(states[:, -1]))
    assert torch.equal(last[0], states[:, -1])


def test_backward_hooks_are_called_through_time() -> None:
    model, x, y = example()
    rule, called = BackpropThroughTime(model), []
    assert rule.calls(model.recurrent)
    assert not BackpropThroughTime(model, truncation=2).calls(model.recurrent), "whose steps are taken in two passes"
    hook = model.output.weight.register_hook(called.append)
    rule.assign_credit(x, y)
    hook.remove()
    assert len(called) == 1
    model.output.weight.register_hook(called.append)
    with pytest.raises(ValueError, match="a hook on its weight"):
        RecurrentFtp(model).assign_credit(x, y)


class Own(torch.nn.Module):
    """A user's model: PyTorch's layers, and a forward pass of its own."""

    def __init__(self, batch_first: bool = True, several: bool = False) -> None:
        super().__init__()
        kinds: list[Any] = [torch.nn.LSTM, torch.nn.GRU] if several else [torch.nn.LSTM]
        sizes = [4, 6, 5]
        self.rnns = torch.nn.ModuleList(
            kind(a, b, num_layers=2 if several else 1, batch_first=batch_first, dtype=torch.float64)
            for kind, a, b in zip(kinds, sizes, sizes[1:], strict=False)
        )
        self.head = torch.nn.Linear(sizes[len(kinds)], 3, dtype=torch.float64)
        self.batch_first = batch_first

    @property
    def units(self) -> list[torch.nn.Module]:
        return [*self.rnns, self.head]

    def forward(self, x: Any, lengths: Any = None) -> torch.Tensor:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        for rnn in self.rnns:
            x, h = rnn(x)
        scores: torch.Tensor = self.head(h[0][-1] if isinstance(h, tuple) else h[-1])
        return scores


LENGTHS = torch.tensor([3, 8, 1, 5, 8])


def by_autograd(model: torch.nn.Module, *x: Any, y: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(torch.nn.functional.cross_entropy(model(*x), y), list(model.parameters())))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("form", ["whole", "steps first", "lengths", "packed"])
@pytest.mark.parametrize("name", RULES)
def test_a_model_of_ones_own_is_trained_by_its_units(name: str, form: str, several: bool) -> None:
    """Backpropagation's gradients are autograd's; FTP's the mean of those of the samples alone, in another model."""
    _, x, y = example()
    torch.manual_seed(1)
    model = Own(form != "steps first", several)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    given: Any = {"lengths": (x, LENGTHS), "packed": packed}.get(form, x)
    rule = RULES[name](model, units=model.units, example=given, generator=seeded(1))
    assert list(rule.parameters()) == list(model.parameters())
    loss = rule.assign_credit(given, y)
    assert loss.item() == pytest.approx(rule.objective(given, y).item(), rel=1e-12)
    found = [p.grad for p in model.parameters()]
    if name == "bptt":
        expected = by_autograd(model, *(given if form == "lengths" else [given]), y=y)
        bound = 1e-12
    else:
        other = Own(True, several)
        other.load_state_dict(model.state_dict())
        lengths = LENGTHS if form in ("lengths", "packed") else torch.full((5,), 8)
        alone: list[Any] = []
        for i, n in enumerate(lengths):
            single = RecurrentFtp(other, units=other.units, generator=seeded(1))
            single.assign_credit(x[i : i + 1, :n], y[i : i + 1])
            alone.append([p.grad for p in other.parameters()])
        expected = [sum(parts) / 5 for parts in zip(*alone, strict=True)]
        bound = 1e-12
        assert all(g.abs().max() > 0 for g in found[:1]), "the lowest layer does not learn"
    for (parameter, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        assert (a - b).abs().max() <= bound * max(1.0, b.abs().max().item()), parameter


@pytest.mark.parametrize("truncation", [1, 3, 6, 8, 9])
@pytest.mark.parametrize("batch_first", [True, False])
def test_truncated_gradients_of_a_model_of_ones_own(batch_first: bool, truncation: int) -> None:
    """No gradient goes into the states before the last steps; where there are no more steps it is that of all."""
    _, x, y = example()
    model, other = Own(batch_first, several=True), Own(several=True)
    other.load_state_dict(model.state_dict())
    BackpropThroughTime(model, units=model.units, truncation=truncation).assign_credit(x, y)
    before = max(8 - truncation, 0)
    states, h = [None, None], x[:, before:]
    if before:
        with torch.no_grad():
            below, states[0] = other.rnns[0](x[:, :before])
            _, states[1] = other.rnns[1](below)
    for rnn, state in zip(other.rnns, states, strict=True):
        h, _ = rnn(h, state)
    torch.nn.functional.cross_entropy(other.head(h[:, -1]), y).backward()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15, msg=name)


def test_cudnn_is_asked_for_no_gradient_in_evaluation_mode() -> None:
    """Which it refuses."""
    rule = BackpropThroughTime(example()[0])
    for training in (True, False):
        with rule.train(training).differentiable():
            assert torch.backends.cudnn.enabled == training


def test_a_network_of_this_package_is_not_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one whose layer takes steps first, which its forward pass does not."""
    model, x, y = example()
    tokens = RecurrentNetwork(4, 6, 3, vocabulary=5)
    turned = RecurrentNetwork(4, 6, 3, vocabulary=5)
    turned.recurrent.batch_first = False
    asked: list[Any] = []
    monkeypatch.setattr(RecurrentRule, "_check_units", lambda rule, x: asked.append(rule.model))
    for network, values in ((model, x), (tokens, torch.zeros(5, 2).long()), (turned, torch.zeros(5, 2).long())):
        BackpropThroughTime(network).assign_credit(values, y)
    assert asked == [turned]


def test_units_are_compared_with_a_model_of_ones_own_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the example, or the first batch."""
    _, x, y = example()
    asked: list[Any] = []
    compared = RecurrentRule._check_units
    monkeypatch.setattr(RecurrentRule, "_check_units", lambda rule, x: asked.append(rule) or compared(rule, x))
    for batch in (None, x):
        model = Own()
        rule = BackpropThroughTime(model, units=model.units, example=batch)
        for _ in range(2):
            rule.assign_credit(x, y)
        assert asked == [rule]
        asked.clear()


@pytest.mark.parametrize("cell", ["elman", "relu", "gru", "lstm"])
@pytest.mark.parametrize("name", RULES)
def test_stacked_networks_learn(name: str, cell: Any) -> None:
    """Which step has the label's number: the loss falls below a tenth, and every parameter moves."""
    torch.manual_seed(0)
    model = RecurrentNetwork(3, 12, 3, cell, num_layers=2)
    x, y = 0.1 * torch.randn(24, 4, 3), torch.arange(24) % 3
    x[:, 1, :] += torch.eye(3)[y]
    before = [p.clone() for p in model.parameters()]
    rule: Any = RULES[name](model, generator=seeded(1), **({"inject": "every"} if name == "ftp" else {}))
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    first = rule.objective(x, y).item()
    for _ in range(150):
        rule.assign_credit(x, y)
        optimizer.step()
    assert rule.objective(x, y).item() < 0.1 * first, "does not learn"
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def doubled_first(scores: torch.Tensor) -> torch.Tensor:
    """Of the first sample alone."""
    return torch.cat([2 * scores[:1], scores[1:]])


def test_units_that_are_not_the_model_are_refused() -> None:
    """By the difference, at construction with an example, else at the first batch; and by their names."""
    _, x, y = example()

    class Mean(Own):
        def forward(self, x: Any, lengths: Any = None) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.rnns[0](x)[0].mean(dim=1))
            return scores

    class Dropped(Own):
        def forward(self, x: Any, lengths: Any = None) -> torch.Tensor:
            h = torch.nn.functional.dropout(self.rnns[0](x)[0][:, -1], 0.5, self.training)
            scores: torch.Tensor = self.head(h)
            return scores

    for model, mode in ((Mean(), "evaluation"), (Dropped(), "training")):
        with pytest.raises(ValueError, match=f"units: in {mode} mode the model gives scores .* apart from theirs"):
            RecurrentFtp(model, units=model.units, example=x)
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=f"units: in {mode} mode the model gives scores .* apart from theirs"):
            BackpropThroughTime(model, units=model.units).assign_credit(x, y)
        assert torch.equal(state, torch.get_rng_state())
        assert model.training
    model = Own()
    tripled = type("Tripled", (Own,), {"forward": lambda self, x, lengths=None: 3 * Own.forward(self, x, lengths)})()
    with pytest.raises(ValueError, match="apart from theirs") as caught:
        RecurrentFtp(tripled, units=tripled.units, example=x)
    apart, size = map(
        float, re.findall(r"scores (\S+) apart from theirs, where these are (\S+) at", str(caught.value))[0]
    )
    assert np.isclose(apart / size, 2 / 3, rtol=1e-2), "apart from the units', beside the model's"
    for power, accepted in ((0.75, True), (0.25, False)):
        factor = 1 + np.finfo(float).eps ** power
        near = type("Near", (Own,), {"forward": lambda self, x, lengths=None: factor * Own.forward(self, x, lengths)})()  # noqa: B023
        said = refusal(lambda: RecurrentFtp(near, units=near.units, example=x))  # noqa: B023
        assert (said == "accepted") == accepted, "the digits that rounding may take are half of them"
    with torch.no_grad():
        model.head.weight *= 1e9
        tripled.head.weight.zero_()
        tripled.head.bias.fill_(1e-9)
    RecurrentFtp(model, units=model.units, example=x)
    with pytest.raises(ValueError, match="apart from theirs"):
        RecurrentFtp(tripled, units=tripled.units, example=x)
    steps_first, own, both = Own(batch_first=False), Own(), Own(several=True)
    steps_first.forward = lambda x: steps_first.head(steps_first.rnns[0](x)[0][-1])  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"shape \(8, 3\), not \(5, 3\); .*x being \(batch, steps, ...\)"):
        RecurrentFtp(steps_first, units=steps_first.units, example=x)
    doubled = {"forward": lambda self, x, lengths=None: doubled_first(Own.forward(self, x, lengths))}
    last = type("Last", (Own,), doubled)()
    with pytest.raises(ValueError, match="apart from theirs"):
        RecurrentFtp(last, units=last.units, example=x)
    both.third = torch.nn.GRU(6, 5, batch_first=True, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"layer 'third': takes 6 features, but layer 'rnns.1' gives 5"):
        RecurrentFtp(both, units=[*both.rnns, both.third, both.head])
    del both.third
    embedding, wide, reader = torch.nn.Embedding(5, 4), torch.nn.Embedding(5, 5), Own()
    reader.register_module("embedding", embedding)
    reader.register_module("wide", wide)
    for units, message in (
        ([embedding, reader.head], "units: 2 of them, expected units="),
        ([embedding, wide, reader.head], "layer 'wide': Embedding; RecurrentFtp trains nn.RNN"),
        ([wide, *reader.rnns, reader.head], "layer 'rnns.0': takes 4 features, but layer 'wide' gives 5"),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrentFtp(reader, units=units)
    for units, message in (
        ([], "units: 0 of them, expected units="),
        ([own.head], "units: 1 of them, expected units="),
        ([torch.nn.GRU(4, 6), own.head], "units: GRU is no module of the model"),
        ([own.head, own.head], "layer 'head': Linear; RecurrentFtp trains nn.RNN"),
        ([own.rnns[0], own.rnns[0]], "layer 'rnns.0': LSTM.*needs an nn.Linear of the 6 states"),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrentFtp(own, units=units)
    with pytest.raises(ValueError, match=r"layer 'rnns.0': takes 4 features, but layer 'rnns.1' gives 5"):
        RecurrentFtp(both, units=[both.rnns[1], both.rnns[0], both.head])
    with pytest.raises(ValueError, match=r"parameter 'rnns.0.weight_ih_l0': in none of the units"):
        RecurrentFtp(both, units=[both.rnns[1], both.head])


@pytest.mark.parametrize("name", RULES)
def test_lengths_that_do_not_fit_are_refused(name: str) -> None:
    model, x, y = example()
    rule = RULES[name](model)
    for lengths, message in (
        (LENGTHS[:4], r"lengths: torch.int64 of shape \(4,\), expected int64 of shape \(5,\)"),
        (LENGTHS.float(), "lengths: torch.float32 of shape"),
        ([3, 8, 1, 5, 8], "lengths: a list, expected int64"),
        (LENGTHS - 1, r"lengths: 0\.\.7, expected 1\.\.8"),
        (LENGTHS + 1, r"lengths: 2\.\.9, expected 1\.\.8"),
    ):
        with pytest.raises(ValueError, match=message):
            rule.assign_credit((x, lengths), y)
    with pytest.raises(ValueError, match="truncation: 2, with lengths"):
        BackpropThroughTime(model, truncation=2).assign_credit((x, LENGTHS), y)


class Reader(torch.nn.Module):
    """A user's model of a case: an embedding or none, a module for each recurrent layer, and scores of every step."""

    def __init__(self, case: Stack, weights: Any, table: Any) -> None:
        super().__init__()
        *layers, (weight, bias) = weights
        place = {"device": weight.device, "dtype": weight.dtype}
        self.embedding = None if table is None else torch.nn.Embedding(*table.shape, **place)
        self.rnns = torch.nn.ModuleList(
            MODULES[cell](w_x.shape[1], w_h.shape[1], bias=b_x is not None, batch_first=True, **place)
            for cell, (w_x, w_h, b_x, _) in zip(case.cells, layers, strict=True)
        )
        self.head = torch.nn.Linear(weight.shape[1], len(weight), bias=bias is not None, **place)
        self.per_step = case.per_step
        values = present((*(part for layer in layers for part in layer), weight, bias))
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), [*present([table]), *values], strict=True):
                parameter.copy_(value)

    @property
    def units(self) -> list[torch.nn.Module]:
        return [*present([self.embedding]), *self.rnns, self.head]

    def forward(self, x: Any, lengths: Any = None) -> torch.Tensor:
        x = x if self.embedding is None else self.embedding(x)
        for rnn in self.rnns:
            x, _ = rnn(x)
        if not self.per_step:
            x = x[:, -1] if lengths is None else x[torch.arange(len(x)), lengths - 1]
        scores: torch.Tensor = self.head(x)
        return scores


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@hypothesis.example(case=stack_of_tokens(), reduction="sum")
@hypothesis.example(case=stack_of_lengths(), reduction="mean")
@given(case=stacks(), reduction=st.sampled_from(["sum", "mean"]))
def test_a_stack_of_ones_own(twin: TwinSide, compare: Comparison, algorithm: Any, case: Stack, reduction: Any) -> None:
    """Tokens or features, of several lengths or one, with a label of each sample or of each step."""
    reduction = "sum" if algorithm == "backprop" else reduction

    def ours(side: Side, weights: Any, table: Any, x: Any, labels: Any, lengths: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            operands = weights, table, x, labels, lengths, feedback
            return [
                part for layer in stack_updates(side, *operands, case.cells, algorithm, reduction) for part in layer
            ]
        model = Reader(case, weights, table)
        loss, own = torch.nn.CrossEntropyLoss(ignore_index=IGNORED), {"units": model.units}
        rule: RecurrentRule
        if algorithm == "backprop":
            rule = BackpropThroughTime(model, loss=loss, **own)
        else:
            rule = RecurrentFtp(model, phi="identity", inject=algorithm, reduction=reduction, loss=loss, **own)
            rule.feedback.copy_(torch.cat(feedback)[: len(rule.feedback)])
        if lengths is not None and case.per_step:  # whatever stands behind a sample's end
            labels = labels.masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths[:, None], 10**6)
        with torch.backends.cudnn.flags(enabled=False):
            rule.assign_credit(x if lengths is None else (x, lengths), labels)
        return [p.grad for p in model.parameters()]

    compare(twin, f"{algorithm}, a stack", ours, *case.operands)


@pytest.mark.parametrize("vocabulary", [None, 5])
def test_sequences_may_have_one_step(vocabulary: int | None) -> None:
    """Of features or a token: backpropagation's gradients are autograd's, and FTP's sum over steps is their mean."""
    torch.manual_seed(0)
    model = RecurrentNetwork(4, 6, 3, vocabulary=vocabulary, dtype=torch.float64)
    x = torch.randn(5, 1, 4, dtype=torch.float64) if vocabulary is None else torch.arange(5)[:, None]
    y = torch.arange(5) % 3
    BackpropThroughTime(model).assign_credit(x, y)
    found = [p.grad for p in model.parameters()]
    for a, b in zip(found, by_autograd(model, x, y=y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    of_reduction = []
    for reduction in ("sum", "mean"):
        RecurrentFtp(model, reduction=reduction, generator=seeded(0)).assign_credit(x, y)
        of_reduction.append([p.grad for p in model.parameters()])
    for a, b in zip(*of_reduction, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_the_loss_is_told_with_the_output_alone(name: str) -> None:
    """Once, however many units stand below."""
    rule = RULES[name](RecurrentNetwork(4, 6, 3, vocabulary=5))
    updates = list(rule.stream(torch.arange(5)[:, None], torch.zeros(5).long()))
    told = {update.unit.name: update.loss is not None for update in updates}
    assert told == {unit.name: unit is rule.output for unit in rule.units}
    assert not updates[-1].loss.requires_grad, "a graph"


@pytest.mark.parametrize("name", RULES)
def test_labels_of_steps_have_weights(name: str) -> None:
    """The loss is the weighted mean over the steps that samples have; labels behind them are not looked at."""
    torch.manual_seed(0)
    model = RecurrentNetwork(4, 6, 3, per_step=True, dtype=torch.float64)
    x, weights = torch.randn(5, 8, 4, dtype=torch.float64), torch.rand(5, 8, dtype=torch.float64)
    there = torch.arange(8) < LENGTHS[:, None]
    y = torch.randint(0, 3, (5, 8)).masked_fill(~there, 10**6)
    each = torch.nn.functional.cross_entropy(model(x)[there], y[there], reduction="none")
    expected = (weights[there] * each).sum() / weights[there].sum()
    found = RULES[name](model).assign_credit((x, LENGTHS), (y, weights))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    alike = RULES[name](model).assign_credit((x, LENGTHS), y)
    assert alike.item() == pytest.approx(each.mean().item(), rel=1e-12), "without weights"
    assert RULES[name](model).objective((x, LENGTHS), y).item() == pytest.approx(alike.item(), rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_the_row_of_padding_learns_nothing(name: str) -> None:
    """Where the embedding has one."""
    for padding in (None, 3):
        model = RecurrentNetwork(4, 6, 3, vocabulary=5)
        model.embedding.padding_idx = padding
        RULES[name](model).assign_credit(torch.tensor([[1, 3], [3, 1]]), torch.tensor([0, 1]))
        assert [bool(row.any()) for row in model.embedding.weight.grad] == [False, True, False, padding is None, False]


def test_feedback_has_rows_for_the_layers_that_are_corrected() -> None:
    """The lowest, or all."""
    model = RecurrentNetwork(4, 6, 3, num_layers=2)
    assert RecurrentFtp(model).feedback.shape == (6, 3)
    assert RecurrentFtp(model, inject="every").feedback.shape == (12, 3)


@pytest.mark.parametrize("name", RULES)
def test_a_tagger_learns(name: str) -> None:
    """Of every token, whether the one before was its like: the loss falls below half, padding's row stays."""
    torch.manual_seed(0)
    model = RecurrentNetwork(6, 24, 2, "gru", vocabulary=4, per_step=True)
    model.embedding.padding_idx = 3
    x, lengths = torch.randint(0, 3, (40, 7)), torch.randint(2, 8, (40,))
    y = (x == torch.cat([x[:, :1], x[:, :-1]], dim=1)).long()
    x = x.masked_fill(torch.arange(7) >= lengths[:, None], 3)
    x[0, 0] = 3
    options = {"inject": "every", "scale": 0.2} if name == "ftp" else {}
    rule: Any = RULES[name](model, generator=seeded(1), **options)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.02)
    first = rule.objective((x, lengths), y).item()
    for _ in range(150):
        rule.assign_credit((x, lengths), y)
        optimizer.step()
    assert rule.objective((x, lengths), y).item() < first / 2, "does not learn"
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert torch.equal(model.embedding.weight[3], before[0][3]), "padding learns"
    assert rule((x, lengths)).shape == (40, 7, 2)


def test_tokens_and_labels_of_steps_that_do_not_fit_are_refused() -> None:
    model = RecurrentNetwork(6, 8, 3, "gru", vocabulary=4, per_step=True)
    x, y = torch.randint(0, 4, (5, 7)), torch.randint(0, 3, (5, 7))
    rule = BackpropThroughTime(model)
    for wrong, message in (
        (x.float(), r"x: torch.float32 of shape \(5, 7\), expected int64 of shape \(batch, steps\), tokens"),
        (x[:, :, None], r"x: torch.int64 of shape \(5, 7, 1\), expected int64"),
        (x[:0], r"x: torch.int64 of shape \(0, 7\), expected int64"),
        (x[:, :0], r"x: torch.int64 of shape \(5, 0\), expected int64"),
        (x - 1 - x.min(), r"x: tokens -1\.\..*, expected 0\.\.3, padding too"),
        (x + 4, r"x: tokens .*, expected 0\.\.3, padding too"),
        (x.index_fill(1, torch.tensor([2]), 4), r"x: tokens 0\.\.4, expected 0\.\.3, padding too"),
    ):
        with pytest.raises(ValueError, match=message):
            rule.assign_credit(wrong, y)
    with pytest.raises(ValueError, match=r"y: torch.int64 of shape \(5,\), expected int64 of shape \(5, 7\)"):
        rule.assign_credit(x, y[:, 0])
    with pytest.raises(ValueError, match=r"y: torch.int64 of shape \(4, 7\), expected int64 of shape \(5, 7\)"):
        rule.assign_credit((x, torch.full((5,), 7)), y[:4])
    with pytest.raises(ValueError, match="truncation: 2, with labels of every step"):
        BackpropThroughTime(model, truncation=2).assign_credit(x, y)
    for option, value in (("max_norm", 1.0), ("scale_grad_by_freq", True), ("sparse", True)):
        other = copy.deepcopy(model)
        setattr(other.embedding, option, value)
        with pytest.raises(ValueError, match=r"layer 'embedding': Embedding.*without max_norm"):
            RecurrentFtp(other)


def test_options_that_make_no_sense_are_refused() -> None:
    for options, message in (
        ({"phi": "sine"}, "phi: 'sine', expected one of identity"),
        ({"gain": 0.0}, "gain: 0.0, expected a positive number"),
        ({"inject": "last"}, "inject: 'last', expected 'first' or 'every'"),
        ({"reduction": "max"}, "reduction: 'max', expected 'sum' or 'mean'"),
        ({"loss": "hinge"}, "loss: 'hinge', expected 'cross_entropy', 'squared_error', "),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrentFtp(example()[0], **options)  # type: ignore[arg-type]
    for truncation in (0, 2.5):
        with pytest.raises(ValueError, match=f"truncation: {truncation}, expected at least one step"):
            BackpropThroughTime(example()[0], truncation=truncation)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cell: 'mgu', expected 'elman', 'relu', 'gru' or 'lstm'"):
        RecurrentNetwork(3, 4, 2, "mgu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden_size: 0, expected a positive integer"):
        RecurrentNetwork(3, 0, 2)


def test_models_that_are_not_trained_are_refused() -> None:
    broken, narrow, computed, tied, mixed, both, projected, dropped, more, other = (example()[0] for _ in range(10))
    float64 = {"dtype": torch.float64, "batch_first": True}
    narrow.output = torch.nn.Linear(5, 2, dtype=torch.float64)
    torch.nn.utils.parametrizations.orthogonal(computed.recurrent, "weight_hh_l0")
    tied.recurrent.bias_hh_l0 = tied.recurrent.bias_ih_l0
    mixed.recurrent.float()
    both.recurrent = torch.nn.GRU(4, 6, bidirectional=True, **float64)
    projected.recurrent = torch.nn.LSTM(4, 6, proj_size=2, **float64)
    dropped.recurrent = torch.nn.GRU(4, 6, num_layers=2, dropout=0.5, **float64)
    other.__class__ = type("Other", (type(other),), {"forward": lambda self, x: x})
    more.extra = torch.nn.Parameter(torch.ones(2).double())
    with torch.no_grad():
        broken.output.bias[0] = float("nan")
    single = example()[0]
    single.recurrent.dropout = 0.5
    BackpropThroughTime(single)  # between layers there is none of one layer
    for model, message in (
        (
            torch.nn.Linear(3, 2),
            "model: Linear; BackpropThroughTime trains a RecurrentNetwork .*or a model of your own",
        ),
        (other, "model: Other; BackpropThroughTime trains a RecurrentNetwork"),
        (torch.nn.Sequential(torch.nn.GRU(3, 2)), "model: Sequential; .*with units=.*an nn.Sequential passes no tuple"),
        (both, r"layer 'recurrent': GRU\(4, 6.*trains none with bidirectional=True"),
        (projected, r"layer 'recurrent': LSTM\(4, 6.*trains none with proj_size"),
        (dropped, r"layer 'recurrent': GRU\(4, 6.*trains none with dropout between its layers"),
        (broken, "parameter 'output.bias': not all finite"),
        (narrow, r"layer 'output': Linear\(in_features=5.*needs an nn.Linear of the 6 states"),
        (computed, "layer 'recurrent': a parameter is computed"),
        (tied, "model: parameters shared, or of several dtypes"),
        (mixed, "model: parameters shared, or of several dtypes"),
        (more, "parameter 'extra': in none of the units"),
    ):
        with pytest.raises(ValueError, match=message):
            BackpropThroughTime(model)


@pytest.mark.parametrize("name", RULES)
def test_data_that_does_not_fit_is_refused(name: str) -> None:
    model, x, y = example()
    rule = RULES[name](model)
    assert rule.assign_credit(x[:2], y[:2]).isfinite(), "two samples are no pair of sequences and lengths"
    cases: list[tuple[Any, Any, str]] = [
        (x[0], y, r"x: shape \(8, 4\), expected \(batch, steps, 4\)"),
        (x[:, :0], y, r"x: shape \(5, 0, 4\), expected \(batch, steps, 4\), at least one"),
        (x[:0], y[:0], r"x: shape \(0, 8, 4\), expected \(batch, steps, 4\), at least one"),
        ((x, LENGTHS, LENGTHS), y, "x: a tuple, expected a torch.Tensor"),
        (x[:, :, :3], y, r"x: shape \(5, 8, 3\), expected \(batch, steps, 4\)"),
        (x.float(), y, "x: dtype torch.float32, expected torch.float64"),
        (x, y[:4], r"y: torch.int64 of shape \(4,\), expected int64 of shape \(5,\)"),
        (x, y.double(), r"y: torch.float64 of shape \(5,\), expected int64"),
        (x.cpu().numpy(), y, "x: a ndarray, expected a torch.Tensor"),
        (x, y.cpu().numpy(), "y: a ndarray, expected a torch.Tensor"),
    ]
    if y.device.type == "cpu":  # elsewhere looking would wait for the device
        cases.append((x, y + 3, r"y: labels \d..\d, expected 0..2"))
        cases.append((x.index_fill(1, y[:1], float("nan")), y, "x: 5 of 5 samples have NaN or infinity"))
    for wrong_x, wrong_y, message in cases:
        with pytest.raises(ValueError, match=message):
            rule.assign_credit(wrong_x, wrong_y)
    regression = RULES[name](model, loss="squared_error")
    with pytest.raises(ValueError, match=r"y: torch.float64 of shape \(5,\), expected torch.float64 of shape \(5, 3\)"):
        regression.assign_credit(x, y.double())
    if name == "ftp":
        model.float()
        with pytest.raises(ValueError, match=r"feedback: torch.float64 .*convert or move the rule"):
            rule.assign_credit(x.float(), y)
