"""Kinds of layers that networks are made of: twin against reference, reference against PyTorch's own modules."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.smoke


class Case(NamedTuple):
    """Operands of a layer: parameters in order, statistics that are given, z, u of its shape and d of the output's."""

    kind: str
    parameters: tuple[Any, ...]
    statistics: tuple[Any, ...]
    z: Any
    u: Any
    d: Any

    @property
    def arrays(self) -> tuple[Any, ...]:
        return tuple(self)[1:]


GROUPS = 2
NORMALISED = {
    "batch norm": (nn.BatchNorm2d, ((4,), (4,))),
    "batch norm with given statistics": (nn.BatchNorm2d, ((4,), (4,))),
    "group norm": (lambda n: nn.GroupNorm(GROUPS, n, 1e-3), ((4,), (4,))),
    "layer norm": (nn.LayerNorm, ((5,), (5,))),
    "layer norm of two axes": (lambda _: nn.LayerNorm((3, 5)), ((3, 5), (3, 5))),
    "layer norm without a bias": (lambda n: nn.LayerNorm(n, bias=False), ((5,),)),
    "layer norm without parameters": (lambda n: nn.LayerNorm(n, elementwise_affine=False), ()),
    "RMS norm": (lambda n: nn.RMSNorm(n, 1e-3), ((5,),)),
}
"""PyTorch's module for so many channels or units, and the shapes of its parameters."""
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    **{kind: shapes for kind, (_, shapes) in NORMALISED.items()},
    "dense": ((4, 5), (4,)),
    "block": ((6, 5), (6,), (6,), (6,), (3, 6), (3,)),
    "residual": ((5,), (5,), (6, 5), (6,), (5, 6), (5,)),
    "residual with a shortcut": (
        (6, 2, 3, 3), (6,), (6,), (6,), (6, 3, 3, 3), (6,), (6,), (6,), (6, 4, 1, 1), (6,), (6,), (6,)
    ),
    "attention": ((18, 6), (18,), (6, 6), (6,)),
    "attention without biases": ((18, 6), (6, 6)),
    "causal attention": ((18, 6), (18,), (6, 6), (6,)),
}  # fmt: skip
"""The shapes of each kind's parameters."""
HEADS = {"attention": 2, "attention without biases": 1, "causal attention": 3}
KINDS = tuple(SHAPES)
OF_MAPS = ("batch norm", "batch norm with given statistics", "group norm", "residual with a shortcut")
kinds = pytest.mark.parametrize("kind", KINDS)


def made(side: Side, case: Case) -> Any:
    """The layer, of arrays of that side."""
    m, n, b = side.layers, side.normalisation_layers, side.blocks
    table = side.activations.ACTIVATIONS
    take = iter(case.parameters).__next__

    def dense(*steps: Any) -> Any:
        return m.Dense(take(), take(), steps)

    def normalised(*steps: Any, step: Any = None) -> Any:
        return n.NormalisationLayer(step or n.LayerNorm(), take(), take(), steps)

    def convolution(**settings: Any) -> Any:
        return m.Convolution(take(), take(), **settings)

    match case.kind:
        case "dense":
            return dense()
        case "block":
            return b.Block((dense(), normalised(table["gelu"]), dense(table["silu"])))
        case "residual":
            return b.Residual((normalised(), dense(table["gelu"]), dense()))
        case "residual with a shortcut":
            down = convolution(stride=(2, 2), padding=(1, 1), groups=2), normalised(table["tanh"], step=n.GroupNorm(3))
            chain = (*down, convolution(padding=(1, 1), groups=2), normalised(step=n.GroupNorm(3)))
            return b.Residual(chain, (convolution(stride=(2, 2)), normalised(step=n.GroupNorm(3))))
        case "attention without biases":
            return side.attention.Attention(take(), None, take(), None)
        case "attention" | "causal attention" as kind:
            return side.attention.Attention(*case.parameters, heads=HEADS[kind], causal=kind.startswith("causal"))
    steps = {
        "batch norm": n.BatchNorm(),
        "batch norm with given statistics": n.BatchNorm(*case.statistics),
        "group norm": n.GroupNorm(GROUPS, 1e-3),
        "layer norm of two axes": n.LayerNorm(2),
        "RMS norm": n.RMSNorm(eps=1e-3),
    }
    parameters = (*case.parameters, None, None)[:2]
    return n.NormalisationLayer(steps.get(case.kind, n.LayerNorm()), *parameters)


