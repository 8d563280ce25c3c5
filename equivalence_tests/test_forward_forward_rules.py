"""Forward-Forward and its relatives through the front door: `.grad` of one's own model is the reference's update."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from prograde.accelerated.goodness import entmax_weighted
from prograde.accelerated.negatives import hard_wrong_labels, random_masks, random_partners
from prograde.accelerated.rules import CumulativeForwardForward, ForwardForward, LayerCollaboration, SymBa
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import reference_layers, refusal
from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Streams, streams
from prograde.equivalence_tests.test_rules import credited, sequential
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.usefixtures("ours_only")


CASES: dict[str, tuple[Callable[[nn.Module], ForwardForward], Callable[[Side], Any], str, str]] = {
    "goodness": (
        lambda model: ForwardForward(model, num_classes=5, goodness="kurtosis", threshold=0.5),
        lambda side: side.pair_losses.threshold(0.5), "kurtosis", "none",
    ),
    "SymBa": (
        lambda model: SymBa(model, num_classes=5, alpha=0.7),
        lambda side: side.pair_losses.symba(0.7), "mean-square", "none",
    ),
    "LayerCollaboration": (
        lambda model: LayerCollaboration(model, num_classes=5, threshold=2.0),
        lambda side: side.pair_losses.collaboration(2.0), "sum-of-squares", "others",
    ),
    "LayerCollaboration with the layers before": (
        lambda model: LayerCollaboration(model, num_classes=5, prior="before"),
        lambda side: lambda layer: side.pair_losses.collaboration(layer.layer + 1)(layer), "sum-of-squares", "before",
    ),
    "LayerCollaboration of all layers": (
        lambda model: LayerCollaboration(model, num_classes=5),
        lambda side: lambda layer: side.pair_losses.collaboration(layer.depth)(layer), "sum-of-squares", "others",
    ),
    "CumulativeForwardForward": (
        lambda model: CumulativeForwardForward(model, num_classes=5, gamma=0.7, beta=2.0),
        lambda side: side.cumulative_goodness.cumulative(0.7, 2.0), "mean-square", "before",
    ),
    **{
        remedy: (
            lambda model, remedy=remedy: CumulativeForwardForward(model, num_classes=5, remedy=remedy),
            lambda side, remedy=remedy: side.cumulative_goodness.REMEDIES[remedy](), "mean-square", "before",
        )
        for remedy in ("per-block", "hardness-gated", "depth-scaled", "compensated")
    },
}  # fmt: skip
"""A rule, and the reference's loss, goodness and prior for it."""


@pytest.mark.parametrize("name", CASES)
@given(case=streams())
def test_gradients(twin: Side, compare: Comparison, name: str, case: Streams) -> None:
    build, loss, goodness, prior = CASES[name]

    def updates(side: Side, dense: Any, x: Any, labels: Any) -> Any:
        if isinstance(side, ReferenceSide):
            draw = seeded(7)
            negative = (labels + torch.randint(1, 5, labels.shape, generator=draw).cpu().numpy()) % 5
            return side.forward_forward.updates(
                side.chain(dense), x, labels, negative, 5,
                side.goodness.GOODNESS[goodness], loss(side), prior, amplitude=4.0,
            )  # fmt: skip
        rule = build(sequential(dense))
        rule.generator = seeded(7)
        return credited(rule, x, labels)

    compare(twin, name, updates, *case[:3])


def dense_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)
    ).to(dtype)


