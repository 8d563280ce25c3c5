"""A DataLoader, trained by a loop of your own and by `fit`: the same steps, bit by bit.

Run it: python data_loader.py            (about ten seconds on two cores)
Expect: twice 90.6 % of unseen digits, to a point on another machine, and the same weights: these once more from a
training that was stopped amid its third epoch and went on.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prograde.accelerated.rules import Foton
from prograde.accelerated.training import Callback, Run, fit

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)
train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*train), 32, shuffle=True, generator=torch.Generator().manual_seed(0))


def rule_of() -> Foton:
    torch.manual_seed(0)
    return Foton(nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)))


optimizer_of = partial(torch.optim.SGD, lr=0.1)

own, batches = rule_of(), loader()
optimizer = optimizer_of(own.parameters())
for _epoch in range(10):
    for samples, labels in batches:
        own.step(samples, labels, optimizer)
with torch.no_grad():
    print(f"A loop of one's own: {(own(test[0]).argmax(dim=1) == test[1]).float().mean():.1%}")

rule = rule_of()
history = fit(rule, loader(), test=test, optimizer=optimizer_of, epochs=10, alignment_every=0)
print(f"fit: {history.test_accuracy:.1%}; the same weights: {torch.equal(rule.model[0].weight, own.model[0].weight)}")


class Stop(Callback):
    def on_step(self, run: Run) -> None:
        if run.step == 2 * 47 + 20:
            raise KeyboardInterrupt  # as Ctrl-C does


with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.safetensors"
    settings = {
        "optimizer": optimizer_of,
        "epochs": 10,
        "alignment_every": 0,
        "checkpoint": file,
        "checkpoint_every": 10,
    }
    begun = fit(rule_of(), loader(), **settings, callbacks=[Stop()])
    resumed = rule_of()
    fit(resumed, loader(), **settings, resume=file)
print(f"{len(begun.epochs)} epochs, then the rest: {torch.equal(resumed.model[0].weight, own.model[0].weight)}")
