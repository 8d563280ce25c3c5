"""What rules refuse: batches, labels, options and models, each with the argument, what came and what was expected."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import (
    Backprop,
    BackpropThroughTime,
    ChannelClassAssignment,
    ChannelCompetition,
    CumulativeForwardForward,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    ForwardForward,
    Foton,
    Ftp,
    Hardware,
    HybridDynamicTemperature,
    Hyperspherical,
    LayerCollaboration,
    MonoForward,
    Pepita,
    RecurrentFtp,
    Rule,
)
from prograde.accelerated.score_losses import cross_entropy
from prograde.accelerated.training import alignment
from prograde.equivalence_tests.rule_examples import EXAMPLES, K, dense, gru, images, normalised, refusal
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_least_batch_is_what_a_step_takes(name: str, twin: TwinSide):
    """Where that is 2, one sample is refused, but for maps: batch normalisation has their positions too."""
    example = EXAMPLES[name]
    rule = example.build(twin.device)
    rule.assign_credit(*example.batch(twin.device, size=rule.least_batch))
    expects_two = any(part in name for part in ("hybrid", "pairs", "competition", "deep supervision", "end to end"))
    assert rule.least_batch == (2 if expects_two or name in ("mono-forward, tanh", "mono-forward, images") else 1)
    if rule.least_batch == 2 and len(example.shape) == 1:
        with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: "):
            rule.assign_credit(*example.batch(twin.device, size=1))


def test_batch_normalisation_at_rest_takes_one_sample(twin: TwinSide):
    model = normalised().to(twin.device)
    rule = ChannelCompetition(model)
    for norm in (model[2], model[5]):
        norm.eval()
    assert rule.least_batch == 1, "each module's own mode counts"
    rule.assign_credit(torch.ones(1, 16, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device))
    model[5].train()
    with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: BatchNorm1d '5' normalises"):
        rule.assign_credit(torch.ones(1, 16, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device))


def test_one_map_of_one_pixel_is_refused_with_the_layers_name(twin: TwinSide):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, K))
    rule = MonoForward(model.to(twin.device), grid=1)
    x, y = torch.ones(1, 1, 3, 3, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device)
    with pytest.raises(
        ValueError, match=r"x: samples of shape \(1, 3, 3\) do not pass layer '0' \(Expected more than 1"
    ):
        rule.assign_credit(x, y)


@pytest.mark.parametrize("name", EXAMPLES)
def test_data_that_a_rule_cannot_mean(name: str, twin: TwinSide):
    """NaN in x, and labels in a column: what the message asks for is then right."""
    example = EXAMPLES[name]
    rule = example.build(twin.device)
    x, y = example.batch(twin.device)
    column = refusal(lambda: rule.assign_credit(x, y[:, None]))
    assert column == f"y: torch.int64 of shape ({len(x)}, 1), expected int64 of shape ({len(x)},); y.squeeze(1)"
    assert refusal(lambda: rule.assign_credit(x, y[:, None].double())).endswith("; y.squeeze(1).long()")
    one_hot = nn.functional.one_hot(y, K)
    assert refusal(lambda: rule.assign_credit(x, one_hot)).endswith("; y.argmax(dim=1) of one-hot labels")
    assert refusal(lambda: rule.assign_credit(x, y[:-1])).startswith(f"y: torch.int64 of shape ({len(x) - 1},)")
    assert refusal(lambda: rule.assign_credit(x[:0], y[:0])).startswith("x: shape (0, ")
    if x.device.type == "cpu":  # elsewhere looking would wait for the device
        for wrong in (nan, inf, -inf):
            spoilt = x.clone()
            spoilt[1].flatten()[2] = wrong
            message = refusal(lambda spoilt=spoilt: rule.assign_credit(spoilt, y))
            assert message == f"x: 1 of {len(x)} samples have NaN or infinity, expected finite numbers"
        for wrong in (-100, K):
            bad = y.clone()
            bad[0] = wrong
            assert refusal(lambda bad=bad: rule.assign_credit(x, bad)).endswith(f", expected 0..{K - 1}")
    assert refusal(lambda: rule.assign_credit(x.to("meta"), y)).startswith("x: on meta, expected ")
    assert refusal(lambda: rule.assign_credit(x, y.to("meta"))).startswith("y: on meta, expected ")
    assert refusal(lambda: rule.assign_credit(x.float(), y)).startswith(
        "x: dtype torch.float32, expected torch.float64"
    )
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted"


def test_large_finite_numbers_are_no_infinity(twin: TwinSide):
    """Even where their sum is."""
    rule = Backprop(dense().to(twin.device))
    x = torch.full((2, 16), torch.finfo(torch.float32).max, device=twin.device)
    y = torch.zeros(2, dtype=torch.int64, device=twin.device)
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted"


def test_targets_of_a_regression_in_a_row_are_refused(twin: TwinSide):
    rule = RecurrentFtp(EXAMPLES["recurrent ftp"].build(twin.device).model, loss="squared_error")
    rule.model.output = nn.Linear(6, 1).to(twin.device, torch.float64)
    rule = RecurrentFtp(rule.model, loss="squared_error")
    x, y = EXAMPLES["recurrent ftp"].batch(twin.device)
    assert refusal(lambda: rule.assign_credit(x, y.to(x))).endswith(f"of shape ({len(x)}, 1); y.unsqueeze(1)")
    assert refusal(lambda: rule.assign_credit(x, y.to(x)[:, None])) == "accepted"


OPTIONS: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (Foton, "orthogonality_every", [1.5, 0, True, nan]),
    (Foton, "projection_every", [1.5, 0]),
    (Foton, "orthogonality_tolerance", [nan, inf, 0]),
    (Foton, "activation_gain", [nan, 0, inf]),
    (Backprop, "label_smoothing", [nan, 1.0, -0.1]),
    (Pepita, "scale", [0, -1.0, nan, inf]),
    (Ftp, "inject", [1.0, True, 3]),
    (Ftp, "gain", [nan, 0]),
    (Ftp, "scale", [nan, 0]),
    (DirectFeedbackAlignment, "scale", [nan, 0]),
    (DifferenceTargetPropagation, "noise", [nan, 0]),
    (ForwardForward, "threshold", [nan, inf]),
    (ForwardForward, "first_layer", [1.0, 2, -1]),
    (ForwardForward, "num_classes", [4.0, 3]),
    (ForwardForward, "amplitude", [nan, 0]),
    (ForwardForward, "mask_passes", [0, 1.5]),
    (LayerCollaboration, "threshold", [nan, inf]),
    (CumulativeForwardForward, "gamma", [nan, inf, -1.0]),
    (CumulativeForwardForward, "beta", [nan, 0]),
    (HybridDynamicTemperature, "share", [nan, -1.0, inf]),
    (HybridDynamicTemperature, "amplitude", [nan, 0]),
    (MonoForward, "first_layer", [1.0, 2]),
    (MonoForward, "num_classes", [4.0, 1, 3]),
    (MonoForward, "grid", [1.5, 0]),
    (Hyperspherical, "per_class", [1.5, 0]),
    (Hyperspherical, "sharpness", [nan, 0]),
    (Hyperspherical, "margin", [nan, -1]),
    (lambda model, **options: Hardware(Ftp(model), **options), "bits", [2.5, 1]),
    (lambda model, **options: Hardware(Ftp(model), **options), "read_noise", [nan, -1]),
    (lambda model, **options: ChannelClassAssignment(model, settings=options), "pooling", [(nan, 1.0, 1.0), (1.0,)]),
    (lambda model, **options: BackpropThroughTime(gru(), **options), "truncation", [1.5, 0]),
]


@pytest.mark.parametrize(("rule", "option", "values"), OPTIONS, ids=[f"{i}-{o[1]}" for i, o in enumerate(OPTIONS)])
def test_options_out_of_range_are_named(rule: Callable[..., Any], option: str, values: list[Any], twin: TwinSide):
    for value in values:
        message = refusal(lambda value=value: rule(dense().to(twin.device), **{option: value}))
        assert message.startswith(f"{option}: {value}, "), f"{option}={value}: {message}"


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no unit": (
        lambda: nn.Sequential(nn.Linear(16, 0), nn.ReLU(), nn.Linear(0, K)),
        "layer '0': its weight has shape (0, 16); ",
    ),
    "no input": (
        lambda: nn.Sequential(nn.Linear(0, 8), nn.ReLU(), nn.Linear(8, K)),
        "layer '0': its weight has shape (8, 0); ",
    ),
    "two precisions": (
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, K).double()),
        "layer '2': torch.float64 on ",
    ),
    "a weight that is computed": (
        lambda: nn.Sequential(_normed(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, K)),
        "layer '0': ",
    ),
}


def _normed(layer: nn.Module) -> nn.Module:
    """As the older torch.nn.utils.weight_norm made it: a parameter of another name, from which a hook computes it."""
    weight = layer.weight
    del layer.weight
    layer.weight_v = weight
    layer.weight = weight.detach() * 1
    return layer


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", [Backprop, Foton, Pepita, ForwardForward, MonoForward])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_models_that_no_rule_trains(rule: Callable[[nn.Module], Rule], name: str):
    model, message = MODELS[name]
    found = refusal(lambda: rule(model()))
    assert found.startswith(message), found


@pytest.mark.parametrize("rule", [DirectFeedbackAlignment, Foton, MonoForward, Pepita])
def test_layers_tied_since_the_rule_was_built_are_refused(rule: Callable[..., Rule]):
    """Where each has an update of its own: the second would replace the first."""
    model = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, K))
    built = rule(model)
    model[4].weight = model[2].weight
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    assert refusal(lambda: built.assign_credit(x, y)).startswith("model: a parameter of two layers, tied since")


def test_a_projection_that_pairs_units_needs_a_row_of_feedback_for_each(twin: TwinSide):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    message = refusal(lambda: Ftp(model, image_size=(8, 8), phi="maxmin"))
    assert message.startswith("phi: 'maxmin' pairs units, expected an elementwise one")
    Ftp(model, image_size=(8, 8), phi="maxmin", by_channel=False)


@pytest.mark.parametrize("kind", [DirectFeedbackAlignment, Ftp])
def test_images_of_another_size(kind: Callable[..., Rule], twin: TwinSide):
    """Feature maps of another size than the feedback's; and of every other size, where it is asked for."""
    rule = kind(images().to(twin.device, torch.float64), image_size=(8, 8))
    x, y = EXAMPLES["dfa, images"].batch(twin.device)
    x = nn.functional.pad(x, (0, 1, 0, 1))  # a pixel that pooling leaves over
    found = refusal(lambda: rule.assign_credit(x, y))
    assert found.startswith("x: images of 9 x 9, expected 8 x 8, the image_size"), found
    assert refusal(lambda: kind(images())).startswith("image_size: None, expected (height, width) of the images")
    assert refusal(lambda: kind(dense(), image_size=(8, 8))).startswith("image_size: (8, 8), but the model has no conv")
    assert refusal(lambda: kind(dense(), by_channel=True)).startswith("by_channel: True, but the model has no conv")