def image_model(planes: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """For images of 11 x 9 pixels with 2 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2 + planes, 6, (3, 2)), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 2), bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 4),
    ).to(dtype)  # fmt: skip


def batch(shape: tuple[int, ...], n: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    y = torch.randint(0, 4, (n,), generator=generator)
    centres = torch.randn(4, *shape, generator=generator)
    return (centres[y] + 0.5 * torch.randn(n, *shape, generator=generator)).to(dtype), y


def numpy(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().double().cpu().numpy()


def same(name: str, ours: Any, theirs: Any) -> None:
    if theirs is None:
        assert ours is None, name
    else:
        assert rms(numpy(ours) - theirs) <= 1e-11 * rms(theirs), name


@pytest.mark.parametrize("labels", ["pixels", "planes"])
@pytest.mark.parametrize("kind", [ForwardForward, SymBa, LayerCollaboration])
def test_gradients_and_scores_on_images(kind: type[ForwardForward], labels: Any) -> None:
    rule = kind(image_model(4 if labels == "planes" else 0), labels=labels, generator=seeded(3))
    x, y = batch((2, 11, 9))
    negative = rule.negative_labels(x, y)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    loss = rule.assign_credit(x, y)
    side = ReferenceSide()
    losses = {
        ForwardForward: (side.goodness.sum_of_squares, side.pair_losses.threshold(1.0), "before"),
        SymBa: (side.goodness.mean_square, side.pair_losses.symba(4.0), "before"),
        LayerCollaboration: (side.goodness.sum_of_squares, side.pair_losses.collaboration(3.0), "others"),
    }
    module, chain, goodness = side.forward_forward, reference_layers(rule), losses[kind][0]
    amplitude = 1.0 if labels == "planes" else 4.0
    expected = list(
        module.local_updates(
            chain,
            numpy(x),
            y.cpu().numpy(),
            negative.cpu().numpy(),
            4,
            *losses[kind],
            amplitude=amplitude,
            place=labels,
        )
    )
    for unit, (update, _) in zip(rule.units, expected, strict=True):
        same(f"weight of {unit.name}", unit.weights[0].grad, update[0])
        same(f"bias of {unit.name}", None if unit.bias is None else unit.bias.grad, (*update, None)[1])
    assert loss.item() == pytest.approx(sum(float(loss) for _, loss in expected), rel=1e-11), "loss"
    scores = module.label_scores(chain, numpy(x), 4, goodness, amplitude, 0, labels)
    same("scores", rule(x), scores)
    assert rule.objective(x, y).requires_grad


def token_model(n: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(n, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Embedding(9, n), *layers).double()


def token_batch() -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(16) % 4
    return torch.randint(9, (16, 5), generator=seeded(1)), y


@pytest.mark.parametrize("kind", [ForwardForward, SymBa])
def test_gradients_and_scores_of_tokens(kind: type[ForwardForward]) -> None:
    """Of what the embedding gives, as it stands, with the label over the first numbers of every token."""
    (x, y), model = token_batch(), token_model()
    rule = kind(model, example=x[:2], generator=seeded(3))
    negative = rule.negative_labels(x, y)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    loss = rule.assign_credit(x, y)
    side, embedded = ReferenceSide(), numpy(model[0](x))
    goodness, of_layer = {
        ForwardForward: (side.goodness.sum_of_squares, side.pair_losses.threshold(1.0)),
        SymBa: (side.goodness.mean_square, side.pair_losses.symba(4.0)),
    }[kind]
    module, chain = side.forward_forward, reference_layers(rule)
    labels = (y.cpu().numpy(), negative.cpu().numpy())
    expected = list(module.local_updates(chain, embedded, *labels, 4, goodness, of_layer, "before", 4.0, "tokens"))
    assert [unit.name for unit in rule.units] == ["1", "3"], "units"
    for unit, (update, _) in zip(rule.units, expected, strict=True):
        same(f"weight of {unit.name}", unit.weights[0].grad, update[0])
        same(f"bias of {unit.name}", unit.bias.grad, update[1])
    assert loss.item() == pytest.approx(sum(float(loss) for _, loss in expected), rel=1e-11), "loss"
    same("scores", rule(x), module.label_scores(chain, embedded, 4, goodness, 4.0, 0, "tokens"))
    assert model[0].weight.grad is None, "the embedding stays as it is"
    assert rule.left_out["model.0.weight"].startswith("of tokens: labels are written over what it gives")
    assert [tuple(h.shape) for h in rule.activities(x, y)] == [(16, 5, 10), (16, 5, 8)]
    assert rule.objective(x, y).requires_grad


@pytest.mark.parametrize("options", [{"readout": True}, {"negatives": "hard"}, {"negatives": "pairs", "readout": True}])
def test_tokens_by_other_options(options: Any) -> None:
    x, y = token_batch()
    rule = SymBa(token_model(), example=x[:2], generator=seeded(3), **options)
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        losses.append(rule.assign_credit(x, y).item())
        optimizer.step()
    assert losses[-1] < losses[0], "learned"
    assert rule(x).shape == (16, 4)


def test_what_of_tokens_is_refused() -> None:
    x, y = token_batch()
    for build, message in (
        (
            lambda: SymBa(token_model()).assign_credit(x, y),
            "x: torch.int64, expected numbers, over which labels can be",
        ),
        (
            lambda: SymBa(token_model(3), example=x),
            "units: the first makes (5, 3) of a sample of tokens, expected (T, n)",
        ),
        (
            lambda: SymBa(token_model(), example=x, negatives="hybrid", readout=True),
            "negatives: 'hybrid' joins images, expected another kind for tokens",
        ),
        (
            lambda: SymBa(token_model(), example=x, labels="planes"),
            "labels: 'planes', but the model does not begin with",
        ),
        (
            lambda: SymBa(token_model(), example=x, image_shape=(1, 1, 5)),
            "image_shape: (1, 1, 5), expected None, since the",
        ),
        (
            lambda: SymBa(token_model(), example=x).assign_credit(x, x % 4),
            "y: a label of each position, (16, 5); SymBa expects one of each sample: it scores candidates one by one",
        ),
        (
            lambda: SymBa(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))).assign_credit(
                torch.ones(16, 3, 4), x[:, :3] % 4
            ),
            "y: a label of each position, (16, 3); SymBa expects",
        ),
        (
            lambda: SymBa(nn.Sequential(nn.Embedding(9, 12)), num_classes=4, example=x),
            "units: '0' of tokens alone, expected others behind it",
        ),
    ):
        assert refusal(build).startswith(message), refusal(build)
    SymBa(token_model(4), example=x)  # room for a label each


@pytest.mark.parametrize("shape", [(16,), (2, 11, 9)], ids=["dense", "images"])
def test_hard_negatives_are_wrong_and_prefer_what_scores_high(shape: tuple[int, ...]) -> None:
    model = dense_model() if len(shape) == 1 else image_model()
    rule = ForwardForward(model, negatives="hard", generator=seeded(3))
    x, y = batch(shape, 200)
    scores = rule(x)
    draws = torch.stack([rule.negative_labels(x, y) for _ in range(20)])
    assert not (draws == y).any(), "hard negatives are wrong"
    wrong = scores.scatter(1, y[:, None], 0)
    drawn = wrong.gather(1, draws.T).mean()
    assert drawn > wrong.sum(dim=1).mean() / 3, "hard negatives score higher than the mean of wrong labels"
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    negative = rule.negative_labels(x, y)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    rule.assign_credit(x, y)
    module, chain = ReferenceSide().forward_forward, reference_layers(rule)
    update, _ = next(
        iter(module.local_updates(chain, numpy(x), y.cpu().numpy(), negative.cpu().numpy(), 4, amplitude=4.0))
    )
    same("weight for hard negatives", rule.units[0].weights[0].grad, update[0])


def test_hard_negatives_are_drawn_by_the_rules_own_scores() -> None:
    """Of the layers that it scores by, and the brightness that it has."""
    rule = ForwardForward(dense_model(), negatives="hard", amplitude=0.5, first_layer=1, generator=seeded(3))
    x, y = batch((16,), 500)
    drawn = rule.negative_labels(x, y)
    expected = hard_wrong_labels(rule(x), y, seeded(3))
    assert torch.equal(drawn, expected), "drawn by the rule's own scores"


def test_hard_negatives_of_scores_below_0() -> None:
    """Where roots would be even: by the softmax of a goodness that may be negative, or of a read-out's scores."""
    x, y = batch((16,), 500)
    kurtosis = ForwardForward(dense_model(), negatives="hard", hard_law="softmax", goodness="kurtosis")
    readout = ForwardForward(dense_model(), negatives="hard", readout=True)
    assert readout.readout is not None
    with torch.no_grad():
        readout.readout.weight.normal_(generator=seeded(1))
    for rule in (kurtosis, readout):
        rule.generator = seeded(3)
        expected = hard_wrong_labels(rule(x), y, seeded(3), "softmax")
        assert torch.equal(rule.negative_labels(x, y), expected), "softmax of the rule's own scores"


@pytest.mark.parametrize("passes", [1, 6, 20])
def test_masks_of_flat_images(passes: int) -> None:
    """Of the shape that they are told, and blurred as often."""
    x, y = batch((16,))
    rule = ForwardForward(
        dense_model(), negatives="hybrid", readout=True, mask_passes=passes, image_shape=(2, 2, 4),
        generator=seeded(3),
    )  # fmt: skip
    drawn = rule.negative_images(x)
    generator = seeded(3)
    other = x[random_partners(16, generator, device=x.device)]
    mask = random_masks((16, 2, 4), passes, generator, device=x.device, dtype=x.dtype).repeat(1, 2, 1).view(16, 16)
    assert torch.equal(drawn, torch.where(mask == 1, x, other)), "mask"
    assert rule.assign_credit(x, y).isfinite()


def test_the_loss_with_a_read_out_is_that_of_layers_and_read_out() -> None:
    rule = ForwardForward(dense_model(), readout=True, generator=seeded(3))
    assert rule.readout is not None
    with torch.no_grad():
        rule.readout.weight.normal_(generator=seeded(1))
    x, y = batch((16,))
    layers = rule.objective(x, y).item()
    logits = numpy(rule(x))
    own = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y.cpu().numpy()])
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    assert rule.assign_credit(x, y).item() == pytest.approx(layers + own, rel=1e-12), "loss of the read-out"


