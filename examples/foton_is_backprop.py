"""FOTON is backpropagation when the network is linear, orthogonal and never wider; by how much not, otherwise.

Run it: python foton_is_backprop.py [PICTURE]     (about three seconds; saves foton_is_backprop.png)
Expect: relative errors of 3e-15 in the first row, and of 0.6 to 0.8 from the first wider layer on.
        Gaussian weights err by 1 and more, tanh by 0.5 to 0.7. The output layer is exact everywhere.
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from prograde.reference import activations, backprop, foton, layers, orthogonality

NETWORKS = {
    "never wider": [64, 48, 48, 32, 10],
    "twice as wide at the first layer": [32, 64, 64, 48, 10],
    "bottleneck, then wider": [64, 16, 48, 48, 10],
    "never wider, Gaussian weights": [64, 48, 48, 32, 10],
    "never wider, tanh": [64, 48, 48, 32, 10],
}


def compare(name: str, widths: list[int]) -> tuple[list[float], list[float]]:
    """Relative error and cosine of each layer's FOTON update with its backpropagated gradient."""
    rng = np.random.default_rng(0)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    draw = orthogonality.orthogonal if "Gaussian" not in name else gaussian
    weights = (*(draw(shape, rng) for shape in shapes[:-1]), gaussian(shapes[-1], rng))  # the output layer is free
    hidden = activations.tanh if "tanh" in name else activations.identity
    net = layers.dense_chain(weights, [None] * len(weights), [hidden] * (len(weights) - 1) + [activations.identity])
    x, labels = rng.standard_normal((128, widths[0])), rng.integers(0, widths[-1], 128)
    errors, cosines = [], []
    for (a,), (b,) in zip(foton.updates(net, x, labels), backprop.updates(net, x, labels), strict=True):
        errors.append(float(np.linalg.norm(a - b) / np.linalg.norm(b)))
        cosines.append(float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)))
    return errors, cosines


def gaussian(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape) / np.sqrt(shape[1])


figure = Figure(figsize=(9, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
for name, widths in NETWORKS.items():
    errors, cosines = compare(name, widths)
    print(f"{name:33} {'-'.join(map(str, widths)):15} relative error", *(f"{error:8.1e}" for error in errors))
    numbers = range(1, len(errors) + 1)
    left.semilogy(numbers, np.maximum(errors, 1e-17), marker="o", label=name)
    right.plot(numbers, cosines, marker="o")
left.set(title="Relative error of FOTON's update", xlabel="layer", xticks=numbers, ylim=(1e-17, 10))
right.set(title="Cosine with the backpropagated gradient", xlabel="layer", xticks=numbers, ylim=(0, 1.05))
figure.legend(loc="outside lower center", ncols=3, frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "foton_is_backprop.png", dpi=150)
