"""What all rules share, piece by piece: pairs of parameters and gradients, checks, draws, shares of a batch, steps."""

import copy
import inspect
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from prograde.accelerated.rules import DirectFeedbackAlignment, Ftp, Pepita
from prograde.accelerated.rules.rule import (
    CreditAssignment,
    LayeredRule,
    Rule,
    Share,
    UnitUpdate,
    check_count,
    check_finite,
    check_options,
    check_place,
    evaluating,
    gradients_by,
    has_shared_positions,
    kept_guards,
    lasting,
    over_positions,
    trained_pairs,
)
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


def test_pairs_are_of_what_is_trained_and_lie_as_it() -> None:
    """A gradient that lies as its parameter is not copied."""
    held, turned, frozen = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    frozen.requires_grad = False
    gradient, other = torch.randn(2, 3), torch.randn(3, 2).T
    (first, same), (second, laid) = trained_pairs([(held, gradient), (frozen, gradient), (turned, other)])
    assert (first, second) == (held, turned)
    assert same is gradient
    assert laid.stride() == (3, 1)
    assert torch.equal(laid, other)


def test_gradients_of_frozen_and_unused_parameters_are_0() -> None:
    used, frozen, unused = (nn.Parameter(torch.full((2,), float(n))) for n in (2, 3, 4))
    frozen.requires_grad = False
    found = gradients_by((used**2 * frozen).sum(), [used, frozen, unused])
    assert {p: g.tolist() for p, g in found.items()} == {used: [12, 12], frozen: [0, 0], unused: [0, 0]}
    credited = gradients_by(used**2, [used], torch.tensor([1.0, -1.0]))
    assert credited[used].tolist() == [4, -4], "along the credit"
    assert gradients_by(torch.ones(()), [frozen])[frozen].tolist() == [0, 0], "of nothing that learns"


