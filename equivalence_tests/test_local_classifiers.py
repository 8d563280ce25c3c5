"""Every layer a classifier: twin against reference, autograd of each layer's own loss, and what locality means."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prograde.equivalence_tests.sides import Images, Padded, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import PaddedCase, padded_cases, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import local_classifiers

pytestmark = pytest.mark.smoke

K = 4
GRID = (2, 2)


class Local(NamedTuple):
    """Layers with a read-out each, (K, m) of the cells' means or of all units, a batch and a mask of the first layer's.

    `temper` are the alphas of random read-outs.
    """

    images: Images
    readouts: tuple[Any, ...]
    temper: tuple[Any, ...]
    x: Any
    labels: Any
    mask: Any

    @property
    def depth(self) -> int:
        return len(self.readouts)


@st.composite
def locals_(draw: st.DrawFn) -> Local:
    """One or two convolutions and one or two dense layers, all of them hidden."""
    case: PaddedCase = draw(padded_cases(activations=("tanh",)))
    rng = draw(seeds())
    images = case.images._replace(dense=case.images.dense._replace(activations=("tanh",) * len(case.images.dense[0])))
    widths = [4 * len(layer.kernel) for layer in images.layers] + [len(weight) for weight in images.dense.weights]
    readouts = tuple(rng.standard_normal((K, m)) / np.sqrt(m) for m in widths)
    temper = tuple(rng.choice((-1, 1)) * rng.uniform(0.5, 1.5, ()) for _ in widths)
    mask = (rng.random((len(case.x), *case.feature_map())) < 0.7) / 0.7
    mask[:, 0] = 1
    return Local(images, readouts, temper, case.x, case.labels, mask)


def halved_squares(parameters: Any) -> Any:
    return sum((p * p).sum() for p in parameters) / 2, parameters


Make = Callable[[Side, Local], Any]


def layers_of(side: Side, case: Local) -> list[Any]:
    """The layers, whose outlets have the convolutions' pooling by maximum and flattening."""
    return list(side.opened(side.chain(case.images)))


def pools(case: Local) -> list[int | None]:
    """None for dense layers."""
    return [layer.pool for layer in case.images.layers] + [None] * len(case.images.dense.weights)


def flattened(side: Side, case: Local, i: int) -> tuple[Any, ...]:
    """The end of the outlet of layer i."""
    return (side.layers.Flatten(),) if i + 1 == len(case.images.layers) else ()


def mapped(side: Side, case: Local) -> Any:
    """Learned maps, with a penalty; a mask and pooling before the score, so that later layers see the same."""
    found = []
    layers = zip(layers_of(side, case), case.readouts, pools(case), strict=True)
    for i, (layer, readout, pool) in enumerate(layers):
        masks = (side.layers.Mask(case.mask),) if i == 0 else ()
        pooling = () if pool is None else (side.layers.MaxPool(pool),)
        steps = (*layer.steps, *masks, *pooling)
        score = side.scores.linear_map(None if pool is None else GRID)
        score = side.scores.Score(score.value, score.credit, halved_squares)
        layer = layer._replace(steps=steps, outlet=flattened(side, case, i))
        found.append(side.local_classifiers.LocalLayer(layer, score, (readout,)))
    return tuple(found)


def normalised(side: Side, name: str, **settings: Any) -> Any:
    """That normalisation as a step."""
    module = side.normalisations
    value, vjp = (partial(getattr(module, f), **settings) for f in (name, f"{name}_vjp"))
    return module.Normalisation(value, vjp)


def drawn(side: Side, case: Local) -> Any:
    """Fixed read-outs of squares; layers normalised, and pooled by averages, on the way to the next."""
    found = []
    layers = zip(layers_of(side, case), case.readouts, case.temper, pools(case), strict=True)
    for i, (layer, readout, alpha, pool) in enumerate(layers):
        score = side.scores.random_readout(readout.T, readout[:, 0], None if pool is None else GRID)
        outlet = (normalised(side, "layer_norm"),)
        if pool is not None:
            outlet = (normalised(side, "channel_norm"), side.layers.AveragePool(pool), *flattened(side, case, i))
        found.append(side.local_classifiers.LocalLayer(layer._replace(outlet=outlet), score, (alpha,)))
    return tuple(found)


