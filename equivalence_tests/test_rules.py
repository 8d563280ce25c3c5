"""Through the front door: what a rule puts into `.grad` of an ordinary nn.Sequential is the reference's update."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.accelerated.modules.activations import MODULES
from prograde.accelerated.rules import (
    RULES,
    Backprop,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    ForwardForward,
    Foton,
    Ftp,
    Pepita,
    Rule,
)
from prograde.accelerated.rules.rule import OutputLoss
from prograde.equivalence_tests.common_checks import Check, parametrize_with_rules
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import EXAMPLES, Example
from prograde.equivalence_tests.sides import Dense, Images, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, Streams, cases, seeds, streams
from prograde.equivalence_tests.test_backprop import ChainCase, chain_cases, parameters
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]
LIMIT = 0.05  # one that bfloat16 can resolve


def sequential(dense: Dense) -> nn.Sequential:
    """The operands (tensors) as a user's model."""
    layers: list[nn.Module] = [nn.Flatten()]
    for weight, bias, name in zip(*dense, strict=True):
        linear = nn.Linear(
            weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        layers += [linear, MODULES.get(name, nn.Identity)()]
    return nn.Sequential(*layers)


def model_of(network: Dense | Images) -> nn.Sequential:
    """The same of convolutions padded with zeros, too."""
    if isinstance(network, Dense):
        return sequential(network)
    layers: list[nn.Module] = []
    for layer in network.layers:
        c_out, c_in, *size = layer.kernel.shape
        place = {"device": layer.kernel.device, "dtype": layer.kernel.dtype}
        convolution = nn.Conv2d(c_in, c_out, size, layer.stride, layer.padding, bias=layer.bias is not None, **place)
        with torch.no_grad():
            convolution.weight.copy_(layer.kernel)
            if convolution.bias is not None:
                convolution.bias.copy_(layer.bias)
        layers += [convolution, MODULES.get(layer.activation, nn.Identity)(), nn.MaxPool2d(layer.pool)]
    return nn.Sequential(*layers, *sequential(network.dense))


def layer_gradients(rule: Rule) -> Any:
    """What the rule left in .grad, as the updates of its layers."""
    assert not any(p.grad.requires_grad for p in rule.parameters() if p.grad is not None)
    parameters = [(*unit.weights, unit.bias) for unit in rule.units]
    return tuple(tuple(p.grad for p in own if p is not None) for own in parameters)


def credited(rule: Rule, x: Any, labels: Any) -> Any:
    rule.assign_credit(x.unflatten(1, (1, -1)), labels)
    return layer_gradients(rule)


@given(case=cases(dropout=False))
def test_backprop(twin: Side, compare: Comparison, case: Case) -> None:
    def updates(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return side.backprop.updates(side.chain(dense), x, labels)
        rule = Backprop(sequential(dense))
        return credited(rule, x, labels)

    compare(twin, "Backprop", updates, *case[:3])


@given(case=cases(orthogonal=True, dropout=False), loss=st.sampled_from(["cross_entropy", "squared_error"]))
def test_foton(twin: Side, compare: Comparison, case: Case, loss: str) -> None:
    """Orthogonal weights are their own polar factors, so the rule's construction moves them by rounding only."""

    def updates(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            gradient = getattr(side.losses, f"{loss}_gradient")
            return side.foton.updates(side.chain(dense), x, labels, output_gradient=gradient)
        rule = Foton(sequential(dense), orthogonality_tolerance=LIMIT, loss=loss)
        return credited(rule, x, labels)

    compare(twin, "Foton", updates, *case[:3])


@given(
    case=cases(orthogonal=True, dropout=False),
    options=st.fixed_dictionaries({"activation_gain": st.sampled_from([0.7, 1.0]), "linear": st.booleans()}),
    recompute=st.booleans(),
)
def test_foton_with_options(twin: Side, compare: Comparison, case: Case, options: Any, recompute: bool) -> None:
    def updates(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return side.foton.updates(side.chain(dense), x, labels, **options)
        rule = Foton(sequential(dense), orthogonality_tolerance=LIMIT, recompute=recompute, **options)
        return credited(rule, x, labels)

    compare(twin, "Foton", updates, *case[:3])


@given(
    case=chain_cases(("dense", "padded"), plain=True),
    rng=seeds(),
    forms=st.tuples(*[st.sampled_from(["clean", "modulated"])] * 2),
)
def test_pepita(twin: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator, forms: Any) -> None:
    options = dict(zip(("output_error", "presynaptic"), forms, strict=True))
    projection = 0.5 * rng.standard_normal((case.num_classes, *case.x.shape[1:]))
    size = case.x.shape[2:] or None

    def updates(side: Side, network: Any, x: Any, labels: Any, projection: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return side.pepita.updates(side.chain(network), projection, x, labels, **options)
        rule = Pepita(model_of(network), image_size=size, **options)
        rule.projection.copy_(projection)
        rule.assign_credit(x, labels)
        return layer_gradients(rule)

    compare(twin, "Pepita", updates, *case[:3], projection)


@given(
    case=cases(("identity", "tanh"), dropout=False),
    rng=seeds(),
    options=st.fixed_dictionaries(
        {
            "gain": st.sampled_from([0.3, 1.0]),
            "inject": st.integers(0, 1),
            "label_smoothing": st.sampled_from([0.0, 0.3]),
        }
    ),
    phi=st.sampled_from(["identity", "tanh"]),
)
def test_ftp(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator, options: Any, phi: str) -> None:
    n = len(case.dense.weights[0]) if options["inject"] else case.x.shape[1]
    feedback = 0.5 * rng.standard_normal((n, case.num_classes))

    def updates(side: Side, dense: Any, x: Any, labels: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            activation = side.activations.ACTIVATIONS[phi]
            return side.ftp.updates(side.chain(dense), feedback, x, labels, phi=activation, **options)
        rule = Ftp(sequential(dense), phi=phi, **options)
        rule.feedback.copy_(feedback)
        return credited(rule, x, labels)

    compare(twin, "Ftp", updates, *case[:3], feedback)


RELATIVES = {
    FeedbackAlignment: "feedback_alignment",
    DirectFeedbackAlignment: "direct_feedback_alignment",
    DirectRandomTargetProjection: "direct_random_target_projection",
}


@pytest.mark.parametrize("kind", RELATIVES)
@given(case=chain_cases(("dense", "padded"), plain=True), rng=seeds(), by_channel=st.booleans(), centred=st.booleans())
def test_relatives(
    twin: Side,
    compare: Comparison,
    kind: type[Any],
    case: ChainCase,
    rng: np.random.Generator,
    by_channel: bool,
    centred: bool,
) -> None:
    """The rules of feedback alignment, with matrices of the test's own."""
    is_direct, has_maps = kind is not FeedbackAlignment, case.x.ndim == 4
    shapes = [weight.shape for weight, *_ in parameters(case.network)[1:]]
    options = {}
    if is_direct:
        hidden = case.clean().activities[:-1]
        shapes = [(h.shape[1] if by_channel and has_maps else h[0].size, case.num_classes) for h in hidden]
        if has_maps:
            options = {"image_size": case.x.shape[2:], "by_channel": by_channel}
    feedback = tuple(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes)
    of_both = {"centred": centred} if kind is DirectRandomTargetProjection else {}

    def updates(side: Side, network: Any, x: Any, labels: Any, feedback: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return getattr(side, RELATIVES[kind]).updates(side.chain(network), feedback, x, labels, **of_both)
        rule = kind(model_of(network), **options, **of_both)
        for held, matrix in zip(rule.feedback, feedback, strict=True):
            held.copy_(matrix)
        rule.assign_credit(x, labels)
        return layer_gradients(rule)

    compare(twin, kind.__name__, updates, *case[:3], feedback)


@given(case=streams())
def test_forward_forward(twin: TwinSide, compare: Comparison, case: Streams) -> None:
    """The rule draws the wrong labels itself; the reference is given the same draw."""

    def updates(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            draw = seeded(7)
            negative = (labels + torch.randint(1, 5, labels.shape, generator=draw).cpu().numpy()) % 5
            return side.forward_forward.updates(side.chain(dense), x, labels, negative, 5, amplitude=4.0)
        rule = ForwardForward(sequential(dense), num_classes=5, generator=seeded(7))
        return credited(rule, x, labels)

    compare(twin, "ForwardForward", updates, *case[:3])


@given(case=streams())
def test_forward_forward_scores(twin: Side, compare: Comparison, case: Streams) -> None:
    def scores(side: Side, dense: Any, x: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return side.forward_forward.label_scores(side.chain(dense), x, 5, amplitude=4.0)
        return ForwardForward(sequential(dense), num_classes=5)(x)

    compare(twin, "ForwardForward scores", scores, case.dense, case.x)


@given(case=streams())
def test_forward_forward_read_out(twin: TwinSide, compare: Comparison, case: Streams) -> None:
    """The read-out's update, from zero weights, and the scores that they then give."""

    def readout(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            module = side.forward_forward
            features = module.neutral_features(side.chain(dense), x, 5, 4.0, 0)
            update = module.readout_update(np.zeros((5, features.shape[1]), x.dtype), features, labels)
            return update, features @ -update.T
        rule = ForwardForward(sequential(dense), num_classes=5, readout=True)
        list(rule.stream(x, labels))
        rule.assign_credit(x, labels)
        update = rule.readout.weight.grad
        with torch.no_grad():
            rule.readout.weight.copy_(-update)
        return update, rule(x)

    compare(twin, "read-out", readout, *case[:3])  # the read-out is a layer too


def make(name: str, model: nn.Module, generator: torch.Generator | None = None) -> Rule:
    return RULES[name](model, generator=generator)


def example(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)
    ).to(dtype)
    return model, torch.randn(9, 1, 20, dtype=dtype), torch.randint(0, 4, (9,))


@parametrize_with_rules(
    EXAMPLES,
    ["streams as at once", "leaves no graph", "changes gradients alone", "resumes bitwise", "follows dtype and device"],
)
def test_what_is_promised_of_all(rule: Example, check: Check) -> None:
    check(rule)


def test_the_loss_is_that_of_the_scores_and_comes_last() -> None:
    """Of every rule with one loss at the output: the others' units have their own."""
    for name, case in EXAMPLES.items():
        rule, (x, y) = case.build("cpu"), case.batch("cpu")
        if isinstance(rule, OutputLoss):
            rule.eval()
            expected = nn.functional.cross_entropy(rule(x), y).detach()
            torch.testing.assert_close(rule.assign_credit(x, y).as_subclass(torch.Tensor), expected, msg=name)
            *hidden, last = rule.stream(x, y)
            assert all(update.loss is None for update in hidden), f"{name}: before the last update"
            torch.testing.assert_close(last.loss, expected, msg=f"{name}: with the last update")


COMPILED = [
    "backprop",
    "foton",
    "ftp",
    "feedback_alignment",
    "direct_feedback_alignment",
    "direct_random_target_projection",
    "pepita",
]


@pytest.mark.slow
@pytest.mark.places_itself
@pytest.mark.parametrize("module", [*COMPILED, "feedback_alignment", "forward_forward"])
def test_twins_compile_without_a_graph_break(module: str, twin64: TwinSide) -> None:
    rng = np.random.default_rng(0)
    dense = Dense(
        tuple(rng.standard_normal(shape) / 4 for shape in ((12, 16), (8, 12), (4, 8))),
        tuple(rng.standard_normal(n) for n in (12, 8, 4)),
        ("tanh", "relu", "identity"),
    )
    dense, x, y, z, projection = twin64.operands(
        (dense, rng.standard_normal((6, 16)), np.array([0, 1, 2, 3, 0, 1]), np.array([1, 2, 3, 0, 1, 2]),
         rng.standard_normal((16, 4)))
    )  # fmt: skip
    network = twin64.chain(dense)
    updates = getattr(twin64, module).updates
    direct = (projection[:12], projection[:8])
    extra = {
        "pepita": (projection.T, x, y),
        "ftp": (projection[:12], x, y),
        "feedback_alignment": (dense.weights[1:], x, y),
        "direct_feedback_alignment": (direct, x, y),
        "direct_random_target_projection": (direct, x, y),
        "forward_forward": (x, y, z, 4),
    }.get(module, (x, y))
    compiled = torch.compile(updates, fullgraph=True, backend="eager")
    for layer, same in zip(compiled(network, *extra), updates(network, *extra), strict=True):
        for ours, eager in zip(layer, same, strict=True):
            assert torch.equal(ours, eager)


MODULE_OF = {"fa": "feedback_alignment", "dfa": "direct_feedback_alignment", "drtp": "direct_random_target_projection"}


@pytest.mark.parametrize("name", ["foton", "pepita", "ftp", "fa", "dfa", "drtp"])
def test_dropout_masks_are_shared_by_both_passes(name: str, twin64: TwinSide) -> None:
    """The rule's update is the twin's with one draw of masks, the one that its generator gives."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 12), nn.Dropout(0.2), nn.ReLU(), nn.Linear(12, 4)
    ).double()
    x, y = torch.randn(9, 20, dtype=torch.float64), torch.randint(0, 4, (9,))
    rule = make(name, model, seeded(0))
    rule.generator.manual_seed(5)  # type: ignore[union-attr]
    rule.assign_credit(x, y)
    rule.generator.manual_seed(5)  # type: ignore[union-attr]
    masks = rule.masks(x)
    assert [None if m is None else m.unique().tolist() for m in masks] == [[0.0, 2.0], [0.0, 1.25], None]  # type: ignore[union-attr]
    extra = [getattr(rule, buffer) for buffer in ("projection", "feedback") if hasattr(rule, buffer)]
    updates = getattr(twin64, MODULE_OF.get(name, name)).updates
    with torch.no_grad():
        expected = updates(rule.layers(masks), *extra, x, y)
    for unit, (weight, *_) in zip(rule.units, expected, strict=True):
        assert torch.equal(unit.module.weight.grad, weight), f"masks of unit {unit.name}"
    rule.eval()
    assert rule.masks(x) is None


@parametrize_with_rules(EXAMPLES, ["replaces gradients"])
def test_assign_credit_forgets_the_last_step(rule: Example, check: Check) -> None:
    check(rule)
