"""FOTON through attention: how near its updates come to the gradient, and what it learns, on MNIST cut into patches.

An image is 16 tokens of 7 x 7 pixels: a dense layer to 32 units with tanh, two blocks of attention (four heads, all
projections orthogonal, no shortcut) and a dense layer with tanh, the mean over tokens, ten scores. 10,000 images to
train, 2,000 to test, 300 steps of 64 images, SGD with momentum 0.9 at 0.05, falling to 0 as a cosine; all weights but
those of queries, keys and scores are held orthogonal. No rate was chosen.

"foton" takes the difference of two passes, softmax included; "foton-linear" leaves out tanh and softmax, so that
attention is the mean over tokens; either way each layer has its own derivative. "frozen" trains the first layer and
the scores by backpropagation.

Every run is added to FOLDER/attention.jsonl as it ends. One that stands there already is not repeated, so that the
command goes on where it was stopped. Last it prints the tables of `attention.md`.
"""

import argparse
from collections import defaultdict
from math import cos, pi
from pathlib import Path
from statistics import mean

import torch
from resumable import Result, Run, cell, chosen, interval, markdown, paired, run_all
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from prograde.accelerated.orthogonality import bjorck, orthogonal
from prograde.accelerated.training import Dataset, load

WIDTH, HEADS, TOKENS, BLOCKS = 32, 4, 16, 2
TRAIN, TEST, BATCH, STEPS, RATE = 10_000, 2_000, 64, 300, 0.05
RULES = ("backprop", "foton", "foton-linear", "frozen")


class Attention(nn.Module):
    """Softmax attention without shortcut; `linear` is what is left of it without the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: orthogonal((WIDTH, WIDTH)) for name in "qkvo"})
        self.held = [self.weights["v"], self.weights["o"]]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(x @ self.weights[name].T) for name in "qkv")
        mixed = torch.softmax(q @ k.mT / (WIDTH / HEADS) ** 0.5, dim=-1) @ v
        return mixed.transpose(1, 2).flatten(2) @ self.weights["o"].T

    def linear(self, u: Tensor) -> Tensor:
        mixed = (u @ self.weights["v"].T @ self.weights["o"].T).mean(dim=1, keepdim=True)
        return mixed.expand(-1, u.shape[1], -1)

    def adjoint(self, d: Tensor) -> Tensor:
        mixed = (d @ self.weights["o"] @ self.weights["v"]).mean(dim=1, keepdim=True)
        return mixed.expand(-1, d.shape[1], -1)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


class Dense(nn.Module):
    """A dense layer with tanh, for each token."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"w": orthogonal((WIDTH, n_in))})
        self.held = [self.weights["w"]]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def linear(self, u: Tensor) -> Tensor:
        return u @ self.weights["w"].T

    def adjoint(self, d: Tensor) -> Tensor:
        return d @ self.weights["w"]


class Network(nn.Module):
    def __init__(self, n_in: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([Dense(n_in)])
        for _ in range(BLOCKS):
            self.layers += [Attention(), Dense(WIDTH)]
        self.scores = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.scores(x.mean(dim=1))
        return scores


def backprop(network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(cross_entropy(network(x), y), parameters), strict=True))


def foton(network: Network, x: Tensor, y: Tensor, linear: bool) -> dict[str, Tensor]:
    """F, one row a class, is the same pass backwards as the linear one forwards: tanh and softmax left out."""
    with torch.no_grad():
        inputs = [x]
        for layer in network.layers:
            inputs.append(layer(inputs[-1]))
        h = inputs[-1].mean(dim=1)
        error = torch.softmax(network.scores(h), dim=1) - one_hot(y, 10)
        rows = (network.scores.weight / TOKENS)[:, None].expand(-1, TOKENS, -1)
        for layer in reversed(network.layers):
            rows = layer.adjoint(rows)
        u = torch.tensordot(error, rows, dims=1)
    found = {"scores.weight": error.T @ h / len(x), "scores.bias": error.mean(dim=0)}
    modulated = x - u
    for index, (layer, z) in enumerate(zip(network.layers, inputs, strict=False)):
        with torch.no_grad():
            u, modulated = (layer.linear(u), modulated) if linear else (layer(z) - layer(modulated), layer(modulated))
        if isinstance(layer, Dense) and not linear:  # the paper's form, without the layer's own derivative
            found[f"layers.{index}.weights.w"] = u.flatten(0, 1).T @ z.flatten(0, 1) / len(x)
            continue
        names, parameters = zip(*layer.named_parameters(), strict=True)
        gradients = torch.autograd.grad(layer(z), parameters, u / len(x))
        found |= {f"layers.{index}.{name}": g for name, g in zip(names, gradients, strict=True)}
    return found