MAKERS: dict[str, Make] = {"mapped": mapped, "drawn": drawn}


@pytest.mark.parametrize("maker", MAKERS)
@given(case=locals_(), smoothing=st.sampled_from([0.0, 0.1]))
def test_updates(twin: Side, compare: Comparison, maker: str, case: Local, smoothing: float) -> None:
    def updates(side: Side, *fields: Any) -> Any:
        local = Local(*fields)
        loss = side.score_losses.cross_entropy(smoothing)
        return side.local_classifiers.updates(MAKERS[maker](side, local), local.x, local.labels, loss)

    compare(twin, "local_classifiers.updates", updates, *case)


@pytest.mark.parametrize("maker", MAKERS)
@given(case=locals_())
def test_scores_and_features(twin: Side, compare: Comparison, maker: str, case: Local) -> None:
    def found(side: Side, *fields: Any) -> Any:
        local, module = Local(*fields), side.local_classifiers
        layers = MAKERS[maker](side, local)
        passes = list(module.layer_passes(layers, local.x))
        return passes, module.layer_scores(layers, local.x), module.concatenated(p.h for p in passes)

    compare(twin, "layer_scores", found, *case)


class Wired(NamedTuple):
    """Four convolutions, the third of which halves the image, with the channels that three shortcuts ask for."""

    kernels: tuple[Any, ...]
    readouts: tuple[Any, ...]
    x: Any
    labels: Any


WIRES = [(0, 1, "add"), (0, 1, "concatenate"), (1, 2, "add", 2)]
"""From layer, to layer, how, and pooled by what."""


@st.composite
def wired(draw: st.DrawFn) -> Wired:
    rng = draw(seeds())
    channels = draw(st.integers(1, 3), label="channels")
    size = [2 * draw(st.integers(2, 4), label="pixels") for _ in range(2)]
    shapes = [(channels, 2), (channels, channels), (2 * channels, 2 * channels), (3, 2 * channels)]
    kernels = tuple(rng.standard_normal((*shape, 3, 3)) / np.sqrt(4 * shape[1]) for shape in shapes)
    readouts = tuple(rng.standard_normal((K, 4 * shape[0])) for shape in shapes)
    return Wired(kernels, readouts, rng.standard_normal((3, 2, *size)), rng.integers(0, K, 3))


def wired_layers(side: Side, case: Wired) -> tuple[Any, ...]:
    """The third has a stride of 2."""
    steps, outlet = (side.activations.tanh,), (normalised(side, "rms_norm"),)
    return tuple(
        side.local_classifiers.LocalLayer(
            side.layers.Convolution(kernel, None, steps, outlet, (2, 2) if i == 2 else (1, 1), (1, 1)),
            side.scores.linear_map(GRID),
            (readout,),
        )
        for i, (kernel, readout) in enumerate(zip(case.kernels, case.readouts, strict=True))
    )


def shortcuts(side: Side) -> list[Any]:
    return [side.local_classifiers.Shortcut(*wire) for wire in WIRES]


@given(case=wired())
def test_shortcuts(twin: Side, compare: Comparison, case: Wired) -> None:
    def found(side: Side, *fields: Any) -> Any:
        local, module = Wired(*fields), side.local_classifiers
        layers, loss = wired_layers(side, local), side.score_losses.cross_entropy()
        scores = module.layer_scores(layers, local.x, shortcuts(side))
        return module.updates(layers, local.x, local.labels, loss, shortcuts(side)), scores

    compare(twin, "with shortcuts", found, *case)


