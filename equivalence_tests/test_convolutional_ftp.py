"""Forward target propagation through convolutions: twin against reference, theorems, and the rule."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.rules import Backprop, Foton, Ftp
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import OURS, Dense, Images, Padded, ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.test_convolutional_network import PaddedCase, padded_cases
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolutional_ftp, ftp

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""

projections = st.sampled_from(["identity", "tanh"])


def feedback_for(case: PaddedCase, rng: np.random.Generator) -> Any:
    return ftp.random_feedback(int(np.prod(case.feature_map())), case.num_classes, rng)


def updates(side: Side, images: Any, x: Any, labels: Any, feedback: Any, phi: str = "identity", **options: Any) -> Any:
    activation = side.activations.ACTIVATIONS[phi]
    network = side.padded_network(images)
    return side.convolutional_ftp.updates(network, feedback, x, labels, phi=activation, **options)


@given(
    case=padded_cases(groups=True),
    rng=seeds(),
    phi=projections,
    gain=st.sampled_from([0.3, 1.0]),
    softened=st.booleans(),
)
def test_updates(
    twin: Side,
    compare: Comparison,
    case: PaddedCase,
    rng: np.random.Generator,
    phi: str,
    gain: float,
    softened: bool,
):
    options = {"label_smoothing": 0.3, "temperature": 2.0} if softened else {}

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, phi=phi, gain=gain, **options)

    compare(twin, "convolutional_ftp.updates", ours, *case, feedback_for(case, rng))


@given(rng=seeds())
def test_updates_through_groups(twin: Side, compare: Comparison, rng: np.random.Generator):
    """Of both convolutions: targets are carried within the groups of the second."""
    kernels = rng.standard_normal((4, 1, 2, 2)) / 2, rng.standard_normal((4, 2, 2, 2)) / np.sqrt(8)
    layers = tuple(Padded(kernel, None, "tanh", (1, 1), (0, 0), 1, 2) for kernel in kernels)
    dense = Dense((rng.standard_normal((4, 36)) / 6,), (None,), ("identity",))
    case = PaddedCase(Images(layers, dense), rng.standard_normal((3, 2, 5, 5)), rng.integers(0, 4, 3))
    compare(twin, "convolutional_ftp.updates", updates, *case, feedback_for(case, rng))


def parts(side: Side, images: Any, x: Any, labels: Any, feedback: Any) -> Any:
    network = side.padded_network(images)
    clean = side.module("convolutional_network").forward(network, x)
    error = side.losses.cross_entropy_gradient(clean.dense.scores, labels)
    module = side.convolutional_ftp
    first = module.first_difference(feedback, -error, error, tuple(clean.preactivations[0].shape[1:]))
    found = tuple(module.differences(network, clean, first))
    return found, tuple(module.update_factors(network, clean, error, first))


@given(case=padded_cases(groups=True), rng=seeds())
def test_parts(twin: Side, compare: Comparison, case: PaddedCase, rng: np.random.Generator):
    compare(twin, "parts", parts, *case, feedback_for(case, rng))


@given(case=padded_cases(), rng=seeds(), phi=projections)
def test_where_the_output_is_the_label_no_hidden_layer_moves(
    side: Side, case: PaddedCase, rng: np.random.Generator, phi: str
):
    def right(scores: Any, labels: Any) -> Any:
        return 0 * scores

    operands = side.operands((*case, feedback_for(case, rng)))
    found = side.results(updates(side, *operands, phi=phi, output_gradient=right))
    hidden = [*(layer.weight for layer in found.layers), *found.dense.weights]
    assert all(rms(weight) <= 64 * side.eps for weight in hidden), "a hidden layer moves"


@given(case=cases(("identity", "tanh"), dropout=False), rng=seeds())
def test_on_one_pixel_it_is_the_dense_form(side: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    """Hidden layers as convolutions of one tap over one pixel, but for the last, which stays dense."""
    weights, biases, activations = case.dense
    kernels = [weight[:, :, None, None] for weight in weights[:-1]]
    layers = tuple(
        Padded(kernel, bias, activation, (1, 1), (0, 0), 1)
        for kernel, bias, activation in zip(kernels, biases, activations, strict=False)
    )
    images = Images(layers, Dense(weights[-1:], biases[-1:], activations[-1:]))
    feedback = ftp.random_feedback(len(weights[0]), case.num_classes, rng)

    def convolved(side: Side, dense: Any, images: Any, x: Any, labels: Any, feedback: Any) -> Any:
        found = updates(side, images, x[:, :, None, None], labels, feedback)
        return (*(layer.weight[:, :, 0, 0] for layer in found.layers), *found.dense.weights)

    def theirs(side: Side, dense: Any, images: Any, x: Any, labels: Any, feedback: Any) -> Any:
        return side.ftp.updates(side.network(dense), feedback, x, labels).weights

    operands = (case.dense, images, case.x, case.labels, feedback)
    compare(side, "as dense", convolved, *operands, expected=theirs)


@given(case=padded_cases(("identity",)), rng=seeds())
def test_every_linear_layer_has_the_same_inner_product_with_backprop(
    side: Side, case: PaddedCase, rng: np.random.Generator
):
    """<dLoss/dg_l, g_l - tau_l> = e^T J G e through pooling, too: targets are carried by its derivative."""
    images, x, labels, feedback = side.operands((*case, feedback_for(case, rng)))
    network = side.padded_network(images)
    clean = side.module("convolutional_network").forward(network, x)
    error = side.losses.cross_entropy_gradient(clean.dense.scores, labels)
    first = side.convolutional_ftp.first_difference(feedback, -error, error, tuple(clean.preactivations[0].shape[1:]))
    found = side.results(tuple(side.convolutional_ftp.differences(network, clean, first)))
    gradients = autograd_of_maps(case)
    products = [np.sum(a * b, axis=tuple(range(1, a.ndim))) for a, b in zip(found, gradients, strict=True)]
    sizes = [np.sqrt(np.sum(a**2) * np.sum(b**2)) for a, b in zip(found, gradients, strict=True)]
    for layer, product in enumerate(products):
        assert np.all(np.abs(product - products[0]) <= EXACT * side.eps * max(sizes)), f"layer {layer + 1}"


def autograd_of_maps(case: PaddedCase) -> list[Any]:
    """dLoss/da_l of all layers but the last, by PyTorch's autograd; the loss is the sum over samples."""
    images = TwinSide(OURS, "cpu", "float64").operands(case.images)
    h = torch.tensor(case.x)
    maps = []
    for layer in images.layers:
        h = nn.functional.conv2d(h, layer.kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups)
        maps.append(h.requires_grad_())
        h = nn.functional.max_pool2d(h, layer.pool) if layer.pool > 1 else h
    h = h.flatten(1)
    for weight, bias in zip(images.dense.weights, images.dense.biases, strict=False):
        h = nn.functional.linear(h, weight, bias)
        maps.append(h.requires_grad_())
    loss = nn.functional.cross_entropy(h, torch.tensor(case.labels), reduction="sum")
    return [gradient.cpu().numpy() for gradient in torch.autograd.grad(loss, maps[:-1])]