@pytest.mark.parametrize("negatives", ["hybrid", "pairs"])
@pytest.mark.parametrize("shape", [(16,), (2, 11, 9)], ids=["dense", "images"])
def test_without_labels(negatives: Any, shape: tuple[int, ...]) -> None:
    """x against negatives made of two samples each; the read-out learns from features of x as it is."""
    model = dense_model() if len(shape) == 1 else image_model()
    rule = ForwardForward(model, negatives=negatives, readout=True, first_layer=1, generator=seeded(3))
    x, y = batch(shape)
    negative = rule.negative_images(x)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    rule.assign_credit(x, y)
    module, chain = ReferenceSide().forward_forward, reference_layers(rule)
    positive = numpy(x)
    if negatives == "pairs":
        axes = tuple(range(1, positive.ndim))
        positive = positive / (np.sqrt(np.mean(positive**2, axis=axes, keepdims=True)) + 1e-8)
    expected = list(module.stream_updates(chain, positive, numpy(negative), normalised=negatives == "pairs"))
    for unit, (update, _) in zip(rule.units, expected, strict=True):
        same(f"weight of {unit.name}", unit.weights[0].grad, update[0])
    features = module.features(chain, numpy(x), 1)
    readout = np.zeros((4, features.shape[1]))
    assert rule.readout is not None
    same("read-out", rule.readout.weight.grad, module.readout_update(readout, features, y.cpu().numpy()))
    flat_x, flat = x.flatten(1), negative.flatten(1)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    told = rule.layer_goodness(x, y)
    again = module.stream_goodness(chain, positive, numpy(negative), normalised=negatives == "pairs")
    same("goodness of positive samples", told[0].positive, again[0].positive)
    same("goodness of negative samples", told[0].negative, again[0].negative)
    if negatives == "pairs":
        z = torch.tensor(positive).flatten(1)
        others = 2 * flat - z
        distances = torch.cdist(others, z)
        assert distances.min(dim=1).values.max() < 1e-6, "x_i + x_j"
        assert (distances.argmin(dim=1) != torch.arange(len(x))).all(), "of another sample"
        assert (flat.square().mean(dim=1) < 1 - 1e-6).all(), "shorter than a sample"
    else:
        own = flat == flat_x
        assert 0 < own.double().mean() < 1, "parts of the sample and of another"
        pixels = own.view(len(x), *(shape if len(shape) == 3 else (1, 4, 4)))
        assert (pixels == pixels[:, :1]).all(), "a mask for all channels"
        assert all(
            any((row[~mine] == other[~mine]).all() for other in flat_x) for row, mine in zip(flat, own, strict=True)
        )