@given(case=wired())
def test_where_shortcuts_lead(side: Side, case: Wired) -> None:
    """Each layer's input, put together from what the others pass on."""
    module, operands = side.local_classifiers, Wired(*side.operands(tuple(case)))
    layers = wired_layers(side, operands)
    inputs, own = [], []
    for layer, p in zip(layers, module.layer_passes(layers, operands.x, shortcuts(side)), strict=True):
        inputs.append(side.results(p.z))
        own.append(side.results(side.layers.activity(layer.layer.outlet, p.h)))
    x = inputs[0]
    assert np.array_equal(x, side.results(operands.x)), "the input"
    assert np.array_equal(inputs[1], own[0]), "no shortcut ends at the first layer"
    second = np.concatenate([own[1] + own[0], own[0]], axis=1)
    assert rms(inputs[2] - second) <= side.eps * rms(second), "added, then concatenated"
    rows, columns = (n // 2 for n in second.shape[2:])
    pooled = second.reshape(*second.shape[:2], rows, 2, columns, 2).mean(axis=(3, 5))
    assert rms(inputs[3] - own[2] - pooled) <= 4 * side.eps * rms(inputs[3]), "pooled, with the source's own shortcuts"


@given(case=wired())
def test_shortcuts_change_no_layers_own_gradient(side: Side, case: Wired) -> None:
    """Bit for bit: given its input, a layer learns as it would with nothing before or beside it."""
    module, operands = side.local_classifiers, Wired(*side.operands(tuple(case)))
    layers, loss = wired_layers(side, operands), side.score_losses.cross_entropy()
    inputs = [p.z for p in module.layer_passes(layers, operands.x, shortcuts(side))]
    found = list(module.local_updates(layers, operands.x, operands.labels, loss, shortcuts(side)))
    for index, (layer, z, update) in enumerate(zip(layers, inputs, found, strict=True)):
        (alone,) = module.updates([layer], z, operands.labels, loss)
        for ours, theirs in zip((*update.layer, *update.parameters), (*alone.layer, *alone.parameters), strict=True):
            assert np.array_equal(side.results(ours), side.results(theirs)), f"layer {index} alone"


@pytest.mark.parametrize("maker", MAKERS)
@given(case=locals_())
def test_layers_are_local(side: Side, maker: str, case: Local) -> None:
    """Bit for bit: a layer's update depends neither on layers above it nor on other layers' scores."""
    module, operands = side.local_classifiers, Local(*side.operands(tuple(case)))
    layers, loss = MAKERS[maker](side, operands), side.score_losses.cross_entropy()

    def weights(layers: Any) -> list[Any]:
        return [side.results(update.layer[0]) for update in module.updates(layers, operands.x, operands.labels, loss)]

    whole = weights(layers)
    for depth in range(1, len(layers)):
        for layer, part in enumerate(weights(layers[:depth])):
            assert np.array_equal(whole[layer], part), f"layer {layer} below layer {depth}"
    for changed in range(len(layers)):
        readouts, temper = (
            tuple(2 * p if i == changed else p for i, p in enumerate(of_layers))
            for of_layers in (operands.readouts, operands.temper)
        )
        other = MAKERS[maker](side, operands._replace(readouts=readouts, temper=temper))
        for layer, found in enumerate(weights(other)):
            assert np.array_equal(whole[layer], found) == (layer != changed), f"layer {layer}, score {changed}"


def by_autograd(case: Local, maker: str) -> list[tuple[Any, ...]]:
    """Each layer's gradients and loss. An independent forward pass in torch; inputs of layers are detached."""
    z = torch.tensor(case.x)
    found = []
    for i, layer in enumerate([*case.images.layers, *zip(*case.images.dense, strict=True)]):
        parameters = [None if p is None else torch.tensor(p, requires_grad=True) for p in layer[:2]]
        kernel, bias = parameters
        readout, alpha = (torch.tensor(p[i], requires_grad=True) for p in (case.readouts, case.temper))
        z = z.detach()
        if isinstance(layer, Padded):
            h = torch.tanh(functional.conv2d(z, kernel, bias, layer.stride, layer.padding))
        else:
            h = torch.tanh(functional.linear(z.flatten(1), kernel, bias))
        if maker == "mapped":
            h = h * torch.tensor(case.mask) if i == 0 else h
            h = functional.max_pool2d(h, layer.pool) if isinstance(layer, Padded) else h
            seen = functional.adaptive_avg_pool2d(h, GRID).flatten(1) if h.dim() == 4 else h
            scores, penalty = seen @ readout.T, readout.pow(2).sum() / 2
            z = h
        else:
            squares = functional.adaptive_avg_pool2d(h**2, GRID).flatten(1) if h.dim() == 4 else h**2
            temperature = 0.5 + 1.5 * torch.sigmoid(alpha)
            scores, penalty = squares @ readout.detach().T / temperature + readout.detach()[:, 0], torch.zeros(())
            centred = h - h.mean(dim=1, keepdim=True)
            z = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt()
            z = functional.avg_pool2d(z, layer.pool) if isinstance(layer, Padded) else z
        loss = functional.cross_entropy(scores, torch.tensor(case.labels)) + penalty
        learned = readout if maker == "mapped" else alpha
        wanted = [p for p in (kernel, bias, learned) if p is not None]
        gradients = iter(g.cpu().numpy() for g in torch.autograd.grad(loss, wanted))
        found.append((next(gradients), None if bias is None else next(gradients), next(gradients), loss.item()))
    return found


@pytest.mark.parametrize("maker", MAKERS)
@given(case=locals_())
def test_the_reference_is_autograd_of_each_layers_own_loss(maker: str, case: Local) -> None:
    side = ReferenceSide()
    layers = MAKERS[maker](side, case)
    ours = local_classifiers.updates(layers, case.x, case.labels, side.score_losses.cross_entropy())
    for i, (update, expected) in enumerate(zip(ours, by_autograd(case, maker), strict=True)):
        found = (update.layer[0], update.layer[-1], update.parameters[0], update.loss)
        for name, one, other in zip(("weight", "bias", "score", "loss"), found, expected, strict=True):
            if other is not None:
                assert np.allclose(one, other, rtol=0, atol=1e-12), f"{name} of layer {i}"


def test_what_the_score_comes_after_is_part_of_the_gradient(side: Side) -> None:
    """Batch normalisation inside: no change of the kernel's scale or of the bias changes the loss."""
    rng = np.random.default_rng(0)
    kernel, bias, readout = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal(4), rng.standard_normal((K, 16))
    x, labels = rng.standard_normal((5, 2, 8, 8)), rng.integers(0, K, 5)
    kernel, bias, readout, x, labels = side.operands((kernel, bias, readout, x, labels))
    module, score, loss = side.local_classifiers, side.scores.linear_map(GRID), side.score_losses.cross_entropy()
    layers = (side.layers.Convolution(kernel, bias, steps) for steps in ((normalised(side, "batch_norm"),), ()))
    (inside,), (after,) = (
        module.updates([module.LocalLayer(layer, score, (readout,))], x, labels, loss) for layer in layers
    )
    update, kernel, bias_update, free = side.results((inside.layer[0], kernel, inside.layer[1], after.layer[1]))
    along = np.sum(update * kernel, axis=(1, 2, 3)) / np.sqrt(np.sum(update**2, axis=(1, 2, 3)) * np.sum(kernel**2))
    assert np.abs(along).max() < max(1e3 * side.eps, 1e-4), "the kernel's scale"
    assert rms(bias_update) < 1e3 * side.eps * rms(free), "the bias"


@pytest.mark.parametrize("scaled", [False, True])
def test_length_is_not_passed_on(side: Side, scaled: bool) -> None:
    """A first layer twice as active: later layers see the same, and score the same."""
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(shape) for shape in ((8, 6), (7, 8), (5, 7))]
    readouts = [rng.standard_normal((K, len(weight))) for weight in weights]
    weights, readouts, x = side.operands((weights, readouts, rng.standard_normal((9, 6))))
    outlet = (normalised(side, "unit_sphere", scaled=scaled),)
    told = []
    for factor in (1.0, 2.0):
        layers = [
            side.local_classifiers.LocalLayer(
                side.layers.Dense(weight, None, (side.activations.relu,), outlet), side.scores.linear_map(), (readout,)
            )
            for weight, readout in zip((weights[0] * factor, *weights[1:]), readouts, strict=True)
        ]
        told.append(side.results(side.local_classifiers.layer_scores(layers, x)))
    assert rms(told[1][0] - 2 * told[0][0]) <= 4 * side.eps * rms(told[0][0]), "its own score sees it"
    assert rms(told[1][1:] - told[0][1:]) <= 64 * side.eps * rms(told[0][1:]), "no other does"


