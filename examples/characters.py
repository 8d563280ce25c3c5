"""A transformer that learns to spell from a text of yours, layer by layer: no gradient leaves a block.

Run it: python characters.py [FILE] [--rule RULE] [--steps 600]     (half a minute on one core)
Expect: of PyTorch's own docstrings, 3.0 bits a character of the unseen tenth, and 2.4 by backpropagation;
        frequencies of characters need 4.8, those of pairs 3.6. Then a text of its own, with words that look familiar.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from prograde.accelerated.modules import char_transformer
from prograde.accelerated.rules import Backprop, MonoForward

RULES = {"MonoForward": partial(MonoForward, aggregation="last"), "Backprop": Backprop}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", nargs="?", type=Path, help="a text of 20,000 characters or more")
parser.add_argument("--rule", choices=RULES, default="MonoForward", help="(default: %(default)s)")
parser.add_argument("--steps", type=int, default=600, help="batches (default: %(default)s)")
given = parser.parse_args()

modules = [kind.__doc__ or "" for _, kind in sorted(vars(nn).items()) if isinstance(kind, type)]
text = given.file.read_text() if given.file else "\n".join(dict.fromkeys(modules))
characters = sorted(set(text))
code = torch.tensor([characters.index(character) for character in text])
train, unseen = code[: len(code) * 9 // 10], code[len(code) * 9 // 10 :]
CONTEXT, BATCH = 32, 32


def excerpts(source: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and, for each, the one after it: both (batch, CONTEXT)."""
    found = source[starts[:, None] + torch.arange(CONTEXT + 1)]
    return found[:, :-1], found[:, 1:]


def bits(scores: Tensor, labels: Tensor) -> float:
    """Bits a character."""
    return nn.functional.cross_entropy(scores.flatten(0, -2), labels.flatten()).item() / math.log(2)


torch.manual_seed(0)
network = char_transformer(len(characters), CONTEXT, width=64, depth=2, heads=4)
rule = RULES[given.rule](network, example=train[None, :CONTEXT])
optimizer = torch.optim.Adam(rule.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
for _step in range(given.steps):
    rule.assign_credit(*excerpts(train, torch.randint(len(train) - CONTEXT, (BATCH,))))
    optimizer.step()
    rule.constrain(optimizer)
    schedule.step()

pairs = torch.ones(len(characters), len(characters)).index_put_(
    (train[:-1], train[1:]), torch.ones(()), accumulate=True
)
x, y = excerpts(unseen, torch.arange(0, len(unseen) - CONTEXT, CONTEXT))
with torch.no_grad():
    print(f"frequencies {bits(pairs.sum(dim=0).log().expand(*y.shape, -1), y):.2f} bits a character")
    print(f"pairs       {bits(pairs.log()[x], y):.2f}")
    print(f"{given.rule:11} {bits(rule(x), y):.2f}")
    written = train[None, :CONTEXT]
    for _ in range(200):
        last = rule(written[:, -CONTEXT:])[0, -1]
        written = torch.cat([written, torch.multinomial((last / 0.7).softmax(dim=0), 1)[None]], dim=1)
print("".join(characters[i] for i in written[0, CONTEXT:]))