def test_a_pooled_target_is_taken_where_the_clean_map_is_largest(side: Side):
    """Not where the target is: of equal pixels the first; what is left at the border is lost."""
    clean, values = np.zeros((1, 1, 3, 5)), np.arange(15.0).reshape(1, 1, 3, 5)
    clean[0, 0, 1, 2] = 1.0
    found = side.results(side.convolutional_ftp.at_maxima(*side.operands((clean, values)), 2))
    assert found.tolist() == [[[[0.0, 7.0]]]], "places of the clean maxima"


@given(case=padded_cases(("relu",)))
def test_of_equal_pixels_both_sides_take_the_first(twin: Side, case: PaddedCase):
    """Zeros of ReLU are equal: the values there are the pre-activations, which are not."""

    def ours(side: Side, a: Any) -> Any:
        g = side.activations.relu.value(a)
        at_maxima = side.convolutional_ftp.at_maxima
        return tuple(at_maxima(g, values, size) for size in (1, 2, 3) for values in (g, a))

    a = case.x[:, :, :6, :6]
    found, expected = ours(twin, twin.operands(a)), ours(ReferenceSide(), a)
    for one, other in zip(twin.results(found), expected, strict=True):
        assert rms(one - other) <= twin.eps * rms(other), "places"


@given(case=padded_cases(max_convolutions=1), rng=seeds())
def test_the_first_convolution_follows_direct_feedback(
    side: Side, compare: Comparison, case: PaddedCase, rng: np.random.Generator
):
    """With phi = identity its error is G e at every pixel of the feature map, pooled or not."""

    def theirs(side: Side, images: Any, x: Any, labels: Any, feedback: Any) -> Any:
        module, network = side.module("convolutional_network"), side.padded_network(images)
        clean = module.forward(network, x)
        a = clean.preactivations[0]
        error = side.losses.cross_entropy_gradient(clean.dense.scores, labels)
        delta = (error @ feedback.T).reshape(a.shape)
        return module.layer_update(network.layers[0].activation.vjp(a, delta), x, network.layers[0])

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands).layers[0]

    compare(side, "first kernel", ours, *case, feedback_for(case, rng), expected=theirs)