def test_flat_images_are_square_unless_told() -> None:
    """For masks of hybrid negatives."""
    (x, y), updates = batch((16,)), []
    for shape in (None, (1, 4, 4), (4, 2, 2), (16, 1, 1), (1, 1, 16)):
        rule = ForwardForward(dense_model(), negatives="hybrid", image_shape=shape, readout=True, generator=seeded(3))
        rule.assign_credit(x, y)
        updates.append(rule.units[0].weights[0].grad)
    assert torch.equal(updates[0], updates[1])
    for other in ((4, 2), (4, 4), (1, 4, 5), (1, 4.0, 4), (0, 4, 4), (-1, -4, 4)):
        with pytest.raises(ValueError, match=r"image_shape: .*, expected channels, height and width of the 16 pixels"):
            ForwardForward(dense_model(), negatives="hybrid", image_shape=other, readout=True)  # type: ignore[arg-type]


def test_a_gate_learns_its_own_parameters() -> None:
    """Their gradients are autograd's of the layers' losses, and the first layer has no gate."""
    rule = CumulativeForwardForward(dense_model(), remedy="hardness-gated", learn_gate=True, generator=seeded(3))
    assert {name for name, _ in rule.named_parameters()} >= {"raw_tau.0", "raw_tau.1", "kappa.0", "kappa.1"}
    plain = CumulativeForwardForward(dense_model(), remedy="hardness-gated", generator=seeded(3))
    other = [
        CumulativeForwardForward(
            dense_model(), remedy="hardness-gated", learn_gate=learn, gamma=0.3, beta=2.0,
            generator=seeded(3),
        )
        for learn in (True, False)
    ]  # fmt: skip
    x, y = batch((16,))
    assert rule.assign_credit(x, y).item() == pytest.approx(plain.assign_credit(x, y).item(), rel=1e-12), (
        "tau 1, kappa 0"
    )
    for ours, theirs in zip(rule.units, plain.units, strict=True):
        same("tau 1, kappa 0", ours.module.weight.grad, numpy(theirs.module.weight.grad))
    losses = [each.assign_credit(x, y).item() for each in other]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12), "gamma and beta of a gate that learns"
    with torch.no_grad():
        for i, (raw_tau, kappa) in enumerate(zip(rule.raw_tau, rule.kappa, strict=True)):
            raw_tau.fill_(0.3 - i)
            kappa.fill_(0.2 + i)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    told = rule.layer_goodness(x, y)
    rule.generator.manual_seed(3)  # type: ignore[union-attr]
    loss = rule.assign_credit(x, y)
    total = torch.log1p(torch.exp(-4 * (told[0].positive - told[0].negative))).mean()
    for i, layer in enumerate(told[1:]):
        raw_tau, kappa = (held[i].detach().clone().requires_grad_() for held in (rule.raw_tau, rule.kappa))
        tau = torch.log1p(raw_tau.exp())
        gated = [
            own.detach() + 0.7 * torch.sigmoid(tau * (kappa - prior.detach())) * prior.detach()
            for own, prior in ((layer.positive, layer.prior_positive), (layer.negative, layer.prior_negative))
        ]
        own_loss = torch.log1p(torch.exp(-4 * (gated[0] - gated[1]))).mean()
        own_loss.backward()
        total = total + own_loss
        for name, held, own in (("raw_tau", rule.raw_tau[i], raw_tau), ("kappa", rule.kappa[i], kappa)):
            assert held.grad is not None
            assert own.grad is not None
            assert held.grad.item() == pytest.approx(own.grad.item(), rel=1e-9), f"{name} of layer {i + 1}"
    assert loss.item() == pytest.approx(total.item(), rel=1e-9), "loss of every layer's own gate"


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_gamma_counts_from_the_second_layer_on(gamma: float) -> None:
    x, y = batch((16,))
    rules = [CumulativeForwardForward(dense_model(), gamma=g, generator=seeded(0)) for g in (0.5, gamma)]
    for rule in rules:
        rule.generator.manual_seed(3)  # type: ignore[union-attr]
        rule.assign_credit(x, y)
    first, *_, last = [
        torch.equal(*(unit.module.weight.grad for unit in units))
        for units in zip(*(rule.units for rule in rules), strict=True)
    ]
    assert first, "the first layer has no layers before it"
    assert not last, "gamma counts at later layers"