def test_target_propagation_needs_a_hidden_layer(twin: TwinSide):
    x, y = torch.ones(3, 16, device=twin.device), torch.zeros(3, dtype=torch.int64, device=twin.device)
    for hidden in ([], [nn.Linear(16, 16), nn.LeakyReLU()]):
        model = nn.Sequential(*hidden, nn.Linear(16, K)).to(twin.device)
        found = refusal(lambda model=model: DifferenceTargetPropagation(model).assign_credit(x, y))
        assert found.startswith("accepted" if hidden else "model: no hidden layer; Difference"), f"refused: {found}"


def test_target_propagation_through_two_activations(twin: TwinSide):
    """An inverse has the activation of the layer that it recovers: its error can come to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, K))
    rule = DifferenceTargetPropagation(model.to(twin.device, torch.float64), noise=1e-9)
    with torch.no_grad():  # a first layer that gives tanh(0.3) always, and an inverse that does
        for parameter in (*rule.inverse_weights, *rule.inverse_biases, model[2].bias):
            parameter.zero_()
        model[0].weight.zero_()
        model[0].bias.fill_(0.3)
        rule.inverse_biases[0].fill_(0.3)
    x, y = EXAMPLES["dtp"].batch(twin.device)
    rule.assign_credit(x, y)
    assert rule.inverse_biases[0].grad.abs().max() < 1e-8, "tanh(0.3) is recovered"


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_is_for_cross_entropy_and_less_than_one(smoothing: float):
    for rule in (Backprop, Pepita, FeedbackAlignment):
        expected = "expected 0 <= label_smoothing < 1, for cross_entropy"
        assert refusal(lambda rule=rule: rule(dense(), label_smoothing=smoothing)).endswith(expected), "smoothing"
        assert refusal(lambda rule=rule: rule(dense(), label_smoothing=0.1, loss="squared_error")).endswith(expected)
        assert refusal(lambda rule=rule: rule(dense(), label_smoothing=0.1)) == "accepted"
        assert refusal(lambda rule=rule: rule(dense(), label_smoothing=0.0, loss="squared_error")) == "accepted"


def test_two_label_smoothings_are_refused():
    found = refusal(lambda: ChannelClassAssignment(dense(), label_smoothing=0.5, loss=cross_entropy()))
    assert found == "label_smoothing: 0.5, but a loss is given, which has its own if any", "both"
    for options in ({"label_smoothing": 0.5}, {"loss": cross_entropy()}, {}):
        assert refusal(lambda options=options: ChannelClassAssignment(dense(), **options)) == "accepted"  # type: ignore[arg-type]


def test_feedback_alignment_keeps_no_matrix_that_nothing_goes_through(twin: TwinSide):
    """B_1 would send an error to the input."""
    rule = FeedbackAlignment(dense().to(twin.device))
    kept = {name: tuple(value.shape) for name, value in rule.state_dict().items() if name.startswith("feedback")}
    assert kept == {"feedback_1": (8, 8), "feedback_2": (K, 8)}, "matrices"


def test_choosing_on_held_out_data_leaves_each_modules_mode_alone(twin: TwinSide):
    """Batch normalisation at rest, as fine-tuning wants it, stays at rest, and its statistics as they are."""
    model = normalised().to(twin.device)
    rule = MonoForward(model, aggregation="validation-loss")
    model[2].eval()
    statistics = copy.deepcopy(model[5].state_dict())
    x, y = torch.randn(6, 16, device=twin.device), (torch.arange(6) % K).to(twin.device)
    rule.calibrate([(x, y)])
    assert [model[i].training for i in (0, 2, 5)] == [True, False, True], "modes"
    assert all(torch.equal(value, statistics[key]) for key, value in model[5].state_dict().items())


def test_a_loaded_rule_does_not_set_its_thresholds_again(twin: TwinSide):
    """The first batch sets them once and for all; whether it has is part of the state."""
    example = EXAMPLES["hybrid-dynamic-temperature"]
    rule, loaded = (example.build(twin.device) for _ in range(2))
    x, y = example.batch(twin.device)
    rule.assign_credit(x, y)
    assert isinstance(loaded, HybridDynamicTemperature)
    loaded.load_state_dict(rule.state_dict())
    before = loaded.theta.detach().clone()
    loaded.assign_credit(3 * x, y)
    assert torch.equal(loaded.theta, before), "thresholds set twice"


def test_alignment_takes_no_recurrent_rule(twin: TwinSide):
    example = EXAMPLES["recurrent ftp"]
    with pytest.raises(TypeError, match="rule: a RecurrentFtp, but alignment takes a Rule"):
        alignment(example.build(twin.device), *example.batch(twin.device))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_under_autocast_is_refused(name: str, twin: TwinSide):
    rule = EXAMPLES[name].build(twin.device)
    x, y = EXAMPLES[name].batch(twin.device)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        message = refusal(lambda: rule.assign_credit(x, y))
    assert message == (
        f"autocast is on for {x.device.type}: rules compute in the model's own precision; leave the autocast region, "
        "or convert rule and data, rule.bfloat16()"
    )
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted", "after the region"