@given(case=padded_cases(), rng=seeds(), rank=st.integers(1, 4))
def test_low_rank_feedback_is_its_product(
    side: Side, compare: Comparison, case: PaddedCase, rng: np.random.Generator, rank: int
):
    n = int(np.prod(case.feature_map()))
    factors = ftp.low_rank_feedback(n, case.num_classes, rank, rng)

    def product(side: Side, images: Any, x: Any, labels: Any, factors: Any) -> Any:
        return updates(side, images, x, labels, factors[0] @ factors[1])

    compare(side, "low rank", updates, *case, factors, expected=product)


def test_feedback_by_channel_is_one_number_for_all_positions(side: Side):
    rows = np.arange(6.0).reshape(3, 2)
    feedback = side.results(side.convolutional_ftp.feedback_by_channel(side.operands(rows), 4))
    assert np.array_equal(feedback.reshape(3, 4, 2), np.broadcast_to(rows[:, None], (3, 4, 2))), "rows of a channel"


def model(dtype: torch.dtype = torch.float64, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """For images of 11 x 9 pixels with 2 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 2), padding="valid"),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 2), bias=False),
        activation(),
        nn.Flatten(),
        nn.Linear(48, 6),
        activation(),
        nn.Linear(6, 3),
    ).to(dtype)


def batch(n: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.randn(3, 2, 11, 9, generator=generator)
    return (centres[y] + 0.5 * torch.randn(n, 2, 11, 9, generator=generator)).to(dtype), y


@pytest.fixture
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def numpy(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().double().cpu().numpy()


def reference_network(rule: Ftp | Backprop, activation: str = "tanh") -> Any:
    side = ReferenceSide()
    layers = tuple(
        Padded(numpy(unit.weights[0]), numpy(unit.bias), activation, unit.stride, unit.padding, unit.pool)
        for unit in rule.convolutions
    )
    dense = Dense(
        tuple(numpy(block.linear.weight) for block in rule.blocks),
        tuple(numpy(block.linear.bias) for block in rule.blocks),
        (activation,) * (len(rule.blocks) - 1) + ("identity",),
    )
    return side.padded_network(Images(layers, dense))


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by_channel": False},
        {"by_channel": False, "rank": 2},
        {"rank": 1},
        {"gain": 0.5, "phi": "identity", "label_smoothing": 0.3},
    ],
    ids=["channel", "position", "rank", "both", "gain"],
)
def test_gradients_are_the_references(options: Any):
    rule = Ftp(model(), image_size=(11, 9), **options)
    x, y = batch()
    rule.assign_credit(x, y)
    feedback: Any = numpy(rule.feedback)
    if rule.by_channel and "rank" not in options:
        feedback = convolutional_ftp.feedback_by_channel(feedback, 9 * 8)
    if "rank" in options:
        rows = convolutional_ftp.feedback_by_channel(feedback, 9 * 8) if rule.by_channel else feedback
        feedback = rows, numpy(rule.feedback_right)
    table = ReferenceSide().activations.ACTIVATIONS
    expected = convolutional_ftp.updates(
        reference_network(rule),
        feedback,
        numpy(x),
        y.cpu().numpy(),
        phi=table[options.get("phi", "tanh")],
        gain=options.get("gain", 1.0),
        label_smoothing=options.get("label_smoothing", 0.0),
    )
    weights = [*(layer.weight for layer in expected.layers), *expected.dense.weights]
    biases = [*(layer.bias for layer in expected.layers), *expected.dense.biases]
    for unit, weight, bias in zip(rule.units, weights, biases, strict=True):
        assert rms(numpy(unit.weights[0].grad) - weight) <= 1e-12 * rms(weight), f"weight of {unit.name}"
        if unit.bias is None:
            assert bias is None
        else:
            assert rms(numpy(unit.bias.grad) - bias) <= 1e-12 * rms(bias), f"bias of {unit.name}"


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
def test_backprop_through_padded_convolutions_is_autograd(activation: type[nn.Module]):
    rule = Backprop(model(activation=activation))
    x, y = batch()
    loss = rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    expected = nn.functional.cross_entropy(rule.model(x), y)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-12, atol=1e-14), name


def kernel_of(rule: Ftp) -> torch.Tensor:
    """The first kernel's gradient, with the output layer put back to what it started from."""
    twin = copy.deepcopy(rule)
    with torch.no_grad():
        for parameter, start in zip(twin.parameters(), model().parameters(), strict=True):
            parameter.copy_(start)
    twin.assign_credit(*batch())
    gradient = twin.units[0].weights[0].grad
    assert gradient is not None
    return gradient


@pytest.mark.usefixtures("_ours_only")
def test_a_seed_in_place_of_the_feedback():
    """Drawn anew at each step, the same each time, nothing held, and kept by a checkpoint."""
    rule = Ftp(model(), image_size=(11, 9), seeded=True, generator=seeded(3))
    other = Ftp(model(), image_size=(11, 9), seeded=True, generator=seeded(4))
    assert "feedback" not in dict(rule.named_buffers())
    x, y = batch()

    def kernel(rule: Ftp) -> torch.Tensor:
        rule.assign_credit(x, y)
        gradient = rule.units[0].weights[0].grad
        assert gradient is not None
        return gradient

    first = kernel(rule)
    assert torch.equal(first, kernel(rule)), "the same feedback at every step"
    assert not torch.equal(first, kernel(other)), "feedback of its own"
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert torch.equal(first, kernel(other)), "the seed is in the checkpoint"
    x = x.float()
    rule.float()
    assert torch.allclose(first.float(), kernel(rule), rtol=1e-3, atol=1e-5), "the same feedback in another precision"
    held = Ftp(model(), image_size=(11, 9))
    for one, another in ((held, other), (other, held)):
        before = kernel_of(one)
        with pytest.raises(ValueError, match=r"seeded: .*, but the state was saved by a rule with"):
            one.load_state_dict(another.state_dict())
        assert torch.equal(before, kernel_of(one)), "a state that does not fit changes no feedback"


@pytest.mark.usefixtures("_ours_only")
def test_training_lowers_the_loss():
    rule = Ftp(model(torch.float32), image_size=(11, 9), scale=0.5 * 72)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.05, momentum=0.9)
    x, y = batch(64, torch.float32)
    losses = []
    for _ in range(100):
        losses.append(rule.assign_credit(x, y).item())
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_two_convolutions_learn_as_they_come(activation: type[nn.Module]):
    """With no option set; the output layer alone, on the kernels as drawn, gets no lower than 0.9 of the loss here."""
    rule = Ftp(model(torch.float32, activation), image_size=(11, 9))
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.05, momentum=0.9)
    x, y = batch(64, torch.float32)
    losses = []
    for _ in range(100):
        losses.append(rule.assign_credit(x, y).item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0], "loss"


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize("options", [{}, {"law": "normal"}, {"rank": 10}], ids=["uniform", "normal", "rank"])
def test_the_corrections_of_all_positions_sum_to_one_of_a_dense_layer(options: Any):
    """G (its first factor, of low rank) summed over positions has the mean square of a dense layer's."""
    layers = nn.Conv2d(1, 600, 3), nn.Flatten(), nn.Linear(600 * 4 * 3, 10)
    for by_channel in (True, False):
        generator = seeded(0)
        rule = Ftp(
            nn.Sequential(*layers), image_size=(6, 5), by_channel=by_channel, scale=0.7, generator=generator, **options
        )
        rows = 12 * rule.feedback if by_channel else rule.feedback.unflatten(0, (600, 12)).sum(dim=1)
        assert rows.square().mean().item() == pytest.approx(0.7**2 * 2 / 10, rel=0.2), f"by_channel: {by_channel}"


