"""A training step of your own, timed beside the rules: direct feedback alignment, written by hand.

Run it: python own_step.py               (a few seconds)
Expect: a table with the rows dfa and own_step:dfa, both of which learn.

`prograde benchmark --beside stepping,own_step:dfa` does it from the shell, with PYTHONPATH naming this folder.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from prograde.accelerated.command_line.app import app


def dfa(
    model: nn.Sequential, learning_rate: float, feedback: Sequence[Tensor] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The step for Linear layers with ReLU between. `feedback`, (n_l, classes) for each hidden layer, is random."""
    *hidden, last = [module for module in model if isinstance(module, nn.Linear)]
    if feedback is None:
        feedback = [layer.weight.new_empty(len(layer.weight), len(last.weight)).uniform_(-1, 1) for layer in hidden]

    def descend(layer: nn.Linear, delta: Tensor, z: Tensor) -> None:
        layer.weight.addmm_(delta.T, z, alpha=-learning_rate)
        layer.bias.sub_(delta.sum(0), alpha=learning_rate)

    @torch.no_grad()
    def step(x: Tensor, y: Tensor) -> Tensor:
        h = [x]
        for layer in hidden:
            h.append(layer(h[-1]).relu())
        scores = last(h[-1])
        error = (scores.softmax(1) - functional.one_hot(y, scores.shape[1])) / len(x)  # (batch, classes)
        descend(last, error, h[-1])
        for layer, matrix, (before, after) in zip(hidden, feedback, pairwise(h), strict=True):
            descend(layer, (error @ matrix.T) * (after > 0), before)
        return functional.cross_entropy(scores, y)

    return step


if __name__ == "__main__":
    network = ["--network", "64-128-64-10", "--data", "digits", "--learning-rate", "0.02", "--steps", "300"]
    app(["benchmark", *network, "--rules", "dfa", "--beside", "own_step:dfa"])
