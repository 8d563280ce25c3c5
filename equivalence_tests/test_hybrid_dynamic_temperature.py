"""DTG-FF's dense hybrid: twin against reference, autograd of the paper's loss, and the rule."""

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.accelerated.rules import HybridDynamicTemperature, MonoForward
from prograde.equivalence_tests.local_examples import K, batch, dense
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import EXAMPLES
from prograde.equivalence_tests.sides import Dense, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import SMOOTH, seeds
from prograde.equivalence_tests.tolerance import Comparison

SHARE, AMPLITUDE = 0.3, 2.0


class Hybrid(NamedTuple):
    """Hidden layers, the parameters in the order of `Parameters`, a batch with right and wrong labels, and statistics.

    The statistics are a mean and a variance for each layer that the classifier reads.
    """

    dense: Dense
    parameters: tuple[Any, ...]
    x: Any
    labels: Any
    wrong: Any
    statistics: tuple[Any, ...]


@st.composite
def hybrids(draw: st.DrawFn) -> Hybrid:
    """Two or three layers. Nothing is normalised over two numbers, which would become 1 and -1 whatever they are."""
    rng = draw(seeds())
    depth = draw(st.integers(2, 3), label="depth")
    widths = [
        draw(st.integers(K + 2, K + 5), label="n_0"),
        *(draw(st.integers(3, 7), label="width") for _ in range(depth)),
    ]
    batch = draw(st.sampled_from([3, 5]), label="batch")
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    biases = draw(st.booleans(), label="biases")
    layers = Dense(
        tuple(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes),
        tuple(0.3 * rng.standard_normal(n) if biases else None for n, _ in shapes),
        (draw(st.sampled_from(SMOOTH), label="activation"),) * depth,
    )
    read = widths[1:-1]
    parameters = (
        rng.standard_normal(depth),
        rng.standard_normal(depth),
        tuple(rng.uniform(0.5, 1.5, n) for n in read),
        tuple(rng.standard_normal(n) for n in read),
        rng.standard_normal((K, sum(read))) / np.sqrt(sum(read)),
        rng.standard_normal(K),
    )
    labels = rng.integers(0, K, batch)
    wrong = (labels + rng.integers(1, K, batch)) % K
    statistics = tuple((rng.standard_normal(n), rng.uniform(0.5, 2, n)) for n in read)
    return Hybrid(layers, parameters, rng.standard_normal((batch, widths[0])), labels, wrong, statistics)


def norms_of(side: Side, statistics: Any) -> Any:
    """Batch normalisation by given statistics."""
    module = side.normalisations
    return [
        module.Normalisation(
            lambda h, mean=mean, v=variance: module.batch_norm(h, mean, v),
            lambda h, g, mean=mean, v=variance: module.batch_norm_vjp(h, g, mean, v),
        )
        for mean, variance in statistics
    ]


def arguments(side: Side, case: Hybrid, given_ones: bool) -> tuple[Any, ...]:
    """Layers, parameters, batch and normalisations as this side's functions take them."""
    parameters = side.hybrid_dynamic_temperature.Parameters(*case.parameters)
    return side.chain(case.dense), parameters, case.x, norms_of(side, case.statistics) if given_ones else None


@pytest.mark.parametrize("given_ones", [False, True], ids=["of the batch", "given statistics"])
@given(case=hybrids())
def test_twin(twin: Side, compare: Comparison, given_ones: bool, case: Hybrid) -> None:
    def found(side: Side, *fields: Any) -> Any:
        module, case = side.hybrid_dynamic_temperature, Hybrid(*fields)
        layers, parameters, x, norms = arguments(side, case, given_ones)
        updates = module.updates(layers, parameters, x, case.labels, case.wrong, SHARE, AMPLITUDE, norms)
        losses = module.losses(layers, parameters, x, case.labels, case.wrong, AMPLITUDE, norms)
        goodness = [module.goodness(layers, parameters, x, k, AMPLITUDE) for k in (case.labels, case.wrong)]
        return updates, losses, goodness, module.scores(layers, parameters, x, AMPLITUDE, norms)

    compare(twin, "hybrid_dynamic_temperature", found, *case)