@pytest.mark.usefixtures("_ours_only")
def test_the_scores_that_are_trained_are_the_models():
    """Padding that keeps the size, an uneven kernel, and pixels left over in pooling."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, (3, 5), padding="same"), nn.ReLU(), nn.MaxPool2d(3, padding=(0, 0), dilation=(1, 1))]
    rule = Ftp(nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 3)).double(), image_size=(11, 9))
    x, y = batch()
    assert rule.assign_credit(x, y).item() == pytest.approx(rule.objective(x, y).item(), rel=1e-12), "loss"


class LeakyPool(nn.MaxPool2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = super().forward(x) - 0.1
        return pooled


BLOCK = [nn.Conv2d(2, 4, 3), nn.Tanh()]
END = [nn.Flatten(), nn.Linear(4, 2)]


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([*BLOCK, nn.AvgPool2d(2), *END], "'2': AvgPool2d; Ftp trains"),
        ([nn.Conv2d(2, 4, 3, groups=2), *END], "'0': Conv2d.*without groups and dilation"),
        ([nn.Conv2d(2, 4, 3, dilation=2), *END], "'0': Conv2d.*without groups and dilation"),
        ([nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), *END], "'0': Conv2d.*padded by zeros"),
        ([nn.Conv2d(2, 4, 4, padding="same"), *END], "'0': Conv2d.*odd kernel_size"),
        ([*BLOCK, nn.MaxPool2d(3, stride=2), *END], r"'2': MaxPool2d.*MaxPool2d\(n\)"),
        ([*BLOCK, nn.MaxPool2d((2, 3)), *END], r"'2': MaxPool2d.*MaxPool2d\(n\)"),
        ([*BLOCK, nn.MaxPool2d(2), nn.MaxPool2d(2), *END], "'3': MaxPool2d; Ftp trains"),
        ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Tanh(), *END], "'2': Tanh; Ftp trains"),
        ([*BLOCK, LeakyPool(2), *END], "'2': LeakyPool; Ftp trains"),
        ([*BLOCK, nn.Flatten(2), nn.Linear(4, 2)], "'2': Flatten.*flattened whole"),
        ([nn.Conv2d(2, 3, 3), MaxMin(), *END], "'1': MaxMin pairs channels"),
        ([*BLOCK, nn.Conv2d(3, 4, 1), *END], "'2': takes 3 channels, but gets 4"),
        ([*BLOCK, nn.Flatten(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)], "'3': Dropout after it"),
        ([OrthogonalConv2d(2, 4, 3), ScaledAvgPool2d(2), *END], "'0': OrthogonalConv2d; Ftp trains"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(layers: list[nn.Module], message: str):
    with pytest.raises(ValueError, match=message):
        Ftp(nn.Sequential(*layers), image_size=(8, 8))


@pytest.mark.usefixtures("_ours_only")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"image_size: None, expected \(height, width\) of the images"),
        ({"image_size": 8}, r"image_size: 8, expected \(height, width\)"),
        ({"image_size": (8.0, 8.0)}, r"image_size: \(8.0, 8.0\), expected"),
        ({"image_size": (1, 8, 8)}, r"image_size: \(1, 8, 8\), expected"),
        ({"image_size": (11, 9), "rank": True}, "rank: True, expected 1..3"),
        ({"image_size": (11, 9), "law": "cauchy"}, "law: 'cauchy', expected one of uniform"),
        ({"image_size": (8, 8)}, r"layer '6': takes 48 features, but images of 8 x 8 give 40 \(4 x 2 x 5\)"),
        ({"image_size": (2, 2)}, "x: 2 x 2 pixels are too few for layer '0'"),
        ({"image_size": (11, 9), "inject": 2}, "inject: 2, expected 1"),
        ({"image_size": (11, 9), "rank": 4}, "rank: 4, expected 1..3"),
        ({"image_size": (11, 9), "rank": 2, "law": "normal"}, "law: 'normal', with rank"),
    ],
)
def test_options_that_do_not_fit(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Ftp(model(), **options)


@pytest.mark.usefixtures("_ours_only")
def test_options_for_convolutions_only():
    dense = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    for options in ({"by_channel": True}, {"image_size": (2, 2)}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: .*, but the model has no convolutions"):
            Ftp(dense, **options)
    with pytest.raises(ValueError, match="model: no hidden layer; Ftp needs one"):
        Ftp(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="phi: 'maxmin' pairs units, but the first target has 3"):
        Ftp(dense, phi="maxmin")
    with pytest.raises(ValueError, match="orthogonal: True, with Conv2d"):
        Backprop(model(), orthogonal=True)
    with pytest.raises(ValueError, match=r"'0': Conv2d.*padded with zeros"):
        Foton(model())


@pytest.mark.usefixtures("_ours_only")
def test_images_of_another_size_are_refused():
    rule = Ftp(model(), image_size=(11, 9))
    with pytest.raises(ValueError, match=r"x: images of 10 x 9, expected 11 x 9"):
        rule.assign_credit(torch.zeros(2, 2, 10, 9, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