class Sum(nn.Module):
    """Two modules' sum."""

    def __init__(self, chain: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.chain, self.shortcut = chain, shortcut

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.chain(z) + self.shortcut(z)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence to itself."""

    def __init__(self, heads: int, bias: bool, causal: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, heads, bias=bias, batch_first=True)
        self.causal = causal

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        later = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(z, z, z, attn_mask=later)[0]


def module_of(case: Case) -> nn.Module:
    """PyTorch's own, in float64, with the case's parameters."""
    match case.kind:
        case "dense":
            found: nn.Module = nn.Linear(5, 4)
        case "block":
            layers = (nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3), nn.SiLU())
            found = nn.Sequential(*layers)
        case "residual":
            found = Sum(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5)), nn.Identity())
        case "residual with a shortcut":
            down = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.GroupNorm(3, 6), nn.Tanh()
            chain = nn.Sequential(*down, nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.GroupNorm(3, 6))
            found = Sum(chain, nn.Sequential(nn.Conv2d(4, 6, 1, stride=2), nn.GroupNorm(3, 6)))
        case kind if kind in HEADS:
            found = SelfAttention(HEADS[kind], "without" not in kind, kind.startswith("causal"))
        case kind:
            found = NORMALISED[kind][0](4 if kind in OF_MAPS else 5)
    found = found.double()
    for parameter, array in zip(found.parameters(), case.parameters, strict=True):
        parameter.data = torch.tensor(array)
    if case.statistics:
        found.running_mean, found.running_var = map(torch.tensor, case.statistics)
        found.eval()
    return found


@st.composite
def layer_cases(draw: st.DrawFn, kind: str) -> Case:
    """A layer of that kind; of sets of a few numbers and more, whose mean is not near 0."""
    rng = draw(seeds())
    batch = draw(st.sampled_from([3, 4, 7]), label="batch")
    if kind in OF_MAPS:
        shape: tuple[int, ...] = (batch, 4, *draw(st.sampled_from([(4, 5), (3, 4)]), label="pixels"))
    elif kind in HEADS:
        shape = (batch, draw(st.sampled_from([2, 3, 7]), label="length"), 6)
    else:
        positions = [(3,), (2, 3)] if kind.endswith("axes") else [(), (3,), (2, 3)]
        shape = (batch, *draw(st.sampled_from(positions), label="positions"), 5)
    z = 0.5 + rng.standard_normal(shape)
    parameters = tuple(rng.standard_normal(s) / np.sqrt(np.prod(s[1:])) for s in SHAPES[kind])
    given_ones = (rng.standard_normal(4), rng.uniform(0.5, 2, 4)) if kind.endswith("statistics") else ()
    case = Case(
        kind, parameters, given_ones, z, draw(st.sampled_from([0.1, 1.0, 5.0])) * rng.standard_normal(z.shape), z
    )
    return case._replace(d=rng.standard_normal(made(ReferenceSide(), case).value(z).shape))


def four(side: Side, kind: str, *arrays: Any) -> Any:
    case = Case(kind, *arrays)
    layer = made(side, case)
    z, u, d = case[3:]
    return layer.value(z), layer.difference(z, u), layer.adjoint(z, d), layer.update(z, d)


@kinds
@given(data=st.data())
def test_twin(kind: str, twin: Side, compare: Comparison, data: st.DataObject) -> None:
    case = data.draw(layer_cases(kind))
    compare(twin, kind, lambda side, *arrays: four(side, kind, *arrays), *case.arrays)


@kinds
@given(data=st.data())
def test_difference_is_that_of_two_values(kind: str, side: Side, compare: Comparison, data: st.DataObject) -> None:
    case = data.draw(layer_cases(kind))

    def difference(side: Side, *arrays: Any) -> Any:
        return four(side, kind, *arrays)[1]

    def of_values(reference: Side, *arrays: Any) -> Any:
        case = Case(kind, *arrays)
        layer = made(reference, case)
        return layer.value(case.z) - layer.value(case.z - case.u)

    compare(side, kind, difference, *case.arrays, expected=of_values)


def autograd(case: Case) -> tuple[Any, Any, Any, list[Any]]:
    """PyTorch's value, derivative along u, cotangent of z and gradients by the parameters, 1/B of the batch's sum."""
    module = module_of(case)
    z, u, d = map(torch.tensor, case[3:])
    z.requires_grad_()
    value = module(z)
    gradients = torch.autograd.grad(value, [z, *module.parameters()], d, retain_graph=True)
    weights = d.clone().requires_grad_()  # the derivative along u is that by them of the cotangent along u
    (cotangent,) = torch.autograd.grad(module(z), z, weights, create_graph=True)
    (along,) = torch.autograd.grad((cotangent * u).sum(), weights)
    found = [x.detach().cpu().numpy() for x in (value, along, *gradients)]
    return found[0], found[1], found[2], [g / len(case.z) for g in found[3:]]


@kinds
@given(data=st.data())
def test_pytorchs_own_modules(kind: str, data: st.DataObject) -> None:
    """The reference's four methods, by autograd through torch.nn; the adjoint is the transpose of the derivative."""
    case = data.draw(layer_cases(kind))
    value, along, cotangent, gradients = autograd(case)
    layer = made(ReferenceSide(), case)
    steep = 1 + max(map(rms, (value, along, cotangent, *gradients)))
    assert rms(layer.value(case.z) - value) <= 1e-12 * steep, "value"
    adjoint = layer.adjoint(case.z, case.d)
    assert rms(adjoint - cotangent) <= 1e-12 * steep, "adjoint"
    scale = rms(case.u) * rms(adjoint) * adjoint.size
    assert abs(np.sum(adjoint * case.u) - np.sum(case.d * along)) <= 1e-12 * steep * scale, "transpose"
    update = layer.update(case.z, case.d)
    assert [g.shape for g in update] == [p.shape for p in case.parameters]
    for number, (found, expected) in enumerate(zip(update, gradients, strict=True)):
        assert rms(found - expected) <= 1e-12 * steep, f"update[{number}]"


@pytest.mark.usefixtures("ours_only")
@kinds
@given(data=st.data())
def test_tiny_differences_keep_their_precision(kind: str, twin: Side, data: st.DataObject) -> None:
    """A(z) - A(z - u) is the derivative along u to first order; the twin does not lose it to cancellation."""
    case = data.draw(layer_cases(kind))
    case = case._replace(u=1e-10 * case.u)
    operands = twin.operands(case.arrays)
    rounded = Case(kind, *twin.results(operands))
    found = twin.results(four(twin, kind, *operands)[1])
    _, along, _, _ = autograd(rounded)
    size = rms(autograd(rounded._replace(u=np.abs(rounded.u)))[1]) + rms(along)
    assert rms(found - along) <= (1e-7 + 256 * twin.eps) * size, "lost to cancellation"


OUTLETS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "MaxPool": (nn.MaxPool2d(2), (2,)),
    "MaxPool of a ResNet": (nn.MaxPool2d(3, 2, 1), (3, 2, 1)),
    "AveragePool": (nn.AvgPool2d(3), (3,)),
    "AveragePool of windows": (nn.AvgPool2d(3, 1, 1), (3, 1, 1)),
    "LPPool": (nn.LPPool2d(2, 2), (2, 2)),
    "LPPool of another power": (nn.LPPool2d(4.0, 3), (4.0, 3)),
    "AdaptiveAveragePool": (nn.AdaptiveAvgPool2d((2, 3)), ((2, 3),)),
    "Flatten": (nn.Flatten(), ()),
}