@given(case=hybrids(), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_warm_start(twin: Side, compare: Comparison, case: Hybrid, scale: float) -> None:
    found = [scale * p**2 for p in (case.x, case.x[::-1].copy())]
    compare(twin, "warm_start", lambda side, *pair: side.hybrid_dynamic_temperature.warm_start(*pair), *found)


@given(case=hybrids())
def test_thresholds_begin_at_the_mean_goodness(side: Side, case: Hybrid) -> None:
    """softplus(theta0) is the mean g / T of both streams; above 20 theta0 is that itself, as published."""
    positive, negative = (np.abs(case.x) + 0.1, 40 * np.abs(case.x) + 50)
    for pair in ((positive, positive[::-1].copy()), (negative, negative[::-1].copy()), (0 * positive, 0 * positive)):
        theta = side.results(side.hybrid_dynamic_temperature.warm_start(*side.operands(pair)))
        mean = (pair[0] + pair[1]).mean(axis=1) / 2
        assert np.isfinite(theta).all(), "theta of a silent layer"
        expected = np.where(mean > 20, theta, np.logaddexp(0, theta))
        assert np.allclose(expected, np.maximum(mean, 1e-6), rtol=64 * side.eps, atol=64 * side.eps), "theta"


@pytest.mark.parametrize("given_ones", [False, True], ids=["of the batch", "given statistics"])
@given(case=hybrids(), rng=seeds())
def test_updates_are_the_gradient_of_the_losses(given_ones: bool, case: Hybrid, rng: np.random.Generator) -> None:
    """Of the reference, along any direction: each layer's own loss as what it is of this layer alone."""
    side = ReferenceSide()
    module = side.hybrid_dynamic_temperature
    layers, parameters, x, norms = arguments(side, case, given_ones)
    given_labels = (case.labels, case.wrong)
    update = module.updates(layers, parameters, x, *given_labels, SHARE, AMPLITUDE, norms)

    def total(size: float, layer: int, direction: Any, of_parameters: Any) -> float:
        """The losses that reach the layer: its own, and the classifier's; of parameters all."""
        weights = list(case.dense.weights)
        if direction is not None:
            weights[layer] = weights[layer] + size * direction
        chain = side.chain(case.dense._replace(weights=tuple(weights)))
        moved = parameters._replace(**{k: getattr(parameters, k) + size * d for k, d in of_parameters.items()})
        local, classifier = module.losses(chain, moved, x, *given_labels, AMPLITUDE, norms)
        return float(SHARE * (local[layer] if direction is not None else local.sum()) + classifier)

    for layer, weight in enumerate(case.dense.weights):
        direction = rng.standard_normal(weight.shape)
        slope = (total(1e-6, layer, direction, {}) - total(-1e-6, layer, direction, {})) / 2e-6
        assert np.isclose(np.sum(update.layers[layer][0] * direction), slope, rtol=1e-5, atol=1e-7), f"layer {layer}"
    for name in ("alpha", "theta", "weight", "bias"):
        direction = rng.standard_normal(getattr(parameters, name).shape)
        slope = (total(1e-6, 0, None, {name: direction}) - total(-1e-6, 0, None, {name: direction})) / 2e-6
        found = np.sum(getattr(update.parameters, name) * direction)
        assert np.isclose(found, slope, rtol=1e-5, atol=1e-7), f"gradient of {name}"
    local, classifier = module.losses(layers, parameters, x, *given_labels, AMPLITUDE, norms)
    assert np.allclose(update.local, local), "the losses"
    assert np.isclose(update.classifier, classifier), "the losses"


@given(case=hybrids())
def test_the_last_layer_learns_by_its_own_loss_alone(side: Side, case: Hybrid) -> None:
    """With no share of the layers' losses it does not learn; the first layer does, from the classifier."""
    module, case = side.hybrid_dynamic_temperature, Hybrid(*side.operands(tuple(case)))
    layers, parameters, x, _ = arguments(side, case, False)
    found = side.results(module.updates(layers, parameters, x, case.labels, case.wrong, 0.0))
    assert not np.any(found.layers[-1][0]), "the last layer"
    assert np.any(found.layers[0][0]), "the first"


def load_through(parent: nn.ModuleDict, state: dict[str, torch.Tensor]) -> None:
    parent.load_state_dict({f"rule.{name}": value for name, value in state.items()})


def hybrid(activation: type[nn.Module] = nn.Tanh) -> HybridDynamicTemperature:
    """With temperatures, thresholds and normalisations unlike one another, and warm."""
    layers = [activation() if isinstance(module, nn.Tanh) else module for module in dense()]
    generator = seeded(0)
    rule = HybridDynamicTemperature(nn.Sequential(*layers), share=0.3, amplitude=2.0, generator=generator)
    with torch.no_grad():
        for array in (rule.alpha, rule.theta, *rule.norms.parameters()):
            array.uniform_(0.2, 1.5)
        rule.warm.fill_(True)
    return rule


def hybrid_streams(rule: HybridDynamicTemperature, x: torch.Tensor, y: torch.Tensor) -> Any:
    """By the docstring alone: g_l / T_l of both streams for the next draw of wrong labels; the classifier's scores."""
    draws = seeded(0)
    draws.set_state(rule.generator.get_state())  # type: ignore[union-attr]
    wrong = (y + torch.randint(1, K, y.shape, generator=draws)) % K
    linears, activation = [unit.module for unit in rule.units], rule.model.get_submodule("1")
    temperature = 0.1 + 1.9 / (1 + (-rule.alpha).exp())

    def with_label(label: torch.Tensor) -> torch.Tensor:
        return torch.cat([2.0 * label, x[:, K:]], dim=1)

    found = []
    for labels in (y, wrong):
        h, goodness = with_label(nn.functional.one_hot(labels, K).double()), []
        for linear, t in zip(linears, temperature, strict=True):
            h = activation(linear(h))
            goodness.append((h * h).mean(dim=1) / t)
            h = h.detach()
            h = (h - h.mean(dim=1, keepdim=True)) / (h.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
        found.append(torch.stack(goodness))
    h, seen = with_label(torch.full((len(x), K), 1 / K, dtype=x.dtype)), []
    for linear, norm in zip(linears[:-1], rule.norms, strict=True):
        a = linear(h)
        z = (a - a.mean(dim=0)) / (a.var(dim=0, correction=0) + 1e-5).sqrt()
        seen.append(z * norm.weight + norm.bias)
        h = activation(a)
    return *found, rule.classifier(torch.cat(seen, dim=1))


@pytest.mark.usefixtures("ours_only")
def test_a_hybrid_learns_by_its_definition() -> None:
    """.grad is autograd's of the loss in the docstring; a layer's own part of it reaches no other layer."""
    rule = hybrid()
    x, y = batch(MonoForward(dense()))
    good, bad, scores = hybrid_streams(rule, x, y)
    theta = (1 + rule.theta.exp()).log()[:, None]
    local = ((1 + (theta - good).exp()).log() + (1 + (bad - theta).exp()).log()).mean(dim=1)
    expected = 0.3 * local.sum() + nn.functional.cross_entropy(scores, y)
    names = [name for name, p in rule.named_parameters() if not name.startswith("model.6")]
    held = [rule.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(expected, held)
    draws = rule.generator.get_state()
    assert rule.objective(x, y).item() == pytest.approx(expected.item(), rel=1e-12), "objective of a hybrid"
    rule.generator.set_state(draws)
    assert rule.assign_credit(x, y).item() == pytest.approx(expected.item(), rel=1e-12), "loss of a hybrid"
    for name, p, g in zip(names, held, gradients, strict=True):
        assert p.grad is not None, name
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-13), f"{name} of a hybrid"
    assert torch.allclose(rule(x), scores, rtol=1e-12), "its scores are the classifier's"
    own = copy.deepcopy(rule.norms[0]).train()
    own.reset_running_stats()
    own(rule.units[0].module(torch.cat([torch.full((len(x), K), 2 / K).to(x), x[:, K:]], dim=1)))
    for name, buffer in own.named_buffers():
        if name != "num_batches_tracked":
            assert torch.allclose(rule.norms[0].get_buffer(name), buffer, rtol=1e-12), "running statistics"
    weights = [unit.module.weight for unit in rule.units]
    for layer, loss in enumerate(rule.losses(x, y)[0]):
        reached = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        layers = [other for other, gradient in enumerate(reached) if gradient is not None and gradient.any()]
        assert layers == [layer], "layers that a layer's own part reaches"


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_hybrid_begins_at_the_goodness_of_its_first_batch(size: float) -> None:
    """softplus(theta0) is the mean of g / T of both streams; above 20 theta0 is that itself, as published."""
    rule = hybrid(nn.ReLU)
    with torch.no_grad():
        rule.warm.fill_(False)
        for p in rule.model.parameters():
            p.mul_(size)
    x, y = batch(MonoForward(dense()))
    mean = torch.stack(hybrid_streams(rule, x, y)[:2]).mean(dim=(0, 2))
    assert (mean > 20).all() if size > 1 else (mean < 20).all()
    rule.assign_credit(x, y)
    expected = torch.where(mean > 20, mean, (mean.clamp(max=20).exp() - 1).log())
    assert torch.allclose(rule.theta, expected, rtol=1e-9), "theta of a hybrid"


@pytest.mark.usefixtures("ours_only")
def test_a_hybrid_warms_up_again_from_a_state_that_is_not_warm() -> None:
    torch.manual_seed(0)
    rule = HybridDynamicTemperature(dense())
    cold = copy.deepcopy(rule.state_dict())
    x, y = batch(MonoForward(dense()))
    rule.assign_credit(x, y)
    warm = rule.theta.clone()
    assert not torch.equal(warm, cold["theta"])
    rule.assign_credit(x[:2], y[:2])
    assert torch.equal(rule.theta, warm), "warmed up once"
    for load in (rule.load_state_dict, lambda state: load_through(nn.ModuleDict({"rule": rule}), state)):
        load(cold)
        rule.assign_credit(x, y)
        assert not torch.equal(rule.theta, cold["theta"]), "warmed up again"


@pytest.mark.usefixtures("ours_only")
def test_a_loaded_rule_does_not_set_its_thresholds_again(twin: TwinSide) -> None:
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


def test_a_threshold_begins_at_any_size(side: Side) -> None:
    """Where softplus is its argument, and e^mean is no number."""
    module, large = side.hybrid_dynamic_temperature, np.full((1, 3), 1e4)
    with np.errstate(all="raise"):
        assert side.results(module.warm_start(*side.operands((large, large)))).tolist() == [1e4]
    near = np.array([[21.0] * 3, [19.0] * 3])
    above, below = side.results(module.warm_start(*side.operands((near, near))))
    assert above == 21, "theta of a goodness above 20 is that itself"
    assert np.isclose(below, np.log(np.expm1(19)), rtol=2 * side.eps, atol=0), "theta of a goodness below 20"
