"""The counter of multiply-accumulates and bytes, held to published totals and to what is measured."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prograde.accelerated.modules import OrthogonalConv2d, RecurrentNetwork, Rotation, ScaledAvgPool2d
from prograde.accelerated.rules import RecurrentFtp
from prograde.accelerated.training import UserError, costs, layer_costs, mlp
from prograde.accelerated.training.diagnostics.memory import live_bytes


def dense(n_in: int, classes: int) -> nn.Sequential:
    return mlp(n_in, (1024, 128), classes, "relu", 0.0)


def convolutional(channels: int, pixels: int, classes: int) -> nn.Sequential:
    """A convolution of 5 x 5 without padding, pooled by 2, and one linear layer."""
    side = (pixels - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * side**2, classes, bias=False),
    )  # fmt: skip


FTP = [
    (dense(784, 10), (784,), 2_023_178),
    (dense(3072, 10), (3072,), 6_709_002),
    (dense(3072, 100), (3072,), 6_927_972),
    (convolutional(1, 28, 10), (1, 28, 28), 1_465_354),
    (convolutional(3, 32, 10), (3, 32, 32), 4_503_306),
    (convolutional(3, 32, 100), (3, 32, 32), 10_712_676),  # published: 10,712,586, with 10 outputs billed for 100
]


@pytest.mark.parametrize(("model", "shape", "macs"), FTP)
def test_published_totals_of_ftp(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert costs(model, shape)["ftp"].macs == macs


@pytest.mark.parametrize(
    ("model", "shape", "published"),
    [
        (dense(784, 10), (784,), {"backprop": 2.003, "dtp": 2.938, "pepita": 2.813, "forward-forward": 3.745}),
        (dense(3072, 10), (3072,), {"backprop": 6.689, "dtp": 9.967, "pepita": 9.865, "forward-forward": 13.117}),
        (dense(3072, 100), (3072,), {"backprop": 6.723, "dtp": 10.013, "pepita": 10.176, "forward-forward": 13.163}),
        (convolutional(1, 28, 10), (1, 28, 28), {"backprop": 1.097, "pepita": 1.565, "forward-forward": 2.138}),
        (convolutional(3, 32, 10), (3, 32, 32), {"backprop": 4.002, "pepita": 5.914, "forward-forward": 7.928}),
        (convolutional(3, 32, 100), (3, 32, 32), {"backprop": 5.695, "pepita": 7.884, "forward-forward": 10.186}),
    ],
)
def test_published_totals_of_the_others(model: nn.Module, shape: tuple[int, ...], published: dict[str, float]) -> None:
    """In millions, to the digits that are printed."""
    found = costs(model, shape)
    assert {name: round(found[name].macs / 1e6, 3) for name in published} == published


def test_layers_are_counted_one_by_one() -> None:
    """Strides, padding and groups; what is orthogonal; pooling at its inputs; other layers at nothing."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        OrthogonalConv2d(8, 6, 3), ScaledAvgPool2d(2), Rotation(6, 0.1, None, 2), nn.Flatten(),
        nn.Linear(24, 6), Rotation(6, 0.1, nn.Tanh()), nn.Linear(6, 3),
    )  # fmt: skip
    found = layer_costs(model, (4, 16, 16))
    assert [(layer.name, layer.forward, layer.update, layer.activations) for layer in found] == [
        ("0", 9 * 2 * 8 * 64, 9 * 2 * 8 * 64, 8 * 64),
        ("3", 8 * 64, 0, 8 * 16),
        ("4", 9 * 8 * 6 * 16, 9 * 8 * 6 * 16, 6 * 16),
        ("5", 6 * 16, 0, 6 * 4),
        ("6", 9 * 6 * 6 * 4, 9 * 6 * 6 * 4, 6 * 4),
        ("8", 24 * 6, 24 * 6, 6),
        ("9", 36, 36, 6),
        ("10", 18, 18, 3),
    ]
    assert next(model.parameters()).device.type == "cpu"