@pytest.mark.parametrize("name", OUTLETS)
@given(rng=seeds())
def test_outlets_are_pytorchs(name: str, side: Side, rng: np.random.Generator) -> None:
    """Value and gradient, of maps that squares do not fill."""
    module, settings = OUTLETS[name]
    step = getattr(side.layers, name.split()[0])(*settings)
    h = side.operands(rng.standard_normal((2, 3, 7, 5)))
    x = torch.tensor(side.results(h), requires_grad=True)
    value = module(x)
    d = side.operands(rng.standard_normal(value.shape))
    value.backward(torch.tensor(side.results(d)))
    assert np.allclose(side.results(step.value(h)), value.detach().cpu().numpy(), rtol=0, atol=64 * side.eps), "value"
    assert np.allclose(side.results(step.vjp(h, d)), x.grad.cpu().numpy(), rtol=0, atol=64 * side.eps), "gradient"


def test_a_square_of_zeros_has_no_slope(side: Side) -> None:
    """Of its norm 0 is chosen, as PyTorch does."""
    h, ones = side.operands((np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))))
    step = side.layers.LPPool(2, 2)
    assert not side.results(step.vjp(h, ones[:, :, :1, :1])).any(), "a slope"
    assert not side.results(step.jvp(h, ones)).any(), "a slope"


