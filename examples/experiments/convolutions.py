"""FOTON through two convolutions on MNIST or a data set in its format, beside backpropagation.

The network is that of ../images.py: unshuffled by 2, OrthogonalConv2d 4 to 24, tanh, averages of 2 x 2,
OrthogonalConv2d 24 to 24, tanh, and a linear layer to the scores. SGD with momentum 0.9 and batch 64, the rate, 0.05
(backprop, whose kernels nothing holds, 0.01), falling to 0 as a cosine; the epoch is chosen on validation data.
"""

import argparse
import copy
import time
from collections.abc import Callable
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from prograde.accelerated.modules import OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.rules import Backprop, Foton
from prograde.accelerated.training import Dataset, alignment, load

RULES: dict[str, Callable[[nn.Module], Backprop | Foton]] = {
    "backprop": Backprop,
    "backprop-orthogonal": lambda model: Backprop(model, orthogonal=True),
    "foton": Foton,
    "foton-linear": lambda model: Foton(model, linear=True),
}
RATES = {"backprop": 0.01, "backprop-orthogonal": 0.05, "foton": 0.05, "foton-linear": 0.05}
BATCH = 64


def network(dataset: Dataset) -> nn.Sequential:
    height, width = dataset.image_shape
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        OrthogonalConv2d(4, 24, 3),
        nn.Tanh(),
        ScaledAvgPool2d(2),
        OrthogonalConv2d(24, 24, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24 * (height // 4) * (width // 4), dataset.num_classes),
    )


def accuracy(rule: Backprop | Foton, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        guesses = torch.cat([rule(x).argmax(dim=1) for x in images.split(500)])
    return 100 * (guesses == labels).float().mean().item()


def train(name: str, dataset: Dataset, epochs: int, seed: int) -> tuple[float, float, list[float]]:
    """Test accuracy in percent at the best epoch, seconds an epoch, and the cosine of each layer at the end."""
    torch.manual_seed(seed)
    rule = RULES[name](network(dataset))
    optimizer = torch.optim.SGD(rule.parameters(), lr=RATES[name], momentum=0.9)
    shape = (1, *dataset.image_shape)
    (x, y), (x_held, y_held), (x_test, y_test) = (
        (part.images.unflatten(1, shape), part.labels) for part in (dataset.train, dataset.validation, dataset.test)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(y) // BATCH))
    best, state, seconds = -1.0, copy.deepcopy(rule.state_dict()), 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(y)).split(BATCH):
            rule.assign_credit(x[batch], y[batch])
            optimizer.step()
            rule.constrain(optimizer)
            schedule.step()
        seconds += (time.perf_counter() - start) / epochs
        held = accuracy(rule, x_held, y_held)
        if held > best:
            best, state = held, copy.deepcopy(rule.state_dict())
    cosines = list(alignment(rule, x[:512], y[:512]).values())
    rule.load_state_dict(state)
    return accuracy(rule, x_test, y_test), seconds, cosines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST or Fashion-MNIST as IDX files, or 'digits'")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of PyTorch; by default as many as there are cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = load(arguments.data).to("cpu", torch.float32, standardise=True)
    print("| rule | test accuracy, % | seconds an epoch | cosine with backprop, layer by layer |")
    print("| --- | --- | --- | --- |", flush=True)
    for name in RULES:
        runs = [train(name, dataset, arguments.epochs, seed) for seed in arguments.seeds]
        accuracies, seconds, cosines = zip(*runs, strict=True)
        spread = f" ± {stdev(accuracies):.2f}" if len(runs) > 1 else ""
        layers = ", ".join(f"{mean(layer):.2f}" for layer in zip(*cosines, strict=True))
        print(f"| {name} | {mean(accuracies):.2f}{spread} | {mean(seconds):.1f} | {layers} |", flush=True)