@pytest.mark.parametrize(
    "options",
    [*({"remedy": remedy} for remedy in ("cumulative", "per-block", "hardness-gated", "depth-scaled", "compensated")),
     {"goodness": "entmax"}, {"goodness": entmax_weighted(stop_gradient=False)}, {"goodness": "top-k"}],
    ids=lambda options: "-".join("entmax, weights not constant" if callable(getattr(value, "value", None)) else value
                                 for value in options.values()),
)  # fmt: skip
def test_the_last_layers_update_is_the_gradient_of_the_objective(options: dict[str, Any]) -> None:
    """What the method holds constant is constant to autograd too."""
    rule = CumulativeForwardForward(dense_model(), generator=seeded(3), **options)
    x, y = batch((16,))
    state = rule.generator.get_state()  # type: ignore[union-attr]
    rule.assign_credit(x, y)
    rule.generator.set_state(state)  # type: ignore[union-attr]
    weight = rule.units[-1].module.weight
    (gradient,) = torch.autograd.grad(rule.objective(x, y), weight)
    same("weight of the last layer", weight.grad, numpy(gradient))


@pytest.mark.parametrize("shape", [(16,), (2, 11, 9)], ids=["dense", "images"])
@pytest.mark.parametrize("kind", [ForwardForward, SymBa, LayerCollaboration, CumulativeForwardForward])
def test_half_precision(kind: type[ForwardForward], shape: tuple[int, ...]) -> None:
    """Goodness, losses and scores are in float32, what is learned in its own precision."""
    model = (dense_model if len(shape) == 1 else image_model)(dtype=torch.bfloat16)
    gate = {"remedy": "hardness-gated", "learn_gate": True} if kind is CumulativeForwardForward else {}
    rule = kind(model, negatives="hard", generator=seeded(3), **gate)  # type: ignore[arg-type]
    x, y = batch(shape, dtype=torch.bfloat16)
    told = rule.layer_goodness(x, y)
    assert {value.dtype for layer in told for value in layer[3:]} == {torch.float32}, "goodness in float32"
    assert rule(x).dtype == torch.float32
    for update in rule.stream(x, y):
        assert update.loss is not None
        assert update.loss.dtype == torch.float32
        assert all(held.dtype == gradient.dtype == torch.bfloat16 for held, gradient in update.pairs)
    rule.assign_credit(x, y)