def test_what_does_not_fit_is_named(side: Side) -> None:
    rng = np.random.default_rng(0)
    case = Wired(*side.operands((
        tuple(rng.standard_normal((2, 2, 3, 3)) for _ in range(4)),
        tuple(rng.standard_normal((K, 8)) for _ in range(4)), rng.standard_normal((3, 2, 6, 6)), np.zeros(3, int),
    )))  # fmt: skip
    module, layers = side.local_classifiers, wired_layers(side, case)
    shortcut = module.Shortcut
    for source, target in ((1, 1), (2, 1), (-1, 2), (0, 4)):
        with side.refuses(r"Shortcut\(source=.*expected 0 <= source < target < 4"):
            list(module.layer_passes(layers, case.x, [shortcut(source, target, "add")]))
    for join, pool in (("sum", 1), ("add", 0), ("concatenate", -3)):
        with side.refuses(r"Shortcut\(source=0.*expected a join of add or concatenate, and a pool of 1"):
            list(module.layer_passes(layers, case.x, [shortcut(0, 1, join, pool)]))
    for join, pool in (("add", 2), ("concatenate", 3)):
        with side.refuses(r"pool=\d\): brings \(3, 2, \d, \d\), but layer 1 has \(3, 2, 6, 6\)"):
            list(module.layer_passes(layers, case.x, [shortcut(0, 1, join, pool)]))
    dense = side.layers.Dense(side.operands(np.ones((3, 5))), None)
    with side.refuses(r"layers\[1\]: z: 6 units, but the weight has 5 columns"):
        list(module.layer_passes([layers[0], module.LocalLayer(dense, side.scores.linear_map())], case.x))