class Tokens(NamedTuple):
    """Operands of an embedding: a table, positions or None, z (batch, T) and delta of what it gives."""

    table: Any
    positions: Any
    z: Any
    delta: Any


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    """A token occurs several times, and some do not; positions are as many as there are, or more."""
    rng = draw(seeds())
    batch, length, spare = draw(st.sampled_from([(1, 3, 0), (3, 5, 0), (4, 2, 2)]), label="batch, length, spare")
    table, z = rng.standard_normal((4, 3)), rng.integers(0, 3, (batch, length))
    positions = rng.standard_normal((length + spare, 3)) if draw(st.booleans(), label="positions") else None
    return Tokens(table, positions, z, rng.standard_normal((batch, length, 3)))


@given(case=tokens())
def test_an_embedding(twin: Side, compare: Comparison, case: Tokens) -> None:
    def both(side: Side, table: Any, positions: Any, z: Any, delta: Any) -> Any:
        layer = side.embedding.Embedding(table, positions)
        return layer.value(z), layer.update(z, delta)

    compare(twin, "Embedding", both, *case)


@given(case=tokens())
def test_an_embedding_is_pytorchs(case: Tokens) -> None:
    module = nn.Embedding(4, 3, _weight=torch.tensor(case.table)).double()
    a = module(torch.tensor(case.z))
    learned = [module.weight]
    if case.positions is not None:
        learned.append(torch.tensor(case.positions, requires_grad=True))
        a = a + learned[1][: a.shape[1]]
    layer = ReferenceSide().embedding.Embedding(case.table, case.positions)
    assert np.array_equal(layer.value(case.z), a.detach().cpu().numpy()), "value"
    expected = torch.autograd.grad(a, learned, torch.tensor(case.delta))
    for number, (found, g) in enumerate(zip(layer.update(case.z, case.delta), expected, strict=True)):
        assert np.allclose(found, g.cpu().numpy() / len(case.z), rtol=0, atol=1e-14), f"update[{number}]"


def test_integers_have_neither_difference_nor_adjoint(side: Side) -> None:
    layer = side.embedding.Embedding(side.operands(np.ones((4, 3))))
    z, d = side.operands((np.array([[0, 1]]), np.ones((1, 2, 3))))
    with side.refuses("Embedding: z are integers, which no u is taken from"):
        layer.difference(z, z)
    with side.refuses("Embedding: z are integers, which have no gradient"):
        layer.adjoint(z, d)


def test_a_causal_position_reads_none_behind_it(side: Side) -> None:
    """What comes later moves nothing, and has no gradient from what is before."""
    rng = np.random.default_rng(0)
    parameters = side.operands([rng.standard_normal(shape) for shape in SHAPES["causal attention"]])
    layer = side.attention.Attention(*parameters, heads=2, causal=True)
    z, u = rng.standard_normal((2, 2, 5, 6))
    u[:, :3] = 0
    z, u, d = side.operands((z, u, np.concatenate([np.ones((2, 3, 6)), np.zeros((2, 2, 6))], axis=1)))
    assert not side.results(layer.difference(z, u))[:, :3].any(), "moved by what comes later"
    assert not side.results(layer.adjoint(z, d))[:, 3:].any(), "a gradient from what is before"