def test_modules_have_their_own_mode_after_an_error_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    found: list[bool] = []

    def interrupted() -> None:
        with evaluating(model):
            found.extend(module.training for module in model.modules())
            raise ValueError("interrupted")

    assert refusal(interrupted) == "interrupted"
    assert found == [False, False, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_buffers_are_where_the_weights_are() -> None:
    x = torch.zeros(2)
    check_place("feedback", torch.ones(3), x)
    for buffer, came in ((x.double(), "torch.float64 on cpu"), (x.to("meta"), "torch.float32 on meta")):
        said = f"feedback: {came}, expected torch.float32 on cpu; convert or move the rule, not its model"
        assert refusal(lambda: check_place("feedback", buffer, x)) == said  # noqa: B023


def test_maps_and_tokens_have_positions() -> None:
    for shape, of_maps, of_tokens in (((3, 8, 8), True, False), ((7, 5), False, True), ((5,), False, False)):
        assert has_shared_positions(shape, True) == of_maps, shape
        assert has_shared_positions(shape, False) == of_tokens, shape


def test_numbers_of_channels_stand_at_all_positions() -> None:
    """Or at each their own, where each has a label."""
    values = torch.randn(2, 3)
    labels = torch.zeros(2, 4)
    maps, tokens = torch.zeros(2, 3, 5, 6), torch.zeros(2, 7, 3)
    assert torch.equal(over_positions(values, labels, maps), values[:, :, None, None] + maps)
    assert torch.equal(over_positions(values, labels, tokens), values[:, None] + tokens)
    of_each = torch.randn(14, 3)
    assert torch.equal(over_positions(of_each, torch.zeros(2, 7, 4), tokens), of_each.view(2, 7, 3))


def test_samples_that_are_not_finite_are_counted() -> None:
    """Large ones are finite, whatever their sum is."""
    x = torch.zeros(3, 2, 2)
    check_finite(x + torch.finfo(x.dtype).max)
    for number in ("nan", "inf", "-inf"):
        x[1:, 1, 0] = float(number)
        said = "x: 2 of 3 samples have NaN or infinity, expected finite numbers"
        assert refusal(lambda: check_finite(x)) == said, number


def test_counts() -> None:
    for value, least, expected in ((1, 1, ""), (2, 2, ""), (3, 2, ""), (0, 1, "a positive integer"),
                                   (True, 1, "a positive integer"), (1.0, 1, "a positive integer"),
                                   (1, 2, "an integer of 2 or more")):  # fmt: skip
        said = refusal(lambda: check_count("n", value, least))  # noqa: B023
        assert said == (f"n: {value!r}, expected {expected}" if expected else "accepted")


def test_options_are_those_of_the_signature() -> None:
    class Rule:
        def __init__(self, model: nn.Module, *, gain: float = 1.0, scale: float = 1.0) -> None: ...

    class Bare:
        def __init__(self, model: nn.Module) -> None: ...

    class Passing:
        def __init__(self, model: nn.Module, **options: Any) -> None: ...

    assert refusal(lambda: check_options(Rule, ["scale", "gain"])) == "accepted"
    said = "Rule: unknown option 'bias', expected one of gain, scale"
    assert refusal(lambda: check_options(Rule, ["gain", "bias"])) == said
    assert refusal(lambda: check_options(Bare, ["bias"])) == "Bare: unknown option 'bias', expected one of none"
    assert refusal(lambda: check_options(Passing, ["bias"])) == "accepted"


def test_tensors_of_inference_mode_last() -> None:
    """Those that a graph may hold are not copied."""
    plain_one = torch.ones(2)
    with torch.inference_mode():
        made = torch.ones(2)
        found, (same, labels) = lasting(made), lasting((plain_one, "labels"))
    assert not found.is_inference()
    assert torch.equal(found, plain_one)
    assert same is plain_one
    assert labels == "labels"


def test_guards_of_functions_and_kinds_are_not_asked() -> None:
    class Own: ...

    rows = [
        ("self", False, Own(), True), ("self", False, len, True), ("G['rate']", True, 3, True),
        ("G['gain']", True, None, True), ("type(self)", False, Own, False), ("G['torch']", True, torch, False),
        ("G['Own']", True, Own, False), ("G['check']", True, check_count, False), ("G['len']", True, len, False),
    ]  # fmt: skip
    guards = [SimpleNamespace(name=name, is_global=is_global, value=value) for name, is_global, value, _ in rows]
    assert kept_guards(guards) == [kept for *_, kept in rows]


class Told(CreditAssignment):
    """A rule whose updates are given: a gradient for each parameter, and a loss for some."""

    steps_by_unit = True

    def __init__(self, model: nn.Module, losses: tuple[float | None, ...] = (None, 3.0)) -> None:
        super().__init__()
        self.watch(model)
        self.losses = losses

    def stream(self, x: Tensor, y: Any) -> Iterator[Any]:
        for layer, loss in zip(self.model.children(), self.losses, strict=True):
            pairs = trained_pairs((p, x.sum() * torch.ones_like(p)) for p in layer.parameters())
            yield SimpleNamespace(pairs=pairs, loss=None if loss is None else torch.tensor(loss))


def two() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def test_gradients_are_filled_and_losses_added() -> None:
    model = two()
    model[0].bias.requires_grad = False
    for p in model.parameters():
        p.grad = torch.full_like(p, 9)
    assert Told(model).assign_credit(torch.ones(4), None).item() == 3, "of those that have one"
    assert [None if p.grad is None else p.grad.unique().tolist() for p in model.parameters()] == [[4], None, [4], [4]]
    assert Told(model, (2.0, 3.0)).assign_credit(torch.ones(4), None).item() == 5, "of layers"
    assert Told(model, (None, None)).assign_credit(torch.ones(4), None).item() == 0, "of none"


def test_a_parameter_of_two_layers_is_refused_before_any_gradient() -> None:
    model = two()
    rule = Told(model)
    model[1].bias = model[0].weight
    said = "model: a parameter of two layers, tied since the rule was built; untie it"
    assert refusal(lambda: rule.assign_credit(torch.ones(4), None)) == said
    assert all(p.grad is None for p in model.parameters())


def test_units_are_stepped_as_they_come() -> None:
    """Where the optimizer, the rule and its parameters allow it; the loss is that of assign_credit either way."""

    class Together(Told):
        steps_by_unit = False

    class Itself(Told):
        def assign_credit(self, x: Tensor, y: Any) -> Tensor:
            return super().assign_credit(x, y)

    model = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    of_tied = torch.optim.SGD(tied.parameters(), lr=0.5)
    assert Told(model)._stepper(optimizer) is not None
    assert Together(model)._stepper(optimizer) is None, "what is told at once"
    assert Itself(model)._stepper(optimizer) is None, "an assign_credit of its own"
    assert Told(tied)._stepper(of_tied) is None, "tied parameters"
    for kind, losses, expected in ((Told, (2.0, 3.0), 5), (Together, (None, 3.0), 3), (Told, (None, 3.0), 3)):
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, 9)
        assert kind(model, losses).step(torch.ones(4), None, optimizer).item() == expected
        for p, old in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), old - 0.5 * 4)
            assert (p.grad is None) == kind.steps_by_unit