def test_what_is_passed_on_is_not_kept(twin: TwinSide) -> None:
    """Only what a later shortcut begins with."""
    if not twin.is_ours:
        pytest.skip("how a package holds its memory is its own matter")
    module = twin.local_classifiers
    ahead = [module.Shortcut(0, 2, "add"), module.Shortcut(2, 3, "add"), module.Shortcut(0, 1, "add")]
    saved: dict[int, Any] = {}
    kept = []
    for layer in range(4):
        module.wired(torch.ones(1, 1, 2, 2), layer, ahead, saved)
        kept.append(sorted(saved))
    assert kept == [[0], [0], [2], []], "kept"


@pytest.mark.slow
@pytest.mark.places_itself
def test_the_twin_compiles_without_a_graph_break(twin64: TwinSide) -> None:
    if not twin64.is_ours:
        pytest.skip("how a package is compiled is its own matter")
    rng = np.random.default_rng(0)
    case = Wired(*twin64.operands((
        tuple(rng.standard_normal(shape) for shape in ((2, 2, 3, 3), (2, 2, 3, 3), (4, 4, 3, 3), (3, 4, 3, 3))),
        tuple(rng.standard_normal((K, 4 * n)) for n in (2, 2, 4, 3)),
        rng.standard_normal((3, 2, 6, 6)), np.array([0, 1, 2]),
    )))  # fmt: skip
    layers, loss, ahead = wired_layers(twin64, case), twin64.score_losses.cross_entropy(), shortcuts(twin64)
    updates = twin64.local_classifiers.updates

    def weights(x: Any, labels: Any) -> Any:
        return [update.layer[0] for update in updates(layers, x, labels, loss, ahead)]

    compiled = torch.compile(weights, fullgraph=True, backend="eager")
    for ours, eager in zip(compiled(case.x, case.labels), weights(case.x, case.labels), strict=True):
        assert torch.equal(ours, eager)


def test_a_shortcut_of_other_channels_is_put_behind(side: Side) -> None:
    module, (x, saved) = side.local_classifiers, side.operands((np.ones((2, 3, 4, 4)), np.zeros((2, 5, 4, 4))))
    found = side.results(module.joined(x, saved, module.Shortcut(0, 1, "concatenate", 1)))
    assert found.shape == (2, 8, 4, 4)
    assert found.sum(axis=(0, 2, 3)).tolist() == [32] * 3 + [0] * 5