class Network(NamedTuple):
    """Operands of a network: parameters in order, x, labels."""

    parameters: tuple[Any, ...]
    x: Any
    labels: Any


TEXTS = (
    *((11, 6), (5, 6)),
    *((6,), (6,), (18, 6), (18,), (6, 6), (6,)),
    *((6,), (8, 6), (8,), (6, 8), (6,)),
    *((6,), (6,), (4, 6), (4,)),
)
"""Tokens and positions; attention and two dense layers, each behind a normalisation in a residual; one more; scores."""
IMAGES = (
    *((4, 2, 3, 3), (4,), (4,), (4,)),
    *((6, 2, 3, 3), (6,), (6,), (6, 6, 3, 3), (6,), (6,), (6, 4, 1, 1), (6,), (6,)),
    *((6, 6, 1, 1), (6,), (6,), (5, 6), (5,), (4, 5), (4,)),
)
"""A convolution and its normalisation; a residual with a shortcut; one more convolution, two layers in a block."""


def text_chain(side: Side, parameters: tuple[Any, ...]) -> Any:
    m, n, b = side.layers, side.normalisation_layers, side.blocks
    take = iter(parameters).__next__
    gelu = side.activations.gelu
    embedded = side.embedding.Embedding(take(), take())
    norm = n.NormalisationLayer(n.LayerNorm(), take(), take())
    attention = b.Residual((norm, side.attention.Attention(take(), take(), take(), take(), heads=3, causal=True)))
    norm = n.NormalisationLayer(n.RMSNorm(eps=1e-3), take(), None)
    dense = b.Residual((norm, m.Dense(take(), take(), (gelu,)), m.Dense(take(), take())))
    last = n.NormalisationLayer(n.LayerNorm(), take(), take(), outlet=(m.MeanOverPositions(),))
    return embedded, attention, dense, last, m.Dense(take(), take())


def image_chain(side: Side, parameters: tuple[Any, ...]) -> Any:
    m, n, b = side.layers, side.normalisation_layers, side.blocks
    take = iter(parameters).__next__
    silu = side.activations.silu

    def normalised(kind: Any, *steps: Any, outlet: Any = ()) -> Any:
        return n.NormalisationLayer(kind, take(), take(), steps, outlet)

    first = m.Convolution(take(), take(), padding=(1, 1))
    norm = normalised(n.BatchNorm(), silu, outlet=(m.LPPool(2, 2),))
    down = m.Convolution(take(), None, padding=(1, 1), stride=(2, 1), groups=2), normalised(n.BatchNorm(), silu)
    chain = (*down, m.Convolution(take(), None, padding=(1, 1)), normalised(n.BatchNorm()))
    shortcut = (m.Convolution(take(), None, stride=(2, 1)), normalised(n.BatchNorm()))
    residual = b.Residual(chain, shortcut, (silu,))
    last = m.Convolution(take(), None)
    grouped = normalised(n.GroupNorm(3), silu, outlet=(m.AdaptiveAveragePool(), m.Flatten()))
    return first, norm, residual, last, grouped, b.Block((m.Dense(take(), take(), (silu,)), m.Dense(take(), take())))