def test_held_parameters_are_named_twice_where_two_modules_have_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    rule = Told(model)
    assert rule._held() == list(model.parameters())
    model[1].weight = model[0].weight
    assert rule._held() == [model[0].weight, model[1].weight, model[1].bias]


def test_code_is_made_once_and_not_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """With guards that a step asks, but for a mode, which has options of its own; other hooks call the rule itself."""
    given: list[Any] = []

    def made(function: Any, **options: Any) -> Any:
        given.append(options)
        return lambda x, y: torch.full((), 7.0)

    monkeypatch.setattr(torch, "compile", made)
    rule, x = Told(two()), torch.ones(4)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    rule.compile()
    assert given == [{"options": {"guard_filter_fn": kept_guards}}]
    assert rule.assign_credit(x, None).item() == 7
    assert rule.step(x, None, optimizer).item() == 7
    assert copy.deepcopy(rule).assign_credit(x, None).item() == 3, "of a copy"
    hook = rule.model.register_forward_hook(lambda module, given, y: None)
    assert rule.assign_credit(x, None).item() == 3, "with another hook"
    hook.remove()
    assert rule.assign_credit(x, None).item() == 7
    rule.compile(options={"trace.enabled": True})
    rule.compile(mode="max-autotune", fullgraph=True)
    assert given[1:] == [
        {"options": {"guard_filter_fn": kept_guards, "trace.enabled": True}},
        {"mode": "max-autotune", "fullgraph": True},
    ]


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_one_of_several_processes_is_warned_once(monkeypatch: pytest.MonkeyPatch, processes: int | None) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: processes is not None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: processes)
    rule = Told(two())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            rule.assign_credit(torch.ones(4), None)
        connected = Told(two())
        connected.connects_processes = True
        connected.assign_credit(torch.ones(4), None)
    assert [str(one.message)[:40] for one in told] == ["Told: 2 processes, each of which trains "] * (processes == 2)
    assert all(one.filename == __file__ for one in told)


def test_what_a_rule_is_if_nothing_is_said() -> None:
    model = two()
    rule = Told(model)
    assert (rule.least_batch, rule.left_out, rule.no_weight_decay()) == (1, {}, [])
    assert (rule.connects_processes, rule.differentiates, rule.calls(model[0])) == (False, False, False)
    hook = model[1].register_full_backward_hook(lambda module, given, of_output: None)
    assert refusal(rule.check_hooks).startswith("layer '1': a backward hook, but Told has no backward pass")
    hook.remove()
    layered = plain(nn.Linear(4, 2))
    assert (layered.wants_sequences, layered.chooses_on_held_out_data, layered.on_crossbars) == (False, False, False)
    assert layered.least_batch == 1
    assert layered._stepper(torch.optim.SGD(layered.parameters(), lr=0.1)) is not None, "unit by unit"


def test_a_stream_records_no_graph() -> None:
    """Whatever is on where its updates are used."""

    class Noting(Told):
        def stream(self, x: Tensor, y: Any) -> Iterator[Any]:
            for update in super().stream(x, y):
                noted.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
                yield update

    noted: list[tuple[bool, bool]] = []
    for outside in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with outside():
            before = torch.is_grad_enabled()
            for _ in Noting(two()).stream(torch.ones(4), None):
                assert torch.is_grad_enabled() == before
    assert noted == [(False, False)] * 6


def test_steps_in_inference_mode_are_as_outside() -> None:
    """Gradients are none of inference mode's, which an optimizer could not take."""

    class Labelled(Told):
        def stream(self, x: Tensor, y: Any) -> Iterator[Any]:
            assert y == "labels"
            return super().stream(x, y)

    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        for p in model.parameters():
            nn.init.ones_(p)
        rule = Labelled(model)
        with mode():
            x = torch.ones(4)
            rule.step(x, "labels", torch.optim.SGD(model.parameters(), lr=0.5))
            stepped = [p.detach().clone() for p in model.parameters()]
            rule.assign_credit(x, "labels")
        assert not any(p.grad is None or p.grad.is_inference() for p in model.parameters())
        found.append(stepped)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_table_of_one_row_tells_its_shapes() -> None:
    """By the token 0, which every table has."""
    rule = plain(nn.Embedding(1, 4), nn.Linear(4, 3), example=torch.zeros(2, 5).long())
    assert rule.activity_shapes(torch.Size((7,)), torch.int64) == [(7, 4), (7, 3)]
    assert rule.starts_from_tokens  # type: ignore[attr-defined]
    assert rule.positions(torch.zeros(2, 7).long()) == (7,)