def test_no_rule_leaves_a_graph_or_asks_for_one() -> None:
    x, y = batch((2, 11, 9))
    rule = LayerCollaboration(image_model())
    with torch.autograd.graph.saved_tensors_hooks(forbidden, forbidden):
        rule.assign_credit(x, y)
    assert not any(p.grad.requires_grad for p in rule.parameters() if p.grad is not None)


def forbidden(tensor: Any) -> Any:
    raise AssertionError("a tensor is saved for a backward pass")


def test_training_on_images_tells_classes_apart() -> None:
    for labels in ("pixels", "planes"):
        planes = 4 if labels == "planes" else 0
        rule = SymBa(image_model(planes, torch.float32), labels=labels, generator=seeded(0))
        optimizer = torch.optim.Adam(rule.parameters(), lr=1e-2)
        x, y = batch((2, 11, 9), 64, torch.float32)
        for _ in range(150):
            rule.assign_credit(x, y)
            optimizer.step()
        assert (rule(x).argmax(dim=1) == y).float().mean() > 0.75, f"{labels}: three times chance"


@pytest.mark.parametrize("labels", ["pixels", "planes"])
def test_saved_and_loaded_rules_go_on_alike(labels: Any) -> None:
    rules = [
        LayerCollaboration(image_model(4 if labels == "planes" else 0), labels=labels, generator=seeded(0))
        for _ in range(2)
    ]
    with torch.no_grad():
        for parameter in rules[0].parameters():
            parameter.mul_(1.1)
    x, y = batch((2, 11, 9))
    rules[1].load_state_dict(copy.deepcopy(rules[0].state_dict()))
    for rule in rules:
        rule.generator.manual_seed(1)  # type: ignore[union-attr]
    assert torch.equal(rules[0](x), rules[1](x))
    assert torch.equal(*(rule.assign_credit(x, y) for rule in rules))


