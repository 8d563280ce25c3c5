"""Numbers in place of classes: a function of ten inputs, half of them idle, learned from noisy values by four rules.

Run it: python regression.py            (ten seconds on one core)
Expect: 69.0 % of the variance of unseen values by least squares, 91 by backpropagation, DFA and FTP, and 77 by FOTON,
        whose hidden weights stay orthogonal; to one or two on another machine.
"""

import torch
from sklearn.datasets import make_friedman1
from torch import nn

from prograde.accelerated.rules import Backprop, DirectFeedbackAlignment, Foton, Ftp

x, y = (torch.tensor(part, dtype=torch.float32) for part in make_friedman1(2000, noise=1.0, random_state=0))
x, y = (x - x.mean(dim=0)) / x.std(dim=0), ((y - y.mean()) / y.std()).unsqueeze(1)  # a number a sample: (2000, 1)
train, test = slice(1500), slice(1500, None)


def explained(predicted: torch.Tensor) -> float:
    """How much of the variance of unseen values; guessing their mean explains none."""
    return 1 - ((predicted - y[test]).square().mean() / y[test].var(correction=0)).item()


print(f"{'least squares':23} {explained(x[test] @ torch.linalg.lstsq(x[train], y[train]).solution):.1%}")
for Rule in (Backprop, DirectFeedbackAlignment, Ftp, Foton):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    rule = Rule(model, loss="squared_error")
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.01, momentum=0.9)
    for _epoch in range(30):
        for batch in torch.randperm(1500).split(32):
            rule.assign_credit(x[train][batch], y[train][batch])
            optimizer.step()
            rule.constrain(optimizer)
    with torch.no_grad():
        print(f"{Rule.__name__:23} {explained(rule(x[test])):.1%} of the variance of unseen values")