def test_a_recurrent_network_is_a_chain_of_steps() -> None:
    """Products with the inputs come first; neither errors nor targets go back through them."""
    batch, length, n_0, n, k = 1, 7, 3, 5, 4
    for cell, gates in (("elman", 1), ("gru", 3)):
        model = RecurrentNetwork(n_0, n, k, cell)  # type: ignore[arg-type]
        whole = length * gates * n * (n_0 + n) + n * k
        found = costs(model, (length, n_0))
        assert sum(layer.forward for layer in layer_costs(model, (length, n_0))) == whole
        assert set(found) == {"backprop", "ftp"}
        assert found["backprop"].macs == 2 * whole + (length - 1) * gates * n * n + n * k + k
        assert found["ftp"].macs == found["backprop"].macs + 2 * k * n
        assert found["ftp"].activation_bytes == 4 * (length * n + k)
        x, y = torch.randn(batch, length, n_0), torch.zeros(batch, dtype=torch.int64)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            RecurrentFtp(model).assign_credit(x, y)
        bare = found["ftp"].macs - k - n * k  # the table bills e, and takes the target through the output layer too
        assert counted.get_total_flops() == 2 * bare, "products of a step"


def test_every_layer_of_a_stack_is_counted_at_every_step() -> None:
    """A layer above takes the state of the one below at each step, and its error goes back there."""
    batch, length, n_0, n, k = 1, 7, 3, 5, 4
    for cell, gates in (("gru", 3), ("lstm", 4)):
        model = RecurrentNetwork(n_0, n, k, cell, num_layers=2)  # type: ignore[arg-type]
        each = layer_costs(model, (length, n_0))
        assert [layer.name for layer in each[:3]] == [
            f"recurrent, step {s}" for s in ("1, layer 1", "1, layer 2", "2, layer 1")
        ]
        assert sum(layer.forward for layer in each) == length * gates * n * (n_0 + 3 * n) + n * k
        x, y = torch.randn(batch, length, n_0), torch.zeros(batch, dtype=torch.int64)
        rule = RecurrentFtp(model)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            rule.assign_credit(x, y)
        bare = costs(model, (length, n_0))["ftp"].macs - k - n * k
        assert counted.get_total_flops() == 2 * bare, "products of a step"


def test_activation_bytes() -> None:
    """All of them for rules that go back or make a second pass, a neighbouring pair for those that need not wait."""
    found = costs(mlp(20, (16, 8), 4, "relu", 0.0).double(), (20,))
    assert found["backprop"].activation_bytes == found["ftp"].activation_bytes == 8 * (16 + 8 + 4)
    assert found["dtp"].activation_bytes == 2 * 8 * (16 + 8 + 4)
    assert found["drtp"].activation_bytes == found["forward-forward"].activation_bytes == 8 * (20 + 16)
    assert costs(mlp(20, (16, 8), 4, "relu", 0.0), (20,), bytes_each=1)["ftp"].activation_bytes == 28


def test_what_cannot_be_counted_is_named() -> None:
    with pytest.raises(UserError, match=r"image_shape: \(30,\) does not pass through the model"):
        costs(mlp(20, (16,), 4, "relu", 0.0), (30,))
    with pytest.raises(UserError, match="model: no layer with weights"):
        costs(nn.Sequential(nn.MaxPool2d(2), nn.PReLU()), (1, 4, 4))


def test_live_bytes_sees_what_autograd_saves() -> None:
    """Through ten layers of tanh: each result is saved, under no_grad only two are alive."""
    x = torch.randn(50, 40, requires_grad=True)
    with live_bytes([x]) as live:
        y = x
        for _ in range(10):
            y = y.tanh()
    assert live.peak == 10 * 50 * 40 * 4
    with torch.no_grad(), live_bytes([x]) as live:
        y = x
        for _ in range(10):
            y = y.tanh()
    assert live.peak == 2 * 50 * 40 * 4