class Text(nn.Module):
    """The same network of PyTorch's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 6), nn.Parameter(torch.empty(5, 6))
        self.first = Sum(nn.Sequential(nn.LayerNorm(6), SelfAttention(3, True, True)), nn.Identity())
        layers = nn.RMSNorm(6, 1e-3), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)
        self.second = Sum(nn.Sequential(*layers), nn.Identity())
        self.norm, self.scores = nn.LayerNorm(6), nn.Linear(6, 4)
        self.order = [self.tokens.weight, self.positions, *list(self.parameters())[2:]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.positions[: x.shape[1]]
        return self.scores(self.norm(self.second(self.first(h))).mean(dim=1))


def image_module() -> nn.Module:
    def convolution(*sizes: int, **settings: Any) -> nn.Module:
        return nn.Conv2d(*sizes, bias=False, **settings)

    down = convolution(4, 6, 3, padding=1, stride=(2, 1), groups=2), nn.BatchNorm2d(6), nn.SiLU()
    chain = nn.Sequential(*down, convolution(6, 6, 3, padding=1), nn.BatchNorm2d(6))
    shortcut = nn.Sequential(convolution(4, 6, 1, stride=(2, 1)), nn.BatchNorm2d(6))
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.LPPool2d(2, 2)),
        *(Sum(chain, shortcut), nn.SiLU(), convolution(6, 6, 1), nn.GroupNorm(3, 6), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 4)),
    )


NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "text": (TEXTS, text_chain, Text),
    "images": (IMAGES, image_chain, image_module),
}
networks = pytest.mark.parametrize("name", NETWORKS)


@st.composite
def networks_of(draw: st.DrawFn, name: str) -> Network:
    rng = draw(seeds())
    batch = draw(st.sampled_from([3, 5]), label="batch")
    x = rng.integers(0, 11, (batch, 4)) if name == "text" else rng.standard_normal((batch, 2, 8, 7))
    shapes = NETWORKS[name][0]
    parameters = tuple(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for shape in shapes)
    return Network(parameters, x, rng.integers(0, 4, batch))


def learned(side: Side, name: str, parameters: Any, x: Any, labels: Any) -> Any:
    return side.backprop.updates(NETWORKS[name][1](side, parameters), x, labels)


@networks
@given(data=st.data())
def test_backpropagation_through_all_of_them(name: str, twin: Side, compare: Comparison, data: st.DataObject) -> None:
    case = data.draw(networks_of(name))
    compare(twin, name, lambda side, *operands: learned(side, name, *operands), *case)


@networks
@given(data=st.data())
def test_backpropagation_is_autograd(name: str, data: st.DataObject) -> None:
    """The gradient of the mean cross-entropy by every parameter, through networks of PyTorch's modules."""
    case = data.draw(networks_of(name))
    module = NETWORKS[name][2]().double()
    order = getattr(module, "order", list(module.parameters()))
    for parameter, array in zip(order, case.parameters, strict=True):
        parameter.data = torch.tensor(array)
    nn.functional.cross_entropy(module(torch.tensor(case.x)), torch.tensor(case.labels)).backward()
    found = [g for update in learned(ReferenceSide(), name, *case) for g in update]
    steep = 1 + max(rms(g) for g in found)
    for number, (g, parameter) in enumerate(zip(found, order, strict=True)):
        assert rms(g - parameter.grad.cpu().numpy()) <= 1e-11 * steep, f"updates[{number}]"


ALGORITHMS = ("direct_feedback_alignment", "direct_random_target_projection", "ftp", "pepita")
RUNS = [(algorithm, name) for algorithm in ALGORITHMS for name in NETWORKS if (algorithm, name) != ("pepita", "text")]
"""PEPITA adds to what comes in, which tokens cannot take."""


@pytest.mark.parametrize(("algorithm", "name"), RUNS)
@given(data=st.data())
def test_algorithms_ask_no_kind(
    algorithm: str, name: str, twin: Side, compare: Comparison, data: st.DataObject
) -> None:
    """What takes layers takes these."""
    case = data.draw(networks_of(name))
    rng = data.draw(seeds())
    side = ReferenceSide()
    clean = side.layers.forward(NETWORKS[name][1](side, case.parameters), case.x)
    rows = [h[0].size for h in clean.activities[:-1]]
    match algorithm:
        case "pepita":
            extra: Any = rng.standard_normal((4, *case.x.shape[1:]))
        case "ftp":
            extra = rng.standard_normal((rows[0], 4))
        case _:
            extra = tuple(rng.standard_normal((n, 4)) for n in rows)

    def updates(side: Side, parameters: Any, x: Any, labels: Any, extra: Any) -> Any:
        return getattr(side, algorithm).updates(NETWORKS[name][1](side, parameters), extra, x, labels)

    compare(twin, f"{algorithm} on {name}", updates, *case, extra)