def updates(rule: str, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return foton(network, x, y, rule == "foton-linear") if rule.startswith("foton") else backprop(network, x, y)


def train(rule: str, seed: int, x: Tensor, y: Tensor, steps: int) -> Network:
    network = Network(x.shape[2], seed)
    frozen = network.layers[1:] if rule == "frozen" else []
    fixed = {id(p) for layer in frozen for p in layer.parameters()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if id(p) not in fixed], RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + cos(pi * step / steps)) / 2)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,))
        gradients = updates(rule, network, x[batch], y[batch])
        for name, p in network.named_parameters():
            p.grad = gradients[name]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for held in (held for layer in network.layers for held in layer.held if id(held) not in fixed):
                held.copy_(bjorck(held, 2))
    return network


def cosines(network: Network, x: Tensor, y: Tensor) -> dict[str, float]:
    """Of both passes' updates with the gradient, means by the kind of weight."""
    exact, found = backprop(network, x, y), {}
    for rule in ("foton", "foton-linear"):
        by_kind = defaultdict(list)
        for name, g in updates(rule, network, x, y).items():
            kind = dict.fromkeys("qk", "queries and keys") | dict.fromkeys("vo", "values and outputs")
            by_kind[kind.get(name[-1], "dense" if name.endswith(".w") else "scores")].append(
                torch.cosine_similarity(g.flatten(), exact[name].flatten(), dim=0).item()
            )
        found |= {f"{rule}, {kind}": mean(values) for kind, values in by_kind.items() if kind != "scores"}
    return found


def patches(x: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """(batch, 16, pixels): four rows of four squares; (batch, 16, 49) of MNIST."""
    side = image_shape[0] // 4
    return x.unflatten(1, image_shape).unfold(1, side, side).unfold(2, side, side).reshape(len(x), TOKENS, -1)


def run_of(run: Run, dataset: Dataset) -> Result:
    """Accuracy in percent, and mean cosines by pass and kind of weight at the start and at the end."""
    x, y = patches(dataset.train.images[:TRAIN], dataset.image_shape), dataset.train.labels[:TRAIN]
    x_test, y_test = patches(dataset.test.images[:TEST], dataset.image_shape), dataset.test.labels[:TEST]
    start = cosines(Network(x.shape[2], run["seed"]), x[:256], y[:256])
    network = train(run["rule"], run["seed"], x, y, run["steps"])
    right = network(x_test).argmax(dim=1) == y_test
    return {
        "accuracy": 100 * right.double().mean().item(),
        "start": start,
        "end": cosines(network, x[:256], y[:256]),
    }


def accuracies(results: list[Result]) -> str:
    """And what they are less those with the hidden layers frozen."""
    rows = [["rule", "test accuracy, %", "less frozen"]]
    frozen = chosen(results, rule="frozen")
    for rule in RULES:
        found = chosen(results, rule=rule)
        rows.append([rule, cell(found, seeds=3), interval(paired(found, frozen), 1) if rule != "frozen" else ""])
    return markdown(rows)


def alignment(results: list[Result]) -> str:
    """Of the networks that foton-linear trained."""
    found = chosen(results, rule="foton-linear")
    rows = [["pass, weights", "at the start", "after training by foton-linear"]]
    for name in found[0]["start"] if found else ():
        cells = [[{"accuracy": result[when][name]} for result in found] for when in ("start", "end")]
        rows.append([name, *(cell(each, 2) for each in cells)])
    return markdown(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of MNIST as IDX files, or 'digits'")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where results go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(arguments.data).to("cpu", torch.float32, standardise=True)
    plain = {"data": Path(arguments.data).name, "steps": arguments.steps}
    runs = [{**plain, "seed": seed, "rule": rule} for seed in arguments.seeds for rule in RULES]
    every = run_all(runs, lambda run: run_of(run, dataset), arguments.folder / "attention.jsonl")
    results = chosen(every, **plain)
    print(f"{accuracies(results)}\n\n{alignment(results)}")