def test_positions_are_all_axes_of_the_scores_but_the_last() -> None:
    rule: Any = plain(nn.Linear(4, 5), nn.Linear(5, 2))
    assert rule.positions(torch.zeros(2, 4)) == ()
    assert rule.positions(torch.zeros(2, 7, 4)) == (7,)
    normed: Any = plain(nn.Linear(4, 5), nn.Linear(5, 2), nn.LayerNorm(2), example=torch.zeros(2, 9, 4))
    assert (normed.num_classes, normed.starts_from_tokens) == (2, False)
    assert [update.loss is None for update in rule.stream(torch.zeros(2, 4), torch.zeros(2).long())] == [True, False]


class First(nn.Linear):
    """Which gives one sample, whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:1]


def test_a_unit_gives_as_many_samples_as_it_gets() -> None:
    said = refusal(lambda: plain(First(4, 3), nn.Linear(3, 2), example=torch.zeros(2, 4)))
    assert said == ("x: samples of shape (4,) do not pass unit '0' (gives (1, 3), expected a tensor (batch, ...))")


def test_a_signature_has_the_options_that_are_passed_on() -> None:
    """But for those that a class sets itself."""

    class Base(Told):
        def __init__(self, model: nn.Module, *, gain: float = 1.0, scale: float = 2.0) -> None: ...

    class Child(Base, sets=("scale",)):
        def __init__(self, model: nn.Module, *, rate: float = 3.0, **options: Any) -> None: ...

    class Alone(Base):
        def __init__(self, model: nn.Module, *, rate: float = 3.0) -> None: ...

    assert list(inspect.signature(Child).parameters) == ["model", "rate", "gain"]
    assert list(inspect.signature(Alone).parameters) == ["model", "rate"]
    assert list(inspect.signature(Base).parameters) == ["model", "gain", "scale"]


def test_units_of_ones_own_are_tried_on_the_first_batch_without_an_example() -> None:
    layers, x = (nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.zeros(2, 4)
    model = nn.Sequential(*layers)
    of_units = {"units": [nn.Sequential(*layers[:2]), layers[2]]}
    rows = ({}, False), ({"example": x}, False), (of_units, True), ({**of_units, "example": x}, False)
    for options, untried in rows:
        rule: Any = DirectFeedbackAlignment(model, **options)
        assert bool(rule._unchecked) == untried, options
        rule.checked(x, torch.zeros(2).long())
        assert not rule._unchecked
    rule.generator = None
    torch.manual_seed(0)
    drawn = torch.rand(3, generator=rule.replay(x.device))
    assert torch.equal(torch.rand(3), drawn), "PyTorch's own generator, and none of its draws"
    assert refusal(lambda: DirectFeedbackAlignment(nn.Sequential(Wandering(1.0), nn.Linear(4, 2)))).startswith(
        "example: None, expected a batch as the model takes it"
    )


def plain(*layers: nn.Module, **options: Any) -> LayeredRule:
    made: LayeredRule = DirectFeedbackAlignment(nn.Sequential(*layers), generator=seeded(0), **options)
    return made


def test_norms_of_a_batch_are_those_without_statistics_too() -> None:
    rule = plain(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False),
        nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2),
    )  # fmt: skip
    assert [name for name, _ in rule.batch_norms()] == ["1", "3"]
    rule.eval()
    assert [name for name, _ in rule.batch_norms()] == ["3"]
    assert rule.least_batch == 2


def test_a_share_of_a_batch() -> None:
    """Draws are made for all its rows, of which the share has its own."""
    rule, rows = plain(nn.Linear(4, 2)), torch.arange(6.0)[:, None]
    assert (rule.samples(rows), rule.own(rows), rule.gathered(rows)) == (6, rows, rows)
    rule.shared = Share(slice(2, 4), 6, lambda part: torch.cat([part - 2, part, part + 2]))
    assert rule.samples(rows[2:4]) == 6
    assert torch.equal(rule.own(rows), rows[2:4])
    assert torch.equal(rule.gathered(rows[2:4]), rows)


def test_masks_have_the_mean_1_or_drop_all() -> None:
    """One for each unit that drops, in training mode; a replay draws them again and takes nothing from the rule."""
    rule = plain(
        nn.Linear(4, 5), nn.Dropout(0.2), nn.Linear(5, 3), nn.Tanh(), nn.Dropout(1.0), nn.Linear(3, 3), nn.Linear(3, 2)
    )
    x = torch.zeros(400, 4)
    again = list(rule.draw_masks(x, rule.replay(x.device)))
    masks = rule.masks(x)
    assert masks is not None
    assert [None if mask is None else tuple(mask.shape) for mask in masks] == [(400, 5), (400, 3), None, None]
    assert masks[0].unique().tolist() == [0, 1.25]
    assert abs(masks[0].mean().item() - 1) < 6 * (0.25 / 2000) ** 0.5, "six deviations"
    assert masks[1].unique().tolist() == [0], "a rate of 1"
    for mask, drawn in zip(masks, again, strict=True):
        assert mask is drawn or torch.equal(mask, drawn)
    rule.shared = Share(slice(100, 103), 400, lambda part: part)
    rule.generator = seeded(0)
    first, *_ = rule.draw_masks(x[:3], seeded(1))
    assert first.shape == (3, 5), "rows of its own"
    rule.shared = None
    assert torch.equal(next(rule.draw_masks(x, seeded(1)))[100:103], first), "of a draw for all"
    assert rule.eval().masks(x) is None


def test_rows_and_scale_of_a_projection() -> None:
    """The variance of what is projected does not depend on how many positions share a row or are added up."""
    rule: Any = plain(nn.Linear(4, 5), nn.Linear(5, 2))
    assert rule.rows_and_scale((5,), False, 3.0, False) == (5, 3)
    assert rule.rows_and_scale((5,), False, 3.0, True) == (5, 3)
    assert rule.rows_and_scale((7, 4, 4), True, 3.0, True) == (7, 3 / 16)
    assert rule.rows_and_scale((7, 4, 4), True, 3.0, False) == (7 * 16, 3 / 4)
    assert rule.rows_and_scale((9, 5), False, 3.0, True) == (5, 3 / 9)
    assert rule.rows_and_scale((9, 5), False, 3.0, False) == (9 * 5, 1)
    of_each: Any = plain(nn.Linear(4, 5), nn.Linear(5, 2), example=torch.zeros(2, 9, 4))
    assert of_each.labels_positions
    assert of_each.rows_and_scale((9, 5), False, 3.0, True) == (5, 3), "a label of each"
    assert (of_each._by_channel(None, False), rule._by_channel(None, False), rule._by_channel(None, True)) == (
        True, False, True,
    )  # fmt: skip
    said = "by_channel: False, expected True, since every position has a label of its own"
    assert refusal(lambda: of_each._by_channel(False, True)) == said


def test_what_a_sample_is() -> None:
    """Flat where the first Linear takes all its numbers, of positions where it takes the last axis."""
    for layers in ([nn.Linear(4, 2)], [nn.Flatten(), nn.Linear(4, 2)]):
        rule, positions = plain(*layers), len(layers) == 1
        for shape, expected in (
            ((3, 4), (3, 4)), ((3, 2, 2), (3, 4)), ((3, 1, 4), (3, 4)), ((1, 4, 1), (1, 4)),
            *((((3, 5, 4), (3, 5, 4)),) if positions else ()),
        ):  # fmt: skip
            assert rule.checked_input(torch.zeros(shape)).shape == expected, shape
    normed = plain(nn.LayerNorm(4), nn.Linear(4, 2), example=torch.zeros(2, 4))
    assert normed.checked_input(torch.zeros(1, 4)).shape == (1, 4)
    assert [sample for sample, _ in normed._shapes] == [(4,)], "shapes of samples"
    for shape in ((4,), (0, 4)):
        said = refusal(lambda: normed.checked_input(torch.zeros(shape)))  # noqa: B023
        assert said == f"x: shape {shape}, expected (batch, ...) with at least one sample"
    assert refusal(lambda: normed.checked_input([1])) == "x: a list, expected a torch.Tensor"  # type: ignore[arg-type]


def test_images_of_another_size_are_refused() -> None:
    convolutions = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    assert plain(*convolutions, image_size=(4, 4)).sample_shapes((4, 4)) == [(2, 4, 4), (3, 2, 2), (2,)]  # type: ignore[attr-defined]
    for size in (None, (4,), (4, 0), (4.0, 4), 4, (4, 4, 4), "44"):
        said = refusal(lambda: plain(*convolutions, image_size=size))  # noqa: B023
        assert said == f"image_size: {size!r}, expected (height, width) of the images, for a model with convolutions"
    rule = plain(*convolutions, image_size=(4, 4))
    for shape in ((2, 4, 4), (2, 3, 4, 4)):
        said = refusal(lambda: rule.checked_input(torch.zeros(shape)))  # noqa: B023
        assert said == f"x: shape {shape}, expected (batch, 2, height, width)"
    pooled = plain(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2), image_size=(4, 4))
    y = torch.zeros(1).long()
    assert pooled.checked(torch.zeros(1, 2, 4, 4), y).shape == (1, 2, 4, 4)
    for height, width in ((5, 4), (4, 5)):
        said = refusal(lambda: pooled.checked(torch.zeros(1, 2, height, width), y))  # noqa: B023
        assert said == f"x: images of {height} x {width}, expected 4 x 4, the image_size"
    assert refusal(lambda: plain(nn.Linear(4, 2), image_size=(2, 2))) == (
        "image_size: (2, 2), but the model has no convolutions"
    )


class Wandering(nn.Module):
    """Which gives something else of the first sample at every second call, that far apart."""

    apart = 0.0

    def __init__(self, size: float) -> None:
        super().__init__()
        self.linear, self.size, self.calls = nn.Linear(4, 4), size, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        wide = torch.ones(len(x), 1, dtype=x.dtype)
        wide[0] += self.calls % 2 * self.apart
        return self.size * wide * self.linear(x)


@pytest.mark.parametrize("rule", [Ftp, Pepita])
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_repeat_themselves_but_for_rounding(rule: Any, size: float) -> None:
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.zeros(5).long()
    for apart, accepted in ((0.0, True), (1e-10, True), (1e-6, False)):
        module = Wandering(size)
        built = rule(nn.Sequential(module, nn.Linear(4, 2)).double(), example=x, generator=seeded(0))
        module.apart = apart
        said = refusal(lambda: built.assign_credit(x, y))  # noqa: B023
        assert (said == "accepted") == accepted, (apart, said)
        assert accepted or said.startswith("unit '0': gives results "), said


def test_units_are_tried_once() -> None:
    """Those that give 0 too."""
    module, x, y = Wandering(0.0), torch.randn(5, 4), torch.zeros(5).long()
    rule = Pepita(nn.Sequential(module, nn.Linear(4, 2)), example=x, generator=seeded(0))
    calls = []
    for _ in range(3):
        before = module.calls
        rule.assign_credit(x, y)
        calls.append(module.calls - before)
    assert calls[0] == calls[1] + 2 == calls[2] + 2


def test_an_example_tells_how_many_scores_there_are() -> None:
    """Where modules that are run give them; else the last layer does."""
    wide = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.Flatten())
    assert Pepita(wide, example=torch.zeros(2, 4)).num_classes == 6
    pooled = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.AvgPool1d(2))
    assert Pepita(pooled, example=torch.zeros(2, 4)).num_classes == 3
    said = "example: None, expected a batch, whose scores by unit '2' are counted"
    assert refusal(lambda: Pepita(pooled)) == said
    assert Pepita(nn.Sequential(nn.Linear(4, 3)), example=torch.zeros(2, 4)).num_classes == 3


def test_an_update_pairs_a_units_parameters_and_then_the_rules_own() -> None:
    unit, own = plain(nn.Linear(2, 3)).units[0], nn.Parameter(torch.zeros(1))
    gradients = [torch.ones_like(p) for p in unit.parameters]
    pairs = UnitUpdate(unit, gradients, own=((own, torch.ones(1)),)).pairs
    assert [p for p, _ in pairs] == [*unit.parameters, own]
    assert [p for p, _ in UnitUpdate(unit, None, own=((own, torch.ones(1)),)).pairs] == [own]
    assert isinstance(plain(nn.Linear(2, 3)), Rule)