def test_the_read_out_on_images() -> None:
    """From the last feature map on, whose size the dense layers tell."""
    rule = ForwardForward(image_model(), readout=True, first_layer=1)
    assert rule.readout is not None
    assert rule.readout.in_features == 48 + 6
    assert rule(batch((2, 11, 9))[0]).shape == (16, 4)
    only = ForwardForward(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), readout=True)
    assert only.readout is not None
    assert only.readout.in_features == 8
    assert [update.unit.name for update in only.stream(torch.rand(5, 1, 4, 4), torch.arange(5) % 3)] == [
        "0",
        "readout",
    ]


@pytest.mark.parametrize("kind", [SymBa, LayerCollaboration, CumulativeForwardForward])
def test_signatures_show_every_option(kind: type[ForwardForward]) -> None:
    parameters = inspect.signature(kind).parameters
    own = {"alpha", "remedy", "gamma", "beta", "learn_gate"}
    base = dict(inspect.signature(ForwardForward).parameters)
    hidden = {"loss"} if kind is LayerCollaboration else {"loss", "threshold"}
    assert set(parameters) - own == set(base) - hidden, "names"
    for name in set(parameters) & {"readout", "negatives", "amplitude", "first_layer", "labels", "generator"}:
        assert parameters[name] == base[name], f"default of {name}"


def test_a_subclass_without_options_shows_its_own() -> None:
    class Plain(SymBa):
        def __init__(self, model: nn.Module, steepness: float) -> None:
            super().__init__(model, alpha=steepness)

    assert list(inspect.signature(Plain).parameters) == ["model", "steepness"]


def test_a_rule_holds_nothing_of_the_images_it_has_seen(twin: TwinSide) -> None:
    """Pooling remembers places, within a step."""
    rule = ForwardForward(image_model(), goodness="mean-square")
    size = len(pickle.dumps(rule))
    x, y = batch((2, 11, 9), 64)
    for call in (rule, lambda x: rule.objective(x, y), lambda x: rule.assign_credit(x, y)):
        call(x)
        rule.zero_grad()
        assert len(pickle.dumps(rule)) < size + 2000, "images held"
        copy.deepcopy(rule)
